"""The TCP connections behind gRPC's calls: how far they got, and cutting one that stands still.

pyarrow offers no way to end a call from the server: a client that opened a stream and stopped reading holds
its thread for ever, and ``shutdown()`` waits for it. But the sockets belong to this process. This module
finds the one that leads to a peer, asks the kernel how many bytes were acknowledged, and shuts it down when
asked to; gRPC then sees an ordinary broken connection. Linux only (``/proc``, ``TCP_INFO``); elsewhere
nothing is found and nothing is cut. docs/decisions/0005 says why.
"""

from __future__ import annotations

import ipaddress
import os
import socket
import stat
import struct
from collections.abc import Container, Iterator
from pathlib import Path
from urllib.parse import unquote

_FDS = Path("/proc/self/fd")
_BYTES_ACKED = 120  # offsets in struct tcp_info since Linux 4.1: tcpi_bytes_acked, tcpi_bytes_received
_INFO_BYTES = 136

Address = tuple[str, int]


def parse_peer(peer: str) -> Address | None:
    """``ipv4:127.0.0.1:40112`` or ``ipv6:%5B::1%5D:40112`` as (host, port); None for anything else."""
    kind, _, rest = unquote(peer).partition(":")
    host, _, port = rest.rpartition(":")
    if kind not in {"ipv4", "ipv6"} or not port.isdigit():
        return None
    try:
        return _plain(host.strip("[]")), int(port)
    except ValueError:
        return None


def _plain(host: str) -> str:
    """One spelling per host; IPv4 addresses on IPv6 sockets count as IPv4."""
    address = ipaddress.ip_address(host.partition("%")[0])
    mapped = getattr(address, "ipv4_mapped", None)
    return str(mapped or address)


def _sockets(local_port: int) -> Iterator[tuple[Address, socket.socket]]:
    """Own handles on the connections that this process accepted on a port; the caller closes them."""
    try:
        fds = [int(entry.name) for entry in _FDS.iterdir()]
    except OSError:
        return
    for fd in fds:
        handle = _handle(fd)
        if handle is None:
            continue
        try:
            there, here = handle.getpeername(), handle.getsockname()
            address = (_plain(there[0]), there[1])
        except (OSError, ValueError, IndexError, TypeError):  # not connected, or not TCP
            handle.close()
            continue
        if here[1] == local_port:
            yield address, handle
        else:
            handle.close()


def _handle(fd: int) -> socket.socket | None:
    """A second handle on the socket behind a file descriptor, so that its closing cannot race with us.

    Never on a file: closing any descriptor of a file ends all POSIX locks that this process has on it, and SQLite
    relies on them. A database whose locks are gone loses commits as soon as another program opens and closes it.
    """
    try:
        if not stat.S_ISSOCK((_FDS / str(fd)).stat().st_mode):
            return None
        copy = os.dup(fd)
    except OSError:
        return None
    if stat.S_ISSOCK(os.fstat(copy).st_mode):
        return socket.socket(fileno=copy)
    return None  # the number went to a file in between: that copy is left open, for its locks


def progress(local_port: int) -> dict[Address, int]:
    """Bytes acknowledged plus bytes received so far, for each connection accepted on ``local_port``."""
    found: dict[Address, int] = {}
    for address, handle in _sockets(local_port):
        with handle:
            try:
                info = handle.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _INFO_BYTES)
            except (OSError, AttributeError):  # closed meanwhile; or no Linux
                continue
        if len(info) >= _INFO_BYTES:
            found[address] = sum(struct.unpack_from("QQ", info, _BYTES_ACKED))
    return found


def cut(local_port: int, peers: Container[Address] | None = None) -> int:
    """Shut connections accepted on ``local_port`` down, both ways; returns how many.

    ``peers``: only those; None: all.
    """
    count = 0
    for address, handle in _sockets(local_port):
        with handle:
            if peers is not None and address not in peers:
                continue
            try:
                handle.shutdown(socket.SHUT_RDWR)
                count += 1
            except OSError:
                continue
    return count
