"""Fixtures for the Flight room: listeners on free ports over in-memory ports."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # the fakes are a module of their own: flight_fakes

from flight_fakes import FakePorts, Serve


@pytest.fixture
def fakes(tmp_path: Path) -> FakePorts:
    """Ports with one model, one table and one encoder."""
    return FakePorts.filled(tmp_path / "shards")


@pytest.fixture
def serve(fakes: FakePorts) -> Iterator[Serve]:
    """Start listeners over the fakes; all are shut down at the end, and none may hang."""
    serve = Serve(fakes)
    yield serve
    assert serve.shutdown() == [], "a listener did not end"
