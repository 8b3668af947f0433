"""The sums that this node gives a vector to: sessions by their id, and vectors to be fetched in pieces.

A session lives until it has revealed its shares, broke a rule, or newer ones take its place.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from aios_node.delta.privacy.aggregation.messages import FromParticipant, Masked
from aios_node.delta.privacy.aggregation.participant import Participant
from aios_node.delta.privacy.aggregation.ring import Residues
from aios_node.delta.privacy.aggregation.terms import Terms
from aios_node.delta.privacy.aggregation.wire import Data, decode, encode
from aios_node.engine.errors import BadRequest, ProtocolError
from aios_node.node.identity import Identity, verify

MOST_SESSIONS: Final = 4
PIECE_BYTES: Final = 2 << 20


@dataclass
class _Session:
    terms: Terms
    participant: Participant
    before_vector: Callable[[], None]
    data: Data = b""
    lock: threading.Lock = field(default_factory=threading.Lock)


class SumHost:
    """All sessions of a node. Thread-safe. Raises BadRequest for sessions that are not there."""

    def __init__(self, identity: Identity) -> None:
        self._identity = identity
        self._sessions: dict[str, _Session] = {}
        self._lock = threading.Lock()

    def open(self, terms: Terms, values: Residues, before_vector: Callable[[], None]) -> str:
        """Begin a session; returns this node's keys. ``before_vector`` is called before the vector leaves."""
        with self._lock:
            if terms.session in self._sessions:
                raise BadRequest(f"sum {terms.session[:12]} was begun before: every sum needs a session of its own")
            participant = Participant(terms, self._identity, verify, values)
            self._sessions[terms.session] = _Session(terms, participant, before_vector)
            while len(self._sessions) > MOST_SESSIONS:
                self._sessions.pop(next(iter(self._sessions))).participant.forget()
        return encode(participant.begin())[0].decode()

    def say(self, session: str, text: str) -> tuple[str, int]:
        """(answer to the aggregator's message, bytes of its vector). Raises AiosError; the session is then over."""
        found = self._find(session)
        with found.lock:
            message = decode(found.terms, text.encode())
            if isinstance(message, FromParticipant):
                raise ProtocolError(f"an aggregator does not say {message.kind}")
            reply = found.participant.handle(message)
            if isinstance(reply, Masked):
                found.before_vector()
            metadata, found.data = encode(reply)
            return metadata.decode(), len(found.data)

    def piece(self, session: str, at: int) -> bytes:
        """Up to 2 MiB of the masked vector."""
        return bytes(self._find(session).data[at : at + PIECE_BYTES])

    def _find(self, session: str) -> _Session:
        with self._lock:
            found = self._sessions.get(session)
        if found is None:
            raise BadRequest(f"no sum {session[:12]!a} is open on this node")
        return found
