"""What private publications have cost so far: one number that adds up, and what recipes tell of it.

Gaussian releases add up in ``rho`` (zero-concentrated differential privacy, Bun and Steinke 2016): rho is 1 / (2 z^2)
for noise of z times the sensitivity, sums are exact, and (epsilon, delta) follows from the sum. A version's recipe
carries its own release and the sum of its whole lineage. Knows recipes, not where they are kept.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, TypeGuard

from aios_node.delta.privacy.differential.accountant import Release, check_delta
from aios_node.delta.privacy.differential.rdp import ORDERS, epsilon_of

RECIPE_KEY: Final = "privacy"
MECHANISM: Final = "discrete-gaussian"
_TRAINED = frozenset({"lora-merged", "secure-sum"})
_MOST = 2**53

Look = Callable[[str], tuple[Mapping[str, Any] | None, tuple[str, ...]] | None]
"""version -> (its recipe, its parents), or None where it is not known any more"""


@dataclass(frozen=True)
class Spent:
    """The price of several releases. ``unprotected``: publications of trained weights without any noise.

    ``complete`` is False where the history could not be read to its beginning: then the figures are a lower bound.
    """

    rho: float = 0.0
    releases: int = 0
    unprotected: int = 0
    complete: bool = True

    def __add__(self, other: Spent) -> Spent:
        """Both together, as if both had seen the same data: never too little."""
        return Spent(
            self.rho + other.rho,
            self.releases + other.releases,
            self.unprotected + other.unprotected,
            self.complete and other.complete,
        )

    def epsilon(self, delta: float) -> float:
        """Epsilon at this delta; infinite after an unprotected publication."""
        return math.inf if self.unprotected else epsilon_of_rho(self.rho, delta)


def rho_of(release: Release) -> float:
    """rho of a release in which every input takes part; infinite without noise."""
    noise = release.noise_multiplier / release.neighbours.value
    return release.steps / (2 * noise**2) if noise else math.inf


def epsilon_of_rho(rho: float, delta: float) -> float:
    """Epsilon of Gaussian releases whose rho sums to this."""
    check_delta(delta)
    return epsilon_of({order: order * rho for order in ORDERS}, delta) if rho else 0.0


def recipe_entry(clip_norm: float, release: Release, delta: float, before: Spent) -> dict[str, Any]:
    """What a private version's recipe says: how it was made, its own price, and that of its lineage.

    Numbers that are infinite are null: JSON has no infinity.
    """
    own = Spent(rho_of(release), 1)
    lineage = before + own
    return {
        "mechanism": MECHANISM,
        "clip_norm": clip_norm,
        "noise_multiplier": release.noise_multiplier,
        "neighbours": release.neighbours.name.lower().replace("_", "-"),
        "delta": delta,
        "epsilon": _finite(own.epsilon(delta)),
        "lineage": {**vars(lineage), "rho": _finite(lineage.rho), "epsilon": _finite(lineage.epsilon(delta))},
    }


def lineage_spent(versions: tuple[str, ...], look: Look) -> Spent:
    """What these versions and all their ancestors cost, as their recipes tell.

    A recipe with an entry tells for its ancestors too; below the others, every version counts once. Entries that make
    no sense count as an unprotected publication: whoever wrote them cannot make a version cheaper.
    """
    spent, seen, waiting = Spent(), set(versions), list(versions)
    while waiting:
        found = look(waiting.pop())
        if found is None:
            spent += Spent(complete=False)
            continue
        recipe, parents = found
        if recipe is not None and RECIPE_KEY in recipe:
            spent += _told(recipe[RECIPE_KEY])
            continue
        if recipe is not None and recipe.get("method") in _TRAINED:
            spent += Spent(unprotected=1)
        waiting += [parent for parent in parents if parent not in seen]
        seen.update(parents)
    return spent


def _told(entry: Any) -> Spent:
    lineage = entry.get("lineage") if isinstance(entry, dict) else None
    if not isinstance(lineage, dict):
        return Spent(unprotected=1)
    rho, releases, unprotected = (lineage.get(name) for name in ("rho", "releases", "unprotected"))
    complete = lineage.get("complete")
    if not (_is_number(rho) and _is_count(releases) and _is_count(unprotected) and isinstance(complete, bool)):
        return Spent(unprotected=1)
    return Spent(rho, releases, unprotected, complete)


def _is_number(value: Any) -> TypeGuard[float]:
    return type(value) in {int, float} and 0 <= value < math.inf


def _is_count(value: Any) -> TypeGuard[int]:
    return type(value) is int and 0 <= value <= _MOST


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
