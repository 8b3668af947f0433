"""Whole nodes as forked processes, from the side of a test: start, call, kill, start again."""

from __future__ import annotations

import json
import random
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

from aios_node.flight.client import Client
from aios_node.node.reach import RunFile, open_client
from aios_node.node.setup import init_node

WAIT_S = 30.0


class ForkedNode:
    """One node: its folder, the nursery that forks it, and the life it has now."""

    def __init__(self, name: str, folder: Path, *, tls: str = "off", **settings: Any) -> None:
        """``settings``: configuration values, as ``sync__interval_s=0.5``."""
        self.name, self.folder = name, folder
        self.node_id = init_node(folder, name=name, tls=tls).node_id
        self.port, self.peer_port = free_port(), free_port()
        self.uri = ""
        self.lives = 0
        self._settings = {
            "listen.port": self.port,
            "listen.peer_port": self.peer_port,
            "models.preload": False,
            **{key.replace("__", "."): value for key, value in settings.items()},
        }
        self._client: Client | None = None
        self._alive = False
        self._nursery = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("nursery.py"))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    @property
    def store(self) -> Path:
        return self.folder / "data" / "store"

    @property
    def control(self) -> Path:
        return self.folder / "control"

    @property
    def arrivals(self) -> Path:
        """One line per chunk that came in, in all lives."""
        return self.folder / "arrivals"

    def start(self, *, killable: bool = False) -> None:
        """A new life, ready for calls."""
        answer = self._ask(
            do="start",
            config=str(self.folder / "node.yaml"),
            overrides=self._settings,
            log=str(self.folder / "log.txt"),
            control=str(self.control) if killable else None,
            arrivals=str(self.arrivals),
        )
        log = self.folder / "log.txt"
        assert answer["ready"].startswith("ready "), f"{self.name} did not start: {log.read_text()[-2000:]}"
        self.uri = answer["ready"].split()[1]
        self.lives += 1
        self._alive = True
        run = RunFile.read(self.folder / "data")
        assert run is not None
        self._client = open_client(run)

    def call(self, op: str, **arguments: Any) -> dict[str, Any]:
        """An operation with the owner's rights; its result. Raises AiosError."""
        assert self._client is not None
        *_, result = self._client.call(op, arguments)
        return dict(result)

    def wait(self, seconds: float = WAIT_S) -> int | None:
        """The exit code of the life that ends, negative for a signal; None if it does not."""
        code = self._ask(do="wait", seconds=seconds)["exit"]
        if code is not None:
            self._ended()
        return code  # type: ignore[no-any-return]

    def kill(self) -> None:
        """kill -9, now."""
        self._ask(do="kill", signal=int(signal.SIGKILL))
        assert self.wait() == -signal.SIGKILL

    def close(self) -> None:
        """End this life and the nursery."""
        if self._alive:
            self._ask(do="kill", signal=int(signal.SIGKILL))
            self.wait()
        assert self._nursery.stdin is not None
        assert self._nursery.stdout is not None
        self._nursery.stdin.close()
        self._nursery.wait(WAIT_S)
        self._nursery.stdout.close()

    def _ended(self) -> None:
        self._alive = False
        if self._client is not None:
            self._client.close()
            self._client = None

    def _ask(self, **command: Any) -> dict[str, Any]:
        assert self._nursery.stdin is not None
        assert self._nursery.stdout is not None
        self._nursery.stdin.write(json.dumps(command) + "\n")
        self._nursery.stdin.flush()
        line = self._nursery.stdout.readline()
        assert line, f"the nursery of {self.name} ended"
        return json.loads(line)  # type: ignore[no-any-return]


def free_port() -> int:
    """A port for a node that must come back at the same address: below those that the kernel hands out."""
    while True:
        port = random.randrange(12_000, 32_000)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
