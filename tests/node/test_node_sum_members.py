"""The coordinator of a sum and its members, without training: sessions, pieces, and members that fail or lie."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from enum import Enum, auto
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from aios_node.delta.privacy.aggregation.aggregator import Sum
from aios_node.engine.errors import AiosError, BadRequest, TransferAborted, Unavailable
from aios_node.node.identity import Identity, create_identity
from aios_node.node.sums.coordinator import Ask, Coordinator
from aios_node.node.sums.member import MOST_SESSIONS, PIECE_BYTES, SumHost
from aios_node.node.sums.plan import SumPlan

LENGTH = PIECE_BYTES // 4 + 100  # two pieces


class Fault(Enum):
    """What goes wrong with a member, or on the way to it."""

    SILENT_AFTER_KEYS = auto()
    SILENT_BEFORE_CONSENT = auto()
    SHORT_PIECES = auto()
    LONG_PIECES = auto()
    LONG_VECTOR = auto()
    NO_BASE64 = auto()
    NO_MESSAGE = auto()
    ANOTHERS_MESSAGE = auto()


@pytest.fixture(scope="module")
def identities(tmp_path_factory: pytest.TempPathFactory) -> list[Identity]:
    root: Path = tmp_path_factory.mktemp("keys")
    return [create_identity(root / str(number), []) for number in range(4)]


def plan_for(identities: list[Identity], session: int = 1, length: int = LENGTH) -> SumPlan:
    return SumPlan(
        model="m",
        base="b" * 64,
        session=f"{session:064x}",
        layout="2" * 64,
        length=length,
        members=tuple(one.node_id for one in identities),
        threshold=3,
        honest=2,
        clip_norm=1.0,
        noise_multiplier=0.0,
    )


class Member:
    """A node as its coordinator meets it."""

    def __init__(self, identity: Identity, number: int, fault: Fault | None = None) -> None:
        self.host, self.identity, self.fault = SumHost(identity), identity, fault
        self.values = np.arange(LENGTH, dtype="<u4") * np.uint32(number + 1)
        self.told = 0
        self.left = 0

    def __call__(self, op: str, args: dict[str, Any]) -> dict[str, Any]:
        self.told += op == "sum_say"
        silent_from = {Fault.SILENT_AFTER_KEYS: 1, Fault.SILENT_BEFORE_CONSENT: 3}.get(self.fault or Fault.NO_MESSAGE)
        if silent_from and self.told >= silent_from:
            raise Unavailable("the line is dead")
        return self._spoiled(op, self._answer(op, args))

    def _answer(self, op: str, args: dict[str, Any]) -> dict[str, Any]:
        if op == "sum_open":
            return {"message": self.host.open(SumPlan(**args).terms, self.values, self._count), "bytes": 0}
        if op == "sum_piece":
            return {"data": base64.b64encode(self.host.piece(args["session"], args["at"])).decode()}
        message, size = self.host.say(args["session"], args["message"])
        return {"message": message, "bytes": size}

    def _count(self) -> None:
        self.left += 1

    def _spoiled(self, op: str, result: dict[str, Any]) -> dict[str, Any]:
        pieces: Mapping[Fault | None, dict[str, Any]] = {
            Fault.SHORT_PIECES: {"data": ""},
            Fault.LONG_PIECES: {"data": "AAAA" * PIECE_BYTES},
            Fault.NO_BASE64: {"data": "!"},
        }
        others: Mapping[Fault | None, dict[str, Any]] = {
            Fault.LONG_VECTOR: {**result, "bytes": 1 << 40},
            Fault.NO_MESSAGE: {"bytes": 0},
            Fault.ANOTHERS_MESSAGE: {"message": '{"survivors":[],"type":"survivors"}', "bytes": 0},
        }
        return (pieces if op == "sum_piece" else others).get(self.fault, result)


def play(identities: list[Identity], faults: dict[int, Fault]) -> tuple[Sum, list[Member], list[float]]:
    members = [Member(one, number, faults.get(number)) for number, one in enumerate(identities)]
    asked: dict[str, Ask] = {member.identity.node_id: member for member in members}
    shares: list[float] = []
    found = Coordinator(plan_for(identities), asked).run(lambda share, _text: shares.append(share))
    return found, members, shares


def test_a_coordinator_learns_the_sum_in_five_rounds(identities: list[Identity]) -> None:
    found, members, shares = play(identities, {})
    np.testing.assert_array_equal(found.total, sum(member.values for member in members))
    assert sorted(set(shares)) == pytest.approx([0.0, 0.2, 0.4, 0.6, 0.8])
    assert [member.told for member in members] == [4] * 4
    assert [member.left for member in members] == [1] * 4, "each pays once, before its vector leaves"


@pytest.mark.parametrize("fault", Fault)
def test_one_member_that_fails_does_not_stop_the_others(identities: list[Identity], fault: Fault) -> None:
    """Who fails after its vector came stays in the sum."""
    found, members, _ = play(identities, {2: fault})
    stays = fault is Fault.SILENT_BEFORE_CONSENT
    counted = [member for number, member in enumerate(members) if number != 2 or stays]
    assert found.contributors == tuple(sorted(member.identity.node_id for member in counted))
    np.testing.assert_array_equal(found.total, sum(member.values for member in counted))


def test_too_few_members_make_no_sum(identities: list[Identity]) -> None:
    with pytest.raises(TransferAborted, match="in round shares: 2 answered, 3 are needed"):
        play(identities, {0: Fault.SILENT_AFTER_KEYS, 3: Fault.SILENT_AFTER_KEYS})


def test_members_that_were_told_different_things_sign_different_terms(identities: list[Identity]) -> None:
    plan = plan_for(identities)
    for change in ({"clip_norm": 2.0}, {"noise_multiplier": 1.0}, {"base": "c" * 64}, {"steps": 3}, {"honest": 1}):
        assert plan.model_copy(update=change).terms.digest != plan.terms.digest
    assert plan.model_copy(update={"members": plan.members[::-1]}).terms == plan.terms


def test_a_session_is_opened_once_and_the_oldest_makes_room(identities: list[Identity]) -> None:
    host, values = SumHost(identities[0]), np.zeros(5, "<u4")

    def open_(session: int) -> str:
        return host.open(plan_for(identities, session, 5).terms, values, lambda: None)

    keys = open_(0)
    with pytest.raises(BadRequest, match="begun before"):
        open_(0)
    assert host.piece(f"{0:064x}", 0) == b""
    for session in range(1, MOST_SESSIONS + 1):
        open_(session)
    with pytest.raises(BadRequest, match="no sum"):
        host.say(f"{0:064x}", keys)


def test_what_an_aggregator_cannot_say_is_refused(identities: list[Identity]) -> None:
    host = SumHost(identities[0])
    keys = host.open(plan_for(identities, 0, 5).terms, np.zeros(5, "<u4"), lambda: None)
    for text in (keys, "{}", "x"):
        with pytest.raises(AiosError):
            host.say(f"{0:064x}", text)
