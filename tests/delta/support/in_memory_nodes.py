"""Whole nodes in one process: real stores, keys and sync sessions, with queues in place of the network.

Jobs run in this process as well: starting one for them takes longer than most tests.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from aios_node.delta.envelope import seal
from aios_node.engine.errors import TransferAborted
from aios_node.flight.ports import Principal
from aios_node.node.cli.app import run
from aios_node.node.config.load import load_config
from aios_node.node.core import NodeCore
from aios_node.node.identity import load_identity
from aios_node.node.peers import Peer
from aios_node.node.sync.service import Visit

CREATED = "2026-01-02T03:04:05.000Z"
END = object()


def quiet(_fraction: float, _text: str) -> None:
    """Nobody wants to know how far a job is."""


class Here:
    """Stands in for a node's worker processes."""

    def run(self, job: Callable[..., Any], *args: Any, progress: Any = quiet) -> Any:
        return job(*args, progress)

    def close(self) -> None:
        """Nothing runs."""


class Pipe:
    """One end of a stream between two nodes."""

    def __init__(self, inbox: queue.Queue[Any], outbox: queue.Queue[Any]) -> None:
        self._inbox, self._outbox = inbox, outbox
        self._closed = threading.Event()

    def send(self, meta: bytes, data: bytes | memoryview | None = None) -> None:
        if self._closed.is_set():
            raise TransferAborted("the stream is closed")
        self._outbox.put((meta, bytes(data or b"")))

    def receive(self, timeout: float | None = None) -> tuple[bytes, bytes | None] | None:
        try:
            message = self._inbox.get(timeout=timeout)
        except queue.Empty:
            raise TimeoutError from None
        return None if message is END else message

    def close(self) -> None:
        if not self._closed.is_set():
            self._closed.set()
            self._outbox.put(END)


class Lines:
    """What a node calls its peers by."""

    def __init__(self, core: NodeCore, others: dict[str, NodeCore]) -> None:
        self._core, self._others = core, others
        self._calls: list[threading.Thread] = []

    def link(self, peer: Peer) -> Pipe:
        there, back = queue.Queue[Any](), queue.Queue[Any]()
        callee, caller = self._others[peer.node_id or ""], Principal(self._core.identity.node_id, "peer")
        call = threading.Thread(target=callee.sync.exchange, args=(caller, Pipe(there, back)), daemon=True)
        self._calls.append(call)
        call.start()
        return Pipe(back, there)

    def news(self, *_args: Any) -> Any:
        raise AssertionError("nobody waits for news here")

    def hang_up(self) -> None:
        for call in self._calls:
            call.join(30)
        self._calls.clear()


@contextmanager
def node(folder: Path, extra: str = "") -> Iterator[NodeCore]:
    """A node on a folder of its own that nobody can call; made if need be, with more configuration."""
    if not folder.exists():
        assert run(["init", str(folder), "--name", folder.name, "--tls", "on"]) == 0
        with (folder / "node.yaml").open("a") as file:
            file.write(extra)
    with NodeCore.open(load_config(folder / "node.yaml")) as core:
        core.__dict__["workers"] = Here()
        yield core


@contextmanager
def nodes(root: Path, names: Sequence[str]) -> Iterator[list[NodeCore]]:
    """Some nodes that can call each other once they are friends."""
    with ExitStack() as stack:
        cores = [stack.enter_context(node(root / name)) for name in names]
        by_id = {core.identity.node_id: core for core in cores}
        for core in cores:
            core.__dict__["dialer"] = Lines(core, by_id)
        yield cores


def befriend(*cores: NodeCore) -> None:
    """Everyone trusts everyone."""
    for core in cores:
        for other in cores:
            if other is not core:
                core.peers.add(f"grpc+tls://{other.config.node.name}:1", other.identity.node_id, None)


def visit(core: NodeCore, other: NodeCore) -> Visit:
    """One session, both ways, to its very end on both sides."""
    lines = core.dialer
    assert isinstance(lines, Lines)
    found = core.sync.visit(next(peer for peer in core.peers.all() if peer.node_id == other.identity.node_id))
    lines.hang_up()
    return found


def commit(
    core: NodeCore, values: Any, *parents: str, model: str = "m", author: Path | None = None, **more: Any
) -> str:
    """A version with one tensor, active, signed by this node or with the keys in a folder."""
    identity = core.identity if author is None else load_identity(author, [])

    def envelope(version: str) -> bytes:
        signer = {"public_key": identity.node_id, "sign": identity.sign}
        return seal(model, version, publisher="x", created_at=CREATED, **signer).to_bytes()  # type: ignore[arg-type]

    options: dict[str, Any] = {"files": {"config.json": b"{}"}, "created_at": CREATED, "envelope": envelope} | more
    activate = bool(options.pop("activate", True))
    weights = {"w": np.asarray(values, np.float32)}
    return core.store.commit(model, weights, parents=parents, activate=activate, **options)
