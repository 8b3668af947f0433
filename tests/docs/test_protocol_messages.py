"""The sync messages shown in docs/protocol.md, read by a second reader and by the program: the page tells the truth."""

from __future__ import annotations

import hashlib
import json
import re
import zlib
from pathlib import Path
from typing import Any

import pytest

from aios_node.delta.exchange.wire import decode
from aios_node.delta.offers import PackageInfo
from aios_node.delta.swarm.description import Description

PAGE = Path(__file__).resolve().parents[2] / "docs" / "protocol.md"
MESSAGES = [
    json.loads(text)
    for text in re.findall(r"```json\n(\{.*\})\n```", PAGE.read_text(encoding="utf-8"))
    if '"sum"' in text
]
HASHES = bytes(32 * 64)  # what the example of SHARE carries


def canonical(value: object) -> bytes:
    """As docs/formats.md says."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


@pytest.mark.parametrize("message", MESSAGES, ids=lambda message: message["type"])
def test_the_sum_is_as_documented(message: dict[str, Any]) -> None:
    assert message["sum"] == zlib.crc32(canonical({name: v for name, v in message.items() if name != "sum"}))


@pytest.mark.parametrize("message", MESSAGES, ids=lambda message: message["type"])
def test_the_program_reads_it(message: dict[str, Any]) -> None:
    data = HASHES if message["type"] == "share" else b""
    number, read = decode(canonical(message), data)
    assert number == message["n"]
    assert read.kind == message["type"]


def test_every_message_is_shown() -> None:
    kinds = [
        "hello",
        "offer",
        "want",
        "share",
        "have",
        "request",
        "chunk",
        "commit",
        "committed",
        "abort",
        "done",
        "ping",
    ]
    assert {message["type"] for message in MESSAGES} == set(kinds)


def test_the_root_is_as_documented() -> None:
    package = next(message["package"] for message in MESSAGES if message["type"] == "share")
    info = PackageInfo(**package | {"bytes": 64 * 16384})
    root = hashlib.sha256(canonical(package | {"bytes": 64 * 16384}) + HASHES).hexdigest()
    assert Description(info, HASHES).root == root
