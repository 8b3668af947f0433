"""How small deltas are on synthetic weights: every codec at every density, with the entropy floor.

Normal weights after one update of clipped normal steps (delta_pairs); the order-0 floor is defined in delta_floors.
Every delta, ours and the rivals', is decoded again and compared. ``AIOS_BENCH_DTYPES`` names some precisions only.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from typing import Any

import numpy as np
from delta_floors import code_floor_given_old
from delta_measure import FLOOR, OURS, Sizes, sizes
from delta_pairs import CODES, DENSITIES, FLOATS, Pair, synthetic
from delta_plots import COLOURS, MISSING, can_draw, ratio_over_density
from delta_rivals import PATCH3, PULSE, Z4AI, Rival, rivals

from aios_node.engine.quant.blocks import QuantizedTensor

PUBLISHED = 79
"""Mean ratio of PULSE in arXiv 2602.03839, where "approximately 99 %" of the bfloat16 weights stay the same."""

JUDGED = (0.01, 0.08)
"""Densities at which the targets are stated."""


def run() -> dict[str, object]:
    """Exact bytes; nothing here depends on the speed of the machine."""
    others, missing = rivals()
    wanted = os.environ.get("AIOS_BENCH_DTYPES", ",".join((*FLOATS, *CODES))).split(",")
    figures: dict[str, Any] = {"missing": "; ".join(missing) or "none", "plots": {}}
    worst = 0
    for precision in wanted:
        measured = [_measure(synthetic(precision, density), others) for density in DENSITIES]
        worst = max(worst, *(found.excess for found, _ in measured))
        figures |= _targets(precision, [found for found, _ in measured])
        figures[f"{precision}: raw bytes over coded bytes"] = _table(measured, others)
        if can_draw():
            figures["plots"][precision] = _plot(precision, [found for found, _ in measured])
    figures["bytes beyond 0.1 % and 64 over the smaller plain coding"] = {"value": worst, "target": "0"}
    if not can_draw():
        figures["pictures"] = MISSING
    return figures


Measured = tuple[Sizes, float | None]
"""Sizes, and for codes the ratio at the floor given the old code."""


def _measure(pair: Pair, others: list[Rival]) -> Measured:
    found = sizes({"weights": pair.base}, {"weights": pair.target}, others)
    if not isinstance(pair.base, QuantizedTensor) or not isinstance(pair.target, QuantizedTensor):
        return found, None
    given = code_floor_given_old(pair.base, pair.target)
    return found, found.raw_changed / given if given else None


def _targets(precision: str, measured: Sequence[Sizes]) -> dict[str, Any]:
    """The figures that are judged, at the densities where they are."""
    figures: dict[str, Any] = {}
    for density, found in zip(DENSITIES, measured, strict=True):
        if density not in JUDGED:
            continue
        name = f"{precision} at {100 * density:g} % changed"
        ours = found.coded[OURS]
        allowed = "<= 1.10" if precision in CODES else "<= 1.15"
        figures[f"{name}.size over the order-0 floor"] = _figure(ours / found.coded[FLOOR], allowed)
        for rival, least in ((PULSE, ">= 2.5"), (Z4AI, ">= 1.3"), (PATCH3, "")):
            if rival in found.coded:
                target = least if precision == "bfloat16" else ""
                figures[f"{name}.times smaller than {rival}"] = _figure(found.coded[rival] / ours, target)
    if precision == "bfloat16":
        figures |= _published(measured)
    return figures


def _published(measured: Sequence[Sizes]) -> dict[str, Any]:
    """Where our PULSE encoder reaches the mean ratio that its paper gives for updates of about 1 %."""
    curve = [(math.log(found.ratio(PULSE)), math.log(found.changed)) for found in measured if PULSE in found.coded]
    ratios, shares = zip(*sorted(curve), strict=True)
    share = math.exp(float(np.interp(math.log(PUBLISHED), ratios, shares)))
    name = f"bfloat16.share changed at which {PULSE} reaches its published mean of {PUBLISHED} times"
    return {name: {"value": round(100 * share, 2), "unit": "%", "target": "about 1 %"}}


def _figure(value: float, target: str) -> dict[str, Any]:
    return {"value": round(value, 3), **({"target": target} if target else {})}


def _table(measured: Sequence[Measured], others: Sequence[Rival]) -> dict[str, Any]:
    names = [rival.name for rival in others if any(rival.name in found.coded for found, _ in measured)]
    codes = any(given for _, given in measured)
    rows = []
    for found, given in measured:
        if not found.raw_changed:
            continue
        ratios = [found.ratio(name) if name in found.coded else "" for name in (OURS, FLOOR, *names)]
        shown = [_short(ratio) for ratio in ratios]
        rows.append([f"{100 * found.changed:.3g} %", *shown, *([_short(given or "")] if codes else [])])
    columns = ["changed", OURS, FLOOR, *names, *(["floor given the old code"] if codes else [])]
    return {"columns": columns, "rows": rows}


def _short(ratio: float | str) -> float | str:
    return ratio if isinstance(ratio, str) else float(f"{ratio:.4g}")


def _plot(precision: str, measured: Sequence[Sizes]) -> str:
    curves = {
        name: [(found.changed, found.ratio(name)) for found in measured if name in found.coded and found.changed]
        for name in (OURS, FLOOR, *(name for name in COLOURS if name != OURS))
    }
    return ratio_over_density(
        f"{precision}: synthetic weights", {name: curve for name, curve in curves.items() if curve}
    )
