"""Weights over do_get on loopback, against a raw Python socket that copies the same bytes.

Server and rival live in one other process, the clients in this one. Every round runs every case once, so
that the ratios compare neighbours in time: a ratio is the median over the rounds of (seconds of the raw
socket) / (seconds of the case), per byte; 1.0 means as fast as the raw socket. CPU seconds count both
processes; they say more than the clock when other programs use the same cores.
"""

from __future__ import annotations

import json
import mmap
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np
import psutil

from aios_node.engine.weights.parquet import write_shard
from aios_node.flight.auth import anyone
from aios_node.flight.dialing import LARGE_FRAMES
from aios_node.flight.listener import FlightListener
from aios_node.flight.ports import ModelVersion, Ports, ShardFile

import pyarrow.flight as fl  # isort: skip  # after aios_node.flight, which silences gRPC first

MIB = 2**20
PIECE = MIB
SHAPES = [(384, 384)] * 8 + [(1536, 384), (384, 1536)] * 2 + [(30522, 384)]  # a layer or two, and embeddings


def write_weights(folder: Path, mib: int) -> ModelVersion:
    """Random float32 tensors in shards of about 32 MiB (a larger tensor has its own)."""
    rng = np.random.default_rng(0)
    shards: list[ShardFile] = []
    part: dict[str, Any] = {}
    total = number = 0
    while total < mib * MIB or part:
        if total < mib * MIB:
            tensor = rng.standard_normal(SHAPES[number % len(SHAPES)], dtype=np.float32)
            part[f"tensor.{number:04d}"] = tensor
            total += tensor.nbytes
            number += 1
        if total >= mib * MIB or sum(t.nbytes for t in part.values()) >= 32 * MIB:
            info = write_shard(folder / f"weights-{len(shards) + 1:05d}.parquet", part)
            shards.append(ShardFile(folder / info.file, info.file, info.bytes, info.sha256, len(part)))
            part = {}
    return ModelVersion("bench", "0" * 64, tuple(shards))


class Weights:
    """A WeightsPort with one version."""

    def __init__(self, version: ModelVersion) -> None:
        self._version = version

    def models(self) -> Sequence[str]:
        """One name."""
        return [self._version.model]

    def resolve(self, model: str, version: str | None) -> ModelVersion:
        """The version."""
        return self._version

    @contextmanager
    def lease(self, model: str, version: str) -> Iterator[ModelVersion]:
        """The version."""
        yield self._version


class Access:
    """Everyone may do everything."""

    def check(self, *args: object) -> None:
        """Yes."""


def serve(folder: Path) -> None:
    """The other process: a listener, and a plain socket that sends the same files."""
    files = sorted(folder.glob("*.parquet"))
    shards = tuple(ShardFile(f, f.name, f.stat().st_size, "0" * 64, 0) for f in files)
    nobody = cast("Any", None)
    ports = Ports(
        cast("Any", Access()), Weights(ModelVersion("bench", "0" * 64, shards)), nobody, nobody, nobody, nobody
    )
    with FlightListener(ports, anyone) as listener, socket.create_server(("127.0.0.1", 0)) as rival:
        threading.Thread(target=send_raw, args=(rival, files), daemon=True).start()
        print(json.dumps({"uri": listener.uri, "port": rival.getsockname()[1]}), flush=True)
        sys.stdin.read()


def send_raw(server: socket.socket, files: list[Path]) -> None:
    """Each connection gets all files, mapped, in pieces of 1 MiB."""
    while True:
        connection, _ = server.accept()
        with connection:
            for file in files:
                with file.open("rb") as handle:
                    send_file(connection, handle.fileno())


def send_file(connection: socket.socket, fileno: int) -> None:
    """One file, mapped."""
    with mmap.mmap(fileno, 0, access=mmap.ACCESS_READ) as mapped, memoryview(mapped) as view:
        for start in range(0, len(view), PIECE):
            connection.sendall(view[start : start + PIECE])


def receive_raw(port: int) -> int:
    """The rival: into one reused buffer."""
    buffer, total = bytearray(PIECE), 0
    with socket.create_connection(("127.0.0.1", port)) as connection:
        while count := connection.recv_into(buffer):
            total += count
    return total


def receive_copy(port: int) -> int:
    """The other rival keeps all bytes, in pieces of 1 MiB, as a Flight client owns the batches it receives."""
    parts, total = [], 0
    with socket.create_connection(("127.0.0.1", port)) as connection:
        while True:
            buffer = np.empty(PIECE, np.uint8)
            count = connection.recv_into(buffer, PIECE, socket.MSG_WAITALL)
            if not count:
                return total
            parts.append(buffer)
            total += count


def receive_flight(client: Any, raw: bool) -> int:
    """All endpoints, one after the other; counts the bytes of the data column."""
    command = json.dumps({"v": 1, "op": "weights", "model": "bench", "raw": raw}).encode()
    info = client.get_flight_info(fl.FlightDescriptor.for_command(command))
    total = 0
    for endpoint in info.endpoints:
        for chunk in client.do_get(endpoint.ticket):
            total += chunk.data.column("data").nbytes
    return total


def cpu_seconds(*processes: psutil.Process) -> float:
    """User and system time so far."""
    times = [process.cpu_times() for process in processes]
    return sum(t.user + t.system for t in times)


@dataclass
class Samples:
    """One case over the rounds."""

    wall: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)  # of both processes


def measure(cases: dict[str, Callable[[], int]], rounds: int, server: psutil.Process) -> dict[str, Samples]:
    """Every case in every round, after one round that does not count."""
    samples = {name: Samples() for name in cases}
    me = psutil.Process()
    for number in range(rounds + 1):
        for name, fetch in cases.items():
            cpu, start = cpu_seconds(me, server), time.perf_counter()
            fetch()
            if number:
                samples[name].wall.append(time.perf_counter() - start)
                samples[name].cpu.append(cpu_seconds(me, server) - cpu)
    return samples


def run(mib: int = 256, rounds: int = 9) -> dict[str, object]:
    """Serve ``mib`` MiB of weights, fetch them ``rounds`` times each way."""
    with tempfile.TemporaryDirectory() as name:
        version = write_weights(Path(name), mib)
        command = [sys.executable, __file__, "--serve", name]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as server:
            assert server.stdout is not None
            said = json.loads(server.stdout.readline())
            client = fl.FlightClient(said["uri"])
            tuned = fl.FlightClient(said["uri"], generic_options=LARGE_FRAMES)
            cases: dict[str, Callable[[], int]] = {
                "raw_socket": lambda: receive_raw(said["port"]),
                "raw_socket_kept": lambda: receive_copy(said["port"]),
                "do_get_raw": lambda: receive_flight(client, raw=True),
                "do_get_raw_large_frames": lambda: receive_flight(tuned, raw=True),
                "do_get_rows": lambda: receive_flight(client, raw=False),
            }
            sizes = {case: fetch() for case, fetch in cases.items()}
            samples = measure(cases, rounds, psutil.Process(server.pid))
            client.close()
            tuned.close()
            server.communicate()
    figures: dict[str, object] = {"megabytes": round(version.bytes / 1e6), "shards": len(version.shards)}
    for case, sample in samples.items():
        figures[case] = {
            "gb_per_s": round(sizes[case] / statistics.median(sample.wall) / 1e9, 3),
            "cpu_s_per_gb": round(statistics.median(sample.cpu) / sizes[case] * 1e9, 3),
            "ratio": {
                "value": ratio(case, "raw_socket", samples, sizes),
                "unit": "of a raw socket with one reused buffer",
                "target": ">= 0.8" if case.startswith("do_get_raw") else "",
            },
            "ratio_kept": {
                "value": ratio(case, "raw_socket_kept", samples, sizes),
                "unit": "of a raw socket that keeps the bytes",
            },
        }
    return figures


def ratio(case: str, rival: str, samples: dict[str, Samples], sizes: dict[str, int]) -> float:
    """Median over the rounds of the rival's seconds per byte over the case's."""
    pairs = zip(samples[rival].wall, samples[case].wall, strict=True)
    return round(statistics.median(b / t for b, t in pairs) * sizes[case] / sizes[rival], 3)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--serve"]:
        serve(Path(sys.argv[2]))
    else:
        print(json.dumps(run(), indent=2))
