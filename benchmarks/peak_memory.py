"""What a fresh process holds at most while it encodes one text of 256 tokens: run as ``peak_memory.py FOLDER MODE``.

Prints JSON: mebibytes after importing, at most after encoding with a toy model (the libraries' own start: code that is
mapped in, thread pools, compilers), and at most after the model in FOLDER.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path


def peak_mib() -> float:
    """Highest resident memory so far."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


def main(folder: str, mode: str, toy: str) -> None:
    """Measure; without a ``toy`` only the model itself."""
    import aios_node.engine.nets  # torch's threads are told how to wait before torch is there

    _ = aios_node.engine.nets
    import numba
    import pyarrow.parquet
    import torch

    from aios_node.engine.runtime.engine import ArrowEngine

    _ = (numba, pyarrow.parquet)
    torch.set_num_threads(1)
    found = {"imports": peak_mib()}
    text = "word " * 400
    for name, path in (("started", toy), ("peak", folder)):
        if path:
            with ArrowEngine.open(path, device="cpu", mode=mode) as engine:
                engine.snapshot.warm_up()
                engine.encode([text])
        found[name] = peak_mib()
    print(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:4])
