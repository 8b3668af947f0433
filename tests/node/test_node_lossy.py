"""Lossy versions of a node: off unless asked for, told as such, made up for by the next, never mixed with secrets."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from in_memory_nodes import node, quiet
from safetensors.numpy import save_file
from tiny_encoder import write_encoder

from aios_node.delta.lossy.settings import LossySettings
from aios_node.engine.errors import BadRequest
from aios_node.engine.quant.blocks import QuantizedTensor, dense
from aios_node.engine.weights.folder import MANIFEST, read_folder, write_folder
from aios_node.engine.weights.update import read_update
from aios_node.node.core import NodeCore
from aios_node.node.operations import run_operation
from aios_node.node.residuals import PRIVATE, Residuals

RNG = np.random.default_rng(0)
BASE = {"w": RNG.normal(size=(64, 64)).astype(np.float32), "b": np.ones(8, np.float32)}
NEXT = {"w": BASE["w"] + (RNG.normal(size=(64, 64)) * 0.01).astype(np.float32), "b": BASE["b"] * 2}


@pytest.fixture
def _tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """A tiny encoder learns nothing in two steps, and has small tensors; here it is about what is published then."""
    monkeypatch.setattr(
        "aios_node.node.operations.training.lossy_settings",
        lambda args: args.lossy and LossySettings(args.lossy, least=64),
    )
    monkeypatch.setattr("aios_node.node.jobs.adapt._verdict", lambda report: {**report, "better": True, "reason": ""})


def load(core: NodeCore, folder: Path, weights: dict[str, Any], **args: Any) -> dict[str, Any]:
    path = folder / "weights.safetensors"
    save_file(weights, path)
    return run_operation(core, "model_import", {"src": str(path), "name": "m", **args}, quiet)


def stored(core: NodeCore, version: str) -> dict[str, Any]:
    with core.store.folder(version).weights() as found:
        return {name: found[name] if isinstance(found[name], QuantizedTensor) else np.array(found[name])
                for name in found}  # fmt: skip


def lacking(core: NodeCore, model: str, version: str) -> dict[str, Any] | None:
    found = core.residuals.find(model, version)
    if found is None:
        return None
    with read_folder(found).weights() as weights:
        return {name: np.array(dense(weights[name])) for name in weights}


@pytest.mark.parametrize("method", ["top_k", "int8", "int4", "sign"])
def test_an_import_may_be_lossy_and_says_what_it_lost(tmp_path: Path, method: str) -> None:
    with node(tmp_path / "alpha") as core:
        first = load(core, tmp_path, BASE)
        made = load(core, tmp_path, NEXT, lossy=method)
        old, new = stored(core, first["version"]), stored(core, made["version"])
        manifest = core.store.manifest(made["version"])
        residual = lacking(core, "m", made["version"])
    update = read_update(new, "w")
    assert update is not None
    assert (update.add(old["w"].ravel()).reshape(64, 64) == new["w"]).all()
    assert (new["b"] == NEXT["b"]).all()
    assert residual is not None
    assert np.allclose(residual["w"], NEXT["w"] - new["w"], atol=1e-7)
    assert manifest.parents == (first["version"],)
    assert manifest.recipe is not None
    assert manifest.recipe["lossy"] is True
    assert manifest.recipe["update"]["method"] == method
    lost = made["lossy"]
    assert lost["bytes"] < lost["exact_bytes"]
    missing = np.linalg.norm(NEXT["w"] - new["w"]) / np.linalg.norm(NEXT["w"] - BASE["w"])
    assert lost["update_error"] == pytest.approx(missing, rel=1e-6)
    assert lost["tensors"] == 1
    assert lost["cosine_mean"] is None


def test_versions_are_exact_unless_asked(tmp_path: Path) -> None:
    with node(tmp_path / "alpha") as core:
        load(core, tmp_path, BASE)
        made = load(core, tmp_path, NEXT)
        assert "lossy" not in made
        assert (stored(core, made["version"])["w"] == NEXT["w"]).all()
        assert core.store.manifest(made["version"]).recipe is None


def test_an_import_makes_up_for_the_one_before_without_counting_it_twice(tmp_path: Path) -> None:
    with node(tmp_path / "alpha") as core:
        load(core, tmp_path, BASE)
        gaps = []
        for _ in range(3):
            version = load(core, tmp_path, NEXT, lossy="int4")["version"]
            gaps.append(float(np.linalg.norm(stored(core, version)["w"] - NEXT["w"])))
        assert gaps[0] > 5 * gaps[1] > 20 * gaps[2]


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({"lossy": "int8", "quant": "int8"}, "quantised"),
        ({"share": 0.5}, "top_k"),
        ({"lossy": "int4", "share": 0.5}, "top_k"),
        ({"lossy": "zip"}, "lossy"),
        ({"lossy": "top_k", "share": 0}, "share"),
    ],
)
def test_arguments_that_cannot_be_are_refused(tmp_path: Path, args: dict[str, Any], message: str) -> None:
    with node(tmp_path / "alpha") as core:
        load(core, tmp_path, BASE)
        with pytest.raises(BadRequest, match=message):
            load(core, tmp_path, NEXT, **args)


def test_what_cannot_be_an_update_is_refused(tmp_path: Path) -> None:
    with node(tmp_path / "alpha") as core:
        with pytest.raises(BadRequest, match="no active version"):
            load(core, tmp_path, BASE, lossy="int8")
        load(core, tmp_path, BASE)
        with pytest.raises(BadRequest, match="without --lossy"):
            load(core, tmp_path, {"w": np.ones((3, 3), np.float32)}, lossy="int8")


def taught(core: NodeCore, tiny: Path) -> None:
    """A node that has an encoder and something to learn from."""
    run_operation(core, "model_import", {"src": str(tiny), "name": "tiny"}, quiet)
    texts = [f"item {number} is kept in room {number % 7} of house {number}" for number in range(80)]
    titles = [f"about item {number}" for number in range(80)]
    core.memory.add_table(pa.table({"text": texts, "source": titles}), table="docs")


def train(core: NodeCore, **args: Any) -> dict[str, Any]:
    return run_operation(core, "train_encoder", {"model": "tiny", "table": "docs", "steps": 2, **args}, quiet)


@pytest.mark.usefixtures("_tiny")
def test_training_feeds_back_what_was_lost(tmp_path: Path, minilm_folder: Path) -> None:
    tiny = write_encoder(tmp_path / "tiny", minilm_folder, 0, layers=3)
    with node(tmp_path / "alpha") as core:
        taught(core, tiny)
        first = train(core, lossy="sign")
        left = lacking(core, "tiny", first["version"])
        dry = train(core, lossy="sign", publish=False)
        second = train(core, lossy="sign")
        assert dry["version"] is None
        made = stored(core, second["version"])
        recipe = core.store.manifest(second["version"]).recipe or {}
        assert lacking(core, "tiny", first["version"]) is None
        exact = train(core)
        plain = stored(core, exact["version"])
        assert not (core.store.manifest(exact["version"]).recipe or {}).get("lossy")
    assert left
    assert [made["lossy"]["fed_back"] for made in (first, dry, second)] == [False, True, True]
    trained = {f"encoder.layer.2.attention.self.{part}.weight" for part in ("query", "value")}
    assert set(left) == trained
    assert {name.removeprefix("aios.update/") for name in made if name.startswith("aios.")} == trained
    assert {name.split("/")[0] for name in plain if name.startswith("aios.")} == {"aios.factors"}
    assert recipe["method"] == "lora-merged"
    assert recipe["lossy"] is True
    lost = first["lossy"]
    assert 0.9 < lost["cosine_p1"] <= lost["cosine_mean"] <= 1
    assert 0 < lost["update_error"] < 1
    assert set(lost["exact"]) == set(first["after"])


def test_an_adaptation_of_small_tensors_loses_nothing_and_says_so(
    tmp_path: Path, minilm_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("aios_node.node.jobs.adapt._verdict", lambda report: {**report, "better": True, "reason": ""})
    tiny = write_encoder(tmp_path / "tiny", minilm_folder, 0, layers=3)
    with node(tmp_path / "alpha") as core:
        taught(core, tiny)
        made = train(core, lossy="sign")
        assert made["lossy"]["tensors"] == 0
        assert made["lossy"]["cosine_p1"] == pytest.approx(1)
        assert "lossy" not in (core.store.manifest(made["version"]).recipe or {})
        assert core.residuals.find("tiny", made["version"]) is None


@pytest.mark.usefixtures("_tiny")
def test_what_was_lost_without_noise_never_enters_a_private_version(tmp_path: Path, minilm_folder: Path) -> None:
    tiny = write_encoder(tmp_path / "tiny", minilm_folder, 0, layers=3)
    noisy = {"lossy": "int8", "noise_multiplier": 0.01, "clip_norm": 0.25}
    with node(tmp_path / "alpha") as core:
        taught(core, tiny)
        open_ = train(core, lossy="sign")
        assert core.residuals.find("tiny", open_["version"]) is not None
        assert core.residuals.find("tiny", open_["version"], private=True) is None
        private = train(core, **noisy)
        assert not private["lossy"]["fed_back"]
        assert core.residuals.find("tiny", private["version"], private=True) is not None
        assert train(core, **noisy)["lossy"]["fed_back"]
        recipe = core.store.manifest(private["version"]).recipe or {}
        assert recipe["lossy"] is True
        assert "privacy" in recipe


def test_the_first_look_sweeps_and_others_cannot_read(tmp_path: Path) -> None:
    folder = tmp_path / "residuals"
    (folder / ".new-left").mkdir(parents=True)
    residuals = Residuals(folder)
    assert list(folder.iterdir()) == []
    assert folder.stat().st_mode & 0o777 == 0o700
    with residuals.workspace() as unused:
        residuals.keep("m", "a" * 64, unused)
    assert residuals.find("m", "a" * 64) is None


@pytest.mark.parametrize("damage", ["no manifest", "half a manifest"])
def test_damaged_and_foreign_residuals_are_dropped(tmp_path: Path, damage: str) -> None:
    residuals = Residuals(tmp_path / "residuals")
    for version in ("a" * 64, "b" * 64):
        with residuals.workspace() as made:
            write_folder(made, {"w": np.ones(3, np.float32)}, {}, recipe={PRIVATE: False})
            residuals.keep("m", version, made)
    assert [each.name for each in (tmp_path / "residuals" / "m").iterdir()] == ["b" * 64]
    found = residuals.find("m", "b" * 64)
    assert found is not None
    if damage == "no manifest":
        (found / MANIFEST).unlink()
    else:
        (found / MANIFEST).write_bytes((found / MANIFEST).read_bytes()[:20])
    assert residuals.find("m", "b" * 64) is None
    with residuals.workspace() as made:
        write_folder(made, {"w": np.ones(3, np.float32)}, {}, recipe={PRIVATE: True})
        residuals.keep("m", "b" * 64, made)
    assert residuals.find("m", "b" * 64, private=True) is not None
    assert residuals.find("m", "c" * 64) is None
    assert list((tmp_path / "residuals" / "m").iterdir()) == []


def test_the_figures_are_json(tmp_path: Path) -> None:
    with node(tmp_path / "alpha") as core:
        load(core, tmp_path, BASE)
        assert json.loads(json.dumps(load(core, tmp_path, NEXT, lossy="top_k", share=0.25)))["lossy"]["share"] == 0.25
