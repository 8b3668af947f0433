"""Secure sums among nodes: everybody trains, one adds up, nobody sees a single update; and who says no to what."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from in_memory_nodes import befriend, node, quiet
from tiny_encoder import write_encoder

from aios_node.delta.privacy.contribution import NoisySum
from aios_node.delta.privacy.differential.accountant import Release, spent
from aios_node.engine.errors import AiosError, BadRequest, Unauthorized
from aios_node.node import jobs
from aios_node.node.core import NodeCore
from aios_node.node.operations import run_operation
from aios_node.node.peers import Peer

WILLING = "\nprivacy: {sums: [tiny], sums_least: 3, clip_norm: 0.5, delta: 0.00001}\n"


class Wires:
    """What nodes ask each other by."""

    def __init__(self, cores: list[NodeCore]) -> None:
        self._cores = {core.identity.node_id: core for core in cores}

    def ask(self, peer: Peer, op: str, args: dict[str, Any], _timeout_s: float) -> dict[str, Any]:
        return run_operation(self._cores[peer.node_id or ""], op, args, quiet)


@pytest.fixture
def vectors(monkeypatch: pytest.MonkeyPatch) -> list[np.ndarray[Any, Any]]:
    """Each member's vector before it is masked."""
    seen: list[np.ndarray[Any, Any]] = []
    train = jobs.contribute

    def watched(job: jobs.ContributeJob, progress: Any) -> None:
        train(job, progress)
        seen.append(np.frombuffer(job.vector.read_bytes(), "<u4"))

    monkeypatch.setattr(jobs, "contribute", watched)
    return seen


@pytest.fixture
def three(tmp_path: Path, minilm_folder: Path) -> Iterator[list[NodeCore]]:
    """Three friends with the same model and different texts."""
    tiny = write_encoder(tmp_path / "tiny", minilm_folder, 0, layers=3)
    with ExitStack() as stack:
        names = ("alpha", "beta", "gamma")
        cores = [stack.enter_context(node(tmp_path / name, WILLING)) for name in names]
        befriend(*cores)
        wires = Wires(cores)
        for core in cores:
            core.__dict__["dialer"] = wires
            run_operation(core, "model_import", {"src": str(tiny), "name": "tiny"}, quiet)
            who = core.config.node.name
            texts = [f"{who} keeps item {number} in room {number % 7} of house {number}" for number in range(70)]
            titles = [f"{who} and item {number}" for number in range(70)]
            core.memory.add_table(pa.table({"text": texts, "source": titles}), table="notes")
        yield cores


def together(core: NodeCore, **args: Any) -> dict[str, Any]:
    return run_operation(core, "train_together", {"model": "tiny", "steps": 1, "threshold": 3, **args}, quiet)


def change(core: NodeCore, result: dict[str, Any]) -> np.ndarray[Any, Any]:
    """What the sum did to the weights, in the order of the vector."""
    with core.store.folder(result["from"]).weights() as old, core.store.folder(result["version"]).weights() as new:
        names = sorted(name for name in old if name.endswith((".query.weight", ".value.weight")) and ".2." in name)
        others = set(old) - set(names)
        assert all((np.array(old[name]) == np.array(new[name])).all() for name in others)
        return np.concatenate([(np.array(new[name], "f8") - np.array(old[name], "f8")).ravel() for name in names])


def mean_of(vectors: list[np.ndarray[Any, Any]], noisy: NoisySum) -> np.ndarray[Any, Any]:
    return noisy.decode(sum(vectors[1:], start=vectors[0])) / len(vectors)


def test_the_mean_of_all_is_published_and_the_books_are_kept(
    three: list[NodeCore], vectors: list[np.ndarray[Any, Any]]
) -> None:
    result = together(three[0], noise_multiplier=0.5)
    assert len(result["contributors"]) == len(vectors) == 3
    noisy = NoisySum(0.5, 0.5, 3, 2)
    assert change(three[0], result) == pytest.approx(mean_of(vectors, noisy), abs=1e-5)
    price = spent([Release(0.5)], 1e-5)
    assert result["privacy"]["epsilon"] == pytest.approx(price, rel=1e-3)
    assert result["privacy"]["neighbours"] == "add-remove"
    for core in three:
        assert core.privacy.spent("notes").releases == 1
        assert core.privacy.spent("notes").epsilon(1e-5) == pytest.approx(price, rel=1e-3)
    manifest = three[0].store.manifest(result["version"])
    assert manifest.recipe is not None
    assert manifest.recipe["privacy"] == result["privacy"]
    assert manifest.recipe["method"] == "secure-sum"
    assert manifest.parents == (result["from"],)


def plan_of(core: NodeCore, **changes: Any) -> dict[str, Any]:
    """A plan as a coordinator would send it."""
    members = [peer.node_id for peer in core.peers.all()] + [core.identity.node_id]
    plan = {"model": "tiny", "base": core.store.active("tiny"), "session": "1" * 64, "layout": "2" * 64, "length": 512}
    more = {"members": members, "threshold": 3, "honest": 2, "clip_norm": 0.5, "noise_multiplier": 0.0, "steps": 1}
    return {**plan, **more, **changes}


def test_members_say_no_to_what_their_owner_does_not_want(three: list[NodeCore]) -> None:
    core = three[0]
    some = plan_of(core)["members"]
    refused: list[tuple[dict[str, Any], type[AiosError], str]] = [
        ({"threshold": 2, "honest": 1}, Unauthorized, "3 at least"),
        ({"honest": 4}, Unauthorized, "no more noise"),
        ({"members": [*some[1:], "e" * 64]}, Unauthorized, "no peers of this node"),
        ({"base": "d" * 64}, BadRequest, "sync first"),
        ({"layout": "c" * 64}, BadRequest, "other tensors"),
        ({"session": "x"}, BadRequest, "session"),
    ]
    for changes, error, message in refused:
        with pytest.raises(error, match=message):
            run_operation(core, "sum_open", plan_of(core, **changes), quiet)


@pytest.mark.parametrize(
    ("setting", "message"),
    [("noise_multiplier: 1", "owner asks for 1"), ("epsilon_max: 3", "epsilon_max"), ("sums: []", "no sums of tiny")],
)
def test_members_have_an_owner_who_sets_conditions(
    tmp_path: Path, minilm_folder: Path, setting: str, message: str
) -> None:
    tiny = write_encoder(tmp_path / "tiny", minilm_folder, 0, layers=1)
    values = {"sums": "[tiny]", "sums_least": "2", **dict([setting.split(": ")])}
    text = ", ".join(f"{name}: {value}" for name, value in values.items())
    with node(tmp_path / "alpha", f"\nprivacy: {{{text}}}\n") as core:
        run_operation(core, "model_import", {"src": str(tiny), "name": "tiny"}, quiet)
        core.peers.add("grpc+tls://beta:1", "b" * 64, None)
        with pytest.raises((Unauthorized, BadRequest), match=message):
            run_operation(core, "sum_open", plan_of(core, threshold=2, honest=1), quiet)


def test_a_node_without_peers_sums_nothing(tmp_path: Path, minilm_folder: Path) -> None:
    tiny = write_encoder(tmp_path / "tiny", minilm_folder, 0, layers=3)
    with node(tmp_path / "alpha", WILLING) as core:
        run_operation(core, "model_import", {"src": str(tiny), "name": "tiny"}, quiet)
        with pytest.raises(BadRequest, match="add peers"):
            together(core)
