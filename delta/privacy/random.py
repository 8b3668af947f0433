"""Where secrets and noise come from: the operating system, stretched by a cipher.

Whoever can predict noise or a mask can subtract it, so no statistical generator will do. Knows nothing of what the
bytes are for.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable
from typing import Final

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from numpy.typing import NDArray

Random = Callable[[int], bytes]
"""number of bytes -> that many unpredictable bytes"""

SEED_BYTES: Final = 32
BLOCK: Final = 1 << 16
"""Bytes that are made together: they stay in the processor's cache until they are used."""

_ZEROS: Final = memoryview(bytes(BLOCK))
_AES_BLOCK: Final = 16

os_random: Random = secrets.token_bytes
"""The operating system's generator."""


class Stream:
    """An endless stream of bytes that a seed of 32 bytes decides: AES-256 in counter mode, from counter 0.

    A seed makes at most one stream: two uses of the same one would show the difference of what they hide.
    """

    def __init__(self, seed: bytes) -> None:
        self._cipher = Cipher(algorithms.AES256(seed), modes.CTR(bytes(_AES_BLOCK))).encryptor()

    def fill(self, out: NDArray[np.uint8]) -> None:
        """Write the next bytes of the stream into a contiguous array."""
        view = out.reshape(-1).data
        for start in range(0, len(view), BLOCK):
            part = view[start : start + BLOCK]
            self._cipher.update_into(_ZEROS[: len(part)], part)
