"""Real nodes killed in the middle of a sync: what was staged is not sent again, and the versions end up equal."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from enum import Enum
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from audit import books
from safetensors.numpy import save_file

from aios_node.node.demo.processes import DemoFailed, DemoNode, wait_until

PATIENCE_S = 120.0
ROUNDS = 4


class Victim(Enum):
    """Who is killed."""

    SENDER = "sender"
    RECEIVER = "receiver"


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[tuple[DemoNode, DemoNode]]:
    """A sender on a slow line, and a receiver that dials it."""
    sender, receiver = DemoNode("sender", "local", tmp_path / "s"), DemoNode("receiver", "local", tmp_path / "r")
    for node in (sender, receiver):
        node.init("off")
        text = node.config.read_text().replace("request_mb: 1024", "request_mb: 1024\n  bandwidth_mbit: 60")
        node.config.write_text(text + "\nsync:\n  interval_s: 0.5\n  backoff_max_s: 0.5\n")
    yield sender, receiver
    for node in (sender, receiver):
        node.stop()


def noise(path: Path, seed: int) -> Path:
    """12 MB that no codec makes smaller: two seconds on the line."""
    values = np.random.default_rng(seed).integers(0, 256, 12_000_000, dtype=np.uint8)
    save_file({"noise": values}, path)
    return path


def received(node: DemoNode) -> list[dict[str, Any]]:
    with node.owner() as client:
        found = next(iter(client.call("transfers")))["transfers"]
    return [one for one in found if one["direction"] == "received"]


def active(node: DemoNode) -> str | None:
    return next((m["active"] for m in node.call("status")["models"] if m["name"] == "m"), None)


def staged_bytes(node: DemoNode) -> int:
    """Bytes of the chunk journals that mark something as received."""
    journals = (node.folder / "data" / "store" / "transfers").rglob("journal")
    return sum(np.count_nonzero(np.fromfile(path, np.uint8)) for path in journals)


def restart(node: DemoNode, port: int) -> None:
    os.kill(node.pid, signal.SIGKILL)
    node.wait()
    node.start(port=port)


@pytest.mark.faults
@pytest.mark.parametrize("victim", list(Victim))
def test_a_killed_sync_goes_on_where_it_stopped(
    pair: tuple[DemoNode, DemoNode], tmp_path: Path, victim: Victim
) -> None:
    sender, receiver = pair
    seed = 7
    print(f"seed {seed}, victim {victim.value}")
    pauses = random.Random(seed)
    sender.start()
    port = int(sender.uri.rpartition(":")[2])
    receiver.start()
    receiver.call("peers", "add", sender.uri)
    resumed = 0
    for number in range(ROUNDS):
        source = noise(tmp_path / f"{number}.safetensors", number)
        version = sender.call("model", "import", str(source), "--name", "m")["version"]
        wait_until("something being staged", lambda: staged_bytes(receiver) > 0, PATIENCE_S)
        time.sleep(pauses.uniform(0.0, 0.8))  # where in the transfer the kill hits
        restart(sender if victim is Victim.SENDER else receiver, port if victim is Victim.SENDER else 0)
        wait_until("the version arriving", lambda version=version: active(receiver) == version, PATIENCE_S)  # type: ignore[misc]
        done = [one for one in received(receiver) if one["hash_ok"] and one["to"] == version]
        if done:
            resumed += done[-1]["resumed_bytes"] > 0
            assert done[-1]["resumed_bytes"] + done[-1]["bytes"] <= 12_100_000
        assert receiver.call("model", "validate", "m")["hash_ok"]
    assert resumed > 0, "no kill hit a transfer that had something staged"


def workers(node: DemoNode) -> list[psutil.Process]:
    """The processes that encode for a node."""
    children = psutil.Process(node.pid).children()
    return [child for child in children if "spawn_main" in " ".join(child.cmdline())]


@pytest.mark.faults
def test_a_worker_killed_while_it_encodes_costs_one_attempt(pair: tuple[DemoNode, DemoNode], tmp_path: Path) -> None:
    sender, receiver = pair
    sender.start()
    receiver.start()
    receiver.call("peers", "add", sender.uri)
    outgoing, store = sender.folder / "data" / "outgoing", receiver.folder / "data" / "store"
    killed: set[int] = set()
    for number in range(3):
        source = noise(tmp_path / f"{number}.safetensors", number)
        before = books(store)[1].get("m")
        importing = ThreadPoolExecutor(1).submit(sender.call, "model", "import", str(source), "--name", "m")
        while not killed and books(store)[1].get("m") == before:
            if any(not (package.parent / "info.json").exists() for package in outgoing.glob("*/package")):
                for worker in workers(sender):
                    worker.kill()
                    killed.add(worker.pid)
        version = importing.result()["version"]
        wait_until("the version arriving", lambda version=version: books(store)[1].get("m") == version, PATIENCE_S)  # type: ignore[misc]
        assert receiver.call("model", "validate", "m")["hash_ok"]
    assert killed, "no package was ever seen half-written"


@pytest.mark.faults
def test_a_node_killed_again_and_again_keeps_what_it_acknowledged(tmp_path: Path) -> None:
    import pyarrow as pa

    from aios_node.engine.errors import AiosError
    from aios_node.flight.client import Client

    node = DemoNode("alpha", "local", tmp_path / "a")
    node.init("off")
    acknowledged: list[str] = []
    pauses = random.Random(11)
    for number in range(6):
        node.start()
        until = time.monotonic() + pauses.uniform(0.2, 1.5)
        with Client(node.uri, attempts=1) as client:
            while time.monotonic() < until:
                name = f"{number}-{len(acknowledged)}"
                client.put("notes", pa.table({"id": [name], "text": [name]}))
                acknowledged.append(name)
        os.kill(node.pid, signal.SIGKILL)
        node.wait()
    node.start()
    try:
        with Client(node.uri) as client:
            found = next(iter(client.call("memory_get", {"table": "notes", "ids": acknowledged})))["rows"]
    except AiosError as error:
        raise DemoFailed(error.message) from error
    finally:
        node.stop()
    assert [row["id"] for row in found] == acknowledged
    assert len(acknowledged) > 6
