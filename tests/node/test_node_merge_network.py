"""Nodes that part ways and meet again: whoever meets whom first, they end with the same version."""

from __future__ import annotations

import contextlib
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from in_memory_nodes import befriend, commit, nodes, quiet, visit

from aios_node.engine.errors import NoBase
from aios_node.node.core import NodeCore
from aios_node.node.demo.processes import DemoFailed, DemoNode, wait_until
from aios_node.node.derive import follow, outdated
from aios_node.node.merging import Way, meeting, merge_heads
from aios_node.node.operations import run_operation

PATIENCE_S = 90.0
START = np.linspace(-1, 1, 64, dtype=np.float32)


def learn(core: NodeCore, number: int) -> str:
    """A version that descends from the active one, as local training would make it."""
    active = core.version("m", None)
    with core.store.folder(active).weights() as weights:
        values = np.array(weights["w"])
    step = np.random.default_rng(number).normal(0, 0.01, values.shape).astype(np.float32)
    return commit(core, values + step, active, recipe={"total_samples": 100 + number})


def settle(cores: list[NodeCore], seed: int, way: Way, visits: int) -> int:
    """Random visits, each followed by merging on both sides, until all serve the same; how many it took."""
    choose = random.Random(seed)
    for count in range(1, visits + 1):
        one, other = choose.sample(cores, 2)
        assert visit(one, other).error is None
        for core in (one, other):
            if heads := meeting(core, "m"):
                with contextlib.suppress(NoBase):  # others have the ancestor and merge these heads
                    merge_heads(core, "m", heads, way, quiet)
        if len({core.store.active("m") for core in cores}) == 1:
            return count
    raise AssertionError(f"seed {seed}: {[core.store.active('m') for core in cores]} after {visits} visits")


@pytest.mark.parametrize(("count", "seed", "strategy"), [(4, 2, "fedadam"), (4, 3, "median"), (7, 0, "fedavg")])
def test_nodes_end_with_one_version_in_whatever_order_they_meet(
    tmp_path: Path, count: int, seed: int, strategy: str
) -> None:
    """Some meet as partial merges whose common ancestor not all of them ever had."""
    way = Way(strategy, {})
    with nodes(tmp_path, [f"node{number}" for number in range(count)]) as cores:
        befriend(*cores)
        base = commit(cores[0], START)
        for core in cores[1:]:
            visit(core, cores[0])
            assert core.store.active("m") == base
        learned = [learn(core, number) for number, core in enumerate(cores)]
        settle(cores, seed, way, 60)
        assert {core.store.heads("m") for core in cores} == {(cores[0].store.active("m"),)}
        merged = cores[0].version("m", None)
        for version in learned:
            assert version in cores[0].store.ancestors(merged)
        assert cores[0].store.manifest(merged).recipe is not None


def test_two_who_meet_while_both_merged_have_one_version_at_once(tmp_path: Path) -> None:
    with nodes(tmp_path, ["alpha", "beta"]) as cores:
        befriend(*cores)
        commit(cores[0], START)
        visit(*cores)
        for round_number in range(3):
            for number, core in enumerate(cores):
                learn(core, 10 * round_number + number)
            assert settle(cores, 0, Way("diloco", {}), 1) == 1


def test_precisions_that_both_derived_become_one_again_when_their_source_does(tmp_path: Path) -> None:
    with nodes(tmp_path, ["alpha", "beta"]) as cores:
        befriend(*cores)
        commit(cores[0], START.reshape(8, 8))
        visit(*cores)
        for number, core in enumerate(cores):
            learn(core, number)
            run_operation(core, "model_quantize", {"src": "m", "name": "m.int8", "quant": "int8"}, quiet)
        settle(cores, 0, Way("fedavg", {}), 1)
        assert cores[0].store.active("m.int8") != cores[1].store.active("m.int8")
        for core in cores:
            assert len(core.store.heads("m.int8")) == 2
            assert outdated(core, "m") == ["m.int8"]
        made = {follow(core, "m", "m.int8") for core in cores}
        assert len(made) == 1
        assert {core.store.heads("m.int8") for core in cores} == {tuple(made)}


MERGING = "\nmodels: {merge_strategy: fedadam, merge_wait_s: 0.2}\n"


@pytest.mark.slow
def test_running_nodes_merge_by_themselves(make_node, weights_file) -> None:  # type: ignore[no-untyped-def]
    """Two processes train apart from the same base, exchange heads, merge; twice, the second time with momentum."""
    alpha, beta = make_node("alpha", config=MERGING), make_node("beta", config=MERGING)
    first = alpha.call("model", "import", str(weights_file("a.safetensors", 1, 0.0)), "--name", "m")["version"]
    alpha.call("peers", "add", beta.uri)
    wait_until("the base arriving", lambda: active(beta) == first, PATIENCE_S)
    for step in (1, 2):
        alpha.call("peers", "remove", beta.uri)
        heads = {train(alpha, weights_file("a.safetensors", 1, 0.01 * step))}
        heads |= {train(beta, weights_file("b.safetensors", 1, -0.02 * step))}
        alpha.call("peers", "add", beta.uri)
        shown = one_version(alpha, beta, heads)
        assert set(shown["parents"]) == heads
        assert shown["recipe"]["base"] == first
        assert any(tensor["name"].startswith("aios.optimizer/") for tensor in shown["tensors"])
        first = shown["version"]
    with pytest.raises(DemoFailed, match="has not diverged"):
        alpha.call("model", "merge", "m")


def train(node: DemoNode, file: Path) -> str:
    """A version that descends from the active one."""
    return str(node.call("model", "import", str(file), "--name", "m")["version"])


def one_version(alpha: DemoNode, beta: DemoNode, heads: set[str]) -> dict[str, Any]:
    """Wait until both serve the same version that is none of these; what it is, the same on both."""
    wait_until("both serving one version", lambda: active(alpha) == active(beta) not in heads, PATIENCE_S)
    shown = [node.call("model", "show", "m") for node in (alpha, beta)]
    told = ("version", "parents", "recipe", "tensors")
    assert [shown[0][key] for key in told] == [shown[1][key] for key in told]
    return dict(shown[0])


def active(node: DemoNode) -> str | None:
    return next((m["active"] for m in node.call("status")["models"] if m["name"] == "m"), None)
