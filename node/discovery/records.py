"""What a node announces by DNS-SD, and what is believed of what others announce: nothing without a check.

Anyone on the network may send anything. A sighting is a hint where to knock; who opens proves by its key who it is.
Pure: no sockets, no clock.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

SERVICE: Final = "_aios-node._tcp.local."
VERSION: Final = b"1"
LABEL: Final = 32
"""Digits of the node id in the service's name: a DNS label holds 63 bytes, one less than a node id."""
MOST_ADDRESSES: Final = 4
"""Addresses that are taken from one announcement."""
MOST_NODES: Final = 256
"""Nodes that are remembered at once."""

_NODE_ID = re.compile(r"[0-9a-f]{64}")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")


@dataclass(frozen=True)
class Sighting:
    """One announcement: a node id that somebody claims, with IPv4 addresses and a port to find it at."""

    node_id: str
    addresses: tuple[str, ...]
    port: int
    name: str | None = None

    @property
    def uris(self) -> tuple[str, ...]:
        """Where a peer of this id would be dialled."""
        return tuple(f"grpc+tls://{address}:{self.port}" for address in self.addresses)


def service_name(node_id: str) -> str:
    """The name under which a node announces itself."""
    return f"{node_id[:LABEL]}.{SERVICE}"


def properties(node_id: str, name: str) -> dict[str, bytes]:
    """The TXT record of an announcement."""
    return {"v": VERSION, "id": node_id.encode(), "name": name.encode()}


def read(
    service: str,
    addresses: Iterable[str],
    port: int | None,
    texts: Mapping[bytes, bytes | None],
    *,
    loopback: bool = False,
) -> Sighting | None:
    """An announcement as a sighting, or None for what is none: another version, no id, no usable address.

    ``loopback``: whether addresses of this machine itself are taken.
    """
    node_id = _text(texts.get(b"id"))
    usable = tuple(dict.fromkeys(found for text in addresses if (found := _address(text, loopback))))
    if texts.get(b"v") != VERSION or not _NODE_ID.fullmatch(node_id) or service != service_name(node_id):
        return None
    if not usable or type(port) is not int or not 0 < port < 65536:
        return None
    name = _text(texts.get(b"name"))
    return Sighting(node_id, usable[:MOST_ADDRESSES], port, name if _NAME.fullmatch(name) else None)


def _text(value: bytes | None) -> str:
    return (value or b"").decode("ascii", "replace")


def _address(text: str, loopback: bool) -> str | None:
    try:
        address = ipaddress.IPv4Address(text)
    except ValueError:
        return None
    bad = address.is_multicast or address.is_unspecified or address == ipaddress.IPv4Address("255.255.255.255")
    return None if bad or (address.is_loopback and not loopback) else str(address)


class Sightings:
    """The latest sighting of each node, at most ``MOST_NODES``. One caller at a time."""

    def __init__(self) -> None:
        self._seen: dict[str, Sighting] = {}

    def add(self, sighting: Sighting, known: Iterable[str]) -> bool:
        """Remember a sighting. False where all places are taken and the node is none of ``known``, which have them."""
        full = sighting.node_id not in self._seen and len(self._seen) >= MOST_NODES
        if full:
            keep = set(known)
            stranger = next((node_id for node_id in self._seen if node_id not in keep), None)
            if sighting.node_id not in keep or stranger is None:
                return False
            del self._seen[stranger]
        self._seen[sighting.node_id] = sighting
        return True

    def remove(self, service: str) -> None:
        """Forget who took its announcement back. (Anyone can say so; then it is announced again.)"""
        self._seen = {key: one for key, one in self._seen.items() if service_name(key) != service}

    def all(self) -> tuple[Sighting, ...]:
        """All that are remembered, by node id."""
        return tuple(self._seen[key] for key in sorted(self._seen))
