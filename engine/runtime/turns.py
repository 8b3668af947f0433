"""Which texts are encoded together next: fair turns over waiting requests. No threads, no clocks.

A request keeps the snapshot that it arrived with, so all its vectors come from one version.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

Vectors = NDArray[np.float32]
Encoded = tuple[Vectors, str]
"""Vectors float32 [n, d], and the id of the version that made them."""


class Encodes(Protocol):
    """What is needed of a snapshot."""

    @property
    def version(self) -> str:
        """Id of the version."""
        ...

    def encode(self, texts: Sequence[str]) -> Vectors:
        """One vector per text, float32 [n, d]."""
        ...


TEXT_COST = 64
LONGEST_COST = 2048
AVERAGE_COST = 256
"""What a text of an ordinary length may cost; a turn's budget counts in these."""


def cost_of(text: str) -> int:
    """Work of encoding a text, in characters: a fixed part, and its length up to where it is cut."""
    return TEXT_COST + min(len(text), LONGEST_COST)


@dataclass(eq=False)
class Request:
    """Texts that wait for vectors, and the vectors that are there already."""

    snapshot: Encodes
    texts: Sequence[str]
    future: Future[Encoded] = field(default_factory=Future)
    parts: list[Vectors] = field(default_factory=list)
    done: int = 0

    @property
    def waiting(self) -> int:
        """Number of texts that have no vector yet."""
        return len(self.texts) - self.done

    def take(self, count: int, cost: int) -> Sequence[str]:
        """The next texts: at most ``count``, at most ``cost`` together, but always one."""
        end = self.done
        for end in range(self.done, min(len(self.texts), self.done + count)):
            cost -= cost_of(self.texts[end])
            if cost < 0 and end > self.done:
                return self.texts[self.done : end]
        return self.texts[self.done : end + 1]

    def give(self, vectors: Vectors) -> None:
        """Add the vectors of the texts taken last; the future is set when they were the last."""
        self.parts.append(vectors)
        self.done += len(vectors)
        if not self.waiting:
            vectors = self.parts[0] if len(self.parts) == 1 else np.concatenate(self.parts)
            self.future.set_result((vectors, self.snapshot.version))


@dataclass(frozen=True, eq=False)
class Turn:
    """Texts of one or several requests for the same snapshot, encoded in one go."""

    snapshot: Encodes
    shares: tuple[tuple[Request, Sequence[str]], ...]

    def run(self) -> None:
        """Encode, and give every request its rows. An error becomes the result of all of them."""
        try:
            vectors = self.snapshot.encode([text for _, texts in self.shares for text in texts])
        except BaseException as error:
            for request, _ in self.shares:
                request.future.set_exception(error)
            return
        start = 0
        for request, texts in self.shares:
            request.give(vectors[start : start + len(texts)])
            start += len(texts)


class Queue:
    """Requests in order of arrival; one that got its share of a turn and is not done goes to the back.

    At most one turn is out at a time; its requests are not in the queue until it comes back.
    """

    def __init__(self, turn_texts: int) -> None:
        self._turn_texts = turn_texts
        self._requests: deque[Request] = deque()
        self._out: Turn | None = None

    def __len__(self) -> int:
        return len(self._requests)

    @property
    def texts(self) -> int:
        """Number of texts that have no vector yet, those of the turn that is out included."""
        out = [request for request, _ in self._out.shares] if self._out else []
        return sum(request.waiting for request in (*self._requests, *out))

    def add(self, request: Request) -> None:
        """Let a request wait."""
        self._requests.append(request)

    def take_turn(self) -> Turn | None:
        """The next turn: the snapshot that waited longest, its requests with equal shares.

        Requests take in order until the turn is full, so a crowd waits for the turn after. None when
        nothing waits. Requests that were cancelled before they got a share drop out.
        """
        self._requests = deque(request for request in self._requests if not _cancelled(request))
        if self._requests:
            self._out = self._turn_for(self._requests[0].snapshot)
        return self._out

    def give_back(self) -> None:
        """Take in the turn that ran: its unfinished requests go to the back."""
        if self._out:
            self._requests.extend(request for request, _ in self._out.shares if not request.future.done())
        self._out = None

    def drain(self) -> list[Request]:
        """Empty the queue; the turn that is out stays out."""
        requests = list(self._requests)
        self._requests.clear()
        return requests

    def _turn_for(self, snapshot: Encodes) -> Turn | None:
        """Take shares of requests for this snapshot, and those requests out of the queue."""
        candidates = [request for request in self._requests if request.snapshot is snapshot]
        texts, cost = self._turn_texts, self._turn_texts * AVERAGE_COST
        count_share, cost_share = max(1, texts // len(candidates)), cost // len(candidates)
        shares: list[tuple[Request, Sequence[str]]] = []
        for request in candidates:
            self._requests.remove(request)
            if not _starts(request):
                continue
            taken = request.take(count_share, cost_share)
            shares.append((request, taken))
            texts -= len(taken)
            cost -= sum(map(cost_of, taken))
            if texts <= 0 or cost <= 0:
                break
        return Turn(snapshot, tuple(shares)) if shares else None


def _starts(request: Request) -> bool:
    """Claim a request for computing; False when it was cancelled just now."""
    return request.future.running() or request.future.set_running_or_notify_cancel()


def _cancelled(request: Request) -> bool:
    """Whether its caller gave it up; tells those who wait for it."""
    return request.future.cancelled() and not request.future.set_running_or_notify_cancel()
