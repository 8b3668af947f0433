"""Opening connections to other nodes: addresses, certificates and gRPC's settings for both kinds of client."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.flight as fl

from aios_node.engine.errors import BadConfig, Unavailable
from aios_node.flight.errors import clip

Pem = bytes | str | Path
"""PEM text as bytes, or the path of a file that holds it."""

_URI = re.compile(r"grpc(\+tcp|\+tls)?://(\[[0-9A-Fa-f:.%]+\]|[^/:@\s\[\]]+):\d{1,5}/?")

# A connection of one's own: gRPC otherwise shares connections, and the waiting time after a failed one,
# between all clients of a process. Pings find out that a silent server's machine is gone; servers count
# pings more frequent than every five minutes as abuse.
LARGE_FRAMES: list[tuple[str, int]] = [
    ("grpc.http2.max_frame_size", 4 << 20),
    ("grpc.http2.lookahead_bytes", 8 << 20),
    ("grpc.experimental.tcp_min_read_chunk_size", 1 << 20),
    ("grpc.experimental.tcp_max_read_chunk_size", 4 << 20),
]
"""A client that allows frames of the size of a batch gets them: less work per byte on both sides."""

_OPTIONS: list[tuple[str, int]] = [
    *LARGE_FRAMES,
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.keepalive_time_ms", 310_000),
    ("grpc.keepalive_timeout_ms", 20_000),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.initial_reconnect_backoff_ms", 200),
    ("grpc.max_reconnect_backoff_ms", 5_000),
]


def dial(
    uri: str,
    *,
    ca: Pem | None = None,
    cert: Pem | None = None,
    key: Pem | None = None,
    hostname: str | None = None,
) -> Any:
    """A pyarrow FlightClient; connects with its first call.

    ``hostname`` is what the server's certificate must be issued to where that is not the URI's host.
    Raises ``BadConfig`` for a URI or certificates that cannot work, ``Unavailable`` for what gRPC refuses.
    """
    if not _URI.fullmatch(uri):
        raise BadConfig(f"{uri[:200]!r} is no node's address: write grpc://HOST:PORT or grpc+tls://HOST:PORT")
    if (cert is None) != (key is None):
        raise BadConfig("a client certificate needs its key, and a key its certificate: give both or none")
    tls = {
        "tls_root_certs": _pem(ca),
        "cert_chain": _pem(cert),
        "private_key": _pem(key),
        "override_hostname": hostname,
    }
    given = {name: value for name, value in tls.items() if value is not None}
    if given and not uri.startswith("grpc+tls://"):
        raise BadConfig(f"certificates are for grpc+tls:// addresses, not for {uri}")
    try:
        return fl.FlightClient(uri, generic_options=_OPTIONS, **given)
    except (fl.FlightError, pa.ArrowException, OSError) as error:
        raise Unavailable(f"{uri} cannot be dialled: {clip(str(error), 300)}") from None


def _pem(value: Pem | None) -> bytes | None:
    if value is None or isinstance(value, bytes):
        return value
    try:
        return Path(value).read_bytes()
    except OSError as error:
        raise BadConfig(f"the certificate or key {str(value)!r} cannot be read: {error.strerror}") from None
