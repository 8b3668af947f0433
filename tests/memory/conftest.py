"""A store in a fresh folder, and a stand-in for the model at its Protocol seam."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from aios_node.memory import MemoryStore

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass
class HashEmbedder:
    """Vectors drawn from the text's hash: equal texts get equal vectors, different ones unrelated vectors."""

    space: str = "test-space"
    dimension: int = 8
    seen: list[str] = field(default_factory=list)

    def encode(self, texts: Sequence[str], /) -> NDArray[np.float32]:
        self.seen += texts
        return np.stack([self._vector(text) for text in texts])

    def _vector(self, text: str) -> NDArray[np.float32]:
        seed = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little")
        return np.random.default_rng(seed).standard_normal(self.dimension).astype(np.float32)


@pytest.fixture
def embedder() -> HashEmbedder:
    return HashEmbedder()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "memory"


@pytest.fixture
def store(folder: Path) -> Iterator[MemoryStore]:
    with MemoryStore.open(folder) as opened:
        yield opened


@pytest.fixture
def model_store(folder: Path, embedder: HashEmbedder) -> Iterator[MemoryStore]:
    """A store with a model open."""
    with MemoryStore.open(folder, embedder) as opened:
        yield opened
