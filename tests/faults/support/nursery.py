"""Forks whole nodes, so that one lives again 40 ms after it was killed. Run as a program, one per node.

A child runs ``serve``: everything that ``aios-node run`` does after its imports, on the same folder, with the
same listeners. One thing differs: jobs run inside the node's process instead of in spawned workers, because a
fresh interpreter per life would cost a second or more; so a kill in the middle of encoding kills the node too.

Commands are JSON lines: ``start`` (answered when the node is ready), ``kill``, ``wait``.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.flight  # noqa: F401 - loaded before the first fork, as everything here
from kill_points import ControlBlock
from killer import Killer, install, run_job

from aios_node import delta
from aios_node.delta.package import package as _package  # noqa: F401
from aios_node.engine.weights.convert import detect as _detect  # noqa: F401
from aios_node.node import core, service
from aios_node.node.config.load import load_config


class InsideWorkers:
    """``Workers`` without processes."""

    def __init__(self, killer: Killer | None) -> None:
        self._killer = killer

    def run(self, job: Callable[..., Any], *args: Any, progress: Any = None) -> Any:
        return run_job(self._killer, job, args, progress)

    def warm(self) -> None:
        """There is nothing to start."""

    def close(self) -> None:
        """There is nothing to end."""


def warm_codec() -> None:
    """Compile what the codec compiles once, before the forks that would each do it again."""
    random = np.random.default_rng(0)
    base = {"f": random.normal(size=4096).astype(np.float32), "b": random.integers(0, 256, 4096, dtype=np.uint8)}
    target = {name: np.where(random.random(4096) < 0.1, values[::-1], values) for name, values in base.items()}
    delta.apply(base, delta.encode(base, target))


def live(command: dict[str, Any], pipe: int) -> None:
    """The child: one life of a node."""
    os.dup2(pipe, 1)
    log = os.open(command["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.dup2(log, 2)
    sys.stdout = os.fdopen(1, "w", closefd=False)
    killer = None
    if command.get("control"):
        killer = Killer(ControlBlock(Path(command["control"])))
        install(killer, Path(command["arrivals"]))
    core.Workers = lambda *_args: InsideWorkers(killer)  # type: ignore[assignment,misc]
    config = load_config(Path(command["config"]), environ={}, overrides=command["overrides"])
    os._exit(service.serve(config))


def start(command: dict[str, Any]) -> tuple[int, str]:
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(reading)
        try:
            live(command, writing)
        finally:
            os._exit(1)
    os.close(writing)
    with os.fdopen(reading, "r") as lines:
        return pid, lines.readline().strip()


def wait(pid: int, seconds: float) -> int | None:
    """The exit code, negative for a signal; None while it lives on."""
    until = time.monotonic() + seconds
    while True:
        found, status = os.waitpid(pid, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() > until:
            return None
        time.sleep(0.001)


def main() -> None:
    warm_codec()
    pid = 0
    for line in sys.stdin:
        command = json.loads(line)
        answer: dict[str, Any] = {}
        if command["do"] == "start":
            pid, answer["ready"] = start(command)
            answer["pid"] = pid
        elif command["do"] == "kill":
            os.kill(pid, command.get("signal", signal.SIGKILL))
        elif command["do"] == "wait":
            answer["exit"] = wait(pid, command["seconds"])
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
