"""The trained pairs in every precision, as whole models: what a node would hold before and after.

INT8, INT4 and INT2 are made by the project's own presets; the new version keeps the old one's scales as long as the
preset's bound on the error allows, as a node does when it derives a model anew. They are kept as version folders in
``.cache/delta-pairs``, named after the preset's hash.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from delta_pairs import CODES
from trained_pairs import CACHE, Recipe, as_bfloat16, base_weights, tuned

from aios_node.engine.quant.blocks import Tensor
from aios_node.engine.quant.ptq import ArrowQuantizer
from aios_node.engine.quant.recipe import preset
from aios_node.engine.weights.folder import read_folder, write_folder
from aios_node.engine.weights.lowrank import Factors, factor_names

PRECISIONS = ("bfloat16", "float32", *CODES)

Model = Mapping[str, Tensor]


def pair(recipe: Recipe, precision: str) -> tuple[Model, Model]:
    """All tensors before and after a fine-tuning; those that did not change are the same objects."""
    base = base_weights()
    changed, _ = tuned(recipe)
    if precision in CODES:
        return _quantised(recipe, precision, base, changed)
    if precision == "bfloat16":
        base, changed = as_bfloat16(base), as_bfloat16(changed)
    return base, {**base, **changed}


def factored(recipe: Recipe, precision: str) -> tuple[Model, Model]:
    """A LoRA pair as a node keeps it: the factors lie beside the merged tensors. ``precision``: a float's."""
    base = base_weights() if precision == "float32" else as_bfloat16(base_weights())
    _, stored = tuned(recipe)
    target: dict[str, Tensor] = dict(base)
    for name, tensor in base.items():
        up, down = (stored.get(factor) for factor in factor_names(name))
        if up is not None and down is not None:
            factors = Factors.of(up, down)
            target |= {name: factors.add(tensor.ravel()).reshape(tensor.shape), **factors.stored(name)}
    return base, target


def _quantised(
    recipe: Recipe, quant: str, base: Mapping[str, np.ndarray[Any, Any]], changed: Mapping[str, np.ndarray[Any, Any]]
) -> tuple[Model, Model]:
    quantizer = ArrowQuantizer(preset(quant))
    mark = hashlib.sha256(json.dumps(preset(quant).to_json(), sort_keys=True).encode()).hexdigest()[:8]
    before = _kept(CACHE / f"base-{quant}-{mark}", lambda: quantizer.quantize(base))
    after = _kept(
        CACHE / f"{recipe.name}-{quant}-{mark}",
        lambda: {**before, **quantizer.quantize(changed, previous=before)},
    )
    same = {name for name in after if name not in changed}
    return before, {name: before[name] if name in same else tensor for name, tensor in after.items()}


def _kept(path: Path, make: Any) -> dict[str, Tensor]:
    if not path.is_dir():
        write_folder(path, make(), {})
    return dict(read_folder(path).weights())
