"""Private publications of this node: what is asked for, what was spent on which table, and whether it still fits.

The book lies in the node's folder and counts per table, whatever became of the versions: a branch that nobody
follows has shown as much of the data as one that everybody does.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aios_node.delta.privacy.differential.accountant import Neighbours, Release, noise_for
from aios_node.delta.privacy.differential.grid import Grid
from aios_node.delta.privacy.ledger import Spent, lineage_spent, recipe_entry, rho_of
from aios_node.engine.errors import BadRequest, Corrupt, NotFound
from aios_node.node.files import read_json, write_json

if TYPE_CHECKING:
    from collections.abc import Mapping

    from aios_node.delta.store.store import VersionStore
    from aios_node.node.config.model import PrivacySection


@dataclass(frozen=True)
class PrivacyPlan:
    """How one publication is made private, and what the recipe will say. ``entry``: JSON-able."""

    grid: Grid
    rho: float
    entry: dict[str, Any]


class PrivacyBook:
    """What was spent, by table, in one small file. Threads may ask at the same time."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()

    def spent(self, table: str) -> Spent:
        """What publications from this table cost until now. Raises Corrupt for a damaged file."""
        entry = self._read().get(table, {"rho": 0.0, "releases": 0})
        try:
            return Spent(float(entry["rho"]), int(entry["releases"]))
        except (KeyError, TypeError, ValueError):
            raise Corrupt(f"{self._path} is damaged at table {table}: restore it from a copy") from None

    def check(self, table: str, rho: float, settings: PrivacySection) -> Spent:
        """What the table will have cost after a publication. Raises BadRequest where that is over the budget."""
        spent = self.spent(table)
        total, most = spent + Spent(rho, 1), settings.epsilon_max
        epsilon = total.epsilon(settings.delta)
        if most is not None and epsilon > most:
            raise BadRequest(
                f"this would bring table {table} to epsilon {epsilon:.4g}, privacy.epsilon_max is {most:g} and "
                f"{spent.epsilon(settings.delta):.4g} is spent: take more noise, or publish nothing more from it"
            )
        return total

    def spend(self, table: str, rho: float, settings: PrivacySection) -> None:
        """Add a publication, durably: called before it is published, so that a crash never forgets one.

        Raises as ``check``, and has then added nothing.
        """
        with self._lock:
            total = self.check(table, rho, settings)
            write_json(self._path, {**self._read(), table: {"rho": total.rho, "releases": total.releases}})

    def _read(self) -> dict[str, Any]:
        tables = read_json(self._path, {})
        if not isinstance(tables, dict):
            raise Corrupt(f"{self._path} is not a list of tables: restore it from a copy")
        return tables


def plan_release(
    settings: PrivacySection, book: PrivacyBook, table: str, before: Spent, *, epsilon: float | None = None
) -> PrivacyPlan | None:
    """The grid and the price of a publication; None where no noise is asked for.

    ``epsilon``: for this release alone, instead of a noise multiplier. Raises BadConfig for settings that cannot be,
    BadRequest where the table's budget is spent.
    """
    kind, delta = Neighbours.REPLACE, settings.delta
    if epsilon is None and settings.noise_multiplier == 0:
        return None
    noise = settings.noise_multiplier if epsilon is None else noise_for(epsilon, delta, neighbours=kind)
    grid = Grid.of(settings.clip_norm, noise)
    release = Release(grid.noise_multiplier, kind)
    rho = rho_of(release)
    total = book.check(table, rho, settings).epsilon(delta)
    return PrivacyPlan(grid, rho, {**recipe_entry(settings.clip_norm, release, delta, before), "epsilon_table": total})


def spent_by(store: VersionStore, version: str) -> Spent:
    """What a version's lineage cost, as far as this store still knows it."""

    def look(one: str) -> tuple[Mapping[str, Any] | None, tuple[str, ...]] | None:
        try:
            manifest = store.manifest(one)
        except (NotFound, Corrupt):
            return None
        return manifest.recipe, manifest.parents

    return lineage_spent((version,), look)
