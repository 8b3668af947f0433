"""Many threads and processes on one table: consistent answers, nobody waits for the disk but who writes."""

from __future__ import annotations

import gc
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from aios_node.engine.errors import BadRequest, StorageError, Unavailable
from aios_node.memory import MemoryStore
from aios_node.memory.writer import Txn, Writer


def pair(generation: int) -> pa.Table:
    """Two rows that are always replaced together."""
    vector = [1.0, generation / 1000]
    return pa.table({"id": ["left", "right"], "text": [str(generation)] * 2, "embedding": [vector] * 2})


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(64) as threads:
        yield threads


@contextmanager
def busy(store: MemoryStore, pool: ThreadPoolExecutor) -> Iterator[tuple[Writer, Callable[[], None]]]:
    """A writer that sits in the middle of its transaction until it is let go."""
    writer = store._open["default"]._writer
    inside, go = threading.Event(), threading.Event()

    def sit(txn: Txn) -> None:
        txn.connection.execute("UPDATE rows SET source = 'not committed'")
        inside.set()
        go.wait()

    sitting = pool.submit(writer.run, sit)
    inside.wait()
    try:
        yield writer, go.set
    finally:
        go.set()
        sitting.result()


def queue(writer: Writer, count: int) -> None:
    """Return when ``count`` changes wait for the writer."""
    while len(writer._waiting) < count:
        os.sched_yield()


def test_readers_never_wait_for_a_writer(store: MemoryStore, pool: ThreadPoolExecutor) -> None:
    store.add_table(pair(1))
    with busy(store, pool):
        assert store.search(vector=[1.0, 0.0]).column("source").to_pylist() == [None, None]
        assert store.get(["left"]).column("source").to_pylist() == [None]
        assert store.scan(filter="source IS NULL").read_all().num_rows == 2
        assert (store.stats().rows, store.version(), store.schema().names[0]) == (2, 1, "id")


def test_every_answer_shows_one_version(store: MemoryStore, pool: ThreadPoolExecutor) -> None:
    """A row that is replaced all the time is never missing, never doubled, never half new."""
    store.add_table(pair(0))
    finished = threading.Event()

    def write() -> None:
        try:
            for generation in range(1, 150):
                store.add_table(pair(generation))
        finally:
            finished.set()

    def read(look: Callable[[], pa.Table]) -> int:
        looks, latest = 0, 0
        while not finished.is_set() or not looks:
            rows = look().select(["id", "text"]).to_pylist()
            assert sorted(row["id"] for row in rows) == ["left", "right"]
            assert rows[0]["text"] == rows[1]["text"]
            assert int(rows[0]["text"]) >= latest, "an older version after a newer one"
            latest, looks = int(rows[0]["text"]), looks + 1
        return looks

    searches: list[Callable[[], pa.Table]] = [
        lambda: store.search(vector=[1.0, 0.5], k=5),
        lambda: store.search(vector=[1.0, 0.5], k=5, filter="id LIKE '%'"),
        lambda: store.get(["left", "right"]),
        lambda: store.scan().read_all(),
    ]
    readers = [pool.submit(read, look) for look in searches]
    writing = pool.submit(write)
    assert min(reader.result() for reader in readers) >= 1
    writing.result()
    assert store.search(vector=[1.0, 0.5]).column("text").to_pylist() == ["149", "149"]


def test_changes_that_wait_together_share_a_commit(store: MemoryStore, pool: ThreadPoolExecutor) -> None:
    store.add(id="first", text="x")
    statements: list[str] = []
    with busy(store, pool) as (writer, go):
        writer._connection.set_trace_callback(statements.append)
        adding = [pool.submit(store.add, id=f"m{n}", text=str(n)) for n in range(40)]
        queue(writer, 40)
        go()
        assert sorted(future.result() for future in adding) == sorted(f"m{n}" for n in range(40))
        writer._connection.set_trace_callback(None)
    assert statements.count("COMMIT") == 2  # the one that sat, and all the others
    assert (store.stats().rows, store.version()) == (41, 41)


def test_a_bad_change_fails_alone_in_its_group(store: MemoryStore, pool: ThreadPoolExecutor) -> None:
    store.add(id="first", embedding=[1.0, 2.0])
    with busy(store, pool) as (writer, go):
        good: list[Future[Any]] = [pool.submit(store.add, id=f"m{n}", embedding=[1.0, n]) for n in range(5)]
        queue(writer, 5)
        bad = pool.submit(writer.run, _half_a_change)
        queue(writer, 6)
        more = pool.submit(store.add, id="last", embedding=[1.0, 9.0])
        queue(writer, 7)
        go()
        with pytest.raises(BadRequest, match="on purpose"):
            bad.result()
        assert [future.result() for future in good] == [f"m{n}" for n in range(5)]
        assert more.result() == "last"
    assert store.stats().rows == store.search(vector=[1.0, 1.0], k=100).num_rows == 7
    assert store.version() == 7


def _half_a_change(txn: Txn) -> None:
    txn.connection.execute("DELETE FROM rows")
    txn.changed()
    raise BadRequest("on purpose")


def test_an_interrupted_writer_tells_those_who_waited(store: MemoryStore, pool: ThreadPoolExecutor) -> None:
    store.add(id="first", text="x")

    def interrupt(txn: Txn) -> None:
        raise KeyboardInterrupt

    with busy(store, pool) as (writer, go):
        interrupted = pool.submit(writer.run, interrupt)
        queue(writer, 1)
        waiting = pool.submit(store.add, text="y")
        queue(writer, 2)
        go()
        errors = [future.exception() for future in (interrupted, waiting)]
    assert {type(error) for error in errors} == {KeyboardInterrupt, StorageError}
    assert store.add(text="z")
    assert store.stats().rows == 2


def test_one_table_is_made_once(store: MemoryStore, pool: ThreadPoolExecutor) -> None:
    barrier = threading.Barrier(16)

    def add(number: int) -> str:
        barrier.wait()
        return store.add("fresh", text=str(number), embedding=[1.0, number])

    assert len(set(pool.map(add, range(16)))) == 16
    assert store.search(vector=[1.0, 0.0], table="fresh", k=100).num_rows == 16


def test_two_stores_on_one_folder_see_each_other(folder: Path) -> None:
    """As two processes would: each has its own connections and its own vectors in memory."""
    with MemoryStore.open(folder) as one, MemoryStore.open(folder) as two:
        one.add_table(pair(1))
        for generation in range(2, 30, 2):
            two.add_table(pair(generation))
            two.add(id=f"two{generation}", embedding=[0.0, 1.0])
            assert one.search(vector=[1.0, 0.0], k=2).column("text").to_pylist() == [str(generation)] * 2
            one.add_table(pair(generation + 1))
            one.delete(f"two{generation}")
            one.add(id=f"one{generation}", embedding=[0.0, 1.0])
            for store in (two, one):
                hits = store.search(vector=[1.0, 0.0], k=100).to_pylist()
                assert [hit["text"] for hit in hits[:2]] == [str(generation + 1)] * 2
                assert len(hits) == 2 + generation // 2
        assert one.version() == two.version()


def test_two_stores_may_write_at_the_same_time(folder: Path, pool: ThreadPoolExecutor) -> None:
    with MemoryStore.open(folder) as one, MemoryStore.open(folder) as two:
        one.add(text="x")
        wanted = [pool.submit(store.add, id=f"m{n}", embedding=[1.0, n]) for n in range(30) for store in (one, two)]
        assert len({future.result() for future in wanted}) == 30
        for store in (one, two):
            assert store.search(vector=[1.0, 0.0], k=100).num_rows == 30


def test_a_write_that_waited_for_a_closed_store_says_so(store: MemoryStore, pool: ThreadPoolExecutor) -> None:
    store.add(id="first", text="x")
    table = store._open["default"]
    with busy(store, pool) as (writer, go):
        closing = pool.submit(table.close)
        go()
        closing.result()
        with pytest.raises(Unavailable, match="closed"):
            writer.run(lambda txn: txn.changed())


def open_files(folder: Path) -> list[str]:
    found = []
    for entry in Path("/proc/self/fd").iterdir():
        try:
            target = str(entry.readlink())
        except FileNotFoundError:  # the one that listed this folder
            continue
        if target.startswith(str(folder)):
            found.append(target)
    return found


def test_nothing_stays_open(folder: Path) -> None:
    """Fifty stores, each used in every way and left with unfinished scans, leave no file and no thread."""
    threads = threading.active_count()
    for number in range(50):
        store = MemoryStore.open(folder)
        store.add_table(pair(number), f"table{number % 3}")
        store.search(vector=[1.0, 0.0], table=f"table{number % 3}")
        store.get("left", table=f"table{number % 3}")
        never_read = store.scan(f"table{number % 3}")
        half_read = store.scan(f"table{number % 3}", batch_rows=1)
        next(half_read)
        store.close()
        del never_read, half_read
    gc.collect()
    assert open_files(folder) == []
    assert threading.active_count() == threads
