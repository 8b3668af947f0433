"""Small state files written so that a crash leaves the old or the new content, never half of it."""

from __future__ import annotations

import errno
import json
import os
import tempfile
from pathlib import Path
from typing import Any

from aios_node.engine.errors import AiosError, Corrupt, StorageError, StorageFull

MAX_STATE_BYTES = 16 << 20


def storage_error(error: OSError, path: Path) -> AiosError:
    """The error class for what the disk said."""
    if error.errno in {errno.ENOSPC, errno.EDQUOT}:
        return StorageFull(f"the disk is full: {path} was not written; free some space and try again")
    return StorageError(f"{path}: {error.strerror or error}; check that the folder exists and may be written")


def write_atomic(path: Path, data: bytes, *, mode: int = 0o644) -> None:
    """Replace ``path`` by ``data``, durably. Raises StorageFull or StorageError."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        try:
            with os.fdopen(descriptor, "wb") as file:
                os.fchmod(file.fileno(), mode)
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            Path(temporary).replace(path)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise
        sync_folder(path.parent)
    except OSError as error:
        raise storage_error(error, path) from None


def sync_folder(folder: Path) -> None:
    """Make renames in ``folder`` durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_json(path: Path, value: Any, *, mode: int = 0o644) -> None:
    """Replace ``path`` by ``value`` as JSON, durably."""
    write_atomic(path, json.dumps(value, indent=1, sort_keys=True).encode() + b"\n", mode=mode)


def read_json(path: Path, default: Any) -> Any:
    """The JSON in ``path``, or ``default`` where there is no file. Raises Corrupt or StorageError."""
    try:
        if path.stat().st_size > MAX_STATE_BYTES:
            raise Corrupt(f"{path} is larger than any state file of a node")
        return json.loads(path.read_bytes())
    except FileNotFoundError:
        return default
    except ValueError:
        raise Corrupt(f"{path} is not JSON: restore it or remove it") from None
    except OSError as error:
        raise storage_error(error, path) from None
