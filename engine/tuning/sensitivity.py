"""How much each tensor's precision matters: the vectors' error when it alone is quantised, and bits shared out by it.

Each matrix is rounded plainly, with 2 and with 4 bits in turn, in an otherwise original network; what that does to the
vectors of some texts is its loss. Finer precisions are not worth a run of their own: the loss falls as the squared
error of the weights does. Losses are taken to add up, which small errors nearly do.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace

import numpy as np
import torch

from aios_node.engine.errors import BadConfig
from aios_node.engine.nets.config import EncoderConfig
from aios_node.engine.nets.encoder import Encoder, prefix_of, tensor_shapes
from aios_node.engine.nets.tensors import WeightReader, as_torch
from aios_node.engine.quant.blocks import BITS, Tensor, dense, dtype_name
from aios_node.engine.quant.budget import Option, allocate
from aios_node.engine.quant.fit import Floats
from aios_node.engine.quant.ptq import is_quantizable, quantize_tensor
from aios_node.engine.quant.recipe import Override, QuantizationConfig, Settings
from aios_node.engine.tokenizer import TokenBatch

Report = Callable[[str, int, int], None]
"""Told the tensor that was just measured, how many are, and how many there are."""

_FINE = {"symmetric": False, "axis": 0, "clip": "mse", "scales": "double4"}
LADDER: tuple[Settings, ...] = (
    Settings("int2", group_size=16, **_FINE),  # type: ignore[arg-type]  # a plain mapping of what they are
    Settings("int2", group_size=8, **_FINE),  # type: ignore[arg-type]
    Settings("int4", group_size=64, **_FINE),  # type: ignore[arg-type]
    Settings("int4", group_size=32, **_FINE),  # type: ignore[arg-type]
    Settings("int8", symmetric=False, axis=0),
)
"""What a tensor may get, coarsest first."""

_MEASURED = 3
"""The first so many of the ladder are measured by running the network."""


def share_out(
    recipe: QuantizationConfig,
    network: EncoderConfig,
    weights: Mapping[str, Tensor],
    batches: Sequence[TokenBatch],
    report: Report | None = None,
) -> QuantizationConfig:
    """A recipe with an override for every tensor, whose result takes at most ``recipe.target_bytes``.

    Tensors that the recipe leaves alone stay alone; no tensor gets fewer bits than ``recipe.quant`` has. Raises
    BadConfig when the target cannot be met, saying what the least is.
    """
    if recipe.target_bytes is None:
        return recipe
    names = {name for name, one in weights.items() if is_quantizable(one) and recipe.settings_for(name)}
    fixed = sum(int(one.nbytes) for name, one in weights.items() if name not in names)
    probe = _Probe(network, weights, batches)
    options: dict[str, list[Option]] = {}
    for name in sorted(names):
        options[name] = _options(name, weights[name], probe, [s for s in LADDER if BITS[s.quant] >= BITS[recipe.quant]])
        if report is not None:
            report(name, len(options), len(names))
    least = fixed + sum(min(one.nbytes for one in each) for each in options.values())
    if least > recipe.target_bytes:
        raise BadConfig(
            f"a target of {recipe.target_bytes} bytes is too small: with the fewest bits for every tensor it is {least}"
        )
    chosen = allocate(options, recipe.target_bytes - fixed)
    overrides = tuple(_override(name, option.settings) for name, option in chosen.items() if option.settings)
    kept = tuple(one for one in recipe.overrides if one.settings is None)
    return replace(recipe, overrides=(*kept, *overrides))


def _override(name: str, settings: Settings) -> Override:
    return Override.of(name, asdict(settings))


def _options(name: str, tensor: Tensor, probe: _Probe, ladder: Sequence[Settings]) -> list[Option]:
    values = np.ascontiguousarray(dense(tensor), np.float32)
    options: list[Option] = []
    last: tuple[float, float] | None = None  # loss and squared error of what was measured last
    for place, settings in enumerate(ladder):
        found = quantize_tensor(values, dtype_name(tensor), settings)
        if last is None or place < _MEASURED:
            last = probe.loss(name, found.tensor.dequantize()), found.squared_error
        loss = last[0] * found.squared_error / last[1] if last[1] else 0.0
        options.append(Option(settings, found.tensor.nbytes, loss))
    return options


class _Probe:
    """Runs the original network with one tensor exchanged."""

    def __init__(self, network: EncoderConfig, weights: Mapping[str, Tensor], batches: Sequence[TokenBatch]) -> None:
        self._network, self._prefix = network, prefix_of(weights)
        self._tensors = WeightReader(weights, prefix=self._prefix).read_all(tensor_shapes(network))
        self._batches = [(torch.from_numpy(batch.ids), torch.from_numpy(batch.mask)) for batch in batches]
        self._wanted = self._vectors(self._tensors)

    def loss(self, name: str, values: Floats) -> float:
        """Mean cosine distance of the vectors when this tensor has these values; 0 if the network does not use it."""
        short = name.removeprefix(self._prefix)
        if short not in self._tensors:
            return 0.0
        found = self._vectors({**self._tensors, short: as_torch(values)})
        return max(0.0, float((1 - (found * self._wanted).sum(-1)).mean()))

    @torch.inference_mode()
    def _vectors(self, tensors: Mapping[str, torch.Tensor]) -> torch.Tensor:
        net = Encoder.assemble(self._network, tensors)
        return torch.cat([torch.nn.functional.normalize(net(ids, mask), dim=-1) for ids, mask in self._batches])
