"""What lossy versions of this node lack, kept for the next ones: private, and never served to anyone.

    residuals/MODEL/VERSION/    a folder of float32 tensors: what MODEL's VERSION lacks

A residual is of use to the version that it belongs to, and to no other: it is dropped as soon as somebody asks on
behalf of another one. Losing it costs no correctness; the loss of one update is then not made up for.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from aios_node.delta.disk import fresh_folder, make_folder, remove_folder
from aios_node.delta.names import check_model, check_version
from aios_node.engine.errors import Corrupt, NotFound
from aios_node.engine.weights.disk import sync_folder
from aios_node.engine.weights.folder import MANIFEST, read_folder
from aios_node.node.files import storage_error

PRIVATE: Final = "private"
"""Whether all that a residual was made of had noise: only then may it enter a version that promises privacy."""
_BUILDING: Final = ".new-"


class Residuals:
    """The residuals of a node, one per model at most. One process; threads may ask at the same time."""

    def __init__(self, folder: Path) -> None:
        """Creates the folder, readable by its owner alone, and sweeps what a crash left behind."""
        self._folder, self._lock = folder, threading.Lock()
        try:
            make_folder(folder).chmod(0o700)
            for left in folder.glob(f"{_BUILDING}*"):
                remove_folder(left)
        except OSError as error:
            raise storage_error(error, folder) from None

    @contextlib.contextmanager
    def workspace(self) -> Iterator[Path]:
        """An empty folder to write the next residual into."""
        try:
            folder = fresh_folder(self._folder, _BUILDING)
        except OSError as error:
            raise storage_error(error, self._folder) from None
        try:
            yield folder
        finally:
            remove_folder(folder)

    def find(self, model: str, version: str, *, private: bool = False) -> Path | None:
        """The residual that belongs to a version, if there is one; those of other versions are dropped.

        With ``private``, one that was made without noise does not count.
        """
        with self._lock:
            self._drop(model, version)
            found = self._path(model, version)
            try:
                recipe = read_folder(found).manifest.recipe or {}
            except NotFound:
                return None
            except Corrupt:
                remove_folder(found)
                return None
            return found if recipe.get(PRIVATE) is True or not private else None

    def keep(self, model: str, version: str, made: Path) -> None:
        """Take a workspace as what this version lacks, in place of any other; an empty one is nothing. Durable."""
        final = self._path(model, version)
        try:
            with self._lock:
                self._drop(model, None)
                if (made / MANIFEST).is_file():
                    make_folder(final.parent)
                    made.rename(final)
                    sync_folder(final.parent)
        except OSError as error:
            raise storage_error(error, final) from None

    def _drop(self, model: str, but: str | None) -> None:
        folder = self._folder / check_model(model)
        for entry in folder.iterdir() if folder.is_dir() else ():
            if entry.name != but:
                remove_folder(entry)

    def _path(self, model: str, version: str) -> Path:
        return self._folder / check_model(model) / check_version(version)
