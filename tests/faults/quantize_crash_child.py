"""Quantises a version folder until it is killed. Run as a program by ``test_quantize_faults.py``.

It reads one JSON command per line and forks a child for each, so that a round costs no interpreter's start. The child
kills itself when its progress was reported for the n-th time; its exit status goes to stdout, -9 means killed.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
from pathlib import Path
from typing import Any

import torch

from aios_node.engine.tuning import endtoend
from aios_node.node import jobs

endtoend.SAVE_EVERY = 4


def quantize(command: dict[str, Any]) -> int:
    """One run of the job; returns how often it reported progress."""
    root, reports = Path(command["root"]), 0
    shutil.rmtree(root / "out", ignore_errors=True)

    def count(_part: float, _what: str) -> None:
        nonlocal reports
        reports += 1
        if reports == command["kill_at"]:
            os.kill(os.getpid(), signal.SIGKILL)

    (root / "out").mkdir(parents=True)
    job = jobs.QuantizeJob(
        Path(command["source"]),
        root / "out",
        command["recipe"],
        None,
        (),
        None,
        root / "scratch",
        Path(command["texts"]),
    )
    jobs.quantize(job, count)
    return reports


def main() -> None:
    torch.set_num_threads(1)
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            print(json.dumps({"reports": quantize(json.loads(line))}), flush=True)
            os._exit(0)
        _, status = os.waitpid(child, 0)
        print(json.dumps({"exit": os.waitstatus_to_exitcode(status)}), flush=True)


if __name__ == "__main__":
    main()
