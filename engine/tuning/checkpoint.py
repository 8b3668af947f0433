"""Where a long quantisation stands, on disk: named arrays under the key of the work that they belong to.

A file appears whole or not at all, so work that was killed goes on from the last one. Arrays only: nothing
in a file is ever executed. Knows nothing of what the arrays mean.
"""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from aios_node.engine.weights.disk import disk_errors, sync_file

Arrays = Mapping[str, NDArray[Any]]


@dataclass(frozen=True)
class Checkpoints:
    """Files in one folder that belongs to one piece of work; ``folder`` None keeps nothing."""

    folder: Path | None

    def load(self, name: str) -> dict[str, NDArray[Any]] | None:
        """The arrays that were saved under this name; None where there are none, or a damaged file."""
        path = self._path(name)
        if path is None or not path.exists():
            return None
        try:
            with path.open("rb") as file, np.load(file, allow_pickle=False) as stored:
                return {key: stored[key] for key in stored.files}
        except (ValueError, OSError, EOFError, KeyError, zipfile.BadZipFile):
            return None  # made again

    def save(self, name: str, arrays: Arrays) -> None:
        """Keep arrays under this name, in place of what was there. Raises StorageError."""
        path = self._path(name)
        if path is None:
            return
        with disk_errors(path, "write"):
            path.parent.mkdir(parents=True, exist_ok=True)
            part = path.with_suffix(".part")
            with part.open("wb") as file:
                np.savez(file, allow_pickle=False, **arrays)
                sync_file(file)
            part.replace(path)

    def _path(self, name: str) -> Path | None:
        return None if self.folder is None else self.folder / f"{name}.npz"
