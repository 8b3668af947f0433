"""Weights, memories, descriptors, tickets, recipes, configurations and certificates from hostile hands."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.flight as fl
from delta_targets import base_folder
from fuzz_target import MIB, SCRATCH, Target, at, golden

from aios_node.engine.errors import AiosError
from aios_node.engine.quant.recipe import QuantizationConfig, presets
from aios_node.engine.weights.convert.detect import import_any
from aios_node.engine.weights.folder import read_folder
from aios_node.engine.weights.parquet import open_shard
from aios_node.flight.actions import parse_arguments
from aios_node.flight.descriptors import parse_descriptor, parse_path
from aios_node.flight.limits import Limits as FlightLimits
from aios_node.flight.tickets import TicketSigner
from aios_node.flight.transport import SYNC_SCHEMA, from_chunk, to_batch
from aios_node.memory import transfer
from aios_node.memory.filters import compile_filter
from aios_node.memory.rows import read_rows
from aios_node.memory.schema import Limits as RowLimits
from aios_node.memory.store import MemoryStore
from aios_node.node.config.load import check_config
from aios_node.node.config.sources import parse_config
from aios_node.node.identity import create_identity, node_id_of
from aios_node.node.setup import preset_text

FLIGHT, ROWS = FlightLimits(), RowLimits()


# ---- weights


def read_parquet(data: bytes) -> None:
    shard = open_shard(at("w.parquet", data))
    try:
        for name in shard.headers:
            shard.tensor(name)
    finally:
        shard.close()


@cache
def _listed() -> Path:
    return Path(shutil.copytree(base_folder().path, SCRATCH / "listed"))


def read_shard_list(data: bytes) -> None:
    """A version folder whose list of shards is damaged."""
    (_listed() / "shards.json").write_bytes(data)
    with read_folder(_listed()).weights() as weights:
        len(weights)


def import_safetensors(data: bytes) -> None:
    """A model file from anywhere."""
    weights = import_any(at("m.safetensors", data)).weights
    for name in weights:
        _ = weights[name]


@cache
def safetensors_file() -> bytes:
    from safetensors.numpy import save

    return bytes(save({"a": np.arange(12, dtype=np.float32), "b": np.ones((2, 3), np.int8)}))


# ---- memories


def read_memories(name: str) -> Callable[[bytes], None]:
    """An import file in the format of its suffix."""

    def run(data: bytes) -> None:
        for table in transfer.read(at(name, data)):
            read_rows(table, ROWS)

    return run


@cache
def memories(name: str) -> bytes:
    rows = pa.table({"id": ["a", "b"], "text": ["one", "two"], "tags": [["x"], []], "metadata": ['{"k": 1}', None]})
    path = SCRATCH / f"rows-{name}"
    if name.endswith("jsonl"):
        return b'{"id": "a", "text": "one", "tags": ["x"], "metadata": {"k": 1}}\n{"text": "two"}\n'
    transfer.write(pa.RecordBatchReader.from_batches(rows.schema, rows.to_batches()), path)
    return path.read_bytes()


def open_memory(data: bytes) -> None:
    """The log of a memory table."""
    folder = SCRATCH / "memory"
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "notes").mkdir(parents=True)
    (folder / "notes" / "memory.sqlite").write_bytes(data)
    with contextlib.closing(MemoryStore.open(folder)) as store:
        for _ in store.scan("notes"):
            pass


@cache
def memory_log() -> bytes:
    folder = SCRATCH / "log"
    with contextlib.closing(MemoryStore.open(folder)) as store:
        store.add_table(pa.table({"text": ["one", "two"]}), table="notes")
    import sqlite3

    with contextlib.closing(sqlite3.connect(folder / "notes" / "memory.sqlite")) as database:
        database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    return (folder / "notes" / "memory.sqlite").read_bytes()


def filter_rows(data: bytes) -> None:
    compile_filter(data.decode("utf-8", "replace"))


# ---- Flight

SIGNER = TicketSigner(b"k" * 32, now=lambda: 0.0)


def path_of(data: bytes) -> None:
    parse_path(data.split(b"/")[:8])


def describe(data: bytes) -> None:
    """A command, said at the beginning of an exchange and asked for its data."""
    descriptor = fl.FlightDescriptor.for_command(data)
    with contextlib.suppress(AiosError):
        parse_descriptor(descriptor, FLIGHT, exchange=True)
    parse_descriptor(descriptor, FLIGHT)


def read_message(data: bytes) -> None:
    """An Arrow stream, as one side of an exchange hears it."""
    try:
        with pa.ipc.open_stream(pa.BufferReader(data)) as stream:
            for batch in stream:
                from_chunk(SimpleNamespace(app_metadata=None, data=batch))
    except (pa.ArrowException, OSError):
        return  # Arrow's own reader refused it; the transport turns both into the end of the sync


@cache
def arrow_stream() -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, SYNC_SCHEMA) as stream:
        stream.write_batch(to_batch(b"some data"))
    return bytes(sink.getvalue())


SEARCH = {"v": 1, "op": "search", "table": "notes", "vector": [0.5, 1], "k": 3, "filter": "text LIKE 'a%'"}
WEIGHTS = {"v": 1, "op": "weights", "model": "m.int8", "version": "0123abcd", "raw": True}
IMAGE = {"v": 1, "op": "search", "table": "notes", "image": "aGVsbG8=", "modalities": ["text"], "scope": "network"}


# ---- configuration and identities


def configure(data: bytes) -> None:
    check_config(parse_config(data.decode("utf-8", "replace"), "node.yaml"), Path())


@cache
def certificate() -> bytes:
    folder = SCRATCH / "keys"
    return bytes(create_identity(folder, ["127.0.0.1"]).certificate)


ODD_YAML = (b"a: 2026-99-99", b"node: " + b"[" * 3000, b"node: {grace_s: !!float x}", b"node: !!timestamp x")
"""Texts on which PyYAML itself stumbles: refused as any other mistake."""


def text(value: object) -> bytes:
    return json.dumps(value).encode()


def recipes() -> tuple[bytes, ...]:
    return tuple(text(config.to_json()) for config in presets().values())


TARGETS = {
    "parquet": Target(
        read_parquet,
        (
            golden("weights/2026-11.v1.parquet"),
            golden("weights/2026-11.v2.parquet"),
            next(base_folder().path.glob("*.parquet")).read_bytes(),
        ),
    ),
    "shard-list": Target(read_shard_list, ((base_folder().path / "shards.json").read_bytes(),)),
    "safetensors": Target(import_safetensors, (safetensors_file(),)),
    "memory-parquet": Target(read_memories("rows.parquet"), (memories("rows.parquet"),), 32 * MIB),
    "memory-arrow": Target(read_memories("rows.arrow"), (memories("rows.arrow"),), 32 * MIB),
    "memory-jsonl": Target(read_memories("rows.jsonl"), (memories("rows.jsonl"),), 32 * MIB),
    "memory-log": Target(open_memory, (golden("memory/layout_1/notes/memory.sqlite"), memory_log()), 32 * MIB),
    "filter": Target(filter_rows, (b"text LIKE 'a%' AND (importance > 0.5 OR source IN ('x', 'y')) AND id IS NULL",)),
    "path": Target(path_of, (b"weights/m/0123abc", b"memory/notes", b"search/notes", b"encode/m", b"sync")),
    "command": Target(describe, (text(SEARCH), text(WEIGHTS), text(IMAGE)), 32 * MIB),
    "ticket": Target(SIGNER.open, (SIGNER.sign({"model": "m"}, 60.0)[0],)),
    "arguments": Target(lambda data: parse_arguments(data, FLIGHT), (text({"peer": "x", "model": None}),), 32 * MIB),
    "sync-stream": Target(read_message, (arrow_stream(),)),
    "recipe": Target(QuantizationConfig.from_json, recipes()),
    "config": Target(configure, tuple(preset_text(name).encode() for name in ("edge", "local", "cloud"))),
    "certificate": Target(node_id_of, (certificate(),)),
}
