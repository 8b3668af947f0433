"""Tickets: opaque to clients, signed, expiring. JSON inside, never pickled.

Layout: 32 bytes HMAC-SHA256 over the rest, then JSON ``{"exp": unix seconds, "for": {...}}``. A ticket grants
nothing by itself: the rights of whoever redeems it are checked again.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import math
import secrets
import time
from collections.abc import Callable, Mapping
from typing import Any

from aios_node.engine.errors import BadRequest

_MAC_BYTES = hashlib.sha256().digest_size


class TicketSigner:
    """Signs and opens tickets. Without a key it draws one, and its tickets end with the process.

    Listeners that shall redeem each other's tickets share one signer.
    """

    def __init__(self, key: bytes | None = None, *, now: Callable[[], float] = time.time) -> None:
        self._key = key or secrets.token_bytes(_MAC_BYTES)
        self._now = now

    def sign(self, content: Mapping[str, Any], ttl: float) -> tuple[bytes, float]:
        """A ticket for ``content`` (JSON), and the unix time at which it expires."""
        expires = math.ceil(self._now() + ttl)
        body = json.dumps({"exp": expires, "for": content}, separators=(",", ":")).encode()
        return self._mac(body) + body, expires

    def open(self, ticket: bytes) -> dict[str, Any]:
        """What the ticket stands for. Raises ``BadRequest`` when it is forged, damaged or expired."""
        mac, body = ticket[:_MAC_BYTES], ticket[_MAC_BYTES:]
        if not hmac.compare_digest(mac, self._mac(body)):
            raise BadRequest(
                "this ticket is not valid here: tickets are opaque, come from get_flight_info of the same "
                "node, and end when it restarts; ask get_flight_info again"
            )
        content = json.loads(body)  # ours: the signature fits
        if content["exp"] < self._now():
            raise BadRequest("this ticket has expired: ask get_flight_info for a new one")
        return dict(content["for"])

    def _mac(self, body: bytes) -> bytes:
        return hmac.digest(self._key, body, "sha256")
