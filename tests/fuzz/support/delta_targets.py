"""Deltas, packages, envelopes, manifests, messages, sessions and staged transfers from hostile hands."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import json
import shutil
import zlib
from collections.abc import Mapping
from functools import cache
from typing import Any

import numpy as np
from fuzz_target import GOLDEN, MIB, SCRATCH, Target, golden

from aios_node import delta
from aios_node.delta.chunks import TransferKey
from aios_node.delta.codec.stream import read_exactly, read_section
from aios_node.delta.envelope import Envelope
from aios_node.delta.exchange import wire
from aios_node.delta.exchange.session import SyncSession
from aios_node.delta.limits import Limits
from aios_node.delta.offers import Decision, Offer, PackageInfo
from aios_node.delta.package.package import open_package
from aios_node.delta.staging.staging import Staging
from aios_node.engine.weights.folder import VersionFolder, write_folder
from aios_node.engine.weights.manifest import Manifest
from aios_node.engine.weights.names import canonical_json

SMALL = Limits(
    header_bytes=MIB, tensors=1000, tensor_bytes=MIB, total_bytes=MIB, files_bytes=MIB, package_bytes=4 * MIB
)
MESSAGES_HEARD = 64
KEY = TransferKey("m", "1" * 64)
PACKAGE = PackageInfo(40_000, "a" * 64, "full", None, 1, 1)


def _generator() -> Any:
    """The program that wrote the golden files: it knows their base."""
    spec = importlib.util.spec_from_file_location("golden_delta", GOLDEN / "delta" / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


generate = _generator()


# ---- deltas and packages


@cache
def golden_base() -> Mapping[str, Any]:
    return dict(generate.base())


def apply_delta(data: bytes) -> None:
    for _ in delta.apply_from(golden_base(), io.BytesIO(data), SMALL):
        pass


def apply_full_delta(data: bytes) -> None:
    for _ in delta.apply_from(None, io.BytesIO(data), SMALL):
        pass


@cache
def several_kinds() -> tuple[dict[str, Any], dict[str, Any]]:
    """A base and a target whose delta has sparse, medium and dense changes in every kind of number."""
    random = np.random.default_rng(7)
    base, target = {}, {}
    for dtype in ("float32", "float16", "int8", "int64"):
        for percent in (1, 30, 100):
            values = random.normal(0, 40, 3000).astype(dtype)
            changed = random.random(3000) < percent / 100
            base[f"{dtype}.{percent}"] = values
            target[f"{dtype}.{percent}"] = np.where(changed, values + np.ones((), dtype), values)
    return base, target


@cache
def cut_delta() -> tuple[bytes, bytes]:
    """A valid delta in two: up to its tensors, and its tensors."""
    blob = delta.encode(*several_kinds())
    source = io.BytesIO(blob)
    read_exactly(source, 8)
    read_section(source, "settings", MIB)
    read_section(source, "header", MIB)
    return blob[: source.tell()], blob[source.tell() :]


def decode_blocks(data: bytes) -> None:
    """Only the tensors are damaged, so that the damage meets the block codecs and not the header's checks."""
    for _ in delta.apply_from(several_kinds()[0], io.BytesIO(cut_delta()[0] + data), SMALL):
        pass


@cache
def base_folder() -> VersionFolder:
    folder = SCRATCH / "base"
    folder.mkdir()
    return write_folder(folder, generate.base(), generate.FILES)


def read_package(data: bytes) -> None:
    with open_package(io.BytesIO(data), find_base=lambda _version: base_folder(), limits=SMALL) as package:
        for _ in package.weights.values():
            pass


# ---- messages


def golden_messages() -> list[tuple[bytes, bytes]]:
    lines = json.loads(golden("delta/v1-messages.json"))
    return [(line["metadata"].encode(), bytes.fromhex(line["data"])) for line in lines]


def joined(messages: list[tuple[bytes, bytes]], between: bytes) -> bytes:
    return between.join(metadata + b"\0" + data for metadata, data in messages)


def decode_message(data: bytes) -> None:
    metadata, _, rest = data.partition(b"\0")
    wire.decode(metadata, rest)


def resealed(metadata: bytes, **changes: int) -> bytes:
    """The same message with the right sum, so that damage reaches the fields; as it is where it is no object."""
    with contextlib.suppress(ValueError, RecursionError, TypeError):
        values = {**json.loads(metadata), **changes}
        values.pop("sum", None)
        values["sum"] = zlib.crc32(canonical_json(values))
        return canonical_json(values)
    return metadata


def decode_resealed(data: bytes) -> None:
    metadata, _, rest = data.partition(b"\0")
    wire.decode(resealed(metadata), rest)


class _TakesAll:
    def wants(self, offer: Offer) -> Decision:
        return Decision(want=True)


def hear(data: bytes) -> None:
    """A whole conversation, one message per line, numbered and sealed anew. A session never raises."""
    session = SyncSession([Offer("m", "1" * 64, lineage=("2" * 64,), bytes=10)], _TakesAll())
    _answer(session, session.start())
    for number, line in enumerate(data.split(b"\n")[:MESSAGES_HEARD]):
        metadata, _, rest = line.partition(b"\0")
        if session.can_receive:
            _answer(session, session.receive(resealed(metadata, n=number), rest))
    _answer(session, session.disconnected())


def _answer(session: SyncSession, effects: list[Any]) -> None:
    """Do every effect, in the simplest way."""
    while effects:
        effect = effects.pop(0)
        match type(effect).__name__:
            case "PreparePackage":
                answer: Any = PACKAGE
            case "ReadChunk":
                answer = bytes(effect.length)
            case _:
                answer = None
        effects += session.complete(effect, answer)


# ---- a transfer's folder after a disk went mad


def recover_staging(data: bytes) -> None:
    """Facts and journal in one input, with four zeros between them."""
    folder = SCRATCH / "staging"
    shutil.rmtree(folder, ignore_errors=True)
    Staging(folder).open(KEY, PACKAGE).close()
    (inside,) = folder.iterdir()
    facts, _, journal = data.partition(bytes(4))
    (inside / "transfer.json").write_bytes(facts)
    (inside / "journal").write_bytes(journal)
    found = Staging(folder).resume(KEY)
    if found is not None:
        assert all(0 <= first < end <= found.chunks for first, end in found.missing())
        found.close()


MESSAGES = golden_messages()


def conversations() -> tuple[bytes, ...]:
    """What a peer says that sends a version, and one that asks for ours."""
    small = PackageInfo(10, "a" * 64, "full", None, 1, 1)
    content = b"0123456789"
    hello = wire.decode(*MESSAGES[0])[1]
    sends = [
        hello,
        wire.Offers((Offer("other", "2" * 64, lineage=("3" * 64,), bytes=10),), last=True),
        wire.Chunk(0, 0, 0, zlib.crc32(content), content, small),
        wire.Commit(0, 0, small),
        wire.Done(),
    ]
    asks = [hello, wire.Offers((), last=True), wire.Want(0, "m", "1" * 64, None), wire.Committed(0), wire.Done()]
    return tuple(joined([wire.encode(message, 0) for message in said], b"\n") for said in (sends, asks))


STAGED = json.dumps(
    {"format": 1, "model": "m", "version": "1" * 64, "base": None, "bytes": 40_000, "sha256": "a" * 64}
).encode()
TARGETS = {
    "delta": Target(apply_delta, (golden("delta/v1.delta"),)),
    "full-delta": Target(apply_full_delta, (golden("delta/v1-full.delta"),)),
    "delta-blocks": Target(decode_blocks, (cut_delta()[1],)),
    "package": Target(read_package, (golden("delta/v1.package"), golden("delta/v1-full.package"))),
    "envelope": Target(Envelope.from_bytes, (golden("delta/v1.envelope"),)),
    "manifest": Target(Manifest.from_bytes, (base_folder().manifest.to_bytes(),)),
    "message": Target(decode_message, tuple(joined([message], b"") for message in MESSAGES)),
    "message-fields": Target(decode_resealed, tuple(joined([message], b"") for message in MESSAGES)),
    "session": Target(hear, (*conversations(), joined(MESSAGES, b"\n"))),
    "staging": Target(recover_staging, (STAGED + bytes(4) + bytes(24),)),
}
