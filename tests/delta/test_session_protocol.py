"""One session against a scripted peer: what the tables list works, everything else ends it with a code."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from aios_node.delta.chunks import TransferKey, chunk_span
from aios_node.delta.codec.codecs import CODECS
from aios_node.delta.exchange.effects import (
    CommitTransfer,
    DiscardStaged,
    Effect,
    FindStaged,
    PreparePackage,
    ReadChunk,
    ReleasePackage,
    Send,
    SessionDone,
    StageChunk,
    TransferDone,
)
from aios_node.delta.exchange.receiving import MOST_RANGES, In
from aios_node.delta.exchange.sending import Out
from aios_node.delta.exchange.session import Phase, SessionConfig, SyncSession
from aios_node.delta.exchange.wire import (
    Abort,
    Chunk,
    Commit,
    Committed,
    Done,
    Hello,
    Message,
    Offers,
    Ping,
    Want,
    encode,
)
from aios_node.delta.offers import Decision, Offer, PackageInfo, Resume
from aios_node.engine.errors import BadRequest, Busy, HashMismatch, TransferAborted

MINE, THEIRS, BASE, SHA = "a" * 64, "b" * 64, "c" * 64, "d" * 64
PACKAGE = PackageInfo(40_000, SHA, "full", None, 90, 100)  # three chunks of at most 16 KiB
DATA = bytes(40_000)
HELLO = Hello((1,), tuple(CODECS))
OFFER = Offer("m", THEIRS)


class Wants:
    """A policy that wants everything, from one base."""

    def __init__(self, base: str | None = None) -> None:
        self.base = base

    def wants(self, offer: Offer) -> Decision:
        return Decision(want=True, base=self.base)


class Scripted:
    """A session whose peer is this test; effects are answered one by one."""

    def __init__(self, *, base: str | None = None, config: SessionConfig | None = None) -> None:
        self.session = SyncSession([Offer("mine", MINE)], Wants(base), config)
        self.log: list[Effect] = []
        self.number = 0
        self._take(self.session.start())

    def _take(self, effects: list[Effect]) -> None:
        """Note the effects; writing to the stream always succeeds at once."""
        for effect in effects:
            self.log.append(effect)
            if isinstance(effect, Send | TransferDone | SessionDone | DiscardStaged | ReleasePackage):
                self._take(self.session.complete(effect))

    def hear(self, *messages: Message) -> None:
        for message in messages:
            self._take(self.session.receive(*encode(message, self.number)))
            self.number += 1

    def answer(self, kind: type, value: Any = None) -> None:
        self._take(self.session.complete(self.open(kind), value))

    def open(self, kind: type) -> Any:
        """The oldest effect of this kind, which is taken to be unanswered and leaves the log."""
        place = next(place for place, effect in enumerate(self.log) if isinstance(effect, kind))
        return self.log.pop(place)

    def asked(self, kind: type) -> int:
        return sum(isinstance(effect, kind) for effect in self.log)

    def said(self, kind: type) -> list[Any]:
        return [effect.message for effect in self.log if isinstance(effect, Send) and isinstance(effect.message, kind)]

    @property
    def outcome(self) -> SessionDone:
        (done,) = [effect for effect in self.log if isinstance(effect, SessionDone)]
        return done

    def errors(self) -> list[str | None]:
        return [effect.result.error for effect in self.log if isinstance(effect, TransferDone)]


def chunk(index: int, *, first: bool = False, data: bytes | None = None, transfer: int = 0) -> Chunk:
    offset, length = chunk_span(PACKAGE.bytes, index)
    content = DATA[offset : offset + length]
    sent = content if data is None else data
    return Chunk(transfer, index, offset, zlib.crc32(content), sent, PACKAGE if first else None)


def greeting(script: Scripted) -> None:
    """Nothing was heard yet."""


def listening(script: Scripted) -> None:
    script.hear(HELLO)


def trading(script: Scripted) -> None:
    script.hear(HELLO, Offers((), last=True))


def looking(script: Scripted) -> None:
    script.hear(HELLO, Offers((OFFER,), last=True))


def asked(script: Scripted) -> None:
    looking(script)
    script.answer(FindStaged)


def receiving(script: Scripted) -> None:
    asked(script)
    script.hear(chunk(0, first=True))
    script.answer(StageChunk)


def staging(script: Scripted) -> None:
    receiving(script)
    script.hear(chunk(1), chunk(2), Commit(0, 0, PACKAGE))


def committing(script: Scripted) -> None:
    staging(script)
    script.answer(StageChunk)
    script.answer(StageChunk)


def received(script: Scripted) -> None:
    committing(script)
    script.answer(CommitTransfer)


def given_up(script: Scripted) -> None:
    receiving(script)
    script.hear(chunk(1, data=bytes(chunk_span(PACKAGE.bytes, 1)[1] - 1) + b"x"))
    script.hear(chunk(1, data=bytes(chunk_span(PACKAGE.bytes, 1)[1] - 1) + b"x"))


def preparing(script: Scripted) -> None:
    trading(script)
    script.hear(Want(0, "mine", MINE, None))


def sending(script: Scripted) -> None:
    preparing(script)
    script.answer(PreparePackage, PACKAGE)


def awaiting(script: Scripted) -> None:
    sending(script)
    for index in range(3):
        offset, length = chunk_span(PACKAGE.bytes, index)
        script.answer(ReadChunk, DATA[offset : offset + length])


def sent(script: Scripted) -> None:
    awaiting(script)
    script.hear(Committed(0))


def peer_done(script: Scripted) -> None:
    asked(script)
    script.hear(Done())


STAGES = [
    greeting,
    listening,
    trading,
    looking,
    asked,
    receiving,
    staging,
    committing,
    received,
    given_up,
    preparing,
    sending,
    awaiting,
    sent,
    peer_done,
]

AGAIN = Want(0, "mine", MINE, None, 1, Resume(SHA, ((1, 2),)))
MESSAGES: dict[str, Message] = {
    "hello": HELLO,
    "offer": Offers((Offer("x", BASE),), last=False),
    "want": Want(1, "mine", MINE, None),
    "want again": AGAIN,
    "first chunk": chunk(0, first=True),
    "chunk": chunk(1),
    "commit": Commit(0, 0, PACKAGE),
    "committed": Committed(0),
    "abort by sender": Abort(0, "sender", "busy", ""),
    "abort by receiver": Abort(0, "receiver", "busy", ""),
    "done": Done(),
    "ping": Ping(),
}

ALLOWED = {
    greeting: {"hello"},
    listening: {"offer", "ping"},
    trading: {"want", "done", "ping"},
    looking: {"want", "done", "ping"},
    asked: {"want", "done", "ping", "first chunk", "abort by sender"},
    receiving: {"want", "done", "ping", "chunk", "abort by sender"},
    staging: {"want", "done", "ping"},
    committing: {"want", "done", "ping"},
    received: {"want", "done", "ping"},
    given_up: {"want", "done", "ping", "first chunk", "chunk", "commit", "abort by sender"},
    preparing: {"want", "ping", "abort by receiver"},
    sending: {"want", "want again", "ping", "abort by receiver"},
    awaiting: {"want", "want again", "ping", "abort by receiver", "committed"},
    sent: {"want", "done", "ping"},
    peer_done: {"ping", "first chunk", "abort by sender"},
}


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("name", MESSAGES)
def test_only_what_is_listed_is_allowed(stage: Callable[[Scripted], None], name: str) -> None:
    script = Scripted()
    stage(script)
    if script.session.over:
        assert script.session.receive(*encode(MESSAGES[name], 99)) == []
        return
    script.hear(MESSAGES[name])
    if name in ALLOWED[stage]:
        assert not script.said(Abort) or script.said(Abort)[-1].transfer is not None
    else:
        assert script.outcome.error == "protocol_error"
        assert script.said(Abort)[-1].transfer is None
        assert script.said(Abort)[-1].code == "protocol_error"


def test_every_state_is_reached_by_a_stage() -> None:
    phases = {Phase.NEW, Phase.CLOSED}
    ins: set[In] = {In.ENDED}
    outs: set[Out] = {Out.ENDED, Out.GIVEN_UP}
    for stage in STAGES:
        script = Scripted(config=SessionConfig(served=1))
        stage(script)
        phases.add(script.session.phase)
        halves = script.session._incoming, script.session._outgoing
        ins.update(transfer.state for transfer in (*halves[0]._active.values(), *halves[0]._past.values()))
        if stage is preparing:
            script.hear(Want(1, "mine", MINE, None))
        outs.update(transfer.state for transfer in halves[1]._active.values())
    assert (phases, ins, outs) == (set(Phase), set(In), set(Out))


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("how", ["peer", "driver", "stream"])
def test_a_session_may_end_at_any_point_and_says_so_once(stage: Callable[[Scripted], None], how: str) -> None:
    script = Scripted()
    stage(script)
    over = script.session.over
    if how == "peer":
        script.hear(Abort(None, None, "unavailable", "draining"))
    elif how == "driver":
        script._take(script.session.abort(Busy("too much to do")))
    else:
        script._take(script.session.disconnected())
    expected = None if over else {"peer": "unavailable", "driver": "busy", "stream": "aborted"}[how]
    assert script.outcome.error == expected
    assert len(script.outcome.results) == len(script.errors())
    for kind, value in ((FindStaged, None), (StageChunk, None), (CommitTransfer, None), (PreparePackage, PACKAGE)):
        while script.asked(kind):
            script.answer(kind, value)  # late answers change nothing
    prepared = stage in {preparing, sending, awaiting, sent}
    if not script.asked(ReadChunk):
        assert script.asked(ReleasePackage) == prepared, "every package is given back exactly once"
    else:
        assert not script.asked(ReleasePackage)
        script.answer(ReadChunk, b"")
        assert script.asked(ReleasePackage) == 1


def test_a_duplicate_is_ignored_and_a_gap_is_not() -> None:
    script = Scripted()
    receiving(script)
    script.number -= 1
    script.hear(chunk(0, first=True))
    assert not script.asked(StageChunk)
    script.number += 1
    script.hear(Ping())
    assert script.outcome.error == "protocol_error"
    assert "1 messages got lost" in script.outcome.message


def test_a_damaged_message_ends_the_session() -> None:
    script = Scripted()
    metadata, data = encode(HELLO, 0)
    script._take(script.session.receive(metadata.replace(b'"n":0', b'"n":1'), data))
    assert script.outcome.error == "corrupt"


def test_protocols_and_codecs_are_negotiated() -> None:
    script = Scripted()
    assert script.said(Hello) == [Hello((1,), tuple(CODECS))]
    script.hear(Hello((2, 1, 7), ("from-the-future", "zstd", "raw")), Offers((), last=True))
    script.hear(Want(0, "mine", MINE, None))
    assert script.open(PreparePackage).codecs == ("raw", "zstd")


@pytest.mark.parametrize("hello", [Hello((2,), ("raw",)), Hello((), ("raw",)), Hello((1,), ("zstd",))])
def test_without_a_common_language_the_session_ends(hello: Hello) -> None:
    script = Scripted()
    script.hear(hello)
    assert script.outcome.error == "protocol_error"


@pytest.mark.parametrize(
    "wrong",
    [
        replace(chunk(1), offset=1),
        replace(chunk(1), index=2),
        replace(chunk(1), index=3),
        replace(chunk(1), data=b"short"),
        replace(chunk(1), transfer=1),
        chunk(0),
        chunk(1, first=True),
    ],
)
def test_chunks_that_were_not_asked_for_end_the_session(wrong: Chunk) -> None:
    script = Scripted()
    receiving(script)
    script.hear(wrong)
    assert script.outcome.error == "protocol_error"
    assert script.errors() == ["protocol_error"]
    assert not script.asked(StageChunk)


@pytest.mark.parametrize(
    "wrong",
    [
        Commit(0, 0, replace(PACKAGE, sha256=BASE)),
        Commit(0, 1, PACKAGE),
        Commit(1, 0, PACKAGE),
        Commit(0, 0, PACKAGE),
    ],
)
def test_a_commit_of_something_else_ends_the_session(wrong: Commit) -> None:
    script = Scripted()
    receiving(script)
    script.hear(wrong)
    assert script.outcome.error == "protocol_error"
    assert not script.asked(CommitTransfer)


@pytest.mark.parametrize(
    "wrong",
    [
        Want(0, "mine", THEIRS, None),
        Want(0, "other", MINE, None),
        Want(0, "mine", MINE, None, 1, Resume(SHA, ((0, 1),))),
    ],
)
def test_only_what_was_offered_may_be_asked_for(wrong: Want) -> None:
    script = Scripted()
    trading(script)
    script.hear(wrong)
    assert script.outcome.error == "protocol_error"
    assert not script.asked(PreparePackage)


@pytest.mark.parametrize(
    "wrong",
    [
        replace(AGAIN, resume=None),
        replace(AGAIN, resume=Resume(BASE, ((1, 2),))),
        replace(AGAIN, resume=Resume(SHA, ((2, 4),))),
        replace(AGAIN, round=2),
        replace(AGAIN, base=BASE),
        replace(AGAIN, round=0),
    ],
)
def test_asking_again_is_checked(wrong: Want) -> None:
    script = Scripted()
    awaiting(script)
    script.hear(wrong)
    assert script.outcome.error == "protocol_error"


def test_a_chunk_may_be_asked_for_again_once() -> None:
    script = Scripted()
    awaiting(script)
    script.hear(AGAIN)
    assert script.open(ReadChunk).index == 1
    script.hear(replace(AGAIN, round=2))
    assert script.outcome.error == "protocol_error"


def test_a_version_may_be_asked_for_twice_but_not_for_ever() -> None:
    script = Scripted()
    trading(script)
    for transfer in range(3):
        script.hear(Want(transfer, "mine", MINE, None))
        if transfer < 2:
            script.hear(Abort(transfer, "receiver", "no_base", ""))
    assert script.outcome.error == "protocol_error"


def test_resume_outside_of_the_package_ends_the_session() -> None:
    script = Scripted()
    trading(script)
    script.hear(Want(0, "mine", MINE, None, 0, Resume(SHA, ((2, 9),))))
    script.answer(PreparePackage, PACKAGE)
    assert script.outcome.error == "protocol_error"
    assert script.asked(ReleasePackage) == 1


def test_only_missing_chunks_are_read() -> None:
    script = Scripted()
    trading(script)
    script.hear(Want(0, "mine", MINE, None, 0, Resume(SHA, ((1, 2),))))
    script.answer(PreparePackage, PACKAGE)
    offset, length = chunk_span(PACKAGE.bytes, 1)
    script.answer(ReadChunk, DATA[offset : offset + length])
    assert [(message.index, message.package) for message in script.said(Chunk)] == [(1, PACKAGE)]
    assert script.said(Commit) == [Commit(0, 0, PACKAGE)]


def test_very_many_gaps_are_asked_for_in_bounded_words() -> None:
    script = Scripted()
    looking(script)
    gaps = tuple((2 * index, 2 * index + 1) for index in range(MOST_RANGES + 5))
    script.answer(FindStaged, Resume(SHA, gaps))
    (want,) = script.said(Want)
    assert len(want.resume.missing) == MOST_RANGES
    assert want.resume.missing[-1] == (gaps[MOST_RANGES - 1][0], gaps[-1][1])


def test_an_unasked_base_ends_the_session() -> None:
    script = Scripted(base=BASE)
    asked(script)
    assert script.said(Want) == [Want(0, "m", THEIRS, BASE)]
    delta = replace(PACKAGE, mode="delta", base=MINE)
    script.hear(replace(chunk(0, first=True), package=delta))
    assert script.outcome.error == "protocol_error"


def test_chunks_between_arrival_and_disk_are_bounded() -> None:
    script = Scripted(config=SessionConfig(window=2))
    asked(script)
    script.hear(chunk(0, first=True), chunk(1))
    assert not script.session.can_receive
    with pytest.raises(RuntimeError, match="can_receive"):
        script.hear(chunk(2))
    script.answer(StageChunk)
    assert script.session.can_receive


def test_one_chunk_is_read_and_sent_at_a_time_and_transfers_take_turns() -> None:
    session = SyncSession([Offer("a", MINE), Offer("b", BASE)], Wants())
    number = iter(range(99))
    session.start()
    wants = (Want(0, "a", MINE, None), Want(1, "b", BASE, None))
    effects: list[Effect] = []
    for message in (HELLO, Offers((), last=True), *wants):
        effects += session.receive(*encode(message, next(number)))
    order = []
    for effect in [effect for effect in effects if isinstance(effect, PreparePackage)]:
        effects += session.complete(effect, PACKAGE)
    while reads := [effect for effect in effects if isinstance(effect, ReadChunk)]:
        (read,) = reads
        order.append((read.transfer, read.index))
        (send,) = session.complete(read, DATA[read.offset : read.offset + read.length])
        effects = session.complete(send)
    assert order == [(0, 0), (1, 0), (0, 1), (1, 1), (0, 2), (1, 2)]


def test_few_packages_are_prepared_at_once() -> None:
    offers = [Offer(f"m{index}", MINE) for index in range(5)]
    session = SyncSession(offers, Wants(), SessionConfig(served=2))
    session.start()
    effects: list[Effect] = []
    wants = [Want(index, f"m{index}", MINE, None) for index in range(5)]
    for number, message in enumerate((HELLO, Offers((), last=True), *wants)):
        effects += session.receive(*encode(message, number))
    first, second = (effect for effect in effects if isinstance(effect, PreparePackage))
    effects = session.fail(first, Busy("no worker"))
    assert [effect.transfer for effect in effects if isinstance(effect, PreparePackage)] == [2]
    assert second.key == TransferKey("m1", MINE)


def test_repeated_and_endless_offers_end_the_session() -> None:
    for config, offers in (
        (SessionConfig(), (OFFER, OFFER)),
        (SessionConfig(offers=1), (OFFER, Offer("n", THEIRS))),
    ):
        script = Scripted(config=config)
        script.hear(HELLO, Offers(offers, last=False))
        assert script.outcome.error == "protocol_error"


def test_a_policy_that_cannot_answer_ends_the_session_with_its_code() -> None:
    class Broken:
        def wants(self, offer: Offer) -> Decision:
            raise BadRequest("the configuration is broken")

    session = SyncSession([], Broken())
    session.start()
    session.receive(*encode(HELLO, 0))
    effects = session.receive(*encode(Offers((OFFER,), last=True), 1))
    done = effects[-1]
    assert isinstance(done, SessionDone)
    assert done.error == "bad_request"


def test_ping_goes_out_only_between_hello_and_the_end() -> None:
    script = Scripted()
    assert script.session.ping() == []
    listening(script)
    (send,) = script.session.ping()
    assert isinstance(send, Send)
    script._take(script.session.abort(TransferAborted("enough")))
    assert script.session.ping() == []
    assert script.session.abort(TransferAborted("again")) == []
    with pytest.raises(RuntimeError, match="before"):
        script.session.start()


def test_busy_tells_whether_a_job_is_under_way() -> None:
    script = Scripted()
    trading(script)
    assert not script.session.busy
    script.hear(Want(0, "mine", MINE, None))
    assert script.session.busy
    script._take(script.session.fail(script.open(PreparePackage), HashMismatch("bad")))
    assert not script.session.busy
    assert script.errors() == ["hash_mismatch"]


def test_a_file_that_shrank_ends_the_transfer() -> None:
    script = Scripted()
    sending(script)
    script.answer(ReadChunk, b"short")
    assert script.errors() == ["storage_error"]
    assert script.said(Abort)[-1].role == "sender"
    assert script.asked(ReleasePackage) == 1


def test_a_stream_that_cannot_be_written_ends_the_session() -> None:
    session = SyncSession([], Wants())
    (hello,) = session.start()
    (done,) = session.fail(hello, TransferAborted("broken pipe"))
    assert isinstance(done, SessionDone)
    assert (done.error, done.message) == ("aborted", "broken pipe")
