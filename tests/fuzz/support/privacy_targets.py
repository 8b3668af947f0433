"""Terms and messages of secure sums from hostile hands, and a participant that hears them."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from fuzz_target import Target

sys.path.append(str(Path(__file__).resolve().parents[2] / "delta" / "support"))

from secure_sums import Run, nodes_of, repeatable, terms_of, vectors_of, verify

from aios_node.delta.privacy.aggregation.participant import Participant
from aios_node.delta.privacy.aggregation.terms import Terms
from aios_node.delta.privacy.aggregation.wire import decode, encode

NODES = nodes_of(3)
TERMS = terms_of(NODES, 2)
VECTORS = vectors_of(NODES, TERMS)
FIRST = NODES[0]
MESSAGES_HEARD = 8


def decode_message(data: bytes) -> None:
    metadata, _, rest = data.partition(b"\0")
    decode(TERMS, metadata, rest)


def hear(data: bytes) -> None:
    """What an aggregator tells a participant, one message per line."""
    randomness = repeatable((TERMS.session, FIRST.node_id))
    participant = Participant(TERMS, FIRST, verify, VECTORS[FIRST.node_id], randomness)
    participant.begin()
    for line in data.split(b"\n")[:MESSAGES_HEARD]:
        participant.handle(decode(TERMS, line))  # type: ignore[arg-type]


def conversation() -> tuple[list[bytes], list[bytes]]:
    """(all that was said to the aggregator, all that it told the first participant)."""
    run, told = Run(TERMS, NODES, VECTORS), []
    first = run.participants[FIRST.node_id]
    answer = first.handle

    def listening(message: Any) -> Any:
        told.append(encode(message)[0])
        return answer(message)

    first.handle = listening  # type: ignore[method-assign]
    run.play()
    said = (encode(message) for message in run.heard)
    return [metadata + b"\0" + bytes(data) for metadata, data in said], told


SAID, TOLD = conversation()
TARGETS = {
    "sum-terms": Target(Terms.from_bytes, (TERMS.to_bytes(),)),
    "sum-message": Target(decode_message, (*SAID, *TOLD)),
    "sum-participant": Target(hear, (b"\n".join(TOLD),)),
}
