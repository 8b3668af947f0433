"""Checks of the options that strategies have: one line that names the option and what it may be."""

from __future__ import annotations

import math
from collections.abc import Sequence

from aios_node.engine.errors import BadConfig


def check_choice(name: str, value: object, allowed: Sequence[str]) -> None:
    """Raises BadConfig unless the value is one of these words."""
    if value not in allowed:
        raise BadConfig(f"merging: {name} is {value!r:.40}: use {' or '.join(allowed)}")


def check_range(name: str, value: float, least: float, most: float, *, above: bool = False) -> None:
    """Raises BadConfig unless the number lies from ``least`` (or above it) to ``most``."""
    low = value > least if above else value >= least
    if not (math.isfinite(value) and low and value <= most):
        begin = f"above {least:g}" if above else f"from {least:g}"
        end = f"to {most:g}" if math.isfinite(most) else "on"
        raise BadConfig(f"merging: {name} is {value:g}: it must be a number {begin} {end}")
