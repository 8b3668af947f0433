"""From sightings to peers: known nodes are found again wherever they are, strangers are only listed.

A node is known by its id alone, and an announcement proves nothing. So an announced address is tried only for a peer
that is pinned here and not reached where it was, and taken only after the node there has proved the pinned id in a
TLS handshake. Nobody becomes a peer by announcing.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass

import structlog

from aios_node.engine.errors import AiosError
from aios_node.node.discovery.records import Sighting, Sightings
from aios_node.node.peers import Peer, PeerBook

log = structlog.get_logger("discovery")

AGAIN_S = 5.0
"""Seconds after which peers that are down are looked for again among what was seen."""


@dataclass(frozen=True)
class Found:
    """A sighting as it is listed."""

    sighting: Sighting
    peer: bool
    self: bool


class Finder:
    """Keeps what was seen, and moves peers. ``run`` is its thread's work; the rest may be called from anywhere."""

    def __init__(self, own_id: str, peers: PeerBook, on_moved: Callable[[list[str]], None]) -> None:
        self._own_id = own_id
        self._peers = peers
        self._on_moved = on_moved
        self._wake = threading.Condition()
        self._sightings = Sightings()
        self._news = 0
        self._stopping = False

    def seen(self, sighting: Sighting) -> None:
        """Somebody announces something."""
        known = {self._own_id, *(peer.node_id for peer in self._peers.all() if peer.node_id)}
        with self._wake:
            if self._sightings.add(sighting, known):
                self._news += 1
                self._wake.notify_all()

    def gone(self, service: str) -> None:
        """Somebody takes an announcement back."""
        with self._wake:
            self._sightings.remove(service)

    def all(self) -> list[Found]:
        """Everything that is seen now, by node id."""
        with self._wake:
            sightings = self._sightings.all()
        return [
            Found(one, self._peers.by_id(one.node_id) is not None, one.node_id == self._own_id) for one in sightings
        ]

    def wait(self, timeout_s: float) -> None:
        """Return when time is up, or at ``stop``."""
        with self._wake:
            self._wake.wait_for(lambda: self._stopping, timeout_s)

    def run(self) -> None:
        """Look for peers on every sighting and now and then, until ``stop``."""
        while not self._stopping:
            with self._wake:
                number = self._news
            self.look()
            with self._wake:
                self._wake.wait_for(lambda number=number: self._stopping or self._news != number, AGAIN_S)  # type: ignore[misc]

    def stop(self) -> None:
        """End ``run``."""
        with self._wake:
            self._stopping = True
            self._wake.notify_all()

    def look(self) -> None:
        """Try every sighting of a peer that is not reached where it was."""
        with self._wake:
            sightings = self._sightings.all()
        lost = {
            peer.node_id: peer
            for peer in self._peers.all()
            if peer.node_id != self._own_id and peer.tls and (not peer.dialled or peer.state == "down")
        }
        seen = {one.node_id: one for one in sightings if one.node_id in lost}
        moved = [lost[node_id].uri for node_id, one in seen.items() if self._move(lost[node_id], one)]
        for peer in lost.values():
            if peer.found is not None and peer.uri not in moved:
                self._peers.note(peer.uri, found=None)  # back to where its owner said it is
        if moved:
            self._on_moved(moved)

    def _move(self, peer: Peer, sighting: Sighting) -> bool:
        return any(self._try(peer, uri) for uri in sighting.uris if uri != peer.address)

    def _try(self, peer: Peer, uri: str) -> bool:
        try:
            self._peers.move(peer, uri)
        except AiosError as error:
            log.debug("not where it was announced", peer=peer.uri, at=uri, error=error.message)
            return False
        log.info("peer found", peer=peer.uri, at=uri)
        return True
