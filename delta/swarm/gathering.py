"""One package on its way in from several peers: who has which chunk, who is asked for what, and what goes wrong.

Rarest first: among the chunks that a supplier can give, the one that the fewest others hold; ties go on from the place
that the supplier named, so that it hands out different chunks to different peers. An origin (a peer that had the
version before) is asked only for what no other supplier holds: it sends each chunk about once. For the last chunks a
second supplier may be asked (endgame), and whoever loses the race is told to stop.

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
    stopped: Bitmap = 0  # told: these may still come and are ignored


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
            self._arriving = 0

    def holds(self, link: int, bits: Bitmap) -> None:
        """A supplier has these chunks (too)."""
        supplier = self._suppliers[link]
        fresh = bits & self._all & ~supplier.have
        supplier.have |= fresh
        if not supplier.origin:
            self._counts.add(fresh)

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
                supplier.stopped &= ~bit
                chosen |= bit
        return chosen

    def take_stops(self, link: int) -> Bitmap:
        """Chunks that this supplier need not send any more; it is told once."""
        supplier = self._suppliers[link]
        stops, supplier.stop = supplier.stop, 0
        supplier.stopped |= stops
        return stops

    def expects(self, link: int, index: int) -> bool:
        """Whether a chunk was asked of this supplier, needed or not."""
        supplier = self._suppliers[link]
        return bool((supplier.asked | supplier.stop | supplier.stopped) >> index & 1)

    def arrived(self, link: int, index: int, data: bytes | memoryview) -> bool | None:
        """A chunk that was asked for: True to stage it, None where it is not needed, False where it is a wrong one."""
        supplier, bit = self._suppliers[link], 1 << index
        supplier.asked &= ~bit
        supplier.stop &= ~bit
        supplier.stopped &= ~bit
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
            if choice is None and not supplier.asked and needed.bit_count() <= ENDGAME:
                choice = self._second(supplier, supplier.have & needed & flying)
            if choice is None:
                return
            yield choice

    def _rarest(self, supplier: Supplier, candidates: Bitmap) -> Bitmap | None:
        if supplier.origin:
            candidates &= ~self._counts.any()
        if not candidates:
            return None
        return 1 << first_from(self._counts.rarest(candidates), supplier.start)

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

    def _stop_others(self, bit: Bitmap) -> None:
        for supplier in self._suppliers.values():
            if supplier.asked & bit:
                supplier.asked &= ~bit
                supplier.stop |= bit
