"""One delta to many peers: what the source sends, when the last is done, and how both grow with the network.

Simulated: the real sessions and the real passing-on of chunks under a seeded clock, 10 Mbit/s up and down and 10 ms of
latency for every node. Bytes count everything that is sent, messages and frames included. ``AIOS_BENCH_NODES`` bounds
the largest network (the whole takes some minutes on one core, most of them for 1,000 nodes).
"""

from __future__ import annotations

import os
from collections import Counter

from delta_plots import can_draw, growth

from aios_node.delta.simulation.faults import Fault, Misfortune
from aios_node.delta.simulation.world import World, WorldConfig

SIZE = 1 << 20  # 64 chunks of 16 KiB, the least that has 64
SEEDS = (1, 2, 3)
GROWTH = (4, 8, 16, 32, 64, 125, 250, 500, 1000)
DEGREE = 8  # peers that a node of a large network knows, on average
BOUND_S = 600.0


def run() -> dict[str, object]:
    """Copies are bytes over bytes of the delta; rounds are links between the source and the last chunk."""
    most = int(os.environ.get("AIOS_BENCH_NODES", "1000"))
    sixteen = [spread(WorldConfig(nodes=17, seed=seed)) for seed in SEEDS]
    large = [spread(WorldConfig(nodes=17, seed=seed), 8 << 20) for seed in SEEDS[:1]]
    rows = [spread(WorldConfig(nodes=nodes, degree=DEGREE, seed=1)) for nodes in GROWTH if nodes <= most]
    return {
        "16 peers, 64 chunks": worst(sixteen, targets=True),
        "16 peers, 8 MiB": worst(large, targets=True),
        "16 peers, each from the source (computed)": {"source copies": 16, "last peer over ideal": 16},
        "growth": {"columns": list(rows[0]), "rows": [list(row.values()) for row in rows]},
        "growth data": [list(row.values()) for row in rows],
        "plots": growth(rows) if can_draw() else {},
        "faults, 8 nodes": faults(),
    }


def spread(config: WorldConfig, size: int = SIZE) -> dict[str, float]:
    """One version from one source to everyone. Raises RuntimeError when not all get it."""
    world = World(config)
    world.clock.run(lambda: False, 1.0)  # everyone has met
    for host in world.hosts:
        host.sent.clear()
    began = world.clock.now
    version = world.publish(size)
    if not world.run(BOUND_S):
        raise RuntimeError(f"{config.nodes} nodes are not in step after {BOUND_S:g} s")
    sent = [sum(host.sent.values()) for host in world.hosts]
    kinds: Counter[str] = Counter()
    for host in world.hosts:
        kinds.update(host.sent)
    hops = [far for node in world.nodes for (of, _), far in node.hops.items() if of == version]
    ideal = size / config.up
    return {
        "nodes": config.nodes,
        "source copies": round(sent[0] / size, 3),
        "copies per node": round(sum(sent) / len(sent) / size, 3),
        "most copies of a peer": round(max(sent[1:]) / size, 3),
        "overhead": round(1 - kinds["chunk"] / sum(sent), 3),
        "last peer over ideal": round((max(node.finished[version] for node in world.nodes) - began) / ideal, 3),
        "rounds": max(hops),
        "rounds, mean": round(sum(hops) / len(hops), 2),
    }


def worst(runs: list[dict[str, float]], *, targets: bool) -> dict[str, object]:
    """The worst of several seeds, with what is aimed at."""
    figures: dict[str, object] = {name: max(each[name] for each in runs) for name in runs[0] if name != "nodes"}
    if targets:
        for name in ("source copies", "last peer over ideal"):
            figures[name] = {"value": figures[name], "unit": "x", "target": "<= 2"}
    return figures


def faults() -> dict[str, object]:
    """Of 8 nodes: how long it takes under each kind of fault, over the time without."""
    calm = troubled(frozenset())
    kinds = {fault.name.lower().replace("_", " "): troubled(frozenset({fault})) for fault in Fault}
    kinds["all but liars"] = troubled(frozenset(Fault) - {Fault.LIAR})
    return {f"{kind}, time over the time without": round(seconds / calm, 2) for kind, seconds in kinds.items()}


def troubled(kinds: frozenset[Fault]) -> float:
    """Simulated seconds until everyone is in step, over all seeds."""
    seconds = 0.0
    for seed in SEEDS:
        misfortune = Misfortune(kinds, rate=0.01, seconds=1.5, outage=1.0)
        world = World(WorldConfig(nodes=8, seed=seed, misfortune=misfortune))
        world.clock.run(lambda: False, 0.5)
        world.publish(SIZE)
        if not world.run(BOUND_S):
            raise RuntimeError(f"not in step under {kinds}, seed {seed}")
        seconds += world.clock.now - 0.5
    return seconds
