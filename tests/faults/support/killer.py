"""Puts the kill points into a node. Runs in test children only: the product knows nothing of it.

Most points are the ``Step`` that the store tells its observer anyway; the rest wraps public functions of the
product, without changing what they do. SQL statements are seen through SQLite's own trace.
"""

from __future__ import annotations

import os
import signal
import sqlite3
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from kill_points import ControlBlock, Phase, Point

from aios_node.delta.disk import Step
from aios_node.delta.exchange.effects import CommitTransfer, Effect, ReadChunk, ReleasePackage, StageChunk
from aios_node.delta.store.events import Subscribers
from aios_node.delta.store.store import VersionStore
from aios_node.flight.transport import StreamTransport
from aios_node.node import jobs
from aios_node.node.sync import outgoing
from aios_node.node.sync.work import TransferWork


class Killer:
    """Kills this process when the control block says so."""

    def __init__(self, block: ControlBlock) -> None:
        self._block = block
        self._lock = threading.Lock()
        block.clear()

    def at(self, point: Point) -> None:
        """A named moment."""
        with self._lock:
            if self._block.due(point.phase, point) is not None:
                self._die()

    def enter(self, phase: Phase) -> None:
        self._block.mark(phase, True)
        with self._lock:
            delay_us = self._block.due(phase, None)
        if delay_us is not None:
            threading.Thread(target=self._die_in, args=(delay_us,), daemon=True).start()

    def leave(self, phase: Phase) -> None:
        self._block.mark(phase, False)

    def _die_in(self, delay_us: int) -> None:
        time.sleep(delay_us / 1e6)
        self._die()

    def _die(self) -> None:
        self._block.fire()
        os.kill(os.getpid(), signal.SIGKILL)


def install(killer: Killer, arrivals: Path) -> None:
    """Wrap the product; ``arrivals`` gets one line per chunk that comes in: version, base, package, index."""
    _watch_store(killer)
    _watch_sql(killer)
    _watch_news(killer)
    _watch_cache(killer)
    _watch_messages(killer)
    _watch_work(killer, os.open(arrivals, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600))


def run_job(killer: Killer | None, job: Callable[..., Any], args: tuple[Any, ...], progress: Any) -> Any:
    """A worker's job, here in the node's own process."""
    told = progress or (lambda _done, _text="": None)
    if killer is None or job not in {jobs.build_package, jobs.apply_package}:
        return job(*args, told)
    if job is jobs.apply_package:
        killer.at(Point.APPLY)
        result = job(*args, told)
        killer.at(Point.APPLIED)
        return result
    killer.enter(Phase.ENCODE)
    killer.at(Point.ENCODE_BEGIN)
    result = job(*args, lambda done, text="": (killer.at(Point.ENCODE_PROGRESS), told(done, text)))
    killer.at(Point.ENCODE_BUILT)
    return result


def _watch_store(killer: Killer) -> None:
    opened = VersionStore.open

    def observer(step: Step) -> None:
        if step.name in Point.__members__:
            killer.at(Point[step.name])

    VersionStore.open = staticmethod(lambda path, **options: opened(path, observer=observer, **options))  # type: ignore[assignment,method-assign]


def _watch_sql(killer: Killer) -> None:
    connect = sqlite3.connect

    def traced(path: Any, *args: Any, **options: Any) -> sqlite3.Connection:
        connection = connect(path, *args, **options)
        if str(path).endswith("heads.sqlite"):
            connection.set_trace_callback(_Statements(killer))
        return connection

    sqlite3.connect = traced  # type: ignore[assignment]


class _Statements:
    """Follows the transactions of the books."""

    def __init__(self, killer: Killer) -> None:
        self._killer = killer
        self._pointing = False

    def __call__(self, statement: str) -> None:
        if statement.startswith("INSERT"):
            self._killer.at(Point.REGISTER_ROW)
        elif statement.startswith("UPDATE models SET active"):
            self._pointing = True
            self._killer.enter(Phase.ACTIVATE)
            self._killer.at(Point.ACTIVATE_ROW)
        elif statement.startswith("COMMIT") and self._pointing:
            self._pointing = False
            self._killer.at(Point.ACTIVATE_COMMIT)


def _watch_news(killer: Killer) -> None:
    tell = Subscribers.tell

    def told(self: Subscribers, kind: Any, model: str, version: str) -> None:
        if kind == "activated":
            killer.at(Point.ACTIVATE_TOLD)
        tell(self, kind, model, version)
        if kind == "activated":
            killer.leave(Phase.ACTIVATE)

    Subscribers.tell = told  # type: ignore[method-assign]


def _watch_cache(killer: Killer) -> None:
    write = outgoing.write_json

    def noted(*args: Any, **options: Any) -> None:
        killer.at(Point.ENCODE_NAMED)
        write(*args, **options)
        killer.leave(Phase.ENCODE)

    outgoing.write_json = noted  # type: ignore[assignment]


def _watch_messages(killer: Killer) -> None:
    send = StreamTransport.send

    def sent(self: StreamTransport, meta: bytes, data: bytes | memoryview | None = None) -> None:
        if b'"type":"committed"' in meta:
            killer.at(Point.SAY_COMMITTED)
        elif b'"type":"commit"' in meta:
            killer.at(Point.SEND_COMMIT)
        if data is not None:
            killer.at(Point.SEND_CHUNK)
        send(self, meta, data)
        if data is not None:
            killer.at(Point.SEND_SENT)

    StreamTransport.send = sent  # type: ignore[method-assign]


def _watch_work(killer: Killer, arrivals: int) -> None:
    perform = TransferWork.perform
    staging: set[int] = set()
    sending: set[int] = set()

    def performed(self: TransferWork, effect: Effect) -> Any:
        match effect:
            case StageChunk():
                key, package = effect.key, effect.package
                os.write(arrivals, f"{key.version} {key.base} {package.sha256} {effect.index}\n".encode())
                if effect.transfer not in staging:
                    staging.add(effect.transfer)
                    killer.enter(Phase.STAGE)
            case CommitTransfer():
                staging.discard(effect.transfer)
                killer.leave(Phase.STAGE)
                killer.enter(Phase.COMMIT)
                try:
                    return perform(self, effect)
                finally:
                    killer.leave(Phase.COMMIT)
            case ReadChunk():
                if effect.transfer not in sending:
                    sending.add(effect.transfer)
                    killer.enter(Phase.SEND)
                killer.at(Point.SEND_READ)
            case ReleasePackage():
                sending.discard(effect.transfer)
                killer.leave(Phase.SEND)
        return perform(self, effect)

    TransferWork.perform = performed  # type: ignore[method-assign]
