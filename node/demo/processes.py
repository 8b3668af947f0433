"""The demo's nodes: real ``aios-node run`` processes, spoken to through the command line and Flight."""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from aios_node.engine.errors import Unavailable
from aios_node.flight.client import Client
from aios_node.node.reach import RunFile, open_client

READY_S = 60.0
STOP_S = 30.0
POLL_S = 0.2


class DemoFailed(Exception):
    """A step of the demo did not do what it promised."""


class DemoNode:
    """One node: its folder, its process, its command line."""

    def __init__(self, name: str, preset: str, folder: Path) -> None:
        self.name = name
        self.preset = preset
        self.folder = folder
        self.uri = ""
        self.peer_uri = ""
        self.node_id = ""
        self._process: subprocess.Popen[str] | None = None

    @property
    def config(self) -> Path:
        """Its configuration file."""
        return self.folder / "node.yaml"

    @property
    def certificate(self) -> bytes:
        """What clients trust: its TLS certificate (PEM)."""
        return (self.folder / "keys" / "node.crt").read_bytes()

    def init(self, tls: str = "on") -> None:
        """``aios-node init``."""
        made = self._run(["init", str(self.folder), "--preset", self.preset, "--name", self.name, "--tls", tls])
        self.node_id = made["node_id"]

    def start(self, *, port: int = 0, details: bool = True) -> None:
        """``aios-node run``, until it prints that it is ready; ``details``: ask it for its peer address as well."""
        log = (self.folder / "log.txt").open("w", encoding="utf-8")
        with log:
            self._process = subprocess.Popen(
                _command(["run", "-c", str(self.config), *(["--port", str(port)] if port else [])]),
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env=_environment(),
            )
        self.uri = self._ready_line(self._process).split()[1]
        if details:
            self.peer_uri = self.call("status")["peer_address"] or ""

    def call(self, *arguments: str) -> Any:
        """A command of ``aios-node`` on this node; returns its JSON."""
        return self._run([*arguments, "-c", str(self.config)])

    def client(self, token: str) -> Client:
        """A client from outside, with a token."""
        return Client(self.uri, token=token, ca=self.certificate)

    def owner(self) -> Client:
        """A client with the rights of the machine's owner."""
        run = RunFile.read(self.folder / "data")
        if run is None:
            raise DemoFailed(f"{self.name} does not run")
        return open_client(run)

    @property
    def pid(self) -> int:
        """Its process. Raises DemoFailed where there is none."""
        if self._process is None:
            raise DemoFailed(f"{self.name} does not run")
        return self._process.pid

    def wait(self) -> int:
        """Wait until the process has ended by itself; returns its exit code, negative for a signal."""
        if self._process is None:
            raise DemoFailed(f"{self.name} does not run")
        code = self._process.wait(STOP_S)
        if self._process.stdout is not None:
            self._process.stdout.close()
        self._process = None
        return code

    def stop(self) -> int | None:
        """SIGTERM; the exit code, or None where there was no process."""
        process, self._process = self._process, None
        if process is None:
            return None
        process.send_signal(signal.SIGTERM)
        try:
            return process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            return process.wait()
        finally:
            if process.stdout is not None:
                process.stdout.close()

    def _run(self, arguments: Sequence[str]) -> Any:
        done = subprocess.run(
            _command([*arguments, "--json"]), capture_output=True, text=True, env=_environment(), check=False
        )
        if done.returncode != 0:
            raise DemoFailed(f"aios-node {' '.join(arguments[:3])} on {self.name}: {done.stderr.strip()}")
        return json.loads(done.stdout)

    def _ready_line(self, process: subprocess.Popen[str]) -> str:
        lines: queue.Queue[str] = queue.Queue()
        stdout = process.stdout
        if stdout is None:
            raise DemoFailed(f"{self.name} has no output to read")
        threading.Thread(target=lambda: lines.put(stdout.readline()), daemon=True).start()
        try:
            line = lines.get(timeout=READY_S)
        except queue.Empty:
            line = ""
        if not line.startswith("ready "):
            process.kill()
            raise DemoFailed(f"{self.name} did not start: {(self.folder / 'log.txt').read_text().strip()[-500:]}")
        return line


def wait_until(what: str, happened: Callable[[], bool], timeout_s: float) -> float:
    """Poll until something has happened; returns the seconds it took. Raises DemoFailed after the timeout."""
    started = time.monotonic()
    while not _asked(happened):
        if time.monotonic() - started > timeout_s:
            raise DemoFailed(f"{what} did not happen within {timeout_s:g} s")
        time.sleep(POLL_S)
    return time.monotonic() - started


def _asked(happened: Callable[[], bool]) -> bool:
    try:
        return happened()
    except Unavailable:
        return False


def _command(arguments: Sequence[str]) -> list[str]:
    return [sys.executable, "-m", "aios_node.node", *arguments]


def _environment() -> dict[str, str]:
    """The caller's environment without node settings, which would apply to all three."""
    return {name: value for name, value in os.environ.items() if not name.startswith("AIOS_")}
