"""Work on several threads: everything is done once, errors come out, and torch's number of threads stays."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from aios_node.engine.nets.parallel import each


@pytest.fixture(params=[1, 2, 3])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@pytest.mark.parametrize("count", [0, 1, 2, 20])
@pytest.mark.parametrize("split", [True, False])
def test_every_piece_is_done_once(threads: int, count: int, split: bool) -> None:
    done: list[int] = []
    each(done.append, range(count), split_single=split)
    assert sorted(done) == list(range(count))
    assert torch.get_num_threads() == threads


def test_pieces_do_not_share_torchs_threads(threads: int) -> None:
    seen: list[int] = []
    each(lambda _: seen.append(torch.get_num_threads()), range(8))
    assert seen == [1] * 8


def test_a_single_piece_uses_all_threads_or_one(threads: int) -> None:
    seen: list[int] = []
    each(lambda _: seen.append(torch.get_num_threads()), [0])
    each(lambda _: seen.append(torch.get_num_threads()), [0], split_single=False)
    assert seen == [threads, 1]


@pytest.mark.parametrize("pieces", [[3], [1, 2, 3, 4]])
def test_the_first_error_comes_out_after_all_are_done(threads: int, pieces: list[int]) -> None:
    done: list[int] = []

    def work(piece: int) -> None:
        if piece == 3:
            raise ValueError("three")
        done.append(piece)

    with pytest.raises(ValueError, match="three"):
        each(work, pieces, split_single=False)
    assert threads == 1 or sorted(done) == [piece for piece in pieces if piece != 3]
    assert torch.get_num_threads() == threads


def test_a_thread_that_comes_while_another_is_alone_gets_all_threads(threads: int) -> None:
    alone, looked = threading.Event(), threading.Event()

    def be_alone(_: int) -> None:
        alone.set()
        assert looked.wait(60)

    def look() -> int:
        assert alone.wait(60)
        try:
            seen: list[int] = []
            each(lambda _: seen.append(torch.get_num_threads()), [0])
            return seen[0]
        finally:
            looked.set()

    with ThreadPoolExecutor(1) as pool:
        found = pool.submit(look)
        each(be_alone, [0], split_single=False)
        assert found.result(60) == threads
    assert torch.get_num_threads() == threads
