"""Whether factors are worth sending: a small change of short floats may cost less than what explains it."""

from __future__ import annotations

from collections.abc import Mapping

from aios_node.delta.codec.diff import encode
from aios_node.engine.quant.blocks import Tensor
from aios_node.engine.weights.lowrank import factor_names, read_factors


def without_costly_factors(base: Mapping[str, Tensor], target: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The target without those factors that make its delta longer. All tensors are the same objects.

    bfloat16 weights of which few change are such a case: their gaps and steps take less than two small matrices.
    """
    kept = dict(target)
    for name in base:
        factors = read_factors(target, name)
        if factors is not None and name in target:
            old, new = {name: base[name]}, {name: target[name]}
            if len(encode(old, {**new, **factors.stored(name)})) >= len(encode(old, new)):
                for factor in factor_names(name):
                    del kept[factor]
    return kept
