"""Works on a version store until it is killed. Run as a program by ``test_store_faults.py``.

It reads one JSON command per line and forks a child for each, so that a round costs milliseconds instead of
an interpreter's start. The child's lines go to stdout, then ``{"exit": status}``; -9 means killed. What the
child does follows from the seed and the state it finds, so that a run without a crash tells what every
crashed run must arrive at.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from aios_node.delta.chunks import TransferKey, chunk_span
from aios_node.delta.disk import Step, unobserved
from aios_node.delta.staging.staging import Staging
from aios_node.delta.store.store import VersionStore

MODELS = ("a", "b.int8")
PACKAGE_BYTES = 3_000_000
Emit = Callable[[dict[str, Any]], None]


@dataclass(frozen=True)
class Info:
    bytes: int
    sha256: str


class Assassin:
    """Kills this process at the n-th time that it is about to take a step."""

    def __init__(self, step: str, nth: int) -> None:
        self.step, self.left = Step[step], nth

    def __call__(self, step: Step) -> None:
        if step is self.step:
            self.left -= 1
            if self.left == 0:
                os.kill(os.getpid(), signal.SIGKILL)


def state_of(store: VersionStore) -> dict[str, Any]:
    return {
        model: {
            "versions": [[info.id, info.created_at, info.parents] for info in store.versions(model)],
            "active": store.active(model),
            "previous": store.previous(model),
            "heads": store.heads(model),
            "envelopes": [(store.envelope(model, info.id) or b"").decode() for info in store.versions(model)],
        }
        for model in store.models()
    }


def names_in(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


def operate(store: VersionStore, seed: int, number: int) -> None:
    """The ``number``-th change of a seed: depends on nothing but the state of the store."""
    choice = random.Random(f"{seed}/{number}")
    model = choice.choice(MODELS)
    known = store.versions(model) if model in store.models() else ()
    kind = choice.choice(["commit"] * 4 + ["activate", "rollback", "gc"]) if known else "commit"
    if kind == "commit":
        content = choice.randrange(6)
        weights = {
            f"layer.{layer}": np.full((64, 8), content if layer == 2 else layer, dtype=np.float32) for layer in range(3)
        }
        store.commit(
            model,
            weights,
            {"config.json": b'{"content": %d}' % content},
            parents=[choice.choice(known).id] if known and choice.random() < 0.7 else [],
            created_at=f"t{number}",
            envelope=lambda version: f"signed {version}".encode(),
            activate=choice.random() < 0.5,
        )
    elif kind == "activate":
        store.activate(model, choice.choice(known).id)
    elif kind == "rollback" and store.previous(model) is not None:
        store.rollback(model)
    else:
        store.gc(keep_last=choice.randrange(3))


def work(command: dict[str, Any], emit: Emit) -> None:
    """Do the changes from ``first`` up to ``last`` and tell the state after each."""
    observer = Assassin(command["step"], command["nth"]) if command.get("step") else unobserved
    with VersionStore.open(command["store"], observer=observer) as store:
        for number in range(command["first"], command["last"]):
            operate(store, command["seed"], number)
            emit({"done": number, "state": state_of(store)})


def look(command: dict[str, Any], emit: Emit) -> None:
    """Open the store as after any crash: nothing half-made is left, and every file of every version is whole."""
    with VersionStore.open(command["store"]) as store:
        registered = sorted({info.id for model in store.models() for info in store.versions(model)})
        assert store.damaged() == {}
        for version in registered:
            store.verify(version)
        assert names_in(Path(command["store"], "versions")) == registered
        assert names_in(Path(command["store"], "work")) == []
        emit({"state": state_of(store)})


def receive(command: dict[str, Any], emit: Emit) -> None:
    """Receive a package in random order; tell what is durable after every flush, and the end."""
    data = random.Random(command["seed"]).randbytes(PACKAGE_BYTES)
    info = Info(len(data), hashlib.sha256(data).hexdigest())
    observer = Assassin(command["step"], command["nth"]) if command.get("step") else unobserved
    staging = Staging(command["store"], observer=observer)
    choice = random.Random(f"{command['seed']}/{command['round']}")
    with staging.open(TransferKey("m", "0" * 64), info) as transfer:
        emit({"missing": transfer.missing()})
        order = [index for first, stop in transfer.missing() for index in range(first, stop)]
        choice.shuffle(order)
        for index in order:
            offset, length = chunk_span(len(data), index)
            transfer.write(index, data[offset : offset + length])
            if choice.random() < 0.2:
                transfer.flush()
                emit({"missing": transfer.missing()})
        same = transfer.assemble().read_bytes() == data
        transfer.discard()
    emit({"same": same})


def staged(command: dict[str, Any], emit: Emit) -> None:
    """What a fresh start finds staged."""
    transfer = Staging(command["store"]).resume(TransferKey("m", "0" * 64))
    emit({"missing": transfer.missing() if transfer else None})


JOBS = {job.__name__: job for job in (work, look, receive, staged)}


def child(command: dict[str, Any], pipe: int) -> int:
    def emit(message: dict[str, Any]) -> None:
        os.write(pipe, json.dumps(message).encode() + b"\n")

    try:
        JOBS[command["do"]](command, emit)
    except Exception as error:
        emit({"error": f"{type(error).__name__}: {error}"})
        return 1
    return 0


def serve(command: dict[str, Any]) -> None:
    """Fork, pass the child's lines on, and kill it after ``kill_after`` lines and a moment, if asked to."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(reading)
        os._exit(child(command, writing))
    os.close(writing)
    with os.fdopen(reading, "rb") as lines:
        for number, line in enumerate(lines, 1):
            sys.stdout.write(line.decode())
            if number == command.get("kill_after"):
                for _ in range(command["moment"]):
                    pass
                os.kill(pid, signal.SIGKILL)
    _, status = os.waitpid(pid, 0)
    print(json.dumps({"exit": os.waitstatus_to_exitcode(status)}), flush=True)


if __name__ == "__main__":
    for request in sys.stdin:
        serve(json.loads(request))
