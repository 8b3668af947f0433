"""Gaussian noise on whole numbers, unpredictable and exact.

Ordinary generators of floating-point noise have gaps: which floats can occur depends on the number that the noise was
added to, and shows it (Mironov, "On significance of the least significant bits for differential privacy", 2012). The
discrete Gaussian on a grid has no gaps, and the same guarantee as the continuous one.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from aios_node.delta.privacy.random import SEED_BYTES, Random, Stream, os_random
from aios_node.engine.errors import BadRequest

LEAST_BITS: Final = 2
MOST_BITS: Final = 24
_WORDS = 1 << 17
_RESERVE = 4096
"""Words kept back for one value. A value needs a dozen; one that needed this many would be the first ever seen."""


def discrete_gaussian(count: int, bits: int, random: Random = os_random) -> NDArray[np.int64]:
    """``count`` independent values of the discrete Gaussian with standard deviation ``2**bits``, int64.

    P(x) is proportional to exp(-x^2 / 2^(2 bits + 1)) on all whole numbers (Canonne, Kamath and Steinke 2020; see
    ``kernels``). ``random`` is asked once for 32 bytes, which AES-256 stretches. ``bits`` is from 2 to 24, else
    BadRequest.
    """
    if not LEAST_BITS <= bits <= MOST_BITS:
        raise BadRequest(f"noise of 2**{bits} grid steps: from 2**{LEAST_BITS} to 2**{MOST_BITS} are possible")
    from aios_node.delta.privacy.differential.kernels import gaussians

    stream = Stream(random(SEED_BYTES))
    values, made = np.empty(count, np.int64), 0
    words = np.empty(_WORDS, np.uint64)
    unused = 0  # words at the end of the buffer that no value has used yet
    while made < count:
        words[:unused] = words[_WORDS - unused :].copy()
        stream.fill(words[unused:].view(np.uint8))
        done, used = gaussians(words, _RESERVE, bits, values[made:])
        made, unused = made + done, _WORDS - used
    return values
