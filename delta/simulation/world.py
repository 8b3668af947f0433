"""Many simulated nodes that stay in step: topology, visits, crashes, partitions, and what came of it.

    world = World(WorldConfig(nodes=17, seed=3))
    world.publish(1 << 20)
    assert world.run(60.0)

Node 0 is the source. Every node visits its peers when something new is here or begins to arrive, at intervals, and
with a growing pause after a failure, as a real node does.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from random import Random

from aios_node.delta.simulation.catalog import Catalog
from aios_node.delta.simulation.clock import Clock
from aios_node.delta.simulation.driver import Driver
from aios_node.delta.simulation.faults import Fault, Misfortune
from aios_node.delta.simulation.node import OWN, SimulatedNode
from aios_node.delta.simulation.wire import Host, Stream

MBIT = 1e6 / 8
INTERVAL_S = 5.0
BACKOFF_S = (0.2, 4.0)
BASE_BYTES = 16 << 10


@dataclass(frozen=True)
class WorldConfig:
    """``degree``: how many peers a node knows (0: all); ``up`` and ``down`` in bytes per second, ``latency`` in s."""

    nodes: int
    seed: int = 0
    degree: int = 0
    up: float = 10 * MBIT
    down: float = 10 * MBIT
    latency: float = 0.01
    misfortune: Misfortune = field(default_factory=Misfortune)


@dataclass
class _Place:
    """A node in the world."""

    node: SimulatedNode
    host: Host
    peers: tuple[int, ...] = ()
    drivers: dict[int, Driver] = field(default_factory=dict)  # by peer; one session at a time
    failures: dict[int, int] = field(default_factory=dict)
    pending: set[int] = field(default_factory=set)  # peers to visit again, as there was news meanwhile
    alive: bool = True
    lives: int = 0


class World:
    """A network of nodes and a clock. Everything follows from the config."""

    def __init__(self, config: WorldConfig) -> None:
        self.config = config
        self.random = Random(config.seed)  # noqa: S311 - a seed makes a run repeatable, nothing is kept secret
        self.clock = Clock()
        self.catalog = Catalog()
        self.base = self.catalog.publish(self.random, None, BASE_BYTES)
        self.target = self.base
        self._island: frozenset[int] = frozenset()
        liars = self._some(Fault.LIAR)
        self._places = [self._place(number, number in liars) for number in range(config.nodes)]
        self._slow = self._slow_links()
        self._schedule()

    @property
    def nodes(self) -> list[SimulatedNode]:
        """All nodes; the first is the source."""
        return [place.node for place in self._places]

    @property
    def hosts(self) -> list[Host]:
        """Their network cards, with what each has sent."""
        return [place.host for place in self._places]

    def publish(self, size: int) -> str:
        """The source has a new version, ``size`` bytes away from the last."""
        self.target = self.catalog.publish(self.random, self.target, size)
        self._places[0].node.adopt(self.target, OWN)
        return self.target

    def run(self, seconds: float) -> bool:
        """Until everyone has what was published last, and misfortunes are over; whether that was in time."""
        return self.clock.run(self._settled, self.clock.now + seconds)

    def _settled(self) -> bool:
        return all(place.alive and self.target in place.node.versions for place in self._places)

    def _place(self, number: int, liar: bool) -> _Place:
        config = self.config
        node = SimulatedNode(f"node-{number}", self.clock, self.catalog, liar=liar)
        place = _Place(node, Host(config.up, config.down))
        place.node.adopt(self.base, OWN)
        place.node.committed = lambda: self._visit_all(number, always=True)
        place.node.began = lambda: self._visit_all(number, always=False)
        place.peers = self._peers(number)
        for peer in place.peers:
            self.clock.after(INTERVAL_S * self.random.random(), lambda peer=peer: self._regularly(number, peer))  # type: ignore[misc]
        return place

    def _peers(self, number: int) -> tuple[int, ...]:
        """Everyone, or the neighbour behind (so that the network hangs together) and some at random."""
        count, degree = self.config.nodes, self.config.degree
        others = [other for other in range(count) if other != number]
        if not degree or degree >= count - 1:
            return tuple(others)
        chosen = {(number + 1) % count}
        while len(chosen) < max(1, degree // 2):
            other = self.random.choice(others)
            chosen.add(other)
        return tuple(sorted(chosen))

    def _regularly(self, number: int, peer: int) -> None:
        if self._places[number].alive:
            self._visit(number, peer)
        self.clock.after(INTERVAL_S, lambda: self._regularly(number, peer))

    def _visit_all(self, number: int, *, always: bool) -> None:
        place = self._places[number] if number < len(getattr(self, "_places", ())) else None
        for peer in place.peers if place else ():
            self._visit(number, peer, always=always)

    def _visit(self, number: int, peer: int, *, always: bool = False) -> None:
        """Dial a peer, unless a session with it is open. News is told again when that session ends."""
        here, there = self._places[number], self._places[peer]
        if peer in here.drivers and always:
            here.pending.add(peer)
        if not here.alive or peer in here.drivers:
            return
        if not there.alive or number in there.drivers or (number in self._island) != (peer in self._island):
            self._retry(number, peer)
            return
        misfortune = self.config.misfortune
        stream = Stream(
            self.clock,
            self.random,
            (here.host, there.host),
            latency=self.config.latency,
            slow=frozenset({number, peer}) in self._slow,
            faults=misfortune.kinds,
            rate=misfortune.rate,
        )
        ends = [self._driver(number, peer, stream, 0), self._driver(peer, number, stream, 1)]
        stream.ends.extend(ends)
        for end in ends:
            end.start()

    def _driver(self, number: int, peer: int, stream: Stream, side: int) -> Driver:
        place = self._places[number]

        def ended(error: str | None) -> None:
            place.drivers.pop(peer, None)
            if error is None:
                place.failures.pop(peer, None)
            elif side == 0:
                self._retry(number, peer)
            if driver.session.missed and side == 1:
                self.clock.after(2 * self.config.latency, lambda: self._visit(peer, number))
            if peer in place.pending or driver.session.missed:
                place.pending.discard(peer)
                self.clock.after(2 * self.config.latency, lambda: self._visit(number, peer))

        other = self._places[peer].node
        session = place.node.session(other.name)
        driver = place.drivers[peer] = Driver(place.node, other, session, stream, side, ended)
        return driver

    def _retry(self, number: int, peer: int) -> None:
        place = self._places[number]
        failures = place.failures[peer] = place.failures.get(peer, 0) + 1
        first, longest = BACKOFF_S
        pause = min(longest, first * 2 ** min(failures, 10)) * self.random.uniform(0.5, 1.0)
        self.clock.after(pause, lambda: self._visit(number, peer))

    def _some(self, fault: Fault) -> frozenset[int]:
        """The nodes that a misfortune hits; never the source."""
        misfortune = self.config.misfortune
        if fault not in misfortune.kinds:
            return frozenset()
        count = max(1, int(misfortune.share * (self.config.nodes - 1)))
        return frozenset(self.random.sample(range(1, self.config.nodes), count))

    def _slow_links(self) -> frozenset[frozenset[int]]:
        if Fault.SLOW_LINK not in self.config.misfortune.kinds:
            return frozenset()
        links = [frozenset({number, peer}) for number, place in enumerate(self._places) for peer in place.peers]
        return frozenset(link for link in links if self.random.random() < self.config.misfortune.share)

    def _schedule(self) -> None:
        misfortune = self.config.misfortune
        for number in sorted(self._some(Fault.CRASH)):
            self.clock.after(self.random.uniform(0, misfortune.seconds), lambda number=number: self._crash(number))  # type: ignore[misc]
        island = self._some(Fault.PARTITION)
        if island:
            self.clock.after(self.random.uniform(0, misfortune.seconds), lambda: self._cut_off(island))

    def _crash(self, number: int) -> None:
        place = self._places[number]
        place.alive = False
        for driver in list(place.drivers.values()):
            driver.kill()
        place.drivers.clear()
        self.clock.after(self.config.misfortune.outage, lambda: self._come_back(number))

    def _come_back(self, number: int) -> None:
        place = self._places[number]
        place.node.restart()
        place.alive, place.lives = True, place.lives + 1
        self._visit_all(number, always=True)

    def _cut_off(self, island: frozenset[int]) -> None:
        self._island = island
        for number in island:
            place = self._places[number]
            for peer, driver in list(place.drivers.items()):
                if peer not in island:
                    driver.cut()
        self.clock.after(self.config.misfortune.outage, self._heal)

    def _heal(self) -> None:
        self._island = frozenset()
