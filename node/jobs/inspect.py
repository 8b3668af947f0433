"""What changed between two versions."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from aios_node.engine.quant.blocks import QuantizedTensor

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from aios_node.engine.quant.blocks import Tensor
    from aios_node.engine.weights.folder import VersionFolder

Progress = Callable[[float, str], None]


@dataclass(frozen=True)
class DiffJob:
    """An older and a newer version."""

    base: Path
    target: Path


def diff(job: DiffJob, progress: Progress) -> dict[str, Any]:
    """What changed tensor by tensor, and the sizes of the delta and of a full copy on the wire."""
    from aios_node.delta.codec.diff import encode_to
    from aios_node.engine.weights.folder import read_folder

    base, target = read_folder(job.base), read_folder(job.target)
    counter = _Counter()
    with ExitStack() as stack:
        old, new = stack.enter_context(base.weights()), stack.enter_context(target.weights())
        encode_to(old, new, counter, progress=lambda done, size: progress(done / max(size, 1), "encoding"))
        changed = [name for name in new if _hash(base, name) != _hash(target, name)]
        tensors = [_change(name, old.get(name), new[name]) for name in changed]
    full = target.manifest.nbytes
    changed_bytes = sum(target.manifest.entries[name].nbytes for name in changed)
    return {
        "tensors": tensors,
        "delta_bytes": counter.count,
        "full_bytes": full,
        "changed_bytes": changed_bytes,
        "ratio": full / max(counter.count, 1),
        "changed_ratio": changed_bytes / max(counter.count, 1),
    }


class _Counter:
    """A file that only counts."""

    def __init__(self) -> None:
        self.count = 0

    def write(self, data: bytes | memoryview) -> int:
        self.count += len(data)
        return len(data)


def _hash(folder: VersionFolder, name: str) -> str | None:
    entry = folder.manifest.entries.get(name)
    return entry.sha256 if entry else None


def _change(name: str, old: Tensor | None, new: Tensor) -> dict[str, Any]:
    """Share of values that differ, and the norm of the difference relative to the old norm."""
    if old is None or old.shape != new.shape:
        return {"name": name, "mode": "new", "changed": 1.0, "relative_change": 1.0}
    before, after = _values(old), _values(new)
    norm = float(np.linalg.norm(before)) or 1.0
    return {
        "name": name,
        "mode": "delta",
        "changed": float(np.mean(before != after)) if before.size else 0.0,
        "relative_change": float(np.linalg.norm(after - before)) / norm,
    }


def _values(tensor: Tensor) -> NDArray[np.float64]:
    plain = tensor.dequantize() if isinstance(tensor, QuantizedTensor) else tensor
    return np.asarray(plain, dtype=np.float64)
