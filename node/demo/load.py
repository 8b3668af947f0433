"""Encode requests without a pause, from several threads, with the time of each: what a swap must not disturb."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass

from aios_node.engine.errors import AiosError
from aios_node.flight.client import Client

TEXTS = ("how do I copy a directory tree", "wait for several threads", "parse a date from text")
PAUSE_S = 0.1  # between two requests of a thread: a steady load that leaves most of two cores to training


@dataclass(frozen=True)
class Answer:
    """One request: when it began (monotonic), how long it took, whether it failed."""

    began: float
    seconds: float
    error: str | None


class SteadyLoad:
    """Asks a node to encode until it is told to stop."""

    def __init__(self, client: Client, model: str, threads: int = 1) -> None:
        self._client = client
        self._model = model
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._answers: list[Answer] = []
        self._threads = [threading.Thread(target=self._ask, daemon=True) for _ in range(threads)]
        for thread in self._threads:
            thread.start()

    def stop(self) -> list[Answer]:
        """End the load; all answers in the order in which they came."""
        self._stop.set()
        for thread in self._threads:
            thread.join()
        return self.answers()

    def answers(self) -> list[Answer]:
        """What came so far."""
        with self._lock:
            return list(self._answers)

    def _ask(self) -> None:
        while not self._stop.wait(PAUSE_S):
            began = time.monotonic()
            error = None
            try:
                self._client.encode(TEXTS, self._model)
            except AiosError as failure:
                error = failure.message
            with self._lock:
                self._answers.append(Answer(began, time.monotonic() - began, error))


def summarise(answers: Sequence[Answer], swapped_at: float, window_s: float) -> dict[str, float | int]:
    """Requests, failures, and the slowest within ``window_s`` of the swap against the slowest otherwise (ms)."""
    near = [a.seconds for a in answers if a.began - window_s <= swapped_at <= a.began + a.seconds + window_s]
    other = [a.seconds for a in answers if not a.began - window_s <= swapped_at <= a.began + a.seconds + window_s]
    return {
        "requests": len(answers),
        "failed": sum(a.error is not None for a in answers),
        "slowest_during_swap_ms": round(1000 * max(near, default=0.0), 1),
        "slowest_otherwise_ms": round(1000 * max(other, default=0.0), 1),
    }
