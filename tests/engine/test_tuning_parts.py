"""Batches and checkpoints of long quantisations."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

import numpy as np
import pytest

from aios_node.engine.errors import BadRequest
from aios_node.engine.tokenizer import FastTokenizer
from aios_node.engine.tuning.batches import BatchPlan
from aios_node.engine.tuning.checkpoint import Checkpoints

TEXTS = [f"sentence number {n} says {'very ' * (n % 7)}little about the weather in {n} places" for n in range(60)]


@pytest.fixture(scope="module")
def tokenizer(minilm_files: dict[str, bytes]) -> FastTokenizer:
    return FastTokenizer.from_bytes(minilm_files["tokenizer.json"])


def plan(tokenizer: FastTokenizer, seed: int = 0) -> BatchPlan:
    return BatchPlan.of(TEXTS, tokenizer, max_tokens=32, budget=128, seed=seed)


def test_batches_after_a_step_are_the_same_as_those_of_an_unbroken_run(tokenizer: FastTokenizer) -> None:
    whole = list(islice(plan(tokenizer).training(), 40))  # more than one epoch
    later = list(islice(plan(tokenizer).training(33), 7))
    for one, other in zip(whole[33:], later, strict=True):
        np.testing.assert_array_equal(one.ids, other.ids)
        np.testing.assert_array_equal(one.mask, other.mask)
    assert not all(
        np.array_equal(a.ids, b.ids) for a, b in zip(whole, plan(tokenizer, seed=1).training(), strict=False)
    )


def test_only_ordinary_tokens_are_exchanged_and_budgets_hold(tokenizer: FastTokenizer) -> None:
    rows = tokenizer.token_ids(TEXTS, 32)
    first, last = rows[0][0], rows[0][-1]
    originals = {tuple(row) for row in rows}
    changed = 0
    for batch in islice(plan(tokenizer).training(), 30):
        assert batch.ids.size <= 128
        for ids, mask in zip(batch.ids, batch.mask, strict=True):
            row = ids[mask.astype(bool)].tolist()
            assert (row[0], row[-1]) == (first, last)
            assert not {first, last, 0} & set(row[1:-1])
            changed += tuple(row) not in originals
    assert changed > 0


def test_plain_batches_hold_the_first_rows_unchanged(tokenizer: FastTokenizer) -> None:
    rows = tokenizer.token_ids(TEXTS, 32)[:20]
    found = [
        ids[mask.astype(bool)].tolist()
        for batch in plan(tokenizer).plain(20)
        for ids, mask in zip(batch.ids, batch.mask, strict=True)
    ]
    assert sorted(found) == sorted(rows)


def test_texts_without_a_token_are_refused(tokenizer: FastTokenizer) -> None:
    with pytest.raises(BadRequest, match="no token"):
        BatchPlan.of(["", "  "], tokenizer, max_tokens=32, budget=128, seed=0)


def test_checkpoints_come_back_whole_or_not_at_all(tmp_path: Path) -> None:
    kept = Checkpoints(tmp_path / "work")
    assert kept.load("layer") is None
    kept.save("layer", {"codes": np.arange(5, dtype=np.uint8)})
    kept.save("layer", {"codes": np.arange(7, dtype=np.uint8), "other": np.ones((2, 3), np.float32)})
    found = kept.load("layer")
    assert found is not None
    assert found["codes"].tolist() == list(range(7))
    assert found["other"].shape == (2, 3)
    file = tmp_path / "work" / "layer.npz"
    data = file.read_bytes()
    for damaged in (data[: len(data) // 2], data[:-30], b"", b"nothing of the kind"):
        file.write_bytes(damaged)
        assert kept.load("layer") is None
    file.write_bytes(data[:60] + bytes([data[60] ^ 1]) + data[61:])
    changed = kept.load("layer")
    assert changed is None or changed["codes"].tolist() == list(range(7))


def test_objects_in_a_checkpoint_are_never_executed(tmp_path: Path) -> None:
    np.savez(tmp_path / "evil.npz", thing=np.array([{"a": 1}], dtype=object))
    assert Checkpoints(tmp_path).load("evil") is None


def test_without_a_folder_nothing_is_kept() -> None:
    Checkpoints(None).save("layer", {"codes": np.arange(5)})
    assert Checkpoints(None).load("layer") is None
