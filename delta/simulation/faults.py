"""What may go wrong in a simulated network, and how often.

In a real network TCP repairs loss, duplication and reordering below the sessions, or breaks the connection. Here they
hit whole messages, as a faulty proxy would: the session notices (numbers, sums, hashes, or silence), ends, and the
nodes begin another, which goes on from what is staged. This is harsher than what reality does.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, auto


class Fault(Enum):
    """One kind of misfortune."""

    LOSS = auto()  # a message never arrives
    DUPLICATION = auto()  # a message arrives twice
    REORDERING = auto()  # a message arrives after the next
    BIT_FLIP = auto()  # one bit of a message is changed
    BREAK = auto()  # a stream ends in the middle
    PARTITION = auto()  # a part of the nodes cannot reach the others for a while
    CRASH = auto()  # a node is killed and comes back with what was durable
    SLOW_LINK = auto()  # some links carry a hundredth
    LIAR = auto()  # a node passes on chunks that are not the announced ones, their sums in order


@dataclass(frozen=True)
class Misfortune:
    """``kinds`` that happen. ``rate``: chance of each message that it is hit by each kind that hits messages.

    ``seconds``: when the last crash and the last partition begin at the latest; ``outage``: how long each lasts.
    """

    kinds: frozenset[Fault] = frozenset()
    rate: float = 0.002
    seconds: float = 5.0
    outage: float = 2.0
    share: float = 0.25  # of the nodes or links that are hit
