"""How fast commands answer and a node without a model is ready."""

from __future__ import annotations

import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from aios_node.node.demo.processes import DemoNode

RUNS = 9


def seconds(command: Sequence[str]) -> float:
    """One whole process."""
    started = time.perf_counter()
    subprocess.run(command, check=True, capture_output=True)
    return time.perf_counter() - started


def median(command: Sequence[str]) -> float:
    """Median over the runs, after one to warm up."""
    seconds(command)
    return round(statistics.median(seconds(command) for _ in range(RUNS)), 3)


def ready(node: DemoNode) -> float:
    """From the start of the process to its line `ready`."""
    started = time.perf_counter()
    node.start(details=False)
    found = time.perf_counter() - started
    node.stop()
    return found


def run() -> dict[str, object]:
    """Medians of whole processes, with Python's own start beside them."""
    folder = Path(tempfile.mkdtemp(prefix="aios-bench-"))
    command = [sys.executable, "-m", "aios_node.node"]
    node = DemoNode("bench", "local", folder / "node")
    try:
        node.init("off")
        stopped = median([*command, "status", "-c", str(node.config)])
        start = statistics.median(ready(node) for _ in range(5))
        node.start()
        running = median([*command, "status", "-c", str(node.config)])
        return {
            "python -c pass": {"value": median([sys.executable, "-c", "pass"]), "unit": "s"},
            "aios-node --help": {"value": median([*command, "--help"]), "unit": "s", "target": "< 0.3 s"},
            "aios-node status, node running": {"value": running, "unit": "s", "target": "< 0.3 s"},
            "aios-node status, node stopped": {"value": stopped, "unit": "s"},
            "aios-node run until ready, no model": {"value": round(start, 3), "unit": "s", "target": "< 1.5 s"},
        }
    finally:
        node.stop()
        shutil.rmtree(folder, ignore_errors=True)
