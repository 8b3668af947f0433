"""Secure sums in memory: participants, an aggregator, and a driver that loses whom the test names."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import Enum

import numpy as np
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from aios_node.delta.privacy.aggregation.aggregator import Aggregator, Event, Failed, Sum, Tell
from aios_node.delta.privacy.aggregation.messages import FromParticipant, Round
from aios_node.delta.privacy.aggregation.participant import Participant
from aios_node.delta.privacy.aggregation.ring import Residues
from aios_node.delta.privacy.aggregation.terms import Terms
from aios_node.delta.privacy.aggregation.wire import decode, encode
from aios_node.delta.privacy.random import Random


class Drop(Enum):
    """When a participant falls silent: the answer of this round never comes."""

    BEFORE_KEYS = Round.KEYS
    BEFORE_SHARES = Round.SHARES
    BEFORE_VECTOR = Round.VECTORS
    BEFORE_CONSENT = Round.CONSENT
    BEFORE_REVEAL = Round.REVEAL


class Node:
    """An identity: an Ed25519 key that a seed decides."""

    def __init__(self, seed: int) -> None:
        self.key = Ed25519PrivateKey.from_private_bytes(hashlib.sha256(f"node {seed}".encode()).digest())
        self.node_id = self.key.public_key().public_bytes_raw().hex()

    def sign(self, data: bytes) -> bytes:
        return self.key.sign(data)


def verify(node_id: str, data: bytes, signature: bytes) -> bool:
    try:
        Ed25519PublicKey.from_public_bytes(bytes.fromhex(node_id)).verify(signature, data)
    except (InvalidSignature, ValueError):
        return False
    return True


def repeatable(seed: object) -> Random:
    """Bytes that a test can have again; hashing keeps them as good as random."""
    count = 0

    def random(size: int) -> bytes:
        nonlocal count
        count += 1
        return hashlib.shake_256(f"{seed}:{count}".encode()).digest(size)

    return random


def nodes_of(count: int) -> list[Node]:
    return sorted((Node(index) for index in range(count)), key=lambda node: node.node_id)


def terms_of(nodes: list[Node], threshold: int, length: int = 5, bits: int = 32, session: int = 0) -> Terms:
    hashed = hashlib.sha256(f"session {session}".encode()).hexdigest()
    return Terms(hashed, "ab" * 32, tuple(node.node_id for node in nodes), threshold, length, bits)


def vectors_of(nodes: list[Node], terms: Terms, seed: int = 0) -> dict[str, Residues]:
    rng = np.random.default_rng(seed)
    return {node.node_id: rng.integers(0, 1 << 16, terms.length).astype(terms.dtype) for node in nodes}


Tamper = Callable[[FromParticipant], FromParticipant]


@dataclass
class Run:
    """One session over the wire's bytes. ``heard``: all that the aggregator was sent."""

    terms: Terms
    nodes: list[Node]
    vectors: Mapping[str, Residues]
    drops: Mapping[str, Drop] = field(default_factory=dict)
    tamper: Tamper = lambda message: message
    heard: list[FromParticipant] = field(default_factory=list)
    refused: list[Exception] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.aggregator = Aggregator(self.terms, verify)
        self.participants = {
            node.node_id: Participant(
                self.terms, node, verify, self.vectors[node.node_id], repeatable((self.terms.session, node.node_id))
            )
            for node in self.nodes
        }

    def play(self) -> Sum | Failed:
        """Run to the end; who drops is silent from that round on, and rounds are closed when nobody speaks."""
        inbox: list[FromParticipant] = [one.begin() for one in self.participants.values()]
        while True:
            events = self._hear(inbox)
            if not events:
                events = self.aggregator.close()
            if isinstance(events[-1], Sum | Failed):
                return events[-1]
            inbox = self._answers(events)

    def _hear(self, inbox: list[FromParticipant]) -> list[Event]:
        events: list[Event] = []
        for message in inbox:
            if not self._silent(message.sender):
                said = self.tamper(message)
                received = decode(self.terms, *encode(said))
                self.heard.append(received)  # type: ignore[arg-type]
                try:
                    events = self.aggregator.handle(received)  # type: ignore[arg-type]
                except Exception as error:
                    self.refused.append(error)
        return events

    def _silent(self, member: str) -> bool:
        drop = self.drops.get(member)
        return drop is not None and self.aggregator.round.value >= drop.value.value

    def _answers(self, events: list[Event]) -> list[FromParticipant]:
        answers = []
        for event in events:
            assert isinstance(event, Tell)
            message = decode(self.terms, *encode(event.message))
            answers.append(self.participants[event.receiver].handle(message))  # type: ignore[arg-type]
        return answers
