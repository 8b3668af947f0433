"""What a process needs beside inputs and outputs while it encodes and applies a delta: run as ``delta_memory.py``.

``memory``: both versions and the result as arrays. ``files``: both versions as folders on disk, mapped, the delta and
the result as files, tensor by tensor: the form for stores larger than memory. There only memory that no file stands
behind counts. Prints JSON: MiB at most beyond what the process held before, less the outputs that are in memory then:
all of them in the first form, one tensor in the second.
"""

from __future__ import annotations

import io
import json
import re
import sys
import tempfile
import threading
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
from delta_pairs import synthetic

from aios_node import delta
from aios_node.engine.quant.blocks import Tensor
from aios_node.engine.weights.folder import read_folder, write_folder

DENSITY = 0.01
SIDES = {"bfloat16": 8, "float32": 4}
"""How many times the synthetic tensor is laid end to end: 64 MiB per tensor and version."""
TENSORS = 2
MIB = 2**20
_EVERY = 0.002
_STATUS = Path("/proc/self/status")

Weights = dict[str, Tensor]


def held(field: str) -> float:
    """A field of this process's status in MiB."""
    found = re.search(rf"^{field}:\s+(\d+) kB$", _STATUS.read_text(encoding="ascii"), re.MULTILINE)
    if found is None:
        raise RuntimeError(f"this system does not tell {field}: measure on Linux")
    return int(found[1]) / 1024


def highest(work: Callable[[], object], outputs: Callable[[], int]) -> float:
    """MiB that the process held at most during the work beyond before, less the bytes of its outputs."""
    before = held("VmRSS")
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    work()
    return held("VmHWM") - before - outputs() / MIB


def highest_unmapped(work: Callable[[], object], output: int) -> float:
    """As ``highest``, of memory that no file stands behind; looked at every two milliseconds."""
    before, most, done = held("RssAnon"), 0.0, threading.Event()

    def watch() -> None:
        nonlocal most
        while not done.wait(_EVERY):
            most = max(most, held("RssAnon"))

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        work()
    finally:
        done.set()
        watcher.join()
    return max(0.0, most - before - output / MIB)


def weights(precision: str) -> tuple[Weights, Weights]:
    """Tensors of 64 MiB, before and after."""
    pair = synthetic(precision, DENSITY)
    base, target = (np.tile(np.asarray(each), (SIDES[precision], 1)) for each in (pair.base, pair.target))
    return {f"{n}": base.copy() for n in range(TENSORS)}, {f"{n}": target.copy() for n in range(TENSORS)}


def in_memory(precision: str) -> dict[str, float]:
    """``delta.encode`` and ``delta.apply``."""
    base, target = weights(precision)
    _warm_up(precision)
    made: list[bytes] = []
    result: list[Mapping[str, Tensor]] = []
    encode = highest(lambda: made.append(delta.encode(base, target)), lambda: len(made[0]))
    apply = highest(
        lambda: result.append(delta.apply(base, made[0])), lambda: sum(t.nbytes for t in result[0].values())
    )
    return {"encode": round(encode, 1), "apply": round(apply, 1)}


def from_files(precision: str) -> dict[str, float]:
    """``delta.encode_to`` and ``delta.apply_from``."""
    with tempfile.TemporaryDirectory() as scratch:
        folders = [Path(scratch) / side for side in ("base", "target")]
        for folder, tensors in zip(folders, weights(precision), strict=True):
            write_folder(folder, tensors, {})
            tensors.clear()
        base, target = (read_folder(folder).weights() for folder in folders)
        tensor_bytes = max(entry.nbytes for entry in read_folder(folders[1]).manifest.tensors)
        _warm_up(precision)
        path = Path(scratch) / "delta"
        encode = highest_unmapped(lambda: _encode(base, target, path), 0)
        apply = highest_unmapped(lambda: _apply(base, path, Path(scratch) / "result"), tensor_bytes)
    return {"encode": round(encode, 1), "apply": round(apply, 1)}


def _encode(base: Mapping[str, Tensor], target: Mapping[str, Tensor], path: Path) -> None:
    with path.open("wb") as out:
        delta.encode_to(base, target, out)


def _apply(base: Mapping[str, Tensor], path: Path, result: Path) -> None:
    with path.open("rb") as source, result.open("wb") as out:
        for _, tensor in delta.apply_from(base, source):
            out.write(np.ascontiguousarray(tensor).reshape(-1).view(np.uint8).data)
            del tensor  # or it would stay while the next one is made


def _warm_up(precision: str) -> None:
    """Compilers and thread pools start before anything is measured."""
    pair = synthetic(precision, DENSITY, 2**16)
    base, target = {"weights": pair.base}, {"weights": pair.target}
    out = io.BytesIO()
    delta.encode_to(base, target, out)
    delta.apply(base, out.getvalue())


def main(form: str, precision: str) -> None:
    """Measure one form."""
    print(json.dumps({"memory": in_memory, "files": from_files}[form](precision)))


if __name__ == "__main__":
    main(*sys.argv[1:3])
