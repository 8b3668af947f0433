"""How small deltas are between really trained versions: fine-tuned MiniLM in every precision, and a model from scratch.

The pairs are made once by ``benchmarks/trained_pairs.py``. Each model is encoded whole; ratios over the changed tensors
alone stand beside ratios over everything. "Without lists" leaves out the two lists of tensors with their hashes, which
the rivals do not carry; that is what is compared with floors and rivals. ``AIOS_BENCH_PAIRS`` names some pairs only
(``lora-3,full-15,scratch``).
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any

from delta_measure import FLOOR, OURS, Sizes, encoded, sizes
from delta_pairs import CODES
from delta_rivals import PATCH3, PULSE, Z4AI, Rival, rivals, versions
from trained_pairs import RECIPES, Recipe, checkpoints
from trained_versions import PRECISIONS, factored, pair

from aios_node.engine.quant.blocks import QuantizedTensor

_PLANES = ("XOR planes + zstd 3", "ordered difference, classes + raw bits")
_COLUMNS = ("pair", "changed", "ours", "ours without lists", "ours over everything", FLOOR)
SCRATCH = "scratch"
JUDGED_FLOOR = 2**14
"""Bytes from which on a delta of codes is held to its floor: below, what every block says about itself weighs more."""


def run() -> dict[str, object]:
    """Exact bytes; nothing here depends on the speed of the machine."""
    others, missing = rivals()
    known = (*(recipe.name for recipe in RECIPES), SCRATCH)
    wanted = os.environ.get("AIOS_BENCH_PAIRS", ",".join(known)).split(",")
    figures: dict[str, Any] = {"rivals": versions(), "missing": "; ".join(missing) or "none"}
    worst = 0
    for precision in PRECISIONS:
        measured = dict(_measured(precision, wanted, others))
        worst = max([worst, *(found.excess for found in measured.values())])
        for name, found in measured.items():
            figures |= _targets(name, precision, found)
            if precision in CODES:
                figures |= _codes_alone(name, precision)
        if measured:
            figures[f"{precision}: raw bytes of the changed tensors over coded bytes"] = _table(measured, others)
    for recipe in RECIPES:
        if recipe.kind == "lora" and recipe.name in wanted:
            figures |= _factored(recipe)
    if SCRATCH in wanted:
        figures |= _scratch(others)
    figures["bytes beyond 0.1 % and 64 over the smaller plain coding"] = {"value": worst, "target": "0"}
    return figures


def _measured(precision: str, wanted: Sequence[str], others: list[Rival]) -> Iterator[tuple[str, Sizes]]:
    for recipe in RECIPES:
        if recipe.name in wanted:
            print(f"   {recipe.name} {precision}", flush=True)
            yield recipe.name, sizes(*pair(recipe, precision), others)


def _factored(recipe: Recipe) -> dict[str, Any]:
    """The recipe is known: its factors travel, and the receiver makes the merged tensors again."""
    figures: dict[str, Any] = {}
    for precision, target in (("float32", ">= 30"), ("bfloat16", "")):
        base, merged = factored(recipe, precision)
        dense = {name: tensor for name, tensor in merged.items() if name in base}
        made, plain = len(encoded(base, merged)), len(encoded(base, dense))
        raw = sum(tensor.nbytes for name, tensor in dense.items() if tensor is not base[name])
        name = f"{precision}.{recipe.name}, factors"
        figures[f"{name}.size"] = {"value": made, "unit": "bytes"}
        figures[f"{name}.times smaller than the dense delta"] = _figure(plain / made, target)
        figures[f"{name}.times smaller than the merged tensors"] = _figure(raw / made, "")
    return figures


def _scratch(others: list[Rival]) -> dict[str, Any]:
    """Every checkpoint against the one before, and the last against the first."""
    chain = checkpoints()
    steps = {f"{number} to {number + 1}": sizes(*each, others) for number, each in enumerate(pairwise(chain))}
    direct = sizes(chain[0], chain[-1], others)
    together = sum(found.coded[OURS] for found in steps.values())
    return {
        "from scratch.ten checkpoints, nine deltas together": {"value": together, "unit": "bytes"},
        "from scratch.one delta from the first to the last": {"value": direct.coded[OURS], "unit": "bytes"},
        "from scratch, bfloat16: raw bytes over coded bytes": _table({**steps, "0 to 9": direct}, others),
    }


def _targets(name: str, precision: str, found: Sizes) -> dict[str, Any]:
    """The figures that are judged: bfloat16 against rivals, codes against the floor, float32 against planes."""
    ours, figures = found.coded[OURS] - found.header, {}
    if precision == "bfloat16":
        figures["size over the order-0 floor"] = _figure(ours / found.coded[FLOOR], "<= 1.15")
        for rival, target in ((PULSE, ">= 2.5"), (Z4AI, ">= 1.3"), (PATCH3, "")):
            if rival in found.coded:
                figures[f"times smaller than {rival}"] = _figure(found.coded[rival] / ours, target)
    elif precision in CODES:
        figures["size over the order-0 floor"] = _figure(ours / max(1, found.coded[FLOOR]), "")
    else:
        figures["size over the best planes"] = _figure(ours / min(found.coded[each] for each in _PLANES), "<= 1")
    return {f"{precision}.{name}.{figure}": value for figure, value in figures.items()}


def _codes_alone(name: str, precision: str) -> dict[str, Any]:
    """Quantised tensors against their floor, without the biases and norms beside them.

    Those are a few hundred floats each, nearly all different: the order-0 entropy of so few numbers, tables not
    counted, is out of any coder's reach, and where few codes changed they are most of the delta.
    """
    models = pair(next(recipe for recipe in RECIPES if recipe.name == name), precision)
    codes = [{key: one for key, one in model.items() if isinstance(one, QuantizedTensor)} for model in models]
    found = sizes(*codes, [])
    ours = found.coded[OURS] - found.header
    judged = "<= 1.10" if found.coded[FLOOR] >= JUDGED_FLOOR else ""
    return {f"{precision}.{name}.codes alone, over the order-0 floor": _figure(ours / found.coded[FLOOR], judged)}


def _figure(value: float, target: str) -> dict[str, Any]:
    return {"value": round(value, 3), **({"target": target} if target else {})}


def _table(measured: Mapping[str, Sizes], others: Sequence[Rival]) -> dict[str, Any]:
    names = [rival.name for rival in others if any(rival.name in found.coded for found in measured.values())]
    return {"columns": [*_COLUMNS, *names], "rows": [_row(name, found, names) for name, found in measured.items()]}


def _row(pair_name: str, found: Sizes, names: Sequence[str]) -> list[Any]:
    everything = found.ratio(OURS, everything=True)
    body = found.raw_changed / max(1, found.coded[OURS] - found.header)
    ratios = [found.ratio(OURS), body, everything, found.ratio(FLOOR)]
    shown = [*ratios, *(found.ratio(name) if name in found.coded else "" for name in names)]
    cells = [each if isinstance(each, str) else float(f"{each:.4g}") for each in shown]
    return [pair_name, f"{100 * found.changed:.3g} %", *cells]
