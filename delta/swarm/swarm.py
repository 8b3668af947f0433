"""All packages that a node gathers, shared by its sessions: who receives what, and who must be told when it changes.

A session connects and gets a number, its link. Whatever changes for other sessions (a chunk to announce, a package to
offer, a gathering that ended) calls their ``news``; they then look for themselves. One claim per version: by all
sessions that gather the same package, or by one session that receives it in the old way.

Pure: no threads in here. Sessions of several threads share a ``guard`` (a lock) that every call of a session holds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Final, TypeVar

from aios_node.delta.chunks import TransferKey
from aios_node.delta.offers import Offer
from aios_node.delta.swarm.bitmaps import Counts
from aios_node.delta.swarm.description import Description
from aios_node.delta.swarm.gathering import Gathering, Stage
from aios_node.engine.errors import AiosError, Busy, HashMismatch

News = Callable[[], None]
Key = TypeVar("Key")
KEPT: Final = 1024  # refused packages, banned peers and packages handed out that are remembered
MOST_GATHERINGS: Final = 64  # packages that may be on their way; those that nobody sends go first


@dataclass
class Handed:
    """What a node has handed out of one package: to how many receivers, and how often each chunk."""

    receivers: int = 0
    chunks: Counts = field(default_factory=Counts)


class Swarm:
    """The gatherings of one node. ``began`` is called when a package begins to arrive: time to visit peers."""

    def __init__(self, *, guard: AbstractContextManager[object] | None = None, began: News = lambda: None) -> None:
        self.guard: AbstractContextManager[object] = guard if guard is not None else nullcontext()
        self._began = began
        self._links: dict[int, News] = {}
        self._peers: dict[int, str] = {}
        self._banned: dict[tuple[str, str], None] = {}
        self._numbers = 0
        self._gatherings: dict[tuple[str, str], Gathering] = {}
        self._claims: dict[tuple[str, str], dict[int, TransferKey | None]] = {}
        self._refused: dict[str, None] = {}
        self._handed: dict[str, Handed] = {}
        self.moved = 0

    def connect(self, peer: str, news: News) -> int:
        """A session begins; its link's number. ``news`` must return at once and may come at any time.

        ``peer`` is the identity that the peer has proved; empty: none.
        """
        self._numbers += 1
        self._links[self._numbers] = news
        self._peers[self._numbers] = peer
        return self._numbers

    def leave(self, link: int) -> None:
        """The session is over."""
        self._links.pop(link, None)
        self._peers.pop(link, None)
        for version in list(self._claims):
            self.release(link, *version)

    def tell(self, but: int) -> None:
        """Something changed for the other sessions."""
        for link, news in list(self._links.items()):
            if link != but:
                news()

    def claim(self, link: int, key: TransferKey, *, alone: bool) -> bool:
        """Whether this session may receive the version: nobody else does, or all gather the same package."""
        version = key.model, key.version
        holders = self._claims.setdefault(version, {})
        mine = None if alone else key
        if any(other != link and (alone or held != key) for other, held in holders.items()):
            return False
        holders[link] = mine
        return True

    def release(self, link: int, model: str, version: str) -> None:
        """The session receives the version no more."""
        holders = self._claims.get((model, version), {})
        holders.pop(link, None)
        if not holders:
            self._claims.pop((model, version), None)

    def known_root(self, key: TransferKey) -> str | None:
        """The root of the package that is being gathered under this key."""
        gathering = self.find(key)
        return gathering.description.root if gathering else None

    def find(self, key: TransferKey) -> Gathering | None:
        """The gathering of this key, unless it has failed or is over."""
        gathering = self._gatherings.get((key.model, key.version))
        return gathering if gathering is not None and gathering.key == key else None

    def ban(self, link: int, gathering: Gathering) -> None:
        """This peer sent a wrong chunk and is not asked for this package again, in later sessions neither."""
        peer = self._peers.get(link)
        if peer:
            _remember(self._banned, (peer, gathering.description.root))

    def begin(
        self, link: int, key: TransferKey, description: Description, offer: Offer, codecs: tuple[str, ...]
    ) -> Gathering:
        """The gathering of a package, an old or a new one.

        Raises Busy while another package of the version is gathered, HashMismatch for a package that was no good and
        for a peer that sent wrong chunks of it.
        """
        if (self._peers.get(link, ""), description.root) in self._banned:
            raise HashMismatch(f"this peer sent wrong chunks of this package of {key.model} before")
        if description.root in self._refused:
            raise HashMismatch(f"this package of {key.model} was gathered before and was not what it promised")
        current = self._gatherings.get((key.model, key.version))
        if current is None or current.stage is Stage.IDLE:
            if current is None or (current.key, current.description.root) != (key, description.root):
                current = Gathering(key, description, offer, codecs)
                self._forget(lambda other: len(self._gatherings) >= MOST_GATHERINGS)
                self._gatherings[key.model, key.version] = current
        elif (current.key, current.description.root) != (key, description.root):
            raise Busy(f"another package of {key.model} is being gathered")
        return current

    def opened(self, gathering: Gathering) -> None:
        """The gathering takes chunks and can be offered from now on."""
        self._began()

    def offered(self) -> Iterator[Gathering]:
        """What may be offered to others while it arrives."""
        for gathering in self._gatherings.values():
            if gathering.stage in {Stage.IDLE, Stage.LIVE, Stage.COMMITTING}:
                yield gathering

    def live(self) -> Iterator[Gathering]:
        """What is arriving just now."""
        for gathering in self._gatherings.values():
            if gathering.stage in {Stage.LIVE, Stage.COMMITTING}:
                yield gathering

    def chunk_staged(self) -> None:
        """Progress, for whoever waits."""
        self.moved += 1

    def finished(self, gathering: Gathering, error: AiosError | None, *, poisoned: bool = False) -> None:
        """A gathering has ended: its version is here, or it failed. ``poisoned``: the package itself was no good."""
        gathering.stage = Stage.DONE if error is None else Stage.FAILED
        gathering.error = error
        version = gathering.key.model, gathering.key.version
        if self._gatherings.get(version) is gathering:
            del self._gatherings[version]
        if error is None:
            self._forget(lambda other: other.key.version in gathering.offer.lineage)
        if poisoned:
            _remember(self._refused, gathering.description.root)
        if error is not None:
            self._claims.pop(version, None)

    def _forget(self, useless: Callable[[Gathering], bool]) -> None:
        """Let go of packages that nobody is sending just now; what is staged of them stays."""
        for version, gathering in list(self._gatherings.items()):
            if gathering.stage is Stage.IDLE and useless(gathering):
                del self._gatherings[version]

    def handed(self, root: str) -> Handed:
        """What this node has handed out of a package."""
        handed = self._handed.pop(root, None) or Handed()
        self._handed[root] = handed
        if len(self._handed) > KEPT:
            del self._handed[next(iter(self._handed))]
        return handed


def _remember(kept: dict[Key, None], key: Key) -> None:
    kept[key] = None
    if len(kept) > KEPT:
        del kept[next(iter(kept))]
