"""A secret in shares: any ``threshold`` of them give it back, fewer say nothing at all.

Shamir, "How to Share a Secret" (1979), over the field of the Mersenne prime 2**521 - 1, which holds 32 bytes with
room. Polynomials are evaluated with Python's whole numbers: sharing is a few hundred products, so speed is no matter.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from aios_node.delta.privacy.random import Random, os_random
from aios_node.engine.errors import BadRequest, Corrupt

PRIME: Final = (1 << 521) - 1
SHARE_BYTES: Final = 66
SECRET_BYTES: Final = 32
MOST_SHARES: Final = 4096


def split(secret: bytes, count: int, threshold: int, random: Random = os_random) -> list[bytes]:
    """Shares for the places 1 to ``count``, 66 bytes each. Raises BadRequest for numbers that cannot be."""
    if len(secret) != SECRET_BYTES or not 1 <= threshold <= count <= MOST_SHARES:
        raise BadRequest(f"a secret of {len(secret)} bytes in {count} shares, {threshold} of which give it back")
    coefficients = [int.from_bytes(secret), *(_element(random) for _ in range(threshold - 1))]
    return [_at(coefficients, place).to_bytes(SHARE_BYTES) for place in range(1, count + 1)]


def combine(shares: Mapping[int, bytes]) -> bytes:
    """The secret from shares by their place; exactly as many as the threshold.

    Wrong shares give a wrong secret or Corrupt: whoever combines compares with what was promised. Raises Corrupt for
    places and shares that ``split`` cannot have made.
    """
    points = {place: _read(place, share) for place, share in shares.items()}
    if not points:
        raise Corrupt("no shares: nothing to combine")
    secret = sum(value * _weight(place, points) for place, value in points.items()) % PRIME
    if secret >> (8 * SECRET_BYTES):
        raise Corrupt("these shares do not belong together: they give no secret")
    return secret.to_bytes(SECRET_BYTES)


def _read(place: int, share: bytes) -> int:
    value = int.from_bytes(share) if len(share) == SHARE_BYTES else PRIME
    if value >= PRIME or not 1 <= place <= MOST_SHARES:
        raise Corrupt(f"share {place} is not one: {len(share)} bytes")
    return value


def _weight(place: int, points: Mapping[int, int]) -> int:
    """Lagrange's basis polynomial of a place, at 0."""
    above, below = 1, 1
    for other in points:
        if other != place:
            above = above * other % PRIME
            below = below * (other - place) % PRIME
    return above * pow(below, -1, PRIME)


def _at(coefficients: list[int], place: int) -> int:
    value = 0
    for coefficient in reversed(coefficients):
        value = (value * place + coefficient) % PRIME
    return value


def _element(random: Random) -> int:
    """A uniform element of the field: 521 random bits, drawn again in the one case that is none."""
    while True:
        value = int.from_bytes(random(SHARE_BYTES)) >> (8 * SHARE_BYTES - 521)
        if value < PRIME:
            return value
