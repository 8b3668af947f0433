"""One package on its way in from several peers: who has which chunk, who is asked for what, and what goes wrong.

Rarest first: among the chunks that a supplier can give, the one that the fewest others hold; ties go on from the place
that the supplier named, so that it hands out different chunks to different peers. An origin (a peer that had the
version before) is asked only for what no other supplier holds: it sends each chunk about once. For the last chunks
(endgame), and for those that are late, a second supplier may be asked; whoever loses the race is told to stop.

Every chunk is compared with its hash when it arrives; who sends another one is not asked again. Knows no messages,
files or clocks.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import Enum, auto
from typing import Final

from aios_node.delta.chunks import TransferKey
from aios_node.delta.offers import Offer
from aios_node.delta.swarm.bitmaps import Bitmap, Counts, first_from, from_ranges, full, indices
from aios_node.delta.swarm.description import Description
from aios_node.engine.errors import AiosError

IN_FLIGHT: Final = 16  # chunks asked for at once, over all suppliers
LEAST_EACH: Final = 2  # but this many from each, so that no link waits for a round trip
ENDGAME: Final = 4  # chunks missing when a second supplier may be asked
LATE: Final = 32  # or so many others came meanwhile


class Stage(Enum):
    """Where a gathering stands."""

    IDLE = auto()  # nobody has looked what is staged
    LIVE = auto()
    COMMITTING = auto()
    DONE = auto()
    FAILED = auto()


@dataclass
class Supplier:
    """One link over which chunks may come. Bitmaps of chunk numbers."""

    start: int
    origin: bool
    have: Bitmap = 0
    asked: Bitmap = 0
    stop: Bitmap = 0  # asked for, not needed any more, to be told
    ever: Bitmap = 0  # asked for at any time: what was taken back may still come and is ignored


class Gathering:
    """A package that this node gathers, shared by all its sessions."""

    def __init__(self, key: TransferKey, description: Description, offer: Offer, codecs: tuple[str, ...]) -> None:
        """``codecs`` are those that the package may have been made with."""
        self.key, self.description, self.offer, self.codecs = key, description, offer, codecs
        self.stage = Stage.IDLE
        self.error: AiosError | None = None
        self.have: Bitmap = 0
        self.moved = 0
        self._all = full(description.count)
        self._arriving: Bitmap = 0
        self._asked_at: dict[int, int] = {}  # chunk -> chunks that had moved when it was asked for
        self._counts = Counts()
        self._suppliers: dict[int, Supplier] = {}

    @property
    def complete(self) -> bool:
        """Whether every chunk is staged."""
        return self.have == self._all

    def opened(self, missing: Iterable[tuple[int, int]]) -> None:
        """What is staged was looked at."""
        if self.stage is Stage.IDLE:
            self.have = self._all & ~from_ranges(missing, self.description.count)
            self.stage = Stage.LIVE

    def join(self, link: int, start: int, origin: bool) -> None:
        """A supplier; what it holds is told by ``holds``."""
        self._suppliers[link] = Supplier(start % self.description.count, origin)

    def leave(self, link: int) -> None:
        """The supplier is gone; what it was asked for may be asked of others."""
        supplier = self._suppliers.pop(link, None)
        if supplier is not None and not supplier.origin:
            self._counts.remove(supplier.have)
        if not self._suppliers and self.stage is Stage.LIVE:
            self.stage = Stage.IDLE

    def holds(self, link: int, bits: Bitmap) -> None:
        """A supplier has these chunks (too)."""
        supplier = self._suppliers[link]
        fresh = bits & self._all & ~supplier.have
        supplier.have |= fresh
        if not supplier.origin:
            self._counts.add(fresh)
            self._spare_origins(fresh)

    def held_by(self, link: int) -> Bitmap:
        """What a peer is known to have."""
        supplier = self._suppliers.get(link)
        return supplier.have if supplier else 0

    def ask(self, link: int) -> Bitmap:
        """The chunks to ask this supplier for now; they count as asked for."""
        supplier = self._suppliers[link]
        chosen = 0
        if self.stage is Stage.LIVE:
            for bit in self._choices(supplier):
                supplier.asked |= bit
                supplier.ever |= bit
                self._asked_at[bit.bit_length() - 1] = self.moved
                chosen |= bit
        return chosen

    def take_stops(self, link: int) -> Bitmap:
        """Chunks that this supplier need not send any more; it is told once."""
        supplier = self._suppliers[link]
        stops, supplier.stop = supplier.stop & ~supplier.asked, 0
        return stops

    def expects(self, link: int, index: int) -> bool:
        """Whether a chunk was asked of this supplier, needed or not."""
        return bool(self._suppliers[link].ever >> index & 1)

    def arrived(self, link: int, index: int, data: bytes | memoryview) -> bool | None:
        """A chunk that was asked for: True to stage it, None where it is not needed, False where it is a wrong one."""
        supplier, bit = self._suppliers[link], 1 << index
        supplier.asked &= ~bit
        supplier.stop &= ~bit
        if (self.have | self._arriving) & bit or self.stage is not Stage.LIVE:
            return None
        if not self.description.holds(index, data):
            return False
        self._arriving |= bit
        self._stop_others(bit)
        return True

    def staged(self, index: int) -> None:
        """A chunk is on disk; others may have it."""
        self._arriving &= ~(1 << index)
        self._asked_at.pop(index, None)
        self.have |= 1 << index
        self.moved += 1

    def lost(self, index: int) -> None:
        """A chunk could not be staged."""
        self._arriving &= ~(1 << index)

    def _choices(self, supplier: Supplier) -> Iterator[Bitmap]:
        """One chunk after the other, while the supplier has room."""
        while supplier.asked.bit_count() < max(LEAST_EACH, IN_FLIGHT // len(self._suppliers)):
            flying = self._flying()
            needed = self._all & ~self.have & ~self._arriving
            choice = self._rarest(supplier, supplier.have & needed & ~flying)
            if choice is None and not supplier.asked:
                choice = self._second(supplier, supplier.have & needed & flying & self._overdue(needed))
            if choice is None:
                return
            yield choice

    def _rarest(self, supplier: Supplier, candidates: Bitmap) -> Bitmap | None:
        if supplier.origin:
            candidates &= ~self._counts.any()
        if not candidates:
            return None
        return 1 << first_from(self._counts.rarest(candidates), supplier.start)

    def _overdue(self, needed: Bitmap) -> Bitmap:
        """The last few; else those that came not while many others did, as their suppliers are slow."""
        if needed.bit_count() <= ENDGAME:
            return needed
        late = 0
        for index, moved in self._asked_at.items():
            if self.moved - moved >= LATE:
                late |= 1 << index
        return late

    def _second(self, supplier: Supplier, candidates: Bitmap) -> Bitmap | None:
        """A chunk that only one other is asked for. An origin is spared as long as another can give it."""
        for index in indices(candidates):
            askers = sum(other.asked >> index & 1 for other in self._suppliers.values())
            if askers == 1 and not (supplier.origin and self._counts.any() >> index & 1):
                return 1 << index
        return None

    def _flying(self) -> Bitmap:
        flying = 0
        for supplier in self._suppliers.values():
            flying |= supplier.asked
        return flying

    def _spare_origins(self, bits: Bitmap) -> None:
        """Take back from origins what another supplier can give now."""
        for supplier in self._suppliers.values():
            if supplier.origin and supplier.asked & bits:
                supplier.stop |= supplier.asked & bits
                supplier.asked &= ~bits

    def _stop_others(self, bit: Bitmap) -> None:
        for supplier in self._suppliers.values():
            if supplier.asked & bit:
                supplier.asked &= ~bit
                supplier.stop |= bit
