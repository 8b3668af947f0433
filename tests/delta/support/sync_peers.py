"""Two peers in memory that hand sync messages to each other, and a link that loses, damages and cuts.

The driver here is the smallest complete one: it performs effects on dictionaries. ``Exchange.run`` lets a chooser
decide what happens next (a message arrives, an effect is performed), so that Hypothesis or a seeded generator explores
interleavings; nothing sleeps, nothing runs in parallel.
"""

from __future__ import annotations

import hashlib
from collections import Counter, deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Any

from aios_node.delta.chunks import TransferKey, as_ranges, chunk_count, chunk_span
from aios_node.delta.exchange.effects import (
    CommitTransfer,
    DiscardStaged,
    Effect,
    FindStaged,
    OpenStaged,
    PreparePackage,
    ReadChunk,
    ReleasePackage,
    Send,
    SessionDone,
    Shared,
    SharePackage,
    StageChunk,
    TransferDone,
    TransferResult,
)
from aios_node.delta.exchange.session import SessionConfig, SyncSession
from aios_node.delta.offers import Decision, Offer, PackageInfo, Resume
from aios_node.delta.swarm.description import Description, chunk_hashes
from aios_node.delta.swarm.swarm import Swarm
from aios_node.engine.errors import AiosError, HashMismatch, NoBase, TransferAborted

Choose = Callable[[int], int]
"""Given a number of possibilities, the one to take."""


class Fault(Enum):
    """What a link may do to a message."""

    CUT = auto()  # the stream ends here; what is in flight is lost
    DROP = auto()
    DUPLICATE = auto()
    SWAP = auto()  # with the message behind it
    FLIP_DATA = auto()
    FLIP_METADATA = auto()


def version_of(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


@dataclass
class Staged:
    package: PackageInfo
    chunks: dict[int, bytes] = field(default_factory=dict)


@dataclass
class Node:
    """What one peer holds. ``staging`` outlives sessions, as a disk does. ``failures`` happen once each, by effect."""

    versions: dict[tuple[str, str], bytes] = field(default_factory=dict)
    parents: dict[str, tuple[str, ...]] = field(default_factory=dict)
    staging: dict[TransferKey, Staged] = field(default_factory=dict)
    failures: dict[type, list[AiosError]] = field(default_factory=dict)
    packages: dict[TransferKey, bytes] = field(default_factory=dict)
    received: Counter[tuple[TransferKey, str, int]] = field(default_factory=Counter)
    came_again: int = 0
    swarm: Swarm | None = None  # with one, the node speaks protocol 2

    def add(self, model: str, content: bytes, *parents: str) -> str:
        version = version_of(content)
        self.versions[model, version] = content
        self.parents[version] = parents
        return version

    def offers(self) -> list[Offer]:
        return [
            Offer(model, version, lineage=self.parents.get(version, ()), bytes=len(content))
            for (model, version), content in self.versions.items()
        ]

    def wants(self, offer: Offer) -> Decision:
        """The policy: everything that is not here, from the first ancestor that is."""
        if (offer.model, offer.version) in self.versions:
            return Decision(want=False, reason="already here")
        held = {version for model, version in self.versions if model == offer.model}
        return Decision(want=True, base=next((version for version in offer.lineage if version in held), None))

    def perform(self, effect: Effect) -> Any:
        """Do what an effect asks for; the value for ``complete``. Raises AiosError."""
        queued = self.failures.get(type(effect))
        if queued:
            raise queued.pop(0)
        return getattr(self, f"_{type(effect).__name__.lower()}", lambda _: None)(effect)

    def _findstaged(self, effect: FindStaged) -> Resume | None:
        staged = self.staging.get(effect.key)
        if staged is None:
            return None
        count = chunk_count(staged.package.bytes)
        return Resume(staged.package.sha256, as_ranges(i for i in range(count) if i not in staged.chunks))

    def _stagechunk(self, effect: StageChunk) -> None:
        staged = self.staging.get(effect.key)
        if staged is None or staged.package.sha256 != effect.package.sha256:
            staged = self.staging[effect.key] = Staged(effect.package)
        self.came_again += effect.index in staged.chunks
        self.received[effect.key, effect.package.sha256, effect.index] += 1
        staged.chunks[effect.index] = bytes(effect.data)

    def _openstaged(self, effect: OpenStaged) -> tuple[tuple[int, int], ...]:
        package = effect.description.package
        staged = self.staging.get(effect.key)
        if staged is None or staged.package.sha256 != package.sha256:
            staged = self.staging[effect.key] = Staged(package)
        return as_ranges(index for index in range(effect.description.count) if index not in staged.chunks)

    def _sharepackage(self, effect: SharePackage) -> Shared:
        info = self._preparepackage(PreparePackage(effect.transfer, effect.key, effect.codecs))
        package = self.packages[effect.key]
        spans = [chunk_span(info.bytes, index) for index in range(chunk_count(info.bytes))]
        hashes = chunk_hashes([package[offset : offset + length] for offset, length in spans])
        return Shared(Description(info, hashes), origin=True)

    def _committransfer(self, effect: CommitTransfer) -> None:
        staged = self.staging[effect.key]
        package = b"".join(staged.chunks[index] for index in range(chunk_count(staged.package.bytes)))
        if hashlib.sha256(package).hexdigest() != effect.package.sha256:
            raise HashMismatch("the package has another hash")
        content = self._unpack(effect.key, package)
        if version_of(content) != effect.key.version:
            raise HashMismatch("the version has another hash")
        self.versions[effect.key.model, effect.key.version] = content
        self.parents[effect.key.version] = effect.offer.lineage

    def _unpack(self, key: TransferKey, package: bytes) -> bytes:
        if package[:1] == b"F":
            return package[1:]
        base = self.versions.get((key.model, key.base or ""))
        if base is None:
            raise NoBase("the base is not here")
        kept = int.from_bytes(package[1:9], "big")
        return base[:kept] + package[9:]

    def _discardstaged(self, effect: DiscardStaged) -> None:
        self.staging.pop(effect.key, None)

    def _preparepackage(self, effect: PreparePackage) -> PackageInfo:
        content = self.versions[effect.key.model, effect.key.version]
        base = self.versions.get((effect.key.model, effect.key.base or ""))
        package, mode = b"F" + content, "full"
        if base is not None:
            kept = next((i for i, (old, new) in enumerate(zip(base, content, strict=False)) if old != new), 0)
            delta = b"D" + kept.to_bytes(8, "big") + content[kept:]
            if len(delta) < len(package):
                package, mode = delta, "delta"
        self.packages[effect.key] = package
        sha256 = hashlib.sha256(package).hexdigest()
        used = effect.key.base if mode == "delta" else None
        return PackageInfo(len(package), sha256, mode, used, len(content), len(content))  # type: ignore[arg-type]

    def _readchunk(self, effect: ReadChunk) -> bytes:
        return self.packages[effect.key][effect.offset : effect.offset + effect.length]

    def _releasepackage(self, effect: ReleasePackage) -> None:
        self.packages.pop(effect.key, None)


class Peer:
    """One end of an exchange: a session, its driver's queues, and the messages on their way to it."""

    def __init__(self, node: Node, config: SessionConfig | None = None) -> None:
        self.node = node
        self.session = SyncSession(node.offers(), node, config, swarm=node.swarm)
        self.inbox: deque[tuple[bytes, bytes]] = deque()
        self.todo: deque[Effect] = deque()
        self.jobs: list[Effect] = []
        self.results: list[TransferResult] = []
        self.outcome: SessionDone | None = None
        self.gone = False
        self._take(self.session.start())

    def _take(self, effects: Iterable[Effect]) -> None:
        for effect in effects:
            slow = isinstance(
                effect, PreparePackage | SharePackage | OpenStaged | CommitTransfer | StageChunk | ReadChunk
            )
            (self.jobs if slow else self.todo).append(effect)

    def receive(self) -> None:
        self._take(self.session.receive(*self.inbox.popleft()))

    def disconnected(self) -> None:
        self.gone = True
        self._take(self.session.disconnected())

    def time_out(self) -> None:
        self._take(self.session.abort(TransferAborted("no progress")))

    def perform(self, effect: Effect, send: Callable[[Send], None]) -> None:
        match effect:
            case Send():
                send(effect)
            case TransferDone():
                self.results.append(effect.result)
            case SessionDone():
                assert self.outcome is None, "SessionDone comes once"
                self.outcome = effect
        try:
            value = self.node.perform(effect)
        except AiosError as error:
            self._take(self.session.fail(effect, error))
        else:
            self._take(self.session.complete(effect, value))


class Exchange:
    """Two peers and the link between them. ``faults`` says what happens to the n-th message of the exchange."""

    def __init__(
        self,
        one: Node,
        other: Node,
        *,
        faults: dict[int, Fault] | None = None,
        config: SessionConfig | None = None,
    ) -> None:
        self.peers = Peer(one, config), Peer(other, config)
        self.messages = 0
        self.cut = False
        self._faults = faults or {}
        self._swallowed = False
        self._held: dict[int, tuple[bytes, bytes]] = {}

    def run(self, choose: Choose = lambda count: 0, most_steps: int = 100_000) -> tuple[Peer, Peer]:
        """Until nothing is left to do. Raises AssertionError if the sessions wait for each other for ever."""
        for _ in range(most_steps):
            moves = self._moves() or self._timeouts()
            if not moves:
                break
            moves[choose(len(moves))]()
        else:
            raise AssertionError("the exchange does not end")
        for peer in self.peers:
            assert peer.session.over, f"stuck while {peer.session.phase.name}"
        return self.peers

    def _moves(self) -> list[Callable[[], None]]:
        moves: list[Callable[[], None]] = []
        for side, peer in enumerate(self.peers):
            if peer.todo:
                moves.append(lambda side=side, peer=peer: peer.perform(peer.todo.popleft(), self._sender(side)))
            moves.extend(
                lambda side=side, peer=peer, place=place: peer.perform(peer.jobs.pop(place), self._sender(side))
                for place in range(min(2, len(peer.jobs)))
            )
            if peer.inbox and peer.session.can_receive:
                moves.append(peer.receive)
            elif not peer.inbox and not peer.gone and not peer.session.over and self._stream_ended(side):
                moves.append(peer.disconnected)
        return moves

    def _timeouts(self) -> list[Callable[[], None]]:
        """Where the link swallowed a message, the idle timeout of a driver ends the waiting. Only there."""
        waiting = [peer for peer in self.peers if not peer.session.over]
        return [waiting[0].time_out] if waiting and self._swallowed else []

    def _stream_ended(self, side: int) -> bool:
        """The link was cut, or the other side has closed it after its last word."""
        other = self.peers[1 - side]
        return self.cut or (other.session.over and not any(isinstance(effect, Send) for effect in other.todo))

    def _sender(self, side: int) -> Callable[[Send], None]:
        return lambda effect: self._carry(side, effect.metadata, bytes(effect.data))

    def _carry(self, side: int, metadata: bytes, data: bytes) -> None:
        number, self.messages = self.messages, self.messages + 1
        if self.cut:
            return
        inbox = self.peers[1 - side].inbox
        fault = self._faults.get(number)
        self._swallowed |= fault in {Fault.DROP, Fault.SWAP}
        if fault is Fault.CUT:
            self.cut = True
            return
        if fault is Fault.SWAP:
            self._held[side] = metadata, data
            return
        if fault is Fault.FLIP_DATA and data:
            data = flipped(data, number)
        elif fault is Fault.FLIP_METADATA:
            metadata = flipped(metadata, number)
        copies = {Fault.DROP: 0, Fault.DUPLICATE: 2}.get(fault, 1) if fault else 1
        inbox.extend([(metadata, data)] * copies)
        if side in self._held:
            inbox.append(self._held.pop(side))


def flipped(data: bytes, place: int) -> bytes:
    """One bit changed."""
    changed = bytearray(data)
    changed[place * 37 % len(changed)] ^= 1 << (place % 8)
    return bytes(changed)
