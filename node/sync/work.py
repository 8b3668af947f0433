"""Performs what a sync session asks for: staging, committing, preparing and reading packages."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from aios_node.delta.chunks import TransferKey
from aios_node.delta.exchange.effects import (
    CommitTransfer,
    DiscardStaged,
    Effect,
    FindStaged,
    OpenStaged,
    PreparePackage,
    ReadChunk,
    ReleasePackage,
    Shared,
    SharePackage,
    StageChunk,
    TransferDone,
)
from aios_node.delta.exchange.session import Answer
from aios_node.delta.offers import Offer, PackageInfo, Resume
from aios_node.delta.staging.staging import Staging
from aios_node.delta.staging.transfer import Transfer
from aios_node.engine.errors import NoBase
from aios_node.node.sync.gathered import Descriptions, Gathered, Missing
from aios_node.node.sync.outgoing import Lease, OutgoingPackages

Committer = Callable[[TransferKey, Offer, Path], None]


@dataclass
class _Sending:
    descriptor: int
    release: Callable[[], None]


@dataclass
class TransferWork:
    """One session's transfers. Methods may run on different threads, but never twice for one transfer.

    ``gathered`` and ``descriptions`` are shared by all sessions of the node.
    """

    staging: Staging
    gathered: Gathered
    descriptions: Descriptions
    packages: OutgoingPackages
    commit: Committer
    on_done: Callable[[TransferDone, float], None]  # with the seconds that the transfer took
    _receiving: dict[int, Transfer] = field(default_factory=dict)
    _gathering: set[int] = field(default_factory=set)
    _entered: list[TransferKey] = field(default_factory=list)
    _sending: dict[int, _Sending] = field(default_factory=dict)
    _began: dict[tuple[str, str, str], float] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def perform(self, effect: Effect) -> Answer:
        """Do it; what is returned is what the session's ``complete`` expects."""
        match effect:
            case FindStaged():
                self._begin("received", effect.key)
                return self._find(effect)
            case OpenStaged():
                self._begin("received", effect.key)
                return self._enter(effect)
            case StageChunk() if effect.transfer in self._gathering:
                self.gathered.write(effect.key, effect.index, effect.data)
            case StageChunk():
                self._transfer(effect.transfer, effect.key, effect.package).write(effect.index, effect.data)
            case CommitTransfer():
                self._commit(effect)
            case DiscardStaged():
                self._discard(effect)
            case PreparePackage():
                self._begin("sent", effect.key)
                return self._prepare(effect)
            case SharePackage():
                self._begin("sent", effect.key)
                return self._share(effect)
            case ReadChunk():
                return os.pread(self._sending[effect.transfer].descriptor, effect.length, effect.offset)
            case ReleasePackage():
                self._release(effect.transfer)
            case TransferDone():
                self.on_done(effect, self._took(effect))
            case _:
                raise TypeError(f"no work for {type(effect).__name__}")
        return None

    def close(self) -> None:
        """Give back what is still open; what was staged stays for the next session."""
        with ExitStack() as stack:
            for transfer in self._receiving.values():
                stack.callback(transfer.close)
            for key in self._entered:
                stack.callback(self.gathered.leave, key)
            for number in list(self._sending):
                stack.callback(self._release, number)
        self._receiving.clear()
        self._entered.clear()

    def _begin(self, direction: str, key: TransferKey) -> None:
        self._began.setdefault((direction, key.model, key.version), time.monotonic())

    def _took(self, effect: TransferDone) -> float:
        result = effect.result
        now = time.monotonic()
        return now - self._began.pop((result.direction, result.model, result.to_version), now)

    def _find(self, effect: FindStaged) -> Resume | None:
        transfer = self.staging.resume(effect.key)
        if transfer is None:
            return None
        with self._lock:
            self._receiving[effect.transfer] = transfer
        return Resume(transfer.sha256, transfer.missing())

    def _transfer(self, number: int, key: TransferKey, package: PackageInfo) -> Transfer:
        with self._lock:
            transfer = self._receiving.get(number)
        if transfer is not None and transfer.sha256 == package.sha256:
            return transfer
        if transfer is not None:
            transfer.discard()  # the sender now has another package: what was staged is of no use
        transfer = self.staging.open(key, package)
        with self._lock:
            self._receiving[number] = transfer
        return transfer

    def _enter(self, effect: OpenStaged) -> Missing:
        missing = self.gathered.enter(effect.key, effect.description)
        with self._lock:
            self._gathering.add(effect.transfer)
            self._entered.append(effect.key)
        return missing

    def _commit_gathered(self, effect: CommitTransfer) -> None:
        """The package stays, so that it can be passed on as it came."""
        package = self.gathered.assemble(effect.key)
        self.commit(effect.key, effect.offer, package)
        self.packages.keep(effect.key, effect.codecs, effect.package, package)

    def _commit(self, effect: CommitTransfer) -> None:
        if effect.transfer in self._gathering:
            self._commit_gathered(effect)
            return
        transfer = self._transfer(effect.transfer, effect.key, effect.package)
        self.commit(effect.key, effect.offer, transfer.assemble())
        with self._lock:
            self._receiving.pop(effect.transfer, None)
        transfer.discard()

    def _discard(self, effect: DiscardStaged) -> None:
        if effect.transfer in self._gathering:
            with self._lock:
                self._entered = [key for key in self._entered if key != effect.key]
            self.gathered.discard(effect.key)
            return
        with self._lock:
            transfer = self._receiving.pop(effect.transfer, None)
        if transfer is not None:
            transfer.discard()
        else:
            self.staging.discard(effect.key)

    def _prepare(self, effect: PreparePackage) -> PackageInfo:
        lease = self.packages.prepare(effect.key, effect.codecs)
        self._hold(effect, lease)
        return lease.info

    def _hold(self, effect: PreparePackage | SharePackage, lease: Lease) -> None:
        try:
            descriptor = os.open(lease.path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            lease.release()
            raise NoBase(f"the package of {effect.key.model} is gone: {error.strerror}") from None
        with self._lock:
            self._sending[effect.transfer] = _Sending(descriptor, lease.release)

    def _share(self, effect: SharePackage) -> Shared:
        """The package that is arriving here; or, where it has come or was never on its way, a whole one."""
        arriving = effect.arriving
        path = None if arriving is None else self.gathered.file(effect.key, arriving.package)
        if arriving is not None and path is not None:
            self._hold(effect, Lease(path, arriving.package, lambda: None))
            return Shared(arriving, origin=False)
        lease = self.packages.prepare(effect.key, effect.codecs)
        self._hold(effect, lease)
        try:
            description = self.descriptions.describe(lease.path, lease.info)
            if arriving is not None and arriving.root != description.root:
                raise NoBase(f"the package of {effect.key.model} that was arriving is gone")
        except BaseException:
            self._release(effect.transfer)
            raise
        return Shared(description, origin=not lease.kept)

    def _release(self, number: int) -> None:
        with self._lock:
            sending = self._sending.pop(number, None)
        if sending is not None:
            os.close(sending.descriptor)
            sending.release()
