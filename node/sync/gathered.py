"""Packages that several sessions receive together: one open transfer for all of them, and what is known of its chunks.

The last session that leaves closes the transfer; what is staged stays for the next. Thread-safe. Which chunk is asked
of whom is decided elsewhere (``delta.swarm``).
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from aios_node.delta.chunks import TransferKey, chunk_size
from aios_node.delta.offers import PackageInfo
from aios_node.delta.staging.staging import Staging
from aios_node.delta.staging.transfer import Transfer
from aios_node.delta.swarm.description import Description, chunk_hashes
from aios_node.engine.errors import Busy, NoBase, TransferAborted

DESCRIPTIONS_KEPT: Final = 64

Missing = tuple[tuple[int, int], ...]


@dataclass
class _Open:
    """``lock`` is held while files are read and written, so that other packages go on meanwhile."""

    transfer: Transfer
    users: int = 0
    checked: bool = False
    lock: threading.Lock = field(default_factory=threading.Lock)


class Gathered:
    """The shared transfers of one node."""

    def __init__(self, staging: Staging) -> None:
        self._staging = staging
        self._lock = threading.Lock()
        self._open: dict[TransferKey, _Open] = {}

    def enter(self, key: TransferKey, description: Description) -> Missing:
        """Take part in receiving a package; the chunks that are not here. ``leave`` once for every ``enter``.

        What is staged from before and does not have the described hashes counts as missing. Raises Busy while another
        package is received under this key, and what ``Staging.open`` raises.
        """
        with self._lock:
            entry = self._open.get(key)
            if entry is None:
                entry = self._open[key] = _Open(self._staging.open(key, description.package))
            elif entry.transfer.sha256 != description.package.sha256:
                raise Busy(f"another package of {key.model} is being received")
            entry.users += 1
        try:
            return self._look(entry, description)
        except BaseException:
            self.leave(key)
            raise

    def _look(self, entry: _Open, description: Description) -> Missing:
        with entry.lock:
            if not entry.checked:
                entry.transfer.keep(description.holds)
                entry.checked = True
            return entry.transfer.missing()

    def write(self, key: TransferKey, index: int, data: bytes | memoryview) -> None:
        """Stage a chunk. Raises TransferAborted where the package was thrown away meanwhile."""
        entry = self._entry(key)
        with entry.lock:
            entry.transfer.write(index, data)

    def assemble(self, key: TransferKey) -> Path:
        """The whole package as a file, verified. Raises HashMismatch, ProtocolError."""
        entry = self._entry(key)
        with entry.lock:
            return entry.transfer.assemble()

    def file(self, key: TransferKey, package: PackageInfo) -> Path | None:
        """Where the chunks of a package lie that is, or was, on its way in; None where they do not any more."""
        return self._staging.data_path(key, package)

    def discard(self, key: TransferKey) -> None:
        """Forget what is staged; sessions that still take part find nothing more to do."""
        with self._lock:
            entry = self._open.pop(key, None)
        if entry is None:
            self._staging.discard(key)
            return
        with entry.lock:
            entry.transfer.discard()

    def leave(self, key: TransferKey) -> None:
        """A session is over."""
        with self._lock:
            entry = self._open.get(key)
            if entry is not None:
                entry.users -= 1
                if entry.users <= 0:
                    with entry.lock:
                        entry.transfer.close()
                    del self._open[key]

    def _entry(self, key: TransferKey) -> _Open:
        with self._lock:
            entry = self._open.get(key)
        if entry is None:
            raise TransferAborted(f"the transfer of {key.model} was given up")
        return entry


class Descriptions:
    """The chunk hashes of packages that were built here, computed once. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._known: OrderedDict[str, Description] = OrderedDict()

    def describe(self, path: Path, package: PackageInfo) -> Description:
        """Reads the file where its package is not known. Raises NoBase where it is gone."""
        with self._lock:
            known = self._known.get(package.sha256)
            if known is not None and known.package == package:
                self._known.move_to_end(package.sha256)
                return known
        try:
            description = Description(package, chunk_hashes(_chunks(path, package.bytes)))
        except OSError as error:
            raise NoBase(f"a package is gone: {error.strerror}") from None
        with self._lock:
            self._known[package.sha256] = description
            if len(self._known) > DESCRIPTIONS_KEPT:
                self._known.popitem(last=False)
        return description


def _chunks(path: Path, size: int) -> Iterator[bytes]:
    with path.open("rb") as file:
        while chunk := file.read(chunk_size(size)):
            yield chunk
