"""Files and messages of format 1 are read for ever. ``tests/golden/delta/generate.py`` wrote them."""

from __future__ import annotations

import importlib.util
import json
import zlib
from pathlib import Path
from types import ModuleType

import pytest
from tensors import hashes

from aios_node import delta
from aios_node.delta.envelope import Envelope
from aios_node.delta.exchange.wire import Chunk, decode, encode
from aios_node.delta.package.package import open_package

GOLDEN = Path(__file__).parent.parent / "golden" / "delta"


@pytest.fixture(scope="module")
def golden() -> ModuleType:
    spec = importlib.util.spec_from_file_location("golden_delta", GOLDEN / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_deltas_still_apply(golden: ModuleType) -> None:
    expected = hashes(golden.target())
    assert hashes(delta.apply(golden.base(), (GOLDEN / "v1.delta").read_bytes())) == expected
    assert hashes(delta.apply(None, (GOLDEN / "v1-full.delta").read_bytes())) == expected


def test_packages_still_open(golden: ModuleType, tmp_path: Path) -> None:
    old, new = golden.folders(tmp_path)
    for name, mode in (("v1.package", "delta"), ("v1-full.package", "full")):
        with (
            (GOLDEN / name).open("rb") as file,
            open_package(file, find_base={old.version: old}.get) as package,
        ):
            assert package.mode == mode
            assert package.manifest == new.manifest
            assert package.envelope == golden.ENVELOPE.to_bytes()
            assert hashes(package.weights) == hashes(golden.target())
            assert package.files == {name: new.read_file(name) for name in new.files}


def test_messages_are_still_the_same_bytes(golden: ModuleType) -> None:
    lines = json.loads((GOLDEN / "v1-messages.json").read_text())
    assert len(lines) == len(golden.MESSAGES)
    for number, (line, message) in enumerate(zip(lines, golden.MESSAGES, strict=True)):
        metadata, data = line["metadata"].encode(), bytes.fromhex(line["data"])
        assert decode(metadata, data) == (number, message)
        assert encode(message, number) == (metadata, data)
        assert not isinstance(message, Chunk) or message.crc == zlib.crc32(message.data)


def test_envelopes_are_still_the_same_bytes(golden: ModuleType) -> None:
    data = (GOLDEN / "v1.envelope").read_bytes()
    assert Envelope.from_bytes(data) == golden.ENVELOPE
    assert golden.ENVELOPE.to_bytes() == data
