"""Turns as a pure state machine: whatever arrives in whatever order is answered once, in full, fairly."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from aios_node.engine.runtime.turns import AVERAGE_COST, LONGEST_COST, Encoded, Queue, Request, cost_of


class Lengths:
    """A snapshot whose vector of a text is (its length, the snapshot's number)."""

    def __init__(self, number: int) -> None:
        self.version = str(number)
        self.number = number

    def encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
        return np.array([[len(text), self.number] for text in texts], np.float32)


SNAPSHOTS = [Lengths(0), Lengths(1)]
ARRIVALS = st.lists(
    st.one_of(
        st.just("turn"),
        st.tuples(st.sampled_from(SNAPSHOTS), st.lists(st.integers(0, 3 * LONGEST_COST), min_size=1, max_size=30)),
    ),
    max_size=20,
)


def run_turn(queue: Queue, turn_texts: int) -> bool:
    """Take a turn, check its bounds, run it; False when nothing waited."""
    if (turn := queue.take_turn()) is None:
        return False
    texts = [text for _, share in turn.shares for text in share]
    assert 0 < len(texts) <= turn_texts
    assert all(request.snapshot is turn.snapshot for request, _ in turn.shares)
    costs = [sum(map(cost_of, share)) for _, share in turn.shares]
    assert sum(costs[:-1]) < turn_texts * AVERAGE_COST
    assert all(len(turn.shares[i][1]) == 1 or cost <= turn_texts * AVERAGE_COST for i, cost in enumerate(costs))
    turn.run()
    queue.give_back()
    return True


@given(arrivals=ARRIVALS, turn_texts=st.integers(1, 20))
def test_every_request_is_answered_once_by_its_snapshot(
    arrivals: list[str | tuple[Lengths, list[int]]], turn_texts: int
) -> None:
    queue, requests = Queue(turn_texts), []
    for arrival in arrivals:
        if isinstance(arrival, str):
            run_turn(queue, turn_texts)
        else:
            requests.append(Request(arrival[0], ["x" * length for length in arrival[1]]))
            queue.add(requests[-1])
    while run_turn(queue, turn_texts):
        pass
    assert len(queue) == queue.texts == 0
    for request in requests:
        vectors, version = request.future.result(0)
        assert vectors[:, 0].tolist() == [len(text) for text in request.texts]
        assert version == request.snapshot.version
        assert set(vectors[:, 1]) == {float(version)}


def test_equal_shares_and_then_to_the_back() -> None:
    queue = Queue(4)
    large, small = Request(SNAPSHOTS[0], ["a"] * 5), Request(SNAPSHOTS[0], ["b"] * 2)
    queue.add(large)
    queue.add(small)
    shares = []
    while (turn := queue.take_turn()) is not None:
        shares.append([(request is large, len(texts)) for request, texts in turn.shares])
        turn.run()
        queue.give_back()
    assert shares == [[(True, 2), (False, 2)], [(True, 3)]]


def test_snapshots_take_turns() -> None:
    queue = Queue(2)
    for snapshot in SNAPSHOTS:
        queue.add(Request(snapshot, ["x"] * 4))
    order = []
    while (turn := queue.take_turn()) is not None:
        order.append(turn.snapshot.version)
        turn.run()
        queue.give_back()
    assert order == ["0", "1", "0", "1"]


def test_texts_that_are_out_still_count() -> None:
    queue = Queue(2)
    queue.add(Request(SNAPSHOTS[0], ["x"] * 3))
    turn = queue.take_turn()
    assert turn is not None
    assert (len(queue), queue.texts) == (0, 3)
    turn.run()
    assert queue.texts == 1
    assert queue.drain() == []
    queue.give_back()
    assert len(queue.drain()) == 1


def test_long_texts_fill_a_turn_sooner() -> None:
    queue = Queue(8)
    queue.add(Request(SNAPSHOTS[0], ["x" * LONGEST_COST] * 8))
    turn = queue.take_turn()
    assert turn is not None
    assert len(turn.shares[0][1]) == 8 * AVERAGE_COST // LONGEST_COST == 1


def test_what_is_given_up_at_the_last_moment_is_not_computed() -> None:
    class LateFuture(Future[Encoded]):
        """Cancelled between the look and the claim: it does not look cancelled yet."""

        def cancelled(self) -> bool:
            return False

    queue = Queue(2)
    late = Request(SNAPSHOTS[0], ["x"], LateFuture())
    queue.add(late)
    assert late.future.cancel()
    assert queue.take_turn() is None
    assert len(queue) == queue.texts == 0
    queue.give_back()
    assert queue.take_turn() is None


def test_only_what_is_computed_can_no_longer_be_given_up() -> None:
    queue = Queue(1)
    first, second = Request(SNAPSHOTS[0], ["x"]), Request(SNAPSHOTS[0], ["y"])
    queue.add(first)
    queue.add(second)
    turn = queue.take_turn()
    assert turn is not None
    assert not first.future.cancel()
    assert second.future.cancel()
    turn.run()
    queue.give_back()
    assert queue.take_turn() is None
