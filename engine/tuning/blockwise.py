"""Block by block: each block is quantised with the inputs that the quantised blocks before it give.

Within a block the linear maps are rounded by GPTQ in the order in which they compute, each with the Hessian of what
really reaches it (true sequential; Frantar et al. 2022); then their rounding may be learned together (see rounding).
Every finished matrix is kept in a checkpoint. Knows encoders' blocks; knows nothing of losses over the whole network.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from aios_node.engine.nets.config import EncoderConfig
from aios_node.engine.nets.encoder import Encoder, prefix_of
from aios_node.engine.nets.linear import Linear, Projection
from aios_node.engine.nets.transformer import Block
from aios_node.engine.quant.blocks import QuantizedTensor, Tensor, dense
from aios_node.engine.quant.fit import Floats
from aios_node.engine.quant.gptq import gptq
from aios_node.engine.quant.recipe import QuantizationConfig
from aios_node.engine.tokenizer import TokenBatch
from aios_node.engine.tuning.checkpoint import Checkpoints
from aios_node.engine.tuning.fakequant import TrainableTensor, can_learn
from aios_node.engine.tuning.kept import arrays_of, tensor_of
from aios_node.engine.tuning.observe import Observed, States, measure, stages
from aios_node.engine.tuning.rounding import BlockExample, RoundingSteps, learn_rounding
from aios_node.engine.tuning.slots import Slot

Report = Callable[[str, int, int], None]
"""Told the matrix that was just finished, how many are, and how many there are."""

Warn = Callable[[str], None]
"""Told, in a sentence, which matrix could not be rounded as asked and why."""


class BlockwiseQuantizer:
    """Rounds the matrices of an encoder's blocks anew, by a recipe of method gptq or tuned.

    ``plain``: the model after plain rounding by the same recipe. ``rounding``: no steps leave it as GPTQ made it.
    """

    def __init__(
        self,
        network: EncoderConfig,
        recipe: QuantizationConfig,
        original: Mapping[str, Tensor],
        plain: Mapping[str, Tensor],
        *,
        rounding: RoundingSteps,
        checkpoints: Checkpoints,
        report: Report,
        warn: Warn,
    ) -> None:
        self._recipe, self._original, self._plain, self._rounding = recipe, original, plain, rounding
        self._checkpoints, self._report, self._warn = checkpoints, report, warn
        self._prefix = prefix_of(original)
        self._slots: dict[str, Slot] = {}
        self._twins: dict[str, Slot] = {}
        self._teacher = Encoder.build(network, original, wrap=partial(_collect, self._twins))
        self._net = Encoder.build(network, self._with_float_blocks(), wrap=partial(_collect, self._slots))
        self._result: dict[str, Tensor] = dict(plain)
        self._done = 0

    @torch.no_grad()
    def quantize(self, batches: Sequence[TokenBatch]) -> dict[str, Tensor]:
        """The model with new codes in its blocks. ``batches``: calibration texts.

        A matrix whose inputs are of no use for GPTQ stays as plain rounding left it, and is warned about.
        """
        states = [self._first(batch) for batch in batches]
        for index, (block, reference) in enumerate(zip(self._net.blocks, self._teacher.blocks, strict=True)):
            for stage in stages(block):
                slots = [slot for slot in stage.slots if self._is_quantized(slot)]
                self._round(slots, partial(measure, stage, self._twins, block, reference, states))
            for each in states:
                each.wanted = reference(each.wanted, each.allowed)
            self._learn(index, block, [each.example for each in states])
            for each in states:
                each.found = block(each.found, each.allowed)
        return self._result

    def _round(self, slots: list[Slot], measured: Callable[[], Observed]) -> None:
        """GPTQ for linear maps that get the same input; ``measured`` is asked once, and only if it is needed."""
        observed: Observed | None = None
        for slot in slots:
            like = self._plain_tensor(slot)
            arrays = self._checkpoints.load(slot.name)
            if arrays is not None:
                tensor = tensor_of(arrays, like)
            else:
                observed = observed or measured()
                tensor = self._gptq(slot, observed, like)
                self._checkpoints.save(slot.name, arrays_of(tensor))
            self._put(slot, tensor)
            self._done += 1
            self._report(slot.name, self._done, sum(map(self._is_quantized, self._slots.values())))

    def _gptq(self, slot: Slot, observed: Observed, like: QuantizedTensor) -> QuantizedTensor:
        settings = self._recipe.settings_for(self._full(slot))
        if settings is None or settings.axis != 0:
            self._warn(f"{slot.name}: GPTQ works along axis 0 only; it is rounded plainly")
            return like
        options = self._recipe.options
        damping = float(options["damping"])
        found = gptq(
            observed.target(slot, self._weight(slot), damping, float(options["drift"])),
            observed.hessian.mean(),
            settings,
            damping=damping,
            act_order=bool(options["act_order"]),
            sweeps=int(options["sweeps"]),
            dtype=like.dtype,
        )
        if found.fallback is not None:
            self._warn(f"{slot.name}: {found.fallback}; it is rounded plainly")
        return found.tensor

    def _learn(self, index: int, block: Block, examples: list[BlockExample]) -> None:
        """Learn the rounding of a whole block, if that is asked for."""
        slots = [slot for stage in stages(block) for slot in stage.slots if self._learns(slot)]
        if not self._rounding.steps or not slots:
            return
        kept = self._checkpoints.load(f"block.{index}")
        if kept is None:
            matrices = {slot.name: self._trainable(slot) for slot in slots}
            learn_rounding(block, list(matrices.values()), examples, self._rounding)
            kept = _joined({name: arrays_of(matrix.export()) for name, matrix in matrices.items()})
            self._checkpoints.save(f"block.{index}", kept)
        for slot in slots:
            self._put(slot, tensor_of(_part(kept, slot.name), self._plain_tensor(slot)))

    def _trainable(self, slot: Slot) -> TrainableTensor:
        """Let the slot compute with a tensor that can learn, from its present codes on."""
        present = self._result[self._full(slot)]
        assert isinstance(present, QuantizedTensor)
        tensor = TrainableTensor.of(self._weight(slot), present)
        slot.train(tensor)
        return tensor

    def _put(self, slot: Slot, tensor: QuantizedTensor) -> None:
        slot.use(tensor)
        self._result[self._full(slot)] = tensor

    def _first(self, batch: TokenBatch) -> States:
        ids, mask = torch.from_numpy(batch.ids), torch.from_numpy(batch.mask)
        return States(batch, next(self._net.states(ids, mask)), next(self._teacher.states(ids, mask)))

    def _with_float_blocks(self) -> dict[str, Tensor]:
        """Embeddings as quantised, matrices of the blocks as they were: these are replaced one by one."""
        start = f"{self._prefix}encoder."
        return {name: self._original[name] if name.startswith(start) else one for name, one in self._plain.items()}

    def _full(self, slot: Slot) -> str:
        return f"{self._prefix}{slot.name}.weight"

    def _weight(self, slot: Slot) -> Floats:
        return np.ascontiguousarray(dense(self._original[self._full(slot)]), np.float32)

    def _is_quantized(self, slot: Slot) -> bool:
        return isinstance(self._plain[self._full(slot)], QuantizedTensor)

    def _learns(self, slot: Slot) -> bool:
        return self._is_quantized(slot) and can_learn(self._plain_tensor(slot))

    def _plain_tensor(self, slot: Slot) -> QuantizedTensor:
        tensor = self._plain[self._full(slot)]
        assert isinstance(tensor, QuantizedTensor)
        return tensor


def _collect(slots: dict[str, Slot], name: str, linear: Linear) -> Projection:
    slots[name] = Slot.of(name, linear)
    return slots[name]


def _joined(arrays: Mapping[str, Mapping[str, NDArray[Any]]]) -> dict[str, NDArray[Any]]:
    """Arrays of several tensors as one mapping."""
    return {f"{name}/{part}": array for name, parts in arrays.items() for part, array in parts.items()}


def _part(arrays: Mapping[str, NDArray[Any]], name: str) -> dict[str, NDArray[Any]]:
    """The arrays of one tensor out of a joined mapping."""
    return {key.removeprefix(f"{name}/"): array for key, array in arrays.items() if key.startswith(f"{name}/")}
