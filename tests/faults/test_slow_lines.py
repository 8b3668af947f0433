"""Real nodes on a line that crawls, and on one that stands still: progress counts, duration does not.

The line is a proxy. Nothing here asserts on a clock: a transfer that needs seven idle timeouts either arrives in its
first session, or it does not.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from audit import books, staged, whole
from flight_proxy import Fault, FlightProxy, Hit, Place, Way, slow
from forked_nodes import ForkedNode
from safetensors.numpy import save_file

IDLE_S = 1.0
BYTES = 1_100_000
CRAWL = BYTES / (7 * IDLE_S)  # bytes per second
STALLED_CHUNK = 30


@dataclass
class Line:
    """A node that dials another through a proxy."""

    caller: ForkedNode
    behind: ForkedNode
    proxy: FlightProxy

    def publish(self, node: ForkedNode, folder: Path) -> str:
        path = folder / "noise.safetensors"
        save_file({"noise": np.random.default_rng(3).integers(0, 256, BYTES, dtype=np.uint8)}, path)
        return str(node.call("model_import", src=str(path), name="m")["version"])

    def visit(self) -> dict[str, Any]:
        return self.caller.call("sync", peer=self.proxy.uri)


@pytest.fixture
def line(tmp_path: Path) -> Iterator[Line]:
    settings = {"sync__enabled": False, "limits__idle_timeout_s": IDLE_S}
    caller, behind = (ForkedNode(name, tmp_path / name, **settings) for name in ("caller", "behind"))
    for node in (caller, behind):
        node.start()
    proxy = FlightProxy(lambda: behind.uri, lambda _place: None)
    caller.call("peers_add", uri=proxy.uri)
    yield Line(caller, behind, proxy)
    proxy.close()
    for node in (caller, behind):
        node.close()


@pytest.mark.faults
@pytest.mark.parametrize("way", list(Way))
def test_a_line_that_crawls_for_many_idle_timeouts_is_not_cut(line: Line, tmp_path: Path, way: Way) -> None:
    author, reader = (line.caller, line.behind) if way is Way.OUT else (line.behind, line.caller)
    version = line.publish(author, tmp_path)
    line.proxy.pace = slow(CRAWL)
    visit = line.visit()
    assert visit["failed"] == []
    assert [result["hash_ok"] for result in visit["results"]] == [True]
    assert line.proxy.streams == 1
    assert books(reader.store)[1] == {"m": version}
    assert whole(reader.store, version)


@pytest.mark.faults
def test_a_line_that_stands_still_is_cut_and_what_was_staged_is_kept(line: Line, tmp_path: Path) -> None:
    version = line.publish(line.behind, tmp_path)
    stalled = Place(0, Way.BACK, STALLED_CHUNK)
    line.proxy.plan = lambda place: Hit(Fault.STALL) if place == stalled else None
    visit = line.visit()
    assert "no progress" in visit["failed"][0]["error"]
    (chunks,) = staged(line.caller.store).values()
    assert chunks
    again = line.visit()
    assert again["failed"] == []
    assert again["results"][0]["resumed_bytes"] > 0
    assert books(line.caller.store)[1] == {"m": version}
