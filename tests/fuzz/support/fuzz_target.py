"""What a fuzz target is: a decoder as a function over bytes, where it begins, and how much memory it may take."""

from __future__ import annotations

import atexit
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

MIB = 1 << 20
GOLDEN = Path(__file__).resolve().parents[2] / "golden"
SCRATCH = Path(tempfile.mkdtemp(prefix="aios-fuzz-"))
atexit.register(shutil.rmtree, SCRATCH, ignore_errors=True)


@dataclass(frozen=True)
class Target:
    """``run`` returns, or raises an error of the project's tree; ``allowed``: bytes beside 20 times the input."""

    run: Callable[[bytes], object]
    seeds: tuple[bytes, ...]
    allowed: int = 8 * MIB


def golden(name: str) -> bytes:
    """A golden file."""
    return (GOLDEN / name).read_bytes()


def at(name: str, data: bytes) -> Path:
    """A file for readers that want a path."""
    path = SCRATCH / name
    path.write_bytes(data)
    return path
