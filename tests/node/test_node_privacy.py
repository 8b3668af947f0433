"""Private publications of a node: what is published, what the recipe and the book say, when it is refused."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from in_memory_nodes import node, quiet
from tiny_encoder import write_encoder

from aios_node.delta.privacy.differential.accountant import Neighbours, Release, spent
from aios_node.delta.privacy.ledger import Spent
from aios_node.engine.errors import BadConfig, BadRequest, Corrupt
from aios_node.node.cli.train import _privacy as price_line
from aios_node.node.config.model import PrivacySection
from aios_node.node.core import NodeCore
from aios_node.node.operations import run_operation
from aios_node.node.privacy import PrivacyBook, plan_release, spent_by

NOISY = "\nprivacy: {noise_multiplier: 0.5, clip_norm: 0.25, delta: 0.00001}\n"


@pytest.fixture(autouse=True)
def _everything_is_better(monkeypatch: pytest.MonkeyPatch) -> None:
    """Noise on a tiny encoder teaches it nothing; here it is about what is published then."""
    monkeypatch.setattr("aios_node.node.jobs.adapt._verdict", lambda report: {**report, "better": True, "reason": ""})


@pytest.fixture
def tiny(tmp_path: Path, minilm_folder: Path) -> Path:
    return write_encoder(tmp_path / "tiny", minilm_folder, 0, layers=3)


def filled(core: NodeCore, tiny: Path, table: str = "docs") -> None:
    """A node that has an encoder and something to learn from."""
    run_operation(core, "model_import", {"src": str(tiny), "name": "tiny"}, quiet)
    texts = [f"item {number} is kept in room {number % 7} of house {number}" for number in range(80)]
    titles = [f"about item {number}" for number in range(80)]
    core.memory.add_table(pa.table({"text": texts, "source": titles}), table=table)


def train(core: NodeCore, **args: Any) -> dict[str, Any]:
    given = {"model": "tiny", "table": "docs", "steps": 2, **args}
    return run_operation(core, "train_encoder", given, quiet)


def weights(core: NodeCore, version: str) -> dict[str, Any]:
    with core.store.folder(version).weights() as found:
        return {name: np.array(found[name]) for name in found}


def test_a_private_version_differs_by_noise_in_what_was_trained_alone(tmp_path: Path, tiny: Path) -> None:
    with node(tmp_path / "alpha", NOISY) as core:
        filled(core, tiny)
        report = train(core)
        old, new = weights(core, report["from"]), weights(core, report["version"])
        recipe = core.store.manifest(report["version"]).recipe
    changed = {name for name in old if (old[name] != new[name]).any()}
    assert set(old) == set(new)
    assert changed == {f"encoder.layer.2.attention.self.{part}.weight" for part in ("query", "value")}
    noise = np.concatenate([(new[name] - old[name]).reshape(-1) for name in changed])
    assert noise.std() == pytest.approx(0.5 * 0.25, rel=0.25)
    told = report["privacy"]
    assert "epsilon 25.9" in price_line(told)
    assert told["epsilon"] == pytest.approx(spent([Release(0.5, Neighbours.REPLACE)], 1e-5), rel=1e-3)
    assert told["update_norm"] > 0
    assert recipe is not None
    assert recipe["privacy"] == {name: value for name, value in told.items() if name != "update_norm"}
    assert recipe["privacy"]["lineage"]["releases"] == 1


def test_the_price_adds_up_along_the_lineage_and_in_the_book(tmp_path: Path, tiny: Path) -> None:
    with node(tmp_path / "alpha", NOISY) as core:
        filled(core, tiny)
        first = train(core)
        second = train(core, noise_multiplier=1.0, clip_norm=0.1)
        book = core.privacy.spent("docs")
        lineage = spent_by(core.store, second["version"])
    both = spent([Release(0.5, Neighbours.REPLACE), Release(1.0, Neighbours.REPLACE)], 1e-5)
    assert second["privacy"]["lineage"]["epsilon"] == pytest.approx(both, rel=1e-3)
    assert second["privacy"]["epsilon_table"] == pytest.approx(both, rel=1e-3)
    assert second["privacy"]["epsilon"] < first["privacy"]["epsilon"] < both
    assert book.releases == lineage.releases == 2
    assert book.rho == pytest.approx(lineage.rho)


def test_a_branch_that_was_left_still_counts_for_the_table(tmp_path: Path, tiny: Path) -> None:
    with node(tmp_path / "alpha", NOISY) as core:
        filled(core, tiny)
        first = train(core)
        run_operation(core, "activate", {"model": "tiny", "version": first["from"]}, quiet)
        second = train(core)
    assert second["privacy"]["lineage"]["releases"] == 1
    assert second["privacy"]["epsilon_table"] > second["privacy"]["epsilon"]


def test_a_dry_run_costs_nothing(tmp_path: Path, tiny: Path) -> None:
    with node(tmp_path / "alpha", NOISY) as core:
        filled(core, tiny)
        assert "privacy" in train(core, publish=False)
        assert core.privacy.spent("docs") == Spent()


def test_without_noise_nothing_is_said_but_descendants_know(tmp_path: Path, tiny: Path) -> None:
    """What was published bare cannot be made private by noise on what follows."""
    with node(tmp_path / "alpha") as core:
        filled(core, tiny)
        bare = train(core)
        assert "privacy" not in bare
        later = train(core, epsilon=4.0)
        assert later["privacy"]["epsilon"] == pytest.approx(4.0, abs=1e-3)
        assert later["privacy"]["lineage"]["unprotected"] == 1
        assert later["privacy"]["lineage"]["epsilon"] is None
        assert math.isinf(spent_by(core.store, later["version"]).epsilon(1e-5))


def test_a_spent_budget_is_told_before_anything_is_trained(tmp_path: Path, tiny: Path) -> None:
    budget = NOISY.replace("delta", "epsilon_max: 27, delta")
    with node(tmp_path / "alpha", budget) as core:
        filled(core, tiny)
        train(core)
        with pytest.raises(BadRequest, match=r"table docs to epsilon .* is spent"):
            train(core)
        train(core, noise_multiplier=20)


def test_what_makes_no_sense_is_refused(tmp_path: Path, tiny: Path) -> None:
    both = {"epsilon": 1.0, "noise_multiplier": 1.0}
    with node(tmp_path / "alpha") as core:
        run_operation(core, "model_import", {"src": str(tiny), "name": "tiny"}, quiet)
        for args in (both, {"epsilon": -1.0}, {"noise_multiplier": 1e5}, {"clip_norm": 0.0}):
            with pytest.raises(BadRequest, match=r"epsilon|noise_multiplier|clip_norm"):
                train(core, **args)


def test_the_book_survives_and_a_damaged_one_is_told(tmp_path: Path) -> None:
    book = PrivacyBook(tmp_path / "privacy.json")
    assert book.spent("a") == Spent()
    tight = PrivacySection(epsilon_max=6)
    book.spend("a", 0.5, tight)
    with pytest.raises(BadRequest, match="epsilon_max is 6"):
        book.spend("a", 0.5, tight)
    book.spend("a", 0.25, PrivacySection())
    book.spend("b", 1.0, PrivacySection())
    assert PrivacyBook(tmp_path / "privacy.json").spent("a") == Spent(0.75, 2)
    for damage in ("[]", json.dumps({"a": {"rho": "x", "releases": 1}}), json.dumps({"a": []}), "{"):
        (tmp_path / "privacy.json").write_text(damage)
        with pytest.raises(Corrupt):
            PrivacyBook(tmp_path / "privacy.json").spent("a")


def test_noise_for_an_epsilon_that_cannot_be_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadConfig, match="epsilon"):
        plan_release(PrivacySection(delta=1e-300), PrivacyBook(tmp_path / "b"), "t", Spent(), epsilon=1e-9)
