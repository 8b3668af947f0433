"""Merging on a node: the command, who may be merged, what derived models and training make of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from in_memory_nodes import CREATED, Here, commit, node, quiet
from tiny_encoder import write_encoder

from aios_node.delta.offers import Source
from aios_node.engine.errors import BadConfig, BadRequest, NoBase, Unauthenticated
from aios_node.engine.weights.convert.detect import import_any
from aios_node.engine.weights.folder import read_folder, write_folder
from aios_node.node import jobs
from aios_node.node.cli.app import run
from aios_node.node.config.load import check_config
from aios_node.node.core import NodeCore
from aios_node.node.demo.processes import wait_until
from aios_node.node.identity import create_identity, load_identity
from aios_node.node.merging import Merger, Way, meeting, merge_heads
from aios_node.node.operations import run_operation

START = np.zeros(4, np.float32)
PATIENCE_S = 30.0


class Watched(Here):
    """Remembers what it was asked to do."""

    def __init__(self, asked: list[Any]) -> None:
        self._asked = asked

    def run(self, job: Any, *args: Any, progress: Any = quiet) -> Any:
        self._asked.append(job)
        return super().run(job, *args, progress=progress)


def stranger(folder: Path) -> Path:
    """The keys of somebody whom nobody knows."""
    create_identity(folder, [])
    return folder


def merge(core: NodeCore, **args: Any) -> dict[str, Any]:
    return run_operation(core, "model_merge", {"model": "m", **args}, quiet)


def weights(core: NodeCore, version: str) -> Any:
    with core.store.folder(version).weights() as found:
        return {name: np.array(found[name]) for name in found}


def test_a_merge_is_served_and_descends_from_its_heads(tmp_path: Path) -> None:
    with node(tmp_path / "alpha") as core:
        base = commit(core, START, recipe={"total_samples": 100})
        one = commit(core, START + 1, base, recipe={"total_samples": 130})
        two = commit(core, START + 4, base, recipe={"total_samples": 110})
        made = merge(core)
        assert core.store.active("m") == made["version"]
        assert core.store.heads("m") == (made["version"],)
        manifest = core.store.manifest(made["version"])
        assert manifest.parents == tuple(sorted([one, two]))
        assert manifest.recipe == made["recipe"] == {
            "method": "merge",
            "strategy": "fedavg",
            "options": {"weighting": "samples"},
            "base": base,
            "samples": {one: 30, two: 10},
            "total_samples": 140,
            "left_out": [],
        }  # fmt: skip
        assert weights(core, made["version"])["w"].tolist() == [1.75] * 4


@pytest.mark.parametrize("strategy", ["fedavg", "fedadam", "diloco", "median", "ties"])
def test_two_stores_give_the_same_version_in_every_round(tmp_path: Path, strategy: str) -> None:
    """Different nodes, different order of arrival; the second round needs the optimiser state of the first."""
    with node(tmp_path / "alpha") as alpha, node(tmp_path / "beta") as beta:
        bases = {commit(core, START) for core in (alpha, beta)}
        for step in (1, 2):
            (base,) = bases
            values = weights(alpha, base)["w"]
            heads = [(values + step, {"total_samples": 5}), (values - 3, {"total_samples": 8})]
            for core, order in ((alpha, heads), (beta, heads[::-1])):
                for head, recipe in order:
                    commit(core, head, base, recipe=recipe)
            bases = {merge(core, strategy=strategy)["version"] for core in (alpha, beta)}
            assert len(bases) == 1


def test_optimiser_state_stays_with_the_version_and_out_of_the_network(tmp_path: Path) -> None:
    with node(tmp_path / "alpha") as core:
        base = commit(core, START)
        for step in (1, 2):
            commit(core, START + step, base)
        version = merge(core, strategy="fedadam")["version"]
        assert sorted(weights(core, version)) == [
            "aios.optimizer/first_moment/w",
            "aios.optimizer/second_moment/w",
            "w",
        ]
        exported = run_operation(core, "model_export", {"model": "m", "dest": str(tmp_path / "out")}, quiet)
        assert b"aios.optimizer" not in (tmp_path / "out" / "model.safetensors").read_bytes()
        assert exported["version"] == version
        made = run_operation(core, "model_quantize", {"src": "m", "name": "m.int8", "quant": "int8"}, quiet)
        assert made["tensors"] == 1


def test_encoders_run_whatever_optimiser_state_their_version_carries(tmp_path: Path, minilm_folder: Path) -> None:
    with node(tmp_path / "alpha") as core:
        source = import_any(write_encoder(tmp_path / "tiny", minilm_folder, 0), "auto")
        base = core.store.commit("tiny", source.weights, source.files, created_at=CREATED)
        for step in (1, 2):
            changed = {name: tensor + np.float32(step / 100) for name, tensor in source.weights.items()}
            with core.store.workspace() as folder:
                write_folder(folder, changed, source.files, parents=[base])
                core.publish("tiny", folder)
        merged = run_operation(core, "model_merge", {"model": "tiny", "strategy": "diloco"}, quiet)["version"]
        assert any(entry.name.startswith("aios.optimizer/") for entry in core.store.manifest(merged).tensors)
        vectors, version = core.models.encode("tiny", ["a text"])
        assert version == merged
        assert np.linalg.norm(vectors) == pytest.approx(1, abs=1e-5)


def test_quantised_models_are_made_anew_instead(tmp_path: Path) -> None:
    with node(tmp_path / "alpha") as core:
        base = commit(core, START)
        for step in (1, 2):
            commit(core, START + step, base, derived_from=Source("source", base))
        with pytest.raises(BadRequest, match="was derived from source: merge source"):
            merge(core)


def test_small_files_are_merged_whole(tmp_path: Path) -> None:
    with node(tmp_path / "alpha") as core:
        base = commit(core, START)
        commit(core, START + 1, base, files={"config.json": b"{}", "notes.txt": b"new"})
        commit(core, START + 2, base)
        found = core.store.folder(merge(core)["version"])
        assert {name: found.read_file(name) for name in found.files} == {"config.json": b"{}", "notes.txt": b"new"}
        for text in (b"1", b"2"):
            commit(core, START, found.version, files={"config.json": text})
        with pytest.raises(BadRequest, match=r"config\.json in different ways"):
            merge(core)


def test_one_head_alone_does_not_name_the_files_of_a_robust_merge(tmp_path: Path) -> None:
    with node(tmp_path / "alpha") as core:
        base = commit(core, START)
        commit(core, START + 1, base, files={"config.json": b'{"aios":{"pooling":"cls"}}'})
        commit(core, START + 2, base, derived_from=Source("other", base))
        for step in (3, 4, 5):
            commit(core, START + step, base)
        found = core.store.folder(merge(core, strategy="trimmed_mean", options={"faulty": 2})["version"])
        assert found.read_file("config.json") == b"{}"


def test_heads_can_be_named(tmp_path: Path) -> None:
    with node(tmp_path / "alpha") as core:
        base = commit(core, START)
        one, two, three = (commit(core, START + step, base) for step in (1, 2, 9))
        made = merge(core, heads=[one[:12], two], strategy="median")
        assert made["heads"] == sorted([one, two])
        assert set(core.store.heads("m")) == {made["version"], three}


def test_what_cannot_be_merged_is_told(tmp_path: Path) -> None:
    with node(tmp_path / "alpha") as core:
        base = commit(core, START)
        with pytest.raises(BadRequest, match="m has not diverged"):
            merge(core)
        one = commit(core, START + 1, base)
        with pytest.raises(BadRequest, match="nothing to merge, activate"):
            merge(core, heads=[base, one])
        commit(core, START + 2)
        with pytest.raises(BadRequest, match="no common ancestor"):
            merge(core)
        with pytest.raises(BadConfig, match="no merging strategy 'mean'"):
            merge(core, strategy="mean", heads=[one, commit(core, START + 3, base)])


def test_an_ancestor_that_is_gone_is_told(tmp_path: Path) -> None:
    with node(tmp_path / "alpha") as core:
        gone = "ab" * 32
        for step in (1, 2):
            commit(core, START + step, gone)
        with pytest.raises(NoBase, match="common ancestor abababababab"):
            merge(core)


def test_an_ancestor_that_is_archived_is_rebuilt(tmp_path: Path) -> None:
    with node(tmp_path / "alpha") as core:
        random = np.random.default_rng(0).normal(size=4096).astype(np.float32)
        base = commit(core, random)
        one, two = (commit(core, random + step, base) for step in (1, 2))
        for step in range(4):  # the ancestor is neither head nor active nor among the newest
            two = commit(core, random + 2 + step, two)
        core.store.gc(keep_last=2)
        made = merge(core, heads=[one, two])
        assert made["base"] == base


def test_strangers_are_not_merged(tmp_path: Path) -> None:
    with node(tmp_path / "alpha") as core:
        base = commit(core, START)
        commit(core, START + 1, base)
        commit(core, START + 100, base, author=stranger(tmp_path / "mallory"))
        with pytest.raises(Unauthenticated, match="a stranger: it is not merged"):
            merge(core)
        assert len(core.store.heads("m")) == 2
        unsigned = commit(core, START + 7, base, envelope=None)
        with pytest.raises(Unauthenticated, match="signed by nobody"):
            merge(core, heads=[unsigned, commit(core, START + 8, base)])


def test_named_publishers_are_merged(tmp_path: Path) -> None:
    author = stranger(tmp_path / "carol")
    known = load_identity(author, []).node_id
    with node(tmp_path / "alpha", f"\nsecurity: {{tls: 'on', publishers: [{known}]}}\n") as core:
        base = commit(core, START)
        commit(core, START + 1, base)
        commit(core, START + 3, base, author=author)
        assert weights(core, merge(core)["version"])["w"].tolist() == [2.0] * 4


def test_by_itself_a_node_merges_its_active_version_with_those_of_others(tmp_path: Path) -> None:
    other = stranger(tmp_path / "beta")
    with node(tmp_path / "alpha") as core:
        base = commit(core, START)
        theirs = commit(core, START + 1, base, author=other, activate=False)
        assert meeting(core, "m") == (), "the active version is no head: theirs descends from it"
        mine = commit(core, START + 2, base)
        assert meeting(core, "m") == tuple(sorted([mine, theirs]))
        rejected = commit(core, START + 3, base)
        core.store.rollback("m")
        assert meeting(core, "m") == tuple(sorted([mine, theirs])), f"{rejected[:12]} was rolled back from"
        core.store.activate("m", base)
        assert meeting(core, "m") == ()


def test_peers_that_merge_in_another_way_do_not_start_a_race(tmp_path: Path) -> None:
    other = stranger(tmp_path / "beta")
    with node(tmp_path / "alpha") as core:
        base = commit(core, START)
        heads = [commit(core, START + step, base) for step in (1, 2)]
        mine = merge(core, strategy="fedavg")["version"]
        commit(core, START + 1, *heads, author=other, activate=False)
        assert meeting(core, "m") == ()
        next_one = commit(core, START + 9, mine)
        assert next_one in meeting(core, "m"), "later work goes on"


def test_a_node_makes_up_for_what_a_stop_interrupted(tmp_path: Path) -> None:
    author = stranger(tmp_path / "carol")
    known = load_identity(author, []).node_id
    extra = (
        f"\nsecurity: {{tls: 'on', publishers: [{known}]}}\nmodels: {{merge_strategy: median, merge_wait_s: 0.01}}\n"
    )
    with node(tmp_path / "alpha", extra) as core:
        base = commit(core, START)
        theirs = commit(core, START + 3, base, author=author, activate=False)
        mine = commit(core, START + 1, base)
        merger = Merger(core)
        wait_until("the merge", lambda: core.store.active("m") not in {mine, theirs}, PATIENCE_S)
        merged = core.version("m", None)
        assert core.store.manifest(merged).parents == tuple(sorted([mine, theirs]))
        ours = commit(core, START, merged)  # and it goes on
        commit(core, START + 8, merged, author=author, activate=False)
        wait_until("the next merge", lambda: core.store.active("m") not in {merged, ours}, PATIENCE_S)
        merger.close(PATIENCE_S)


def test_a_node_waits_until_enough_have_diverged(tmp_path: Path) -> None:
    author = stranger(tmp_path / "carol")
    known = load_identity(author, []).node_id
    extra = f"\nsecurity: {{tls: 'on', publishers: [{known}]}}\nmodels: {{merge_strategy: fedavg, merge_heads: 3, "
    with node(tmp_path / "alpha", extra + "merge_wait_s: 0.01}\n") as core:
        base = commit(core, START)
        heads = [commit(core, START, base, author=author, activate=False), commit(core, START + 1, base)]
        merger = Merger(core)
        heads.append(commit(core, START + 2, base, author=author, activate=False))
        wait_until("the merge", lambda: core.store.active("m") not in heads, PATIENCE_S)
        merger.close(PATIENCE_S)
        assert core.store.manifest(core.version("m", None)).parents == tuple(sorted(heads))


def test_what_cannot_be_merged_is_tried_once_and_stops_nothing_else(tmp_path: Path) -> None:
    author = stranger(tmp_path / "carol")
    known = load_identity(author, []).node_id
    extra = (
        f"\nsecurity: {{tls: 'on', publishers: [{known}]}}\nmodels: {{merge_strategy: fedavg, merge_wait_s: 0.01}}\n"
    )
    with node(tmp_path / "alpha", extra) as core:
        tried: list[Any] = []
        core.__dict__["workers"] = Watched(tried)
        base = commit(core, START)
        theirs = commit(core, START, base, author=author, activate=False, files={"config.json": b"[1]"})
        mine = commit(core, START + 1, base, files={"config.json": b"[2]"})
        merger = Merger(core)
        wait_until("the first try", lambda: len(tried) == 1, PATIENCE_S)
        core.store.activate("m", theirs)
        core.store.activate("m", mine)
        other = core.store.commit("n", {"w": START}, {}, created_at=CREATED, activate=True)
        heads = [
            commit(core, START + step, other, model="n", author=who, files={}) for step, who in ((1, author), (2, None))
        ]
        wait_until("another model's merge", lambda: core.store.active("n") not in heads, PATIENCE_S)
        merger.close(PATIENCE_S)
        assert len(tried) == 2
        assert set(core.store.heads("m")) == {mine, theirs}


def test_what_was_learned_while_merging_is_not_pushed_aside(tmp_path: Path) -> None:
    author = stranger(tmp_path / "carol")
    known = load_identity(author, []).node_id
    extra = (
        f"\nsecurity: {{tls: 'on', publishers: [{known}]}}\nmodels: {{merge_strategy: fedavg, merge_wait_s: 0.01}}\n"
    )
    with node(tmp_path / "alpha", extra) as core:
        base = commit(core, START)
        theirs = commit(core, START + 3, base, author=author, activate=False)
        mine = commit(core, START + 1, base)
        learned: list[str] = []

        class Learning(Here):
            def run(self, job: Any, *args: Any, progress: Any = quiet) -> Any:
                if not learned:
                    learned.append(commit(core, START + 5, mine))
                return super().run(job, *args, progress=progress)

        core.__dict__["workers"] = Learning()
        merger = Merger(core)
        wait_until("the merge", lambda: core.store.active("m") not in {mine, theirs, *learned}, PATIENCE_S)
        merger.close(PATIENCE_S)
        assert core.store.manifest(core.version("m", None)).parents == tuple(sorted([theirs, *learned]))
        assert len(core.store.versions("m")) == 5, "the first result was given up"


def test_the_same_merge_made_twice_is_one_version(tmp_path: Path) -> None:
    with node(tmp_path / "alpha") as core:
        base = commit(core, START)
        heads = [commit(core, START + step, base) for step in (1, 2)]
        first = merge_heads(core, "m", heads, Way("fedavg", {}), quiet)["version"]
        assert merge_heads(core, "m", heads[::-1], Way("fedavg", {}), quiet)["version"] == first


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with node(tmp_path / "alpha") as core:
        base = commit(core, START)
        heads = [commit(core, START + step, base) for step in (0, 1, 2, 50)]
    config = str(tmp_path / "alpha" / "node.yaml")
    options = ["-o", "faulty=1", "--strategy", "trimmed_mean", "-c", config]
    capsys.readouterr()
    assert run(["model", "merge", "m", *options, *[part for head in heads for part in ("--head", head)]]) == 0
    said = capsys.readouterr().out
    assert "trimmed_mean of" in said
    assert f"since {base[:12]}" in said
    with node(tmp_path / "alpha") as core:
        made = core.store.active("m")
        assert made is not None
        assert weights(core, made)["w"].tolist() == [1.5] * 4
    assert run(["model", "merge", "m", "-c", config]) == 1
    assert "has not diverged" in capsys.readouterr().err
    assert run(["model", "merge", "m", "-o", "faulty", "-c", config]) == 2


@pytest.mark.parametrize(
    ("models", "told"),
    [
        ({"merge_strategy": "mean"}, "no merging strategy 'mean'"),
        ({"merge_strategy": "krum", "merge_options": {"fualty": 1}}, "did you mean 'faulty'"),
        ({"merge_heads": 1}, "merge_heads"),
    ],
)
def test_a_configuration_that_cannot_merge_is_told_at_the_start(models: dict[str, Any], told: str) -> None:
    with pytest.raises(BadConfig, match=told):
        check_config({"models": models}, Path())


def test_the_configuration_says_how_unless_one_is_told_otherwise(tmp_path: Path) -> None:
    extra = "\nmodels: {merge_strategy: ties, merge_options: {density: 0.5}}\n"
    with node(tmp_path / "alpha", extra) as core:
        base = commit(core, START)
        heads = [commit(core, START + step, base) for step in (1, 2)]
        usual = merge(core, heads=heads)["recipe"]
        changed = merge(core, heads=heads, options={"scale": 2})["recipe"]
        other = merge(core, heads=heads, strategy="median")["recipe"]
    assert usual["options"] == {"density": 0.5, "scale": 1.0}
    assert changed["options"] == {"density": 0.5, "scale": 2.0}
    assert other["options"] == {}


@pytest.mark.parametrize("before", [0, 1000])
def test_training_says_how_much_it_saw(
    tmp_path: Path, minilm_folder: Path, monkeypatch: pytest.MonkeyPatch, before: int
) -> None:
    monkeypatch.setattr("aios_node.node.jobs.adapt._verdict", lambda report: {**report, "better": True})
    source = import_any(write_encoder(tmp_path / "tiny", minilm_folder, 0, layers=3), "auto")
    base = write_folder(tmp_path / "base", source.weights, source.files, recipe={"total_samples": before})
    documents = tmp_path / "documents.jsonl"
    lines = [{"title": f"about item {n}", "text": f"item {n} is kept in room {n % 7} of house {n}"} for n in range(80)]
    documents.write_text("\n".join(json.dumps(line) for line in lines))
    job = jobs.AdaptJob(base.path, tmp_path / "new", documents, 2, 0, base.version, 0.1)
    jobs.adapt_encoder(job, quiet)
    recipe = read_folder(tmp_path / "new").manifest.recipe
    assert recipe is not None
    assert recipe["samples"] == recipe["documents"] > 10
    assert recipe["total_samples"] == before + recipe["samples"]
    assert recipe["prox_mu"] == 0.1
