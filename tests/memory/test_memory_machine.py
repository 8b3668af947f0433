"""Any sequence of changes, searches and restarts leaves the store equal to a plain dictionary."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from aios_node.memory import MemoryStore

IDS = st.sampled_from([f"m{n}" for n in range(12)])
TEXTS = st.one_of(st.none(), st.text(st.characters(exclude_categories=["Cs"]), max_size=6))
VECTORS = st.one_of(st.none(), st.lists(st.sampled_from([-1.0, 0.5, 2.0]), min_size=3, max_size=3))
NAMESPACES = st.sampled_from(["default", "work"])
TAGS = st.lists(st.sampled_from(["x", "y", "ä\"'"]), max_size=2)

Row = dict[str, Any]


def similarity(row: Row, query: list[float]) -> np.float32:
    vector = np.asarray(row["embedding"], np.float64)
    unit = (vector / np.linalg.norm(vector)).astype(np.float32).astype(np.float64)
    other = np.asarray(query) / np.linalg.norm(query)
    return np.float32(np.clip((unit * other).sum(), -1, 1))


class StoreMachine(RuleBasedStateMachine):
    """``model`` is what was acknowledged, in order of insertion; ``version`` the last one seen."""

    @initialize()
    def start(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="memory-machine-"))
        self.store = MemoryStore.open(self.folder)
        self.store.add_table(pa.table({"text": pa.array([], pa.string())}))
        self.model: dict[str, Row] = {}
        self.version = 0

    def teardown(self) -> None:
        self.store.close()
        shutil.rmtree(self.folder)

    def changed(self, change: Callable[[], Any], really: bool = True) -> Any:
        """Run a change: the version grows exactly when something changed."""
        result = change()
        version = self.store.version()
        assert (version > self.version) == really
        self.version = version
        return result

    def put(self, row: Row) -> None:
        self.model.pop(row["id"], None)
        self.model[row["id"]] = row

    @rule(name=IDS, text=TEXTS, vector=VECTORS, namespace=NAMESPACES, tags=TAGS)
    def add(self, name: str, text: str | None, vector: Any, namespace: str, tags: list[str]) -> None:
        if text is None and vector is None:
            text = ""
        given = {"text": text, "embedding": vector, "namespace": namespace, "tags": tags}
        assert self.changed(lambda: self.store.add(id=name, **given)) == name
        self.put({"id": name, **given})

    @rule(rows=st.lists(st.tuples(IDS, st.text("ab", max_size=2), VECTORS), min_size=1, max_size=6))
    def add_table(self, rows: list[tuple[str, str, Any]]) -> None:
        kinds = pa.schema([("id", pa.string()), ("text", pa.string()), ("embedding", pa.list_(pa.float32()))])
        columns = {name: [row[i] for row in rows] for i, name in enumerate(kinds.names)}
        assert self.changed(lambda: self.store.add_table(pa.table(columns, schema=kinds))) == len(rows)
        last = {row[0]: i for i, row in enumerate(rows)}
        for i in sorted(last.values()):
            name, text, vector = rows[i]
            self.put({"id": name, "text": text, "embedding": vector, "namespace": "default", "tags": []})

    @precondition(lambda self: self.model)
    @rule(data=st.data(), tags=TAGS, vector=VECTORS)
    def update(self, data: st.DataObject, tags: list[str], vector: Any) -> None:
        name = data.draw(st.sampled_from(sorted(self.model)))
        changes: Row = {"tags": tags}
        if vector is not None or self.model[name]["text"] is not None:
            changes["embedding"] = vector
        self.changed(lambda: self.store.update(name, **changes))
        self.put(self.model[name] | changes)

    @rule(names=st.lists(IDS, max_size=4))
    def delete(self, names: list[str]) -> None:
        gone = set(names) & set(self.model)
        assert self.changed(lambda: self.store.delete(names), bool(gone)) == len(gone)
        for name in gone:
            del self.model[name]

    @rule(namespace=NAMESPACES, tag=st.sampled_from(["x", "ä\"'"]))
    def delete_where(self, namespace: str, tag: str) -> None:
        quoted = tag.replace("'", "''")
        condition = f"namespace = '{namespace}' AND list_contains(tags, '{quoted}')"
        gone = [name for name, row in self.model.items() if row["namespace"] == namespace and tag in row["tags"]]
        assert self.changed(lambda: self.store.delete(filter=condition), bool(gone)) == len(gone)
        for name in gone:
            del self.model[name]

    @rule(query=VECTORS.filter(bool), k=st.integers(1, 14), namespace=st.one_of(st.none(), NAMESPACES))
    def search(self, query: list[float], k: int, namespace: str | None) -> None:
        found = self.store.search(vector=query, k=k, namespace=namespace)
        among = [row for row in self.model.values() if row["embedding"] and namespace in (None, row["namespace"])]
        best = sorted((-similarity(row, query), row["id"]) for row in among)[:k]
        assert list(zip(found["id"].to_pylist(), found["score"].to_pylist(), strict=True)) == [
            (name, -score) for score, name in best
        ]

    @rule()
    def reopen(self) -> None:
        self.store.close()
        self.store = MemoryStore.open(self.folder)

    @invariant()
    def holds_what_was_acknowledged(self) -> None:
        if hasattr(self, "store"):
            columns = ["id", "text", "embedding", "namespace", "tags"]
            assert self.store.scan(columns=columns).read_all().to_pylist() == [
                {name: row[name] for name in columns} for row in self.model.values()
            ]
            stats = self.store.stats()
            assert stats.rows == len(self.model)
            assert stats.embedded == sum(row["embedding"] is not None for row in self.model.values())
            assert stats.version == self.version


TestStoreMachine = StoreMachine.TestCase
TestStoreMachine.settings = settings(max_examples=25, stateful_step_count=25)
