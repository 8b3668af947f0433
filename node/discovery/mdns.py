"""mDNS itself, by the ``zeroconf`` package: announces one node and reports what others announce.

Reports come in one thread of its own; names wait for it in a queue with a bound, so that a flood of announcements
costs announcements and no memory. Knows nothing of peers.
"""

from __future__ import annotations

import contextlib
import queue
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

from aios_node.engine.errors import Unavailable
from aios_node.node.discovery.records import SERVICE, Sighting, properties, read, service_name

_WAITING: Final = 512
_ANSWER_MS: Final = 2000


@dataclass(frozen=True)
class Announcement:
    """What this node says of itself: where its peers' listener is."""

    node_id: str
    name: str
    addresses: tuple[str, ...]
    port: int


class Mdns:
    """Announces (if there is something to) and listens until ``close``."""

    def __init__(
        self,
        announcement: Announcement | None,
        interfaces: Sequence[str],
        on_seen: Callable[[Sighting], None],
        on_gone: Callable[[str], None],
    ) -> None:
        """``interfaces``: IPv4 addresses of interfaces, empty for all. ``on_gone`` gets a service's name.

        Raises Unavailable where mDNS cannot be spoken here.
        """
        from zeroconf import InterfaceChoice, IPVersion, ServiceBrowser, Zeroconf

        self._on_seen, self._on_gone = on_seen, on_gone
        self._loopback = bool(interfaces) and all(address.startswith("127.") for address in interfaces)
        self._names: queue.Queue[str | None] = queue.Queue(_WAITING)
        with _mdns_errors():
            chosen = list(interfaces) or InterfaceChoice.All
            self._zeroconf = Zeroconf(interfaces=chosen, ip_version=IPVersion.V4Only)
        self._thread = threading.Thread(target=self._read, name="mdns", daemon=True)
        self._thread.start()
        try:
            with _mdns_errors():
                self._browser = ServiceBrowser(self._zeroconf, SERVICE, handlers=[self._changed])
                if announcement is not None:
                    self._zeroconf.register_service(_info(announcement))
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Take the announcement back and stop listening."""
        self._zeroconf.close()
        with contextlib.suppress(queue.Empty):
            while True:
                self._names.get_nowait()
        self._names.put(None)
        self._thread.join()

    def _changed(self, *, name: str, state_change: Any, **_others: Any) -> None:
        """Called by zeroconf. A name that finds no place is announced again soon enough."""
        if state_change.name == "Removed":
            self._on_gone(name)
            return
        with contextlib.suppress(queue.Full):
            self._names.put_nowait(name)

    def _read(self) -> None:
        while (name := self._names.get()) is not None:
            with contextlib.suppress(Exception):  # whatever hostile bytes do to the parser, the next name is read
                found = self._zeroconf.get_service_info(SERVICE, name, _ANSWER_MS)
                if found is not None and (sighting := self._sighting(name, found)) is not None:
                    self._on_seen(sighting)

    def _sighting(self, name: str, found: Any) -> Sighting | None:
        return read(name, found.parsed_addresses(), found.port, found.properties, loopback=self._loopback)


def _info(announcement: Announcement) -> Any:
    from zeroconf import ServiceInfo

    name = service_name(announcement.node_id)
    return ServiceInfo(
        SERVICE,
        name,
        addresses=[socket.inet_aton(address) for address in announcement.addresses],
        port=announcement.port,
        properties=properties(announcement.node_id, announcement.name),
        server=name,
    )


@contextlib.contextmanager
def _mdns_errors() -> Iterator[None]:
    from zeroconf import Error

    try:
        yield
    except (OSError, Error) as error:
        raise Unavailable(f"mDNS cannot be used here: {error or type(error).__name__}") from None
