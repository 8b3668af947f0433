"""Calibration sets kept on disk by the hash of their texts, so that a resumed run sees the very same ones.

One file per set, written whole or not at all; the sets that were unused for the longest time go. Knows nothing
about where sets come from, except that the standard library's takes seconds to read.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import tempfile
import time
from pathlib import Path
from typing import Any

from aios_node.engine.calibration.sets import CalibrationSet, checked_limit
from aios_node.engine.calibration.stdlib import library_folder, sources_stamp, standard_library
from aios_node.engine.errors import BadRequest, Corrupt, NotFound
from aios_node.engine.weights.disk import disk_errors, read_file, sync_file, sync_folder

MAX_ENTRIES = 16
_MAX_SET_BYTES = 2**30
_POINTER_BYTES = 64
_STALE_SECONDS = 3600.0
_HASH = re.compile(r"[0-9a-f]{64}")


class CalibrationCache:
    """A folder of calibration sets. Several processes may use it at once."""

    def __init__(self, folder: Path, *, max_entries: int = MAX_ENTRIES) -> None:
        if max_entries < 1:
            raise BadRequest(f"a cache of {max_entries} calibration sets holds nothing; at least 1 is needed")
        self.folder = Path(folder)
        self._max_entries = max_entries

    def put(self, texts: CalibrationSet) -> str:
        """Keep a set; returns its hash. Raises StorageFull, StorageError."""
        said = {"source": texts.source, "files": dict(texts.files), "texts": list(texts.texts)}
        self._write(f"{texts.sha256}.json", json.dumps(said).encode("ascii"))
        self._forget_old()
        return texts.sha256

    def get(self, sha256: str) -> CalibrationSet:
        """The set with this hash. Raises NotFound, Corrupt (the file was changed), BadRequest (no hash)."""
        path = self.folder / f"{_checked(sha256)}.json"
        if not path.is_file():
            raise NotFound(f"no calibration set {sha256} is kept in {self.folder}; prepare it again from its texts")
        found = _set_of(path, read_file(path, _MAX_SET_BYTES))
        if found.sha256 != sha256:
            raise Corrupt(f"{path} holds other texts than its name says; delete it and prepare them again")
        with contextlib.suppress(OSError):  # a folder that cannot be written still answers
            os.utime(path)
        return found

    def standard_library(self, limit: int | None = None, *, folder: Path | None = None) -> CalibrationSet:
        """What stdlib.standard_library gives: read once, then kept until Python's sources change."""
        if limit is not None:
            checked_limit(limit)
        folder = library_folder() if folder is None else folder
        pointer = f"{sources_stamp(folder)}.key"
        found = self._pointed(pointer)
        if found is None:
            found = standard_library(folder=folder)
            self._write(pointer, self.put(found).encode("ascii"))
        return found.first(limit)

    def _pointed(self, pointer: str) -> CalibrationSet | None:
        try:
            return self.get(read_file(self.folder / pointer, _POINTER_BYTES).decode("ascii", "replace"))
        except (NotFound, Corrupt, BadRequest):
            return None

    def _write(self, name: str, data: bytes) -> None:
        with disk_errors(self.folder, "write calibration texts to"):
            self.folder.mkdir(parents=True, exist_ok=True)
            handle, temporary = tempfile.mkstemp(prefix=".new-", dir=self.folder)
            try:
                with os.fdopen(handle, "wb") as file:
                    file.write(data)
                    sync_file(file)
                Path(temporary).replace(self.folder / name)
            except BaseException:
                Path(temporary).unlink(missing_ok=True)
                raise
            sync_folder(self.folder)

    def _forget_old(self) -> None:
        """Remove the sets beyond the limit, pointers likewise, and what killed writers left."""
        for pattern in ("*.json", "*.key"):
            kept = sorted(self.folder.glob(pattern), key=_time_of, reverse=True)
            for path in kept[self._max_entries :]:
                path.unlink(missing_ok=True)
        for path in self.folder.glob(".new-*"):
            if time.time() - _time_of(path) > _STALE_SECONDS:
                path.unlink(missing_ok=True)


def _time_of(path: Path) -> float:
    """When a file was last used; the beginning of time for one that is gone."""
    try:
        return path.stat().st_mtime_ns / 1e9
    except FileNotFoundError:
        return 0.0


def _checked(sha256: str) -> str:
    if not isinstance(sha256, str) or not _HASH.fullmatch(sha256):
        raise BadRequest(f"{str(sha256)[:80]!r} is not the hash of a calibration set: 64 hexadecimal digits are")
    return sha256


def _set_of(path: Path, data: bytes) -> CalibrationSet:
    try:
        raw: Any = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise Corrupt(f"{path}: not valid JSON: {str(error)[:120]}") from None
    texts, files = (raw.get("texts"), raw.get("files")) if isinstance(raw, dict) else (None, None)
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts) or not isinstance(files, dict):
        raise Corrupt(f"{path} is not a calibration set; delete it and prepare the texts again")
    return CalibrationSet.of(texts, str(raw.get("source", path)), files)
