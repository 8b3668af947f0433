"""Names and hashes that come from files and peers: what is allowed, and the one spelling of JSON.

Knows nothing about what is named.
"""

from __future__ import annotations

import json
import re

from aios_node.engine.errors import BadWeights, Corrupt

MAX_NAME_BYTES = 512
RESERVED_FILES = frozenset({"manifest.json", "shards.json", "envelope.json"})
OPTIMIZER = "aios.optimizer/"
"""Tensors of these names are the optimiser state of merges: part of a version, but of no network."""
FACTORS = "aios.factors/"
"""Tensors of these names say how others follow from the version before (see lowrank); no network has them either."""
UPDATES = "aios.update/"
"""Tensors of these names are what others got added, in few bits (see update); no network has them either."""

_SHA256 = re.compile(r"[0-9a-f]{64}")
_FILE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")


def canonical_json(value: object) -> bytes:
    """The one spelling of a JSON value: sorted keys, no spaces, ASCII, no NaN."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False).encode()


def check_tensor_name(name: object) -> str:
    """Names come from files and peers: text without control characters, of bounded length. Else BadWeights."""
    if not isinstance(name, str) or not name:
        raise BadWeights("a tensor has no name")
    if not name.isprintable():
        raise BadWeights(f"tensor name {name[:40]!a} holds control characters or broken text")
    if len(name) > MAX_NAME_BYTES or len(name.encode()) > MAX_NAME_BYTES:
        raise BadWeights(f"tensor name {name[:40]!r}... is longer than {MAX_NAME_BYTES} bytes")
    return name


def check_file_name(name: object) -> str:
    """A plain file name that may lie beside a manifest: no folders, not hidden, none of ours. Else Corrupt."""
    if not isinstance(name, str) or not _FILE_NAME.fullmatch(name):
        raise Corrupt(f"file name {str(name)[:80]!a} is not a plain name of letters, digits, '.', '_' and '-'")
    if name.lower() in RESERVED_FILES or name.lower().endswith(".parquet"):
        raise Corrupt(f"file name {name!r} is reserved for the version folder itself")
    return name


def check_sha256(value: object, what: str) -> str:
    """A sha256 in lower-case hex; raises Corrupt naming ``what``."""
    if not isinstance(value, str) or not _SHA256.fullmatch(value):
        raise Corrupt(f"{what} is not a sha256 in lower-case hex: {str(value)[:80]!a}")
    return value
