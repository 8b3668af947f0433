"""What everybody agrees on before a sum is made: who, what, how many must stay, in which ring.

Every signature and every key of a session is bound to the hash of its terms, so that nothing said under one agreement
counts under another.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final

import numpy as np

from aios_node.delta.fields import Fields, parse_object
from aios_node.delta.limits import check_size
from aios_node.delta.names import check_version
from aios_node.delta.privacy.aggregation.ring import dtype_of_ring
from aios_node.engine.errors import BadConfig, BadRequest, Corrupt, ProtocolError
from aios_node.engine.weights.names import canonical_json

MOST_PARTICIPANTS: Final = 1024
MOST_LENGTH: Final = 1 << 33
MOST_BYTES: Final = 1 << 17
_CONTEXT = "aios-secure-sum-v1"


@dataclass(frozen=True)
class Terms:
    """One session. Raises BadConfig for terms under which no sum would be private.

    ``session``: 64 random hex digits, never used before. ``subject``: 64 hex digits that say what is summed: a hash
    over base version, layout, fixed point and noise. ``participants``: node ids. ``threshold``: the least number whose
    updates a sum may hold, and whose help opens it; more than half, so that no two disjoint groups could be asked.
    """

    session: str
    subject: str
    participants: tuple[str, ...]
    threshold: int
    length: int
    bits: int = 32

    def __post_init__(self) -> None:
        object.__setattr__(self, "participants", tuple(sorted(self.participants)))
        try:
            for name in (self.session, self.subject, *self.participants):
                check_version(name)
        except BadRequest:
            raise BadConfig("session, subject and participants of a secure sum have 64 hexadecimal digits") from None
        count = len(self.participants)
        if len(set(self.participants)) != count or not 2 <= count <= MOST_PARTICIPANTS:
            raise BadConfig(f"{count} participants: from 2 to {MOST_PARTICIPANTS}, each once")
        if not count // 2 < self.threshold <= count:
            raise BadConfig(f"threshold {self.threshold} of {count}: more than half, and not more than there are")
        if not 1 <= self.length <= MOST_LENGTH:
            raise BadConfig(f"{self.length} numbers: from 1 to {MOST_LENGTH} can be summed")
        dtype_of_ring(self.bits)

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of the vectors: uint32 or uint64, little endian."""
        return dtype_of_ring(self.bits)

    @property
    def vector_bytes(self) -> int:
        """Size of one vector."""
        return self.length * self.bits // 8

    def place(self, participant: str) -> int:
        """Where a participant's shares lie, from 1. Raises ProtocolError for strangers."""
        if participant not in self.participants:
            raise ProtocolError(f"{participant[:12]!a} takes no part in this sum")
        return self.participants.index(participant) + 1

    @cached_property
    def digest(self) -> bytes:
        """sha256 of the terms, 32 bytes."""
        return hashlib.sha256(self.to_bytes()).digest()

    def to_bytes(self) -> bytes:
        """Canonical JSON."""
        return canonical_json({"context": _CONTEXT, **self._fields()})

    def _fields(self) -> dict[str, Any]:
        names = ("session", "subject", "threshold", "length", "bits")
        return {"participants": list(self.participants), **{name: getattr(self, name) for name in names}}

    @classmethod
    def from_bytes(cls, data: bytes) -> Terms:
        """Read what ``to_bytes`` wrote. Raises Corrupt, TooLarge, and BadConfig for terms that cannot be."""
        check_size("the terms of a sum", len(data), MOST_BYTES)
        fields = Fields(parse_object(data, "terms", Corrupt), "terms", Corrupt)
        if fields.text("context", 64) != _CONTEXT:
            raise Corrupt(f"these are no terms of {_CONTEXT}")
        terms = cls(
            session=fields.hexadecimal("session", 64),
            subject=fields.hexadecimal("subject", 64),
            participants=fields.versions("participants", MOST_PARTICIPANTS),
            threshold=fields.integer("threshold", MOST_PARTICIPANTS),
            length=fields.integer("length", MOST_LENGTH),
            bits=fields.integer("bits", 64),
        )
        fields.close()
        if terms.to_bytes() != data:
            raise Corrupt("the terms are not in canonical form")
        return terms
