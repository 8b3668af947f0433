"""Writes memories until it is killed. Run as a program by ``test_memory_faults.py``.

It reads one JSON command per line and forks a child for each, so that a round costs milliseconds. Each of the
child's threads owns some ids and says, one JSON line at a time, what it begins and what was acknowledged;
``{"exit": status}`` follows when the child is dead. A row's text tells its vector, so that a mixed-up row shows.
"""

from __future__ import annotations

import itertools
import json
import os
import random
import sys
import threading
from pathlib import Path
from typing import Any

import pyarrow as pa

from aios_node.memory import MemoryStore

THREADS = 3
IDS = 40


def vector_of(text: str) -> list[float]:
    """Three numbers that belong to this text alone."""
    number = int(text.rsplit(" ", 1)[1])
    return [1.0, number % 1000 / 1000, number // 1000 / 1000]


def say(**line: Any) -> None:
    """One line, whole or not at all: shorter than what a pipe takes atomically."""
    os.write(1, (json.dumps(line) + "\n").encode())


class Writer:
    """One thread's work: changes to its own ids, announced before and acknowledged after."""

    def __init__(self, store: MemoryStore, thread: int, seed: int) -> None:
        self.store = store
        self.thread = thread
        self.random = random.Random(seed * 31 + thread)
        self.numbers = itertools.count(seed * 10_000 % 900_000 + thread, THREADS)

    def run(self) -> None:
        for step in itertools.count():
            changes = self.draw()
            say(begin=changes, thread=self.thread, step=step)
            self.apply(changes)
            say(done=step, thread=self.thread)

    def draw(self) -> dict[str, str | None]:
        """Ids and their new text; None deletes."""
        count = self.random.choice([1, 1, 1, 5, 20])
        names = self.random.sample([f"t{self.thread}-{n}" for n in range(IDS)], count)
        if self.random.random() < 0.2:
            return dict.fromkeys(names)
        return {name: f"memory {next(self.numbers)}" for name in names}

    def apply(self, changes: dict[str, str | None]) -> None:
        """All of them in one call."""
        texts = [text for text in changes.values() if text is not None]
        names = list(changes)
        if not texts:
            self.store.delete(names)
        elif len(texts) == 1:
            self.store.add(id=names[0], text=texts[0], embedding=vector_of(texts[0]))
        else:
            self.store.add_table(
                pa.table({"id": names, "text": texts, "embedding": [vector_of(text) for text in texts]})
            )


def work(folder: Path, seed: int) -> None:
    """Write from several threads, for ever."""
    store = MemoryStore.open(folder)
    store.add(id="first", text="memory 0", embedding=vector_of("memory 0"))
    say(ready=True)
    threads = [threading.Thread(target=Writer(store, n, seed).run) for n in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def serve() -> None:
    """Fork a child for each command; the parent stays without threads."""
    for line in sys.stdin:
        command = json.loads(line)
        child = os.fork()
        if child == 0:
            try:
                work(Path(command["folder"]), command["seed"])
            finally:
                os._exit(1)
        say(pid=child)
        _, status = os.waitpid(child, 0)
        say(exit=os.waitstatus_to_exitcode(status))


if __name__ == "__main__":
    serve()
