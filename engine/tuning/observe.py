"""What reaches a block's linear maps, in the quantised network and in the original one.

Knows blocks and their inputs; nothing of how weights are rounded.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from aios_node.engine.nets.transformer import Block
from aios_node.engine.quant.drift import DriftSum, retarget
from aios_node.engine.quant.fit import Floats
from aios_node.engine.quant.hessian import HessianSum, Unusable
from aios_node.engine.tokenizer import TokenBatch
from aios_node.engine.tuning.rounding import BlockExample
from aios_node.engine.tuning.slots import Slot


@dataclass(eq=False)
class States:
    """What goes through the networks for one batch, quantised and original: float32 [b, t, d]."""

    batch: TokenBatch
    found: torch.Tensor
    wanted: torch.Tensor

    @property
    def allowed(self) -> torch.Tensor:
        """Where attention may look: bool [b, 1, 1, t]."""
        return torch.from_numpy(self.batch.mask).bool()[:, None, None, :]

    @property
    def example(self) -> BlockExample:
        """For learning, once ``wanted`` is the original block's output."""
        return BlockExample(self.found, self.wanted, torch.from_numpy(self.batch.mask))


@dataclass(frozen=True, eq=False)
class Stage:
    """Linear maps of a block that get the same input, and what is added to what they give.

    ``beside``: nothing, the block's own input, or the input of its second half.
    """

    slots: list[Slot]
    beside: Literal["nothing", "input", "middle"]
    middle: Slot  # gets the input of the block's second half


def stages(block: Block) -> list[Stage]:
    """The linear maps of a block, which must be slots, in the order in which they compute."""
    attention, middle = block.attention, _slot(block.up)
    first = [_slot(each) for each in (attention.query, attention.key, attention.value)]
    return [
        Stage(first, "nothing", middle),
        Stage([_slot(attention.output)], "input", middle),
        Stage([middle], "nothing", middle),
        Stage([_slot(block.down)], "middle", middle),
    ]


@dataclass(frozen=True, eq=False)
class Observed:
    """The Hessian of what reaches a stage, and for each of its maps what its output lacks, by what reaches it."""

    hessian: HessianSum
    drifts: Mapping[str, DriftSum]

    def target(self, slot: Slot, weight: Floats, damping: float, share: float) -> Floats:
        """The weight that makes up for a share of what earlier rounding has lost (see quant.drift.retarget)."""
        if not share:
            return weight
        try:
            return retarget(weight, self.hessian.mean(), self.drifts[slot.name].mean(), damping=damping, share=share)
        except Unusable:
            return weight  # gptq itself says why


def measure(
    stage: Stage, twins: Mapping[str, Slot], block: Block, reference: Block, states: Sequence[States]
) -> Observed:
    """Run a block on all states, beside the original one; ``twins`` are the original network's slots by name."""
    drifts = {slot.name: DriftSum(*slot.linear.weight.shape) for slot in stage.slots}
    observed = Observed(HessianSum(stage.slots[0].linear.weight.shape[1]), drifts)
    watched = [stage.slots[0], stage.middle]
    for each in states:
        found = _inputs(watched, block, each.found, each.allowed)
        wanted = _inputs([twins[slot.name] for slot in watched], reference, each.wanted, each.allowed)
        real = each.batch.mask.astype(bool)
        observed.hessian.add(found[0].numpy(), real)
        for slot in stage.slots:
            missing = (wanted[0] - found[0]) @ slot.linear.weight.T
            if stage.beside != "nothing":
                missing = missing + (each.wanted - each.found if stage.beside == "input" else wanted[1] - found[1])
            drifts[slot.name].add(missing.numpy(), found[0].numpy(), real)
    return observed


def _inputs(slots: Sequence[Slot], block: Block, x: torch.Tensor, allowed: torch.Tensor) -> list[torch.Tensor]:
    """What the slots get when the block runs."""
    seen: dict[str, torch.Tensor] = {}
    for slot in slots:
        slot.listener = lambda got, name=slot.name: seen.__setitem__(name, got)
    block(x, allowed)
    for slot in slots:
        slot.listener = None
    return [seen[slot.name] for slot in slots]


def _slot(part: object) -> Slot:
    assert isinstance(part, Slot)
    return part
