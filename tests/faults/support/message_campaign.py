"""Three nodes in step with each other through proxies that do what a seed says; all must end with the same version.

Every seed publishes one version on one of the nodes. On each of the three links the first few streams suffer faults
at messages that the seed chose beforehand; after them the links are whole. Every tenth seed also kills a node in the
middle and brings it back when the survivors agree.
"""

from __future__ import annotations

import random
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from audit import books, whole
from flight_proxy import Fault, FlightProxy, Hit, Keys, Place, Way
from forked_nodes import ForkedNode
from safetensors.numpy import save_file

from aios_node.node.identity import SERVER_NAME

MODEL = "m"
NOISE_BYTES = 1_100_000  # 68 chunks of 17 KB
IDLE_S = 1.5
LONGEST_DELAY_S = 0.4
PATIENCE_S = 90.0
STREAMS = 3  # the most streams of a link that suffer in one seed
MESSAGES = 75
KILL_EVERY = 10
LINKS = (("b", "a"), ("c", "a"), ("c", "b"))
"""Who dials whom."""

SETTINGS = {
    "sync__interval_s": 2.0,
    "sync__backoff_max_s": 0.2,
    "limits__idle_timeout_s": IDLE_S,
    "node__grace_s": 1.0,
}


@dataclass
class MessageTally:
    """What one campaign counted. ``differing`` must stay 0."""

    seed: int
    exchanges: int = 0
    seconds: float = 0.0
    faults: int = 0
    by_fault: Counter[str] = field(default_factory=Counter)
    streams: int = 0
    kills: int = 0
    hashed: int = 0
    differing: int = 0

    def to_json(self) -> dict[str, Any]:
        return {name: dict(value) if isinstance(value, Counter) else value for name, value in vars(self).items()}


class Network:
    """The nodes, and a proxy for each link."""

    def __init__(self, folder: Path, seed: int, *, tls: bool = False) -> None:
        self.tally = MessageTally(seed)
        self._folder = folder
        self.nodes = {name: ForkedNode(name, folder / name, tls="on" if tls else "off", **SETTINGS) for name in "abc"}
        self.proxies: dict[tuple[str, str], FlightProxy] = {}
        self._tls = tls

    def start(self) -> None:
        """Bring up nodes and proxies, and introduce them."""
        for node in self.nodes.values():
            node.start()
        self.proxies = {link: self._proxy(*link, tls=self._tls) for link in LINKS}
        self._introduce(self._tls)

    def _proxy(self, caller: str, behind: str, *, tls: bool) -> FlightProxy:
        node = self.nodes[behind]
        target = f"grpc+tls://127.0.0.1:{node.peer_port}" if tls else f"grpc://127.0.0.1:{node.port}"
        keys = self._keys(caller, behind) if tls else None
        return FlightProxy(lambda: target, lambda _place: None, keys=keys, hostname=SERVER_NAME if tls else "")

    def _keys(self, caller: str, behind: str) -> Keys:
        def pem(name: str, kind: str) -> bytes:
            return (self._folder / name / "keys" / f"node.{kind}").read_bytes()

        return Keys(pem(behind, "crt"), pem(behind, "key"), pem(caller, "crt"), pem(caller, "key"))

    def _introduce(self, tls: bool) -> None:
        """Everyone dials through a proxy; under TLS the called must know the caller as well."""
        for (caller, behind), proxy in self.proxies.items():
            pinned = {"fingerprint": self.nodes[behind].node_id} if tls else {}
            if tls:
                self._trust(behind, caller)
            self.nodes[caller].call("peers_add", uri=proxy.uri, **pinned)

    def _trust(self, node: str, caller: str) -> None:
        """``node`` lets ``caller`` in and takes its versions: a peer at whose address nobody answers."""
        self.nodes[node].call(
            "peers_add",
            uri=f"grpc+tls://127.0.0.1:{1 + sorted(self.nodes).index(caller)}",
            fingerprint=self.nodes[caller].node_id,
            certificate=str(self._folder / caller / "keys" / "node.crt"),
        )

    def run(self, seeds: range) -> MessageTally:
        began = time.monotonic()
        for seed in seeds:
            self.exchange(seed)
        self.tally.seconds = round(time.monotonic() - began, 1)
        self.tally.streams = sum(proxy.streams for proxy in self.proxies.values())
        return self.tally

    def exchange(self, seed: int) -> str:
        """One version, published on one node, to all of them; returns it."""
        choice = random.Random(seed)
        for link, proxy in self.proxies.items():
            proxy.hits.clear()
            proxy.plan = planned(seed, link, proxy.streams)
        victim = choice.choice(sorted(self.nodes)) if seed % KILL_EVERY == KILL_EVERY - 1 else None
        author = choice.choice(sorted(set(self.nodes) - {victim}))
        version = self._publish(self.nodes[author], seed)
        if victim is not None:
            self._without(victim, version, choice.uniform(0.0, 0.5))
        self._agree(self.nodes, version, seed)
        self._count(version)
        return version

    def close(self) -> None:
        for proxy in self.proxies.values():
            proxy.close()
        for node in self.nodes.values():
            node.close()

    def _publish(self, node: ForkedNode, seed: int) -> str:
        path = self._folder / "next.safetensors"
        noise = np.random.default_rng(seed).integers(0, 256, NOISE_BYTES, dtype=np.uint8)
        save_file({"noise": noise}, path)
        return str(node.call("model_import", src=str(path), name=MODEL)["version"])

    def _without(self, victim: str, version: str, pause_s: float) -> None:
        """Kill one node in the middle; the survivors agree, then it comes back."""
        time.sleep(pause_s)  # where in the exchange the kill hits
        self.nodes[victim].kill()
        self.tally.kills += 1
        self._agree({name: node for name, node in self.nodes.items() if name != victim}, version, self.tally.seed)
        self.nodes[victim].start()

    def _agree(self, nodes: dict[str, ForkedNode], version: str, seed: int) -> None:
        """Wait until all have made the version their active one."""
        until = time.monotonic() + PATIENCE_S
        while (found := {name: books(node.store)[1].get(MODEL) for name, node in nodes.items()}) and set(
            found.values()
        ) != {version}:
            assert time.monotonic() < until, f"seed {seed}: {found} instead of {version}; {self._suffered()}"
            time.sleep(0.02)

    def _count(self, version: str) -> None:
        self.tally.exchanges += 1
        for node in self.nodes.values():
            self.tally.hashed += 1
            self.tally.differing += not whole(node.store, version)
        for _, fault in self._suffered():
            self.tally.faults += 1
            self.tally.by_fault[fault.name] += 1

    def _suffered(self) -> list[tuple[Place, Fault]]:
        return [hit for proxy in self.proxies.values() for hit in list(proxy.hits)]


def planned(seed: int, link: tuple[str, str], first: int) -> Any:
    """What a seed does on a link whose next stream is number ``first``: a fixed table, whatever the timing."""
    choice = random.Random(f"{seed}/{link}")
    table: dict[tuple[int, Way, int], Hit] = {}
    for stream in range(choice.randint(1, STREAMS)):
        for _ in range(choice.randint(1, 3)):
            way = choice.choice(list(Way))
            fault = choice.choice([fault for fault in Fault if way is Way.OUT or fault is not Fault.END])
            message = choice.choice([choice.randrange(5), choice.randrange(MESSAGES)])
            table[stream, way, message] = Hit(fault, amount_of(fault, choice))
    return lambda place: table.get((place.stream - first, place.way, place.message))


def amount_of(fault: Fault, choice: random.Random) -> float:
    """Seconds for a delay, the number of a bit for a flip."""
    return choice.uniform(0.0, LONGEST_DELAY_S) if fault is Fault.DELAY else float(choice.randrange(1 << 20))
