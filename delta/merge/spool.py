"""A scratch file that tensors are written to run by run and read back from: a merged model need not fit in memory."""

from __future__ import annotations

import mmap
import os
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from aios_node.delta.disk import disk_errors
from aios_node.engine.quant.dtypes import count_of, dtype_of, from_bytes, raw_bytes

ALIGNED = 64


@dataclass(frozen=True)
class Place:
    """Where a tensor lies in a spool."""

    start: int
    dtype: str
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Bytes of the tensor."""
        return count_of(self.shape) * dtype_of(self.dtype).itemsize

    def tensor(self, mapped: mmap.mmap | bytes) -> NDArray[Any]:
        """The tensor, as a view of the mapped file."""
        if self.nbytes == 0:
            return np.empty(self.shape, dtype_of(self.dtype))
        return from_bytes(np.frombuffer(mapped, np.uint8, self.nbytes, self.start), self.dtype, self.shape)


class Spool:
    """Tensors on disk. The file belongs to the spool and is removed at once: it lives as long as it is open."""

    def __init__(self, folder: Path) -> None:
        """Raises StorageError or StorageFull, as all that writes here does."""
        self._folder = folder
        self._end = 0
        with disk_errors(folder, "merge in"):
            path = folder / "merged.tmp"
            self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            path.unlink()

    def reserve(self, dtype: str, shape: tuple[int, ...]) -> Place:
        """Room for a tensor."""
        place = Place(self._end, dtype, shape)
        self._end += -(-place.nbytes // ALIGNED) * ALIGNED
        return place

    def write(self, start: int, values: NDArray[Any]) -> None:
        """Put a run of numbers at a place, in bytes."""
        data = raw_bytes(values).data
        with disk_errors(self._folder, "merge in"):
            while data:
                count = os.pwrite(self._descriptor, data, start)
                data, start = data[count:], start + count

    def map(self) -> mmap.mmap | bytes:
        """All that was written, mapped, read-only; what lies in it stays valid when the spool is closed."""
        with disk_errors(self._folder, "merge in"):
            size = os.fstat(self._descriptor).st_size
            return mmap.mmap(self._descriptor, size, access=mmap.ACCESS_READ) if size else b""

    def close(self) -> None:
        """Let go of the file."""
        os.close(self._descriptor)

    def __enter__(self) -> Spool:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
