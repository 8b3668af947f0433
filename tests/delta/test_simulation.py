"""Whole networks under a seeded clock: whatever goes wrong, all nodes end with the same version, and nothing twice."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aios_node.delta.simulation.faults import Fault, Misfortune
from aios_node.delta.simulation.world import World, WorldConfig

SIZE = 1 << 20  # 64 chunks
ALL = frozenset(Fault) - {Fault.LIAR}


def settled_world(kinds: frozenset[Fault], seed: int, nodes: int = 6, degree: int = 0) -> World:
    """A network in which one version was published at the beginning."""
    misfortune = Misfortune(kinds, rate=0.01, seconds=1.5, outage=1.0)
    world = World(WorldConfig(nodes=nodes, seed=seed, degree=degree, misfortune=misfortune))
    world.publish(SIZE)
    assert world.run(300.0), f"seed {seed}: {[node.name for node in world.nodes if world.target not in node.versions]}"
    return world


@pytest.mark.parametrize("fault", list(Fault), ids=lambda fault: fault.name.lower())
def test_all_end_with_the_same_version_under(fault: Fault) -> None:
    for seed in (1, 2):
        world = settled_world(frozenset({fault}), seed)
        assert all(world.target in node.versions for node in world.nodes)
        assert sum(node.again for node in world.nodes) == 0, "a chunk that was staged came again"
        assert not any(node.staging for node in world.nodes)


@given(st.integers(0, 2**32), st.integers(2, 7), st.sampled_from([0, 2, 4]))
@settings(max_examples=5)
def test_everything_at_once_delays_but_does_not_divide(seed: int, nodes: int, degree: int) -> None:
    world = settled_world(ALL, seed, nodes, degree)
    assert {tuple(node.versions)[-1] for node in world.nodes} == {world.target}


def test_the_same_seed_gives_the_same_run() -> None:
    one, other = (settled_world(ALL, 5) for _ in range(2))
    assert one.clock.now == other.clock.now
    assert [host.sent for host in one.hosts] == [host.sent for host in other.hosts]


def test_sixteen_peers_cost_the_source_less_than_two_copies() -> None:
    world = World(WorldConfig(nodes=17, seed=3))
    world.publish(SIZE)
    assert world.run(60.0)
    sent = sum(world.hosts[0].sent.values())
    assert sent <= 2 * SIZE, f"the source sent {sent / SIZE:.2f} times the delta"
    ideal = SIZE / world.config.up
    last = max(node.finished[world.target] for node in world.nodes)
    assert last <= 2 * ideal, f"the last peer was done after {last / ideal:.2f} times the ideal"


def test_a_source_alone_with_each_peer_sends_to_each() -> None:
    """Two nodes: no one to pass chunks on, so everything comes from the source, once."""
    world = World(WorldConfig(nodes=2, seed=1))
    world.publish(SIZE)
    assert world.run(60.0)
    assert world.hosts[0].sent["chunk"] == pytest.approx(SIZE, rel=0.03)
    assert world.hosts[1].sent["chunk"] == 0


def test_chunks_travel_in_few_hops_through_a_sparse_network() -> None:
    world = World(WorldConfig(nodes=20, seed=2, degree=6))
    world.publish(SIZE)
    assert world.run(60.0)
    hops = max(far for node in world.nodes for (version, _), far in node.hops.items() if version == world.target)
    assert 2 <= hops <= 10
