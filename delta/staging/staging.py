"""All packages on their way in, bounded in number and bytes, so that transfers go on where they stopped.

The module does not know what a package means, who sends it or what time it is: "least recently used" is
a counter. Only entries with this module's own names are ever removed from the folder.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
import threading
from dataclasses import replace
from pathlib import Path
from typing import Protocol

from aios_node.delta.chunks import TransferKey
from aios_node.delta.disk import (
    Observer,
    Step,
    disk_errors,
    fresh_folder,
    make_folder,
    remove_folder,
    unobserved,
)
from aios_node.delta.names import check_version, short
from aios_node.delta.staging.transfer import DATA, Staged, Transfer, create_transfer, read_transfer, write_touched
from aios_node.engine.errors import BadRequest, Busy, StorageFull, TooLarge
from aios_node.engine.weights.disk import sync_folder

_NEW, _GONE = ".new-", ".gone-"
_OURS = re.compile(r"[0-9a-f]{32}")


class Package(Protocol):
    """What staging needs to know of a package before its first chunk: size in bytes and hash."""

    @property
    def bytes(self) -> int: ...

    @property
    def sha256(self) -> str: ...


class Staging:
    """The transfers of one node that are not committed yet. Safe to use from several threads.

    ``max_bytes`` bounds the sum of all packages' full sizes, ``max_transfers`` their number.
    """

    def __init__(
        self,
        path: Path | str,
        *,
        max_bytes: int = 16 << 30,
        max_transfers: int = 64,
        observer: Observer = unobserved,
    ) -> None:
        self._path = Path(path)
        self._max_bytes, self._max_transfers = max_bytes, max_transfers
        self._observer = observer
        self._mutex = threading.Lock()
        self._in_use: set[TransferKey] = set()
        with disk_errors(self._path, "stage transfers"):
            make_folder(self._path)
            self._known = self._recover()

    def open(self, key: TransferKey, package: Package) -> Transfer:
        """Begin a transfer, or go on with the one staged for the same package.

        What is staged under this key for a package of another hash or size is discarded. Raises TooLarge for
        a package that can never fit, StorageFull when the room is taken by transfers in progress or the disk
        is full, Busy while the same transfer is open already. Space is reserved before this returns.
        """
        self._check_package(key, package)
        with self._mutex:
            self._check_free(key)
            known = self._known.get(key)
            if known is None or (known.bytes, known.sha256) != (package.bytes, package.sha256):
                self._remove(key)
                self._make_room(key, package.bytes)
                self._create(Staged(key, package.bytes, package.sha256))
            return self._enter(key)

    def resume(self, key: TransferKey) -> Transfer | None:
        """Open what is staged under this key, whatever its package; None where there is nothing."""
        with self._mutex:
            self._check_free(key)
            return self._enter(key) if key in self._known else None

    def data_path(self, key: TransferKey, package: Package) -> Path | None:
        """The file in which this package's chunks lie at their places, open or not; None where it is not staged."""
        with self._mutex:
            staged = self._known.get(key)
            if staged is None or (staged.bytes, staged.sha256) != (package.bytes, package.sha256):
                return None
            return self._folder(key) / DATA

    def list(self) -> tuple[Staged, ...]:
        """All staged transfers, least recently used first."""
        with self._mutex:
            return self._by_use()

    def bases(self) -> frozenset[str]:
        """Versions that staged deltas need as their base: garbage collection must leave them."""
        with self._mutex:
            return frozenset(key.base for key in self._known if key.base is not None)

    def discard(self, key: TransferKey) -> bool:
        """Forget a transfer that is not open; False where there was none. Raises Busy while it is open."""
        with self._mutex:
            self._check_free(key)
            return self._remove(key)

    def expire(self, *, max_transfers: int, max_bytes: int) -> tuple[TransferKey, ...]:
        """Discard the least recently used until both bounds hold; open transfers are left alone."""
        with self._mutex:
            victims = self._victims(max_transfers, max_bytes)
            for key in victims:
                self._remove(key)
            return victims

    def _check_package(self, key: TransferKey, package: Package) -> None:
        check_version(package.sha256)
        if type(package.bytes) is not int or package.bytes < 1:
            raise BadRequest(f"a package of {package.bytes!r} bytes cannot be staged")
        if package.bytes > self._max_bytes:
            raise TooLarge(
                f"the package of {key.model} {short(key.version)} has {package.bytes} bytes, "
                f"more than the {self._max_bytes} allowed for transfers"
            )

    def _check_free(self, key: TransferKey) -> None:
        if key in self._in_use:
            raise Busy(f"{key.model} {short(key.version)} is already being received")

    def _make_room(self, key: TransferKey, size: int) -> None:
        """Discard the least recently used for a new transfer, but nothing if that would not be enough."""
        count, room = self._max_transfers - 1, self._max_bytes - size
        victims = self._victims(count, room)
        left = [staged.bytes for staged in self._known.values() if staged.key not in victims]
        if len(left) > count or sum(left) > room:
            raise StorageFull(
                f"no room to stage {size} bytes of {key.model} {short(key.version)}: {len(left)} transfers "
                f"in progress hold {sum(left)} of {self._max_bytes} bytes; it can be tried again after them"
            )
        for victim in victims:
            self._remove(victim)

    def _create(self, staged: Staged) -> None:
        """Build the folder beside its final name, so that it appears whole or not at all."""
        final = self._folder(staged.key)
        with disk_errors(self._path, "stage a transfer"):
            self._observer(Step.CREATE_TRANSFER)
            folder = fresh_folder(self._path, _NEW)
            try:
                create_transfer(folder, staged)
                self._observer(Step.NAME_TRANSFER)
                folder.rename(final)
                sync_folder(self._path)
            except BaseException:
                with contextlib.suppress(OSError):
                    remove_folder(folder)
                    remove_folder(final)
                raise
        self._known[staged.key] = staged

    def _enter(self, key: TransferKey) -> Transfer:
        touched = 1 + max(staged.touched for staged in self._known.values())
        staged = replace(self._known[key], touched=touched)
        folder = self._folder(key)
        with disk_errors(folder, "stage a transfer"):
            write_touched(folder, touched)
            transfer = Transfer(folder, staged, leave=self._leave, observer=self._observer)
        self._known[key] = staged
        self._in_use.add(key)
        return transfer

    def _leave(self, key: TransferKey, *, discard: bool) -> None:
        with self._mutex:
            self._in_use.discard(key)
            if discard:
                self._remove(key)

    def _remove(self, key: TransferKey) -> bool:
        """Take the folder's name away first: a removal that is cut short leaves nothing that looks whole."""
        if key not in self._known:
            return False
        folder = self._folder(key)
        gone = folder.with_name(_GONE + folder.name)
        with disk_errors(self._path, "discard a transfer"):
            self._observer(Step.DISCARD)
            remove_folder(gone)
            folder.rename(gone)
            del self._known[key]
            remove_folder(gone)
        return True

    def _victims(self, max_transfers: int, max_bytes: int) -> tuple[TransferKey, ...]:
        count, total = len(self._known), sum(staged.bytes for staged in self._known.values())
        victims = []
        for staged in self._by_use():
            if count <= max_transfers and total <= max_bytes:
                break
            if staged.key not in self._in_use:
                victims.append(staged.key)
                count, total = count - 1, total - staged.bytes
        return tuple(victims)

    def _by_use(self) -> tuple[Staged, ...]:
        return tuple(sorted(self._known.values(), key=lambda staged: (staged.touched, staged.key.version)))

    def _folder(self, key: TransferKey) -> Path:
        text = "\n".join((key.model, key.version, key.base or ""))
        return self._path / hashlib.sha256(text.encode()).hexdigest()[:32]

    def _recover(self) -> dict[TransferKey, Staged]:
        """Find the transfers that are whole; remove what is half-made, half-removed or damaged."""
        known = {}
        for folder in sorted(self._path.iterdir()):
            if folder.name.startswith((_NEW, _GONE)):
                remove_folder(folder)
            elif _OURS.fullmatch(folder.name):
                staged = read_transfer(folder)
                if staged is not None and self._folder(staged.key) == folder:
                    known[staged.key] = staged
                else:
                    remove_folder(folder)
        return known
