"""The one who adds up: asks all members at the same time, and drives the aggregator with what they answer.

A member that fails to answer, answers too late or answers wrongly counts as dropped out.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Any

import structlog

from aios_node.delta.privacy.aggregation.aggregator import Aggregator, Event, Failed, Sum, Tell
from aios_node.delta.privacy.aggregation.messages import FromAggregator, FromParticipant
from aios_node.delta.privacy.aggregation.wire import METADATA_BYTES, decode, encode
from aios_node.engine.errors import AiosError, ProtocolError, TooLarge, TransferAborted
from aios_node.node.identity import verify
from aios_node.node.sums.plan import SumPlan

log = structlog.get_logger("sums")

SIGN_OF_LIFE_S = 5.0

Ask = Callable[[str, dict[str, Any]], dict[str, Any]]
"""(operation, arguments) -> result, of one member. Raises AiosError."""


class Coordinator:
    """One sum. ``members``: how each is asked, by node id."""

    def __init__(self, plan: SumPlan, members: Mapping[str, Ask]) -> None:
        self._plan, self._members = plan, members
        self._terms = plan.terms
        self._aggregator = Aggregator(self._terms, verify)

    def run(self, progress: Callable[[float, str], None]) -> Sum:
        """The sum. Raises TransferAborted where too few members stayed to the end."""
        calls = {member: ("sum_open", self._plan.said()) for member in self._members}
        with ThreadPoolExecutor(len(self._members), "sum") as pool:
            while True:
                asked = [pool.submit(self._answer, member, call) for member, call in calls.items()]
                self._await(asked, progress)
                events = self._hear(one.result() for one in asked) or self._aggregator.close()
                end = events[-1]
                if isinstance(end, Sum):
                    return end
                if isinstance(end, Failed):
                    raise TransferAborted(f"the sum failed in round {end.round.name.lower()}: {end.reason}")
                calls = {event.receiver: self._saying(event.message) for event in events if isinstance(event, Tell)}

    def _await(self, asked: Sequence[Future[Any]], progress: Callable[[float, str], None]) -> None:
        """Until all have answered or failed; tells every few seconds that it is still there."""
        waiting: set[Future[Any]] = set(asked)
        while waiting:
            number = self._aggregator.round.value
            progress((number - 1) / 5, f"{self._aggregator.round.name.lower()}, {len(waiting)} to come")
            waiting = wait(waiting, SIGN_OF_LIFE_S).not_done

    def _hear(self, answers: Iterable[FromParticipant | None]) -> list[Event]:
        events: list[Event] = []
        for answer in answers:
            if answer is not None:
                try:
                    events = self._aggregator.handle(answer) or events
                except AiosError as error:
                    log.warning("a member of a sum broke the rules", member=answer.sender[:12], error=error.message)
        return events

    def _saying(self, message: FromAggregator) -> tuple[str, dict[str, Any]]:
        text = encode(message)[0].decode()
        return "sum_say", {"model": self._plan.model, "session": self._plan.session, "message": text}

    def _answer(self, member: str, call: tuple[str, dict[str, Any]]) -> FromParticipant | None:
        """A member's message; None where it has none to give."""
        try:
            result = self._members[member](*call)
            message = decode(self._terms, _text(result), self._vector(member, result.get("bytes")))
        except AiosError as error:
            log.warning("a member of a sum does not answer", member=member[:12], error=error.message)
            return None
        if not isinstance(message, FromParticipant) or message.sender != member:
            log.warning("a member of a sum speaks for another", member=member[:12])
            return None
        return message

    def _vector(self, member: str, size: object) -> bytes:
        """The vector beside a message, fetched in pieces; its size is known before anything is fetched."""
        if type(size) is not int or size not in {0, self._terms.vector_bytes}:
            raise TooLarge(f"a vector of {size!r} bytes; {self._terms.vector_bytes} were agreed on")
        data = bytearray()
        while len(data) < size:
            args = {"model": self._plan.model, "session": self._plan.session, "at": len(data)}
            piece = _decoded(self._members[member]("sum_piece", args).get("data"))
            if not 0 < len(piece) <= size - len(data):
                raise ProtocolError("a piece of a vector has another size than was asked for")
            data += piece
        return bytes(data)


def _text(result: Mapping[str, Any]) -> bytes:
    text = result.get("message")
    if not isinstance(text, str) or len(text) > METADATA_BYTES:
        raise ProtocolError("a member's answer holds no message")
    return text.encode()


def _decoded(text: object) -> bytes:
    try:
        return base64.b64decode(text if isinstance(text, str) else "", validate=True)
    except binascii.Error:
        raise ProtocolError("a piece of a vector is not base64") from None
