"""A model that answers nonsense stores nothing; a row that changes while it is embedded keeps the change."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from aios_node.engine.errors import DataError
from aios_node.memory import MemoryStore

if TYPE_CHECKING:
    from conftest import HashEmbedder


class Answers:
    """A model that answers what it is told to."""

    space = "test-space"
    dimension = 2

    def __init__(self, answer: Any) -> None:
        self.answer = answer

    def encode(self, texts: Sequence[str], /) -> Any:
        return self.answer


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ([[1.0, 2.0, 3.0]], r"answered \(1, 3\) for 1 texts of dimension 2"),
        ([[1.0, 2.0]] * 2, r"answered \(2, 2\) for 1 texts"),
        ([[1.0, float("nan")]], "NaN, infinite or zero"),
        ([[0.0, 0.0]], "NaN, infinite or zero"),
    ],
)
def test_nonsense_of_a_model_is_not_stored(store: MemoryStore, answer: Any, message: str) -> None:
    store.embedder = Answers(np.array(answer, np.float32))
    with pytest.raises(DataError, match=message):
        store.add(text="x")
    assert store.tables() == []


def test_rows_that_change_while_they_are_embedded_are_left_alone(store: MemoryStore, embedder: HashEmbedder) -> None:
    for name in ("changed", "gone", "quiet"):
        store.add(id=name, text=f"old {name}")

    class Slow(type(embedder)):  # type: ignore[misc]
        def encode(self, texts: Sequence[str], /) -> Any:
            if "old changed" in texts:
                store.embedder = None
                store.add(id="changed", text="new")
                store.delete("gone")
                store.embedder = self
            return super().encode(texts)

    store.embedder = Slow()
    assert store.embed_missing() == 2  # the quiet one, then the new text
    assert store.search(text="old quiet", k=1).column("similarity").to_pylist() == [1.0]
    assert store.search(text="new", k=1).column("similarity").to_pylist() == [1.0]
    assert sorted(store.scan().read_all()["text"].to_pylist()) == ["new", "old quiet"]


def test_a_pass_in_which_everything_changes_embeds_nothing(store: MemoryStore) -> None:
    store.add(id="a", text="x")

    class Deleting(Answers):
        def encode(self, texts: Sequence[str], /) -> Any:
            store.delete("a")
            return self.answer

    store.embedder = Deleting(np.ones((1, 2), np.float32))
    assert store.embed_missing() == 0
    assert (store.stats().rows, store.stats().dimension) == (0, None)
