"""The vectors in memory are exactly those of one version of the log, whatever commits, fails or waits meanwhile."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from aios_node.engine.errors import StorageFull
from aios_node.memory import MemoryStore
from aios_node.memory.matrix import Matrix


class Intercepted:
    """A connection that calls ``at_commit`` before it commits."""

    def __init__(self, connection: sqlite3.Connection, at_commit: Callable[[], None]) -> None:
        self._connection = connection
        self._at_commit = at_commit

    def execute(self, statement: str, *values: Any) -> sqlite3.Cursor:
        if statement == "COMMIT":
            self._at_commit()
        return self._connection.execute(statement, *values)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._connection, name)


def intercept(store: MemoryStore, at_commit: Callable[[], None]) -> None:
    writer = store._open["default"]._writer
    writer._connection = Intercepted(writer._connection, at_commit)  # type: ignore[assignment]


def found(store: MemoryStore) -> list[str]:
    names: list[str] = store.search(vector=[1.0, 0.0], k=100).column("id").to_pylist()
    return sorted(names)


def test_a_commit_that_fails_leaves_no_vectors_behind(store: MemoryStore) -> None:
    store.add(id="a", embedding=[1.0, 1.0])
    failures = [sqlite3.SQLITE_FULL]

    def fail_once() -> None:
        if failures:
            error = sqlite3.OperationalError("database or disk is full")
            error.sqlite_errorcode = failures.pop()
            raise error

    intercept(store, fail_once)
    with pytest.raises(StorageFull):
        store.add(id="lost", embedding=[1.0, 2.0])
    assert found(store) == ["a"]
    store.add(id="b", embedding=[1.0, 3.0])  # takes the version that the lost one would have had
    assert found(store) == ["a", "b"]
    assert store.search(vector=[1.0, 3.0], k=1).select(["id", "similarity"]).to_pylist() == [
        {"id": "b", "similarity": 1}
    ]
    assert store.version() == 2


def test_a_search_never_waits_for_a_commit_even_after_another_process_wrote(folder: Path) -> None:
    with MemoryStore.open(folder) as one, MemoryStore.open(folder) as two, ThreadPoolExecutor(1) as pool:
        one.add(id="a", embedding=[1.0, 1.0])
        two.add(id="b", embedding=[1.0, 2.0])
        committing, go = threading.Event(), threading.Event()

        def wait() -> None:
            committing.set()
            go.wait()

        intercept(one, wait)
        writing = pool.submit(one.add, id="c", embedding=[1.0, 3.0])
        committing.wait()
        try:
            assert found(one) == found(two) == ["a", "b"]
        finally:
            go.set()
        writing.result()
        assert found(one) == found(two) == ["a", "b", "c"]


@pytest.fixture
def table(store: MemoryStore) -> tuple[MemoryStore, Matrix, sqlite3.Connection]:
    store.add(id="a", embedding=[3.0, 4.0])
    store.add(id="b", embedding=[0.0, 2.0])
    opened = store._open["default"]
    return store, opened._matrix, opened._writer._connection


def test_an_older_view_stays_as_it_was(table: tuple[MemoryStore, Matrix, sqlite3.Connection]) -> None:
    store, matrix, connection = table
    views = []
    for change in (lambda: store.delete("a"), lambda: store.delete("b"), lambda: store.add(embedding=[1.0, 0.0])):
        views.append(matrix.view(connection))
        change()
    views.append(matrix.view(connection))
    assert [view.living for view in views if view] == [2, 1, 0, 1]
    assert [view.version for view in views if view] == [2, 3, 4, 5]
    first = views[0]
    assert first is not None
    np.testing.assert_array_equal(
        np.concatenate([rows for _, rows in first.parts()]), np.array([[0.6, 0.8], [0.0, 1.0]], np.float32)
    )


def test_a_version_that_is_gone_has_no_view(table: tuple[MemoryStore, Matrix, sqlite3.Connection]) -> None:
    store, matrix, _ = table
    with store._open["default"]._readers.snapshot() as old:
        assert matrix.view(old) is not None
        for number in range(40):
            store.add(embedding=[1.0, number])
        assert matrix.view(old) is None
    assert store.search(vector=[1.0, 0.0], k=100).num_rows == 42


def test_many_small_appends_fill_many_blocks(store: MemoryStore) -> None:
    rng = np.random.default_rng(0)
    width = 1 << 14  # 128 rows to a block
    vectors = rng.standard_normal((300, width)).astype(np.float32)
    for start in range(0, 300, 20):
        names = [f"{number:03}" for number in range(start, start + 20)]
        store.add_table(pa.table({"id": names, "embedding": list(vectors[start : start + 20])}))
    view = store._open["default"]._matrix._views[-1]
    assert [len(rows) for _, rows in view.parts()] == [129, 129, 42]
    for number in (0, 128, 129, 299):
        hits = store.search(vector=vectors[number], k=1)
        assert hits.column("id").to_pylist() == [f"{number:03}"]
