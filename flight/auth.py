"""Who calls: three ways to find out, one per listener. Knows no users and no rights; AccessPort does.

pyarrow's ``auth_handler`` is not used: any handler replaces the certificate's identity.
"""

from __future__ import annotations

import re
from typing import Any, Protocol

from aios_node.engine.errors import Unauthenticated
from aios_node.flight.ports import AccessPort, Principal

_PEER = re.compile(r"aios:([0-9a-f]{64})")


class Identify(Protocol):
    """How a listener learns who calls."""

    def __call__(self, context: Any, token: str | None) -> Principal:
        """The caller. ``context`` is Flight's ServerCallContext, ``token`` the bearer token if one was sent."""
        ...


def anyone(context: Any, token: str | None) -> Principal:
    """An open listener (loopback only): everyone is the same person."""
    return Principal("open", "open")


def by_token(access: AccessPort) -> Identify:
    """Bearer tokens, for clients."""

    def identify(context: Any, token: str | None) -> Principal:
        if token is None:
            raise Unauthenticated("send the header 'authorization: Bearer TOKEN' with every call")
        return access.authenticate_token(token)

    return identify


def by_certificate(access: AccessPort) -> Identify:
    """Mutual TLS, for peers: the first SAN of the client's certificate is ``aios:<node id>``."""

    def identify(context: Any, token: str | None) -> Principal:
        identity = bytes(context.peer_identity()).decode("ascii", "replace")
        match = _PEER.fullmatch(identity)
        if match is None:
            raise Unauthenticated(
                "this listener is for peers: the first SAN of the client certificate must be aios:<node id>"
            )
        return access.peer(match.group(1))

    return identify


def bearer_token(headers: dict[str, list[str | bytes]], limit: int) -> str | None:
    """The token of an ``authorization`` header, None when there is none.

    Raises ``Unauthenticated`` when there is one that cannot be a bearer token.
    """
    values = [v for name, found in headers.items() if name.lower() == "authorization" for v in found]
    if not values:
        return None
    if len(values) > 1:
        raise Unauthenticated("send one authorization header, not several")
    value = values[0].decode("latin-1") if isinstance(values[0], bytes) else values[0]
    scheme, _, token = value.partition(" ")
    token = token.strip()
    if scheme.lower() != "bearer" or not token or len(token) > limit:
        raise Unauthenticated("the authorization header must be 'Bearer TOKEN'")
    return token
