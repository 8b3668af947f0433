"""Writes the golden files of delta formats. Run it only for a new format version, and keep the old files.

    python tests/golden/delta/generate.py

Content is arithmetic, so that readers in any language can rebuild it.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import ml_dtypes
import numpy as np

from aios_node import delta
from aios_node.delta.envelope import Envelope
from aios_node.delta.exchange.wire import (
    Abort,
    Chunk,
    Commit,
    Committed,
    Done,
    Hello,
    Message,
    Offers,
    Ping,
    Want,
    encode,
)
from aios_node.delta.offers import Offer, PackageInfo, Resume, Source
from aios_node.delta.package.package import build_package
from aios_node.engine.quant.blocks import QuantizedTensor, Tensor
from aios_node.engine.weights.folder import VersionFolder, write_folder

HERE = Path(__file__).parent
V1, V2, SHA = "1" * 64, "2" * 64, "a" * 64
PACKAGE = PackageInfo(10, SHA, "delta", V1, 30, 40)
ENVELOPE = Envelope("m", V1, "cloud", "2026-01-02T03:04:05Z", "b" * 64, "c" * 128)
FILES = {"config.json": b'{"a":1}', "tokenizer.json": b"tokens " * 20}

MESSAGES: list[Message] = [
    Hello((1,), ("same", "raw", "zstd")),
    Offers((Offer("m.int8", V2, (V1,), 5, "int8", Source("m", V1), SHA),), last=True),
    Want(0, "m.int8", V2, V1, 0, Resume(SHA, ((0, 3), (7, 8)))),
    Chunk(0, 2, 8, 0xADF3F363, b"data", PACKAGE),
    Commit(0, 0, PACKAGE),
    Committed(0),
    Abort(0, "receiver", "hash_mismatch", "not the promised bytes"),
    Abort(None, None, "unavailable", "draining"),
    Ping(),
    Done(),
]


def base() -> dict[str, Tensor]:
    """The older version."""
    count = np.arange(600, dtype=np.float32)
    return {
        "bfloat": (count[:200] / 7).astype(ml_dtypes.bfloat16),
        "codes": quantized(0),
        "float": (count / 7).reshape(20, 30),
        "gone": np.arange(5),
        "half": (count[:50] / 3).astype(np.float16),
        "same": np.arange(40, dtype=np.int16).reshape(4, 10),
    }


def target() -> dict[str, Tensor]:
    """The newer version: each kind of change once."""
    old = base()
    del old["gone"]
    changed = (np.arange(600, dtype=np.float32) / 7).reshape(20, 30)
    changed[3] *= np.float32(1.0001)
    bfloat = (np.arange(200, dtype=np.float32) / 7).astype(ml_dtypes.bfloat16)
    bfloat[::50] = ml_dtypes.bfloat16(-1)
    return old | {
        "added": np.arange(16, dtype=np.uint8),
        "bfloat": bfloat,
        "codes": quantized(1),
        "float": changed,
        "half": np.zeros((2, 3), np.float16),
    }


def quantized(step: int) -> QuantizedTensor:
    """An int4 tensor [4, 32] in groups of 16; ``step`` changes a few codes."""
    codes = (np.arange(64, dtype=np.uint8) * 7) & np.uint8(0x77)
    codes[::20] ^= np.uint8(step)
    scales = np.arange(1, 9, dtype=np.float32).reshape(4, 2) / 8
    return QuantizedTensor(codes, scales, np.full((4, 2), 8, np.float32), (4, 32), "float32", "int4", 0, 16)


def folders(where: Path) -> tuple[VersionFolder, VersionFolder]:
    """Both versions as folders."""
    old = write_folder(where / "old", base(), FILES)
    new = write_folder(where / "new", target(), FILES | {"config.json": b'{"a":2}'}, parents=[old.version])
    return old, new


def main() -> None:
    (HERE / "v1.delta").write_bytes(delta.encode(base(), target()))
    (HERE / "v1-full.delta").write_bytes(delta.encode(None, target()))
    (HERE / "v1.envelope").write_bytes(ENVELOPE.to_bytes())
    lines = []
    for number, message in enumerate(MESSAGES):
        metadata, data = encode(message, number)
        lines.append({"metadata": metadata.decode(), "data": bytes(data).hex()})
    (HERE / "v1-messages.json").write_text(json.dumps(lines, indent=1) + "\n")
    with tempfile.TemporaryDirectory() as where:
        old, new = folders(Path(where))
        for name, source in (("v1.package", old), ("v1-full.package", None)):
            with (HERE / name).open("wb") as out:
                build_package(out, base=source, target=new, envelope=ENVELOPE.to_bytes())


if __name__ == "__main__":
    main()
