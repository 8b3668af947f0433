"""Strategies by name, and their options as configuration, commands and recipes spell them."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import asdict, fields
from typing import Any

from aios_node.delta.merge.adaptive import FedAdam, FedYogi
from aios_node.delta.merge.averaging import FedAvg
from aios_node.delta.merge.krum import Krum, MultiKrum
from aios_node.delta.merge.outer import DiLoCo
from aios_node.delta.merge.robust import Median, TrimmedMean
from aios_node.delta.merge.strategy import Strategy
from aios_node.delta.merge.ties import Ties
from aios_node.engine.errors import BadConfig, choices

_TYPES: tuple[type[Any], ...] = (FedAvg, FedAdam, FedYogi, TrimmedMean, Median, Krum, MultiKrum, DiLoCo, Ties)
STRATEGIES: Mapping[str, type[Any]] = {kind.name: kind for kind in _TYPES}
"""Name -> class; the fields of a class are its options."""


def make_strategy(name: str, options: Mapping[str, Any] | None = None) -> Strategy:
    """The strategy of this name. Raises BadConfig for unknown names and options, and for values that cannot work."""
    kind = STRATEGIES.get(name)
    if kind is None:
        raise BadConfig(f"no merging strategy {name!r:.40}: {choices(name, STRATEGIES, limit=len(STRATEGIES))}")
    defaults = {field.name: field.default for field in fields(kind)}
    given = {key: _typed(name, key, value, defaults) for key, value in (options or {}).items()}
    made: Strategy = kind(**given)
    return made


def options_of(strategy: Strategy) -> dict[str, Any]:
    """All options of a strategy, those that were left at their defaults too."""
    return asdict(strategy)  # type: ignore[call-overload,no-any-return]  # every strategy is a dataclass


def _typed(strategy: str, key: str, value: object, defaults: Mapping[str, Any]) -> Any:
    """The value in the type of the option's default: 1 and 1.0 must not make two versions."""
    if key not in defaults:
        near = difflib.get_close_matches(str(key), defaults, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"it has: {', '.join(defaults) or 'none'}"
        raise BadConfig(f"merging: {strategy} has no option {str(key)[:40]!r}: {hint}")
    wanted = type(defaults[key])
    if wanted is float and type(value) is int:
        return float(value)
    if type(value) is not wanted:
        kinds = {float: "a number", int: "a whole number", str: "a word"}
        raise BadConfig(f"merging: {key} is {value!r:.40}: {kinds[wanted]} is needed")
    return value
