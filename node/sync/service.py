"""The sync service of one node: visits peers, answers their visits, keeps trying, remembers results."""

from __future__ import annotations

import random
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Protocol

import structlog

from aios_node.delta.exchange.effects import TransferDone
from aios_node.delta.exchange.session import SyncSession
from aios_node.delta.store.events import Event
from aios_node.engine.errors import AiosError
from aios_node.flight.ports import Principal, SyncTransport
from aios_node.node.config import NodeConfig
from aios_node.node.peers import Peer, PeerBook
from aios_node.node.sync.calling import Ask, NewsCaller
from aios_node.node.sync.driver import SyncDriver, Work
from aios_node.node.sync.history import History, TransferRecord
from aios_node.node.sync.pace import BandwidthCap

log = structlog.get_logger("sync")

BACKOFF_START_S = 0.5
LOUD_FAILURES = 3  # the first ones are normal while two nodes learn of each other


class Sessions(Protocol):
    """Makes a session and the work behind it, by what the node holds at that moment."""

    def session(self, peer: Principal, only: str | None) -> SyncSession:
        """A fresh session with this peer."""
        ...

    def work(self, on_done: Callable[[TransferDone, float], None]) -> Work:
        """What performs its effects."""
        ...


@dataclass
class Visit:
    """What one visit brought."""

    records: list[TransferRecord] = field(default_factory=list)
    error: str | None = None


class SyncService:
    """Runs sessions in both roles. Without ``start`` it only visits when asked."""

    def __init__(
        self,
        config: NodeConfig,
        peers: PeerBook,
        sessions: Sessions,
        dial: Callable[[Peer], SyncTransport],
        on_record: Callable[[TransferRecord], None],
        ask_news: Ask,
    ) -> None:
        self.history = History()
        self._config = config
        self._peers = peers
        self._sessions = sessions
        self._dial = dial
        self._on_record = on_record
        self._stopping = threading.Event()
        self._wake = threading.Condition()
        self._news = 0
        self._visiting: dict[str, threading.Lock] = {}
        self._up, self._down = (BandwidthCap(config.limits.bandwidth_mbit) for _ in range(2))
        self._arrivals = 0
        self._open: Counter[str] = Counter()  # sessions by the name of the peer
        self._threads: dict[str, threading.Thread] = {}
        self._called: set[str] = set()  # peers that have news, as they say when asked
        self._caller = NewsCaller(self._find, ask_news, self.call, self._stopping)

    def start(self) -> None:
        """Stay in step from now on: one thread per peer, so that a slow one holds nobody up."""
        self.peers_changed()

    def peers_changed(self) -> None:
        """Begin with new peers; threads of removed ones end by themselves."""
        with self._wake:
            for peer in self._peers.dialled():
                if peer.uri not in self._threads and not self._stopping.is_set():
                    thread = threading.Thread(target=self._stay, args=(peer.uri,), name="sync-loop", daemon=True)
                    self._threads[peer.uri] = thread
                    thread.start()
                    if self._config.listen.dial_only:
                        self._caller.start(peer.uri)

    def changed(self, event: Event) -> None:
        """The store has something new: visit everyone now."""
        if event.kind == "activated":
            with self._wake:
                self._news += 1
                self._wake.notify_all()

    def arriving(self) -> None:
        """A package begins to arrive: visit those with whom no session is open, they may have or want some of it."""
        with self._wake:
            self._arrivals += 1
            self._wake.notify_all()

    def wait_for_news(self, since: int, timeout_s: float) -> int:
        """The number of news so far: at once when it is not ``since``, else when it changes or time is up."""
        with self._wake:
            self._wake.wait_for(lambda: self._stopping.is_set() or self._news + self._arrivals != since, timeout_s)
            return self._news + self._arrivals

    def _find(self, uri: str) -> Peer | None:
        return next((peer for peer in self._peers.dialled() if peer.uri == uri), None)

    def call(self, uri: str) -> None:
        """Visit a peer now: it has news, or was found again."""
        with self._wake:
            self._called.add(uri)
            self._wake.notify_all()

    def stop(self, timeout_s: float) -> None:
        """End running sessions (what is staged stays) and the loops."""
        self._stopping.set()
        with self._wake:
            self._wake.notify_all()
        deadline = time.monotonic() + timeout_s
        for thread in list(self._threads.values()):
            thread.join(max(0.0, deadline - time.monotonic()))

    def visit(self, peer: Peer, *, model: str | None = None) -> Visit:
        """One session with a peer, dialled from here. Never raises: errors are in the result."""
        with self._wake:
            turn = self._visiting.setdefault(peer.uri, threading.Lock())
        with turn:
            visit = Visit()
            try:
                transport = self._dial(peer)
                principal = Principal(peer.node_id or peer.uri, "peer" if peer.tls else "open")
                self._run(principal, peer.name or peer.uri, transport, model, visit)
                self._peers.note(peer.uri, state="up", last_error=None)
            except AiosError as error:
                visit.error = error.message
                self._peers.note(peer.uri, state="down", last_error=error.message)
            return visit

    def exchange(self, principal: Principal, transport: SyncTransport) -> None:
        """One session that a peer began. What goes wrong was told to the peer by ABORT; here it is logged."""
        known = self._peers.by_id(principal.name)
        if known is not None:
            self._peers.note(known.uri, state="up", last_error=None)
        shown = (known and (known.name or known.uri)) or principal.name[:12]
        try:
            self._run(principal, shown, transport, None, Visit())
        except AiosError as error:
            log.warning("sync with a peer that called ended early", peer=shown, error=error.message)

    def _run(self, principal: Principal, shown: str, transport: SyncTransport, only: str | None, visit: Visit) -> None:
        def done(effect: TransferDone, seconds: float) -> None:
            moment = datetime.now(UTC).isoformat(timespec="milliseconds")
            record = TransferRecord(shown, seconds, moment, effect.result)
            visit.records.append(record)
            self.history.add(record)
            self._on_record(record)

        session = self._sessions.session(principal, only)
        driver = SyncDriver(
            session,
            transport,
            self._sessions.work(done),
            idle_timeout_s=self._config.limits.idle_timeout_s,
            pace=self._up,
            intake=self._down,
            stopping=self._stopping,
        )
        with self._wake:
            self._open[principal.name] += 1
        try:
            driver.run()
        finally:
            with self._wake:
                self._open[principal.name] -= 1
        met = self._peers.by_id(principal.name) or self._find(principal.name)
        if session.missed and met is not None:
            self.call(met.uri)  # something began to arrive there when we were done already

    def _stay(self, uri: str) -> None:
        """Thread per peer: visit on news and at intervals; back off while it is down."""
        seen = -1
        failures = 0
        while not self._stopping.is_set():
            peer = self._find(uri)
            if peer is None:
                break
            with self._wake:
                seen, arrivals = self._news, self._arrivals
                self._called.discard(uri)
            visit = self.visit(peer)
            failures = failures + 1 if visit.error else 0
            if visit.error and failures == LOUD_FAILURES:
                log.warning("peer unreachable", peer=uri, error=visit.error)
            pause = self._backoff(failures) if failures else self._config.sync.interval_s
            self._wait_for_news(peer, seen, arrivals, pause)
        with self._wake:
            self._threads.pop(uri, None)

    def _wait_for_news(self, peer: Peer, seen: int, arrivals: int, pause: float) -> None:
        def time_to_go() -> bool:
            arriving = self._arrivals > arrivals and not self._open[peer.node_id or peer.uri]
            return self._stopping.is_set() or self._news > seen or peer.uri in self._called or arriving

        with self._wake:
            self._wake.wait_for(time_to_go, pause)

    def _backoff(self, failures: int) -> float:
        """Exponential, with jitter, so that many nodes do not come back at the same moment."""
        longest = min(self._config.sync.backoff_max_s, BACKOFF_START_S * 2 ** min(failures - 1, 20))
        return float(longest * random.uniform(0.5, 1.0))  # noqa: S311 - spreads load, keeps no secret
