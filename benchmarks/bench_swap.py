"""Encode requests while the model is swapped: the slowest around a swap against the slowest without one."""

from __future__ import annotations

import shutil
import statistics
import tempfile
import threading
import time
from pathlib import Path

import numpy as np

from aios_node.engine.runtime.engine import ArrowEngine
from aios_node.engine.runtime.executor import DeviceExecutor
from aios_node.engine.weights.convert.huggingface import import_folder
from aios_node.engine.weights.folder import write_folder

ROOT = Path(__file__).resolve().parent.parent
SWAPS = 7
WINDOW_S = 1.0
TEXTS = ["how do I copy a directory tree", "wait for several threads"]


def run() -> dict[str, object]:
    """Two threads ask without a pause; every other window of a second has a swap in it."""
    folder = Path(tempfile.mkdtemp(prefix="aios-bench-"))
    try:
        source = import_folder(ROOT / ".cache" / "minilm")
        write_folder(folder / "a", source.weights, source.files)
        changed = {
            name: np.asarray(t) * np.float32(1.001) if "query.weight" in name else t
            for name, t in source.weights.items()
        }
        write_folder(folder / "b", changed, source.files)
        return measure(folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def measure(folder: Path) -> dict[str, object]:
    """Slowest request of each window, in milliseconds."""
    stop, failures = threading.Event(), [0]
    times: list[tuple[float, float]] = []
    with ArrowEngine.open(folder / "a", device="cpu") as engine, DeviceExecutor() as executor:

        def ask() -> None:
            while not stop.is_set():
                began = time.perf_counter()
                try:
                    executor.submit_encode(engine, TEXTS).result()
                except Exception:
                    failures[0] += 1
                times.append((began, time.perf_counter() - began))

        threads = [threading.Thread(target=ask) for _ in range(2)]
        for thread in threads:
            thread.start()
        time.sleep(WINDOW_S)
        windows: dict[bool, list[float]] = {True: [], False: []}
        for number in range(2 * SWAPS):
            began = time.perf_counter()
            if swap := bool(number % 2):
                engine.swap(folder / "ab"[(number // 2 + 1) % 2])
            time.sleep(max(0.0, WINDOW_S - (time.perf_counter() - began)))
            windows[swap].append(1000 * max(took for at, took in list(times) if at + took >= began))
        stop.set()
        for thread in threads:
            thread.join()
    during, without = statistics.median(windows[True]), statistics.median(windows[False])
    return {
        "requests": len(times),
        "failed": {"value": failures[0], "target": "0"},
        "slowest around a swap": {"value": round(during, 1), "unit": "ms"},
        "slowest without": {"value": round(without, 1), "unit": "ms"},
        "ratio": {"value": round(during / without, 2)},
    }
