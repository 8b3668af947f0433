"""Discovery as a node runs it: announce the peers' listener, list who else is there, find peers that moved."""

from __future__ import annotations

import ipaddress
import threading
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from aios_node.node.discovery.finder import Finder, Found
from aios_node.node.discovery.mdns import Announcement, Mdns

if TYPE_CHECKING:
    from aios_node.node.core import NodeCore


class Discovery:
    """Runs from ``start`` to ``close``. Raises Unavailable where mDNS cannot be spoken."""

    def __init__(self, core: NodeCore) -> None:
        self._core = core
        self._finder = Finder(core.identity.node_id, core.peers, self._moved)
        self._closing = ExitStack()

    def start(self) -> Discovery:
        """Announce and look from now on."""
        interfaces = _interfaces(self._core)
        mdns = Mdns(announcement(self._core), interfaces, self._finder.seen, self._finder.gone)
        thread = threading.Thread(target=self._finder.run, name="discovery", daemon=True)
        thread.start()
        self._closing.callback(thread.join)
        self._closing.callback(self._finder.stop)
        self._closing.callback(mdns.close)
        return self

    def close(self) -> None:
        """Say goodbye and stop."""
        self._closing.close()

    def all(self) -> list[Found]:
        """What is seen now."""
        return self._finder.all()

    def _moved(self, uris: list[str]) -> None:
        self._core.peers_changed()
        for uri in uris:
            self._core.sync.call(uri)


def look_around(core: NodeCore, wait_s: float) -> list[Found]:
    """What is seen within some seconds, without announcing anything. Raises Unavailable."""
    finder = Finder(core.identity.node_id, core.peers, lambda _uris: None)
    mdns = Mdns(None, _interfaces(core), finder.seen, finder.gone)
    try:
        finder.wait(wait_s)
        return finder.all()
    finally:
        mdns.close()


def announcement(core: NodeCore) -> Announcement | None:
    """What to say of this node; None where peers cannot dial it: without TLS nobody could prove to be anybody."""
    port = core.ports.get("peer")
    if port is None:
        return None
    listen = core.config.listen
    addresses = _addresses(listen.advertise or listen.host)
    return Announcement(core.identity.node_id, core.config.node.name, addresses, port) if addresses else None


def summary(found: Found) -> dict[str, Any]:
    """A sighting as lists show it."""
    sighting = found.sighting
    return {
        "node_id": sighting.node_id,
        "name": sighting.name,
        "uris": list(sighting.uris),
        "peer": found.peer,
        "self": found.self,
    }


def _interfaces(core: NodeCore) -> tuple[str, ...]:
    return tuple(map(str, core.config.discovery.interfaces))


def _addresses(host: str) -> tuple[str, ...]:
    if host == "localhost":
        return ("127.0.0.1",)
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return own_addresses()
    if address.is_unspecified:
        return own_addresses()
    return (str(address),) if address.version == 4 else ()


def own_addresses() -> tuple[str, ...]:
    """This machine's IPv4 addresses without loopback."""
    import socket

    import psutil

    found = {
        entry.address
        for entries in psutil.net_if_addrs().values()
        for entry in entries
        if entry.family == socket.AF_INET
    }
    return tuple(sorted(address for address in found if not address.startswith("127.")))
