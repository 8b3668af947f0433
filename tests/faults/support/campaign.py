"""A campaign of kills against two nodes that exchange versions: plans, kills, looks, counts.

One node publishes, the other visits it. After every kill the dead node's disk is looked at, the node is started
again and the work goes on; nothing is repaired by hand. Everything that is decided by chance comes from the seed.
"""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from audit import Disk, Key, books, look, staged
from forked_nodes import ForkedNode
from kill_points import ControlBlock, Phase, Plan, Point
from safetensors.numpy import save_file

from aios_node.engine.errors import AiosError

MODEL = "m"
NOISE_BYTES = 2_600_000  # 64 chunks of 40 KB; the journal is written at every MiB
LONGEST_US = {
    Phase.ENCODE: 20_000,
    Phase.SEND: 40_000,
    Phase.STAGE: 40_000,
    Phase.COMMIT: 40_000,
    Phase.ACTIVATE: 2_000,
}
RANDOM_SHARE = 0.3
SENDERS = {Phase.ENCODE, Phase.SEND}
_FIRE_S = 5.0


@dataclass
class Tally:
    """What a campaign counted. The last three must stay 0."""

    seed: int
    kills: int = 0
    seconds: float = 0.0
    missed: int = 0
    versions: int = 0
    by_phase: Counter[str] = field(default_factory=Counter)
    by_point: Counter[str] = field(default_factory=Counter)
    at_random: Counter[str] = field(default_factory=Counter)
    elsewhere: int = 0
    restarts: int = 0
    hashed: int = 0
    resumed: int = 0
    corrupt: int = 0
    lost: int = 0
    sent_again: int = 0

    def to_json(self) -> dict[str, Any]:
        return {name: dict(value) if isinstance(value, Counter) else value for name, value in vars(self).items()}


class Campaign:
    """Two nodes and what is known of them."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.tally = Tally(seed)
        self._choice = random.Random(seed)
        self._noise = np.random.default_rng(seed)
        self._folder = folder
        settings = {"sync__enabled": False, "store__keep_versions": 1_000_000}
        self.source = ForkedNode("source", folder / "source", **settings)
        self.sink = ForkedNode("sink", folder / "sink", **settings)
        self._blocks = {node: ControlBlock(node.control) for node in self.nodes}
        self._known: dict[ForkedNode, set[str]] = {node: set() for node in self.nodes}
        self._active: dict[ForkedNode, str | None] = dict.fromkeys(self.nodes)
        self._durable: dict[Key, frozenset[int]] = {}
        self._read = 0  # bytes of the sink's arrivals
        self._fresh = False  # whether the newest version was never encoded
        self._aim: str | None = None  # what the sink is about to activate
        self._at_work = ""

    @property
    def nodes(self) -> tuple[ForkedNode, ForkedNode]:
        return self.source, self.sink

    def run(self, kills: int) -> Tally:
        """Kill so many times, then let everything go through."""
        began = time.monotonic()
        for node in self.nodes:
            node.start(killable=True)
        self.sink.call("peers_add", uri=self.source.uri)
        self._publish()
        attempts = 0
        while self.tally.kills < kills:
            attempts += 1
            assert attempts < 4 * kills + 20, f"the points are not reached: {self.tally}"
            self._attempt(self._plan())
        self._finish()
        self.tally.seconds = round(time.monotonic() - began, 1)
        return self.tally

    def close(self) -> None:
        for node in self.nodes:
            node.close()

    # ---- what is done

    def _plan(self) -> Plan:
        """A kill in the phase that was hit least so far."""
        phase = min(Phase, key=lambda one: (self.tally.by_phase[one.value], one.number))
        if self._choice.random() < RANDOM_SHARE:
            return Plan(phase, None, 1, self._choice.randrange(LONGEST_US[phase]))
        point = self._choice.choice([point for point in Point if point.phase is phase])
        return Plan(phase, point, self._choice.randint(1, point.most))

    def _attempt(self, plan: Plan) -> None:
        """Bring about what the plan needs, arm it, let the nodes work, and look at what is left."""
        self._at_work = f"seed {self.tally.seed}, kill {self.tally.kills + 1}: {plan}"
        local = plan.phase is Phase.ACTIVATE and len(self._known[self.sink]) > 1 and self._choice.random() < 0.5
        if not local and (self._in_step or (plan.phase is Phase.ENCODE and not self._fresh)):
            self._publish()
        victim = self.source if plan.phase in SENDERS else self.sink
        block = self._blocks[victim]
        block.arm(plan)
        if local:
            self._switch()
        else:
            self._fresh = False
            self._visit()
        if self._died(block):
            self._after_death(victim, plan)
        else:
            block.disarm()
            self.tally.missed += 1
        self._check_arrivals()
        self._look_up()

    def _publish(self) -> None:
        path = self._folder / "next.safetensors"
        save_file({"noise": self._noise.integers(0, 256, NOISE_BYTES, dtype=np.uint8)}, path)
        version = self.source.call("model_import", src=str(path), name=MODEL)["version"]
        self._known[self.source].add(version)
        self._active[self.source] = version
        self._fresh = True
        self.tally.versions += 1

    def _visit(self) -> None:
        """The sink fetches what the source has; what it says it committed it must have from now on."""
        self._aim = self._active[self.source]
        with suppress(AiosError):
            results = self.sink.call("sync", peer=self.source.uri)["results"]
            self._known[self.sink] |= {result["to"] for result in results if result["hash_ok"]}

    def _switch(self) -> None:
        """Activate another version by hand."""
        others = sorted(self._known[self.sink] - {self._active[self.sink]})
        self._aim = self._choice.choice(others)
        with suppress(AiosError):
            self.sink.call("activate", model=MODEL, version=self._aim)

    def _died(self, block: ControlBlock) -> bool:
        """Whether the victim was killed, or is about to be."""
        until = time.monotonic() + _FIRE_S
        while block.triggered and not block.fired:
            assert time.monotonic() < until, self._at_work
            time.sleep(0.001)
        return block.fired

    # ---- what is looked at

    def _after_death(self, victim: ForkedNode, plan: Plan) -> None:
        assert victim.wait() == -9, self._at_work
        self._count(victim, plan)
        disk = look(victim.store)
        self._check(victim, disk)
        victim.start(killable=True)
        self.tally.restarts += 1
        assert self._served(victim) == disk.active.get(MODEL), self._at_work

    def _count(self, victim: ForkedNode, plan: Plan) -> None:
        self.tally.kills += 1
        hit = plan.phase if plan.point else self._blocks[victim].phase()
        if hit is None:
            self.tally.elsewhere += 1
            return
        self.tally.by_phase[hit.value] += 1
        if plan.point:
            self.tally.by_point[plan.point.name] += 1
        else:
            self.tally.at_random[hit.value] += 1

    def _check(self, node: ForkedNode, disk: Disk) -> None:
        """Nothing corrupt, nothing lost, and active what was active or what was about to be."""
        self.tally.hashed += len(disk.committed)
        self.tally.corrupt += len(disk.corrupt)
        self.tally.lost += len(self._known[node] - disk.committed)
        active, before = disk.active.get(MODEL), self._active[node]
        self.tally.corrupt += active is not None and active not in disk.committed
        expected = {before, self._aim} if node is self.sink else {before}
        assert active in expected, f"{self._at_work}: {active} is active instead of one of {expected}"

    def _check_arrivals(self) -> None:
        """No chunk came that was durable before this attempt. (The look at the disk comes first: the sink may live.)"""
        held = staged(self.sink.store)
        resumed = set()
        for key, index in self._arrivals():
            durable = self._durable.get(key, frozenset())
            self.tally.sent_again += index in durable
            if durable:
                resumed.add(key)
        self.tally.resumed += len(resumed)
        self._durable = held

    def _look_up(self) -> None:
        """What the nodes' books say now, which the next kill must not undo."""
        for node in self.nodes:
            committed, active = books(node.store)
            self._known[node] |= committed
            self._active[node] = active.get(MODEL)

    def _arrivals(self) -> Iterator[tuple[Key, int]]:
        if not self.sink.arrivals.exists():
            return
        with self.sink.arrivals.open("rb") as file:
            file.seek(self._read)
            lines = file.read()
        self._read += len(lines)
        for line in lines.decode().splitlines():
            version, base, sha256, index = line.split()
            yield (version, None if base == "None" else base, sha256), int(index)

    def _served(self, node: ForkedNode) -> str | None:
        models = node.call("status")["models"]
        return next((model["active"] for model in models if model["name"] == MODEL), None)

    @property
    def _in_step(self) -> bool:
        return self._active[self.source] in self._known[self.sink]

    def _finish(self) -> None:
        """Without kills everything arrives, and both disks hold the same, whole."""
        self._publish()
        self._visit()
        self._check_arrivals()
        for node in self.nodes:
            node.kill()
            disk = look(node.store)
            self._check(node, disk)
            assert disk.active[MODEL] == self._active[self.source], f"seed {self.tally.seed}: the nodes differ"
