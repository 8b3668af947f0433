"""Sharing bits out among tensors: the smallest loss that fits a number of bytes.

Every tensor has options (how it could be quantised, what that takes, what it costs in quality); one is chosen for
each, so that all together fit and the losses' sum is small: the multiple-choice knapsack problem. First along the
lower convex hulls of the options, steepest saving first (Lagrangian relaxation; Sinha and Zoltners, 1979), then by
dynamic programming over what could still be better. Losses are taken to add up. Knows nothing about how they were
measured.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import isfinite

import numpy as np
from numpy.typing import NDArray

from aios_node.engine.errors import BadConfig
from aios_node.engine.quant.recipe import Settings

_MOST_KEPT = 20_000
"""Partial choices that are followed at a time."""

_EQUAL = 1e-12
"""Sums of losses that differ by less than this part are the same."""


@dataclass(frozen=True)
class Option:
    """One way to keep a tensor: its settings (None: as it is), all bytes it then has, and what is lost (at least 0)."""

    settings: Settings | None
    nbytes: int
    loss: float

    def __post_init__(self) -> None:
        if self.nbytes < 0 or not isfinite(self.loss) or self.loss < 0:
            raise BadConfig(
                f"an option of {self.nbytes} bytes and loss {self.loss}: both must be numbers of at least 0"
            )


def allocate(choices: Mapping[str, Sequence[Option]], budget: int) -> dict[str, Option]:
    """One option for every name, together at most ``budget`` bytes, with the smallest sum of losses.

    Exact, up to a part of 1e-12, as long as no more than 20,000 partial choices are in question at a time; beyond, the
    sum exceeds the smallest by at most what the first step along a hull that did not fit would have saved.
    Deterministic. Raises BadConfig when a name has no options, or even the smallest ones do not fit.
    """
    useful = {name: _undominated(name, choices[name]) for name in sorted(choices)}
    least = sum(options[0].nbytes for options in useful.values())
    if least > budget:
        raise BadConfig(f"{budget} bytes are too few: with the smallest choice for every tensor it is {least} bytes")
    chosen = _search(useful, budget, _climb(useful, budget - least))
    return {name: useful[name][place] for name, place in chosen.items()}


def bytes_for(bits_per_weight: float, count: int) -> int:
    """The whole bytes that ``count`` weights of so many bits may take. Raises BadConfig below 0 and for no number."""
    if not isfinite(bits_per_weight) or bits_per_weight <= 0:
        raise BadConfig(f"{bits_per_weight} bits per weight are no target; a number above 0 is needed")
    return int(bits_per_weight * count / 8)


def _undominated(name: str, options: Sequence[Option]) -> list[Option]:
    """Options of growing size and falling loss: all that could ever be chosen."""
    if not options:
        raise BadConfig(f"tensor {name!r} has no options to choose from")
    kept: list[Option] = []
    for option in sorted(options, key=lambda each: (each.nbytes, each.loss)):
        if not kept or option.loss < kept[-1].loss:
            kept.append(option)
    return kept


@dataclass(frozen=True)
class _Step:
    """From one corner of a hull to the next."""

    gain: float  # loss saved per byte
    name: str
    place: int
    nbytes: int


def _climb(useful: Mapping[str, list[Option]], left: int) -> dict[str, int]:
    """Take the steps of all hulls, steepest first, as far as they fit into the bytes that are left."""
    chosen = dict.fromkeys(useful, 0)
    stuck: set[str] = set()
    for step in _steps(useful):
        if step.nbytes > left:
            stuck.add(step.name)
        elif step.name not in stuck:
            left -= step.nbytes
            chosen[step.name] = step.place
    return chosen


def _steps(useful: Mapping[str, list[Option]]) -> list[_Step]:
    steps = [step for name, options in useful.items() for step in _hull(name, options)]
    return sorted(steps, key=lambda step: (-step.gain, step.name, step.place))


def _hull(name: str, options: list[Option]) -> Iterator[_Step]:
    """The corners of the lower convex hull, from the smallest option on; gains fall along it."""
    at = 0
    while at + 1 < len(options):
        gain, _, place = max((_gain(options[at], options[to]), to, to) for to in range(at + 1, len(options)))
        yield _Step(gain, name, place, options[place].nbytes - options[at].nbytes)
        at = place


def _gain(one: Option, larger: Option) -> float:
    return (one.loss - larger.loss) / (larger.nbytes - one.nbytes)


def _search(useful: Mapping[str, list[Option]], budget: int, start: dict[str, int]) -> dict[str, int]:
    """The best choice of all, or ``start`` where nothing is better: tensor by tensor, large ones first.

    Of partial choices only those go on that no other beats in both bytes and loss, and that could still end below
    the start's loss if the rest could be chosen in fractions (that bound is what the hulls say).
    """
    names = sorted(useful, key=lambda name: (-useful[name][-1].nbytes, name))
    incumbent = sum(useful[name][start[name]].loss for name in names) * (1 - _EQUAL)
    used, lost = np.zeros(1, np.int64), np.zeros(1)
    trail: list[tuple[NDArray[np.intp], NDArray[np.intp]]] = []
    for number, name in enumerate(names):
        rest_bytes, rest_losses = _relaxed({each: useful[each] for each in names[number + 1 :]})
        nbytes = np.array([option.nbytes for option in useful[name]], np.int64)
        losses = np.array([option.loss for option in useful[name]])
        used, lost = (used[:, None] + nbytes).reshape(-1), (lost[:, None] + losses).reshape(-1)
        bounds = lost + np.interp(budget - used, rest_bytes, rest_losses, left=np.inf)
        kept = _worth_keeping(used, lost, bounds, incumbent)
        trail.append((kept // len(nbytes), kept % len(nbytes)))
        used, lost = used[kept], lost[kept]
    return _walk_back(names, trail, int(np.argmin(lost))) if len(lost) else start


def _relaxed(useful: Mapping[str, list[Option]]) -> tuple[list[int], list[float]]:
    """The least loss over bytes, were fractions of steps allowed: corners of a falling, convex line."""
    nbytes = [sum(options[0].nbytes for options in useful.values())]
    losses = [sum(options[0].loss for options in useful.values())]
    for step in _steps(useful):
        nbytes.append(nbytes[-1] + step.nbytes)
        losses.append(losses[-1] - step.gain * step.nbytes)
    return nbytes, losses


def _worth_keeping(
    used: NDArray[np.int64], lost: NDArray[np.float64], bounds: NDArray[np.float64], incumbent: float
) -> NDArray[np.intp]:
    """Places of the partial choices that may lead to something better, by growing bytes."""
    places = np.flatnonzero(bounds < incumbent)
    places = places[np.argsort(bounds[places], kind="stable")][:_MOST_KEPT]
    places = places[np.lexsort((lost[places], used[places]))]
    best_before = np.minimum.accumulate(np.concatenate(([np.inf], lost[places])))[:-1]
    return places[lost[places] < best_before]


def _walk_back(names: list[str], trail: list[tuple[NDArray[np.intp], NDArray[np.intp]]], last: int) -> dict[str, int]:
    chosen: dict[str, int] = {}
    for name, (parents, options) in zip(reversed(names), reversed(trail), strict=True):
        chosen[name] = int(options[last])
        last = int(parents[last])
    return chosen
