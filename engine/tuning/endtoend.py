"""End-to-end tuning: the quantised network learns to give the vectors that the original one gives.

All codes, scales, zero points, biases and norms of the encoder's blocks are trained at once against the original
network's pooled vectors and hidden states (knowledge distillation; Hinton et al. 2015, arXiv 1503.02531; for weights of
few bits EfficientQAT, arXiv 2407.11062). The same machine, seed and texts give the same result to the bit, also when
the work was interrupted and went on from a checkpoint.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from aios_node.engine.errors import BadWeights
from aios_node.engine.nets.encoder import Encoder
from aios_node.engine.tokenizer import TokenBatch
from aios_node.engine.tuning.batches import BatchPlan
from aios_node.engine.tuning.checkpoint import Checkpoints
from aios_node.engine.tuning.precision import fast_dtype, relative_error
from aios_node.engine.tuning.student import Student

Report = Callable[[int, int, float], None]
"""Told the steps done, all steps, and the last batch's mean cosine to the original vectors."""

POOLED, LAST, BETWEEN = 5.0, 1.0, 0.3
"""Weights of the three parts of the loss: the cosine distance of the pooled vectors, and the relative squared error of
the last and of the other hidden states."""

RELATIVE_RATES = {"latent": 1.0, "stretch": 0.25, "zeros": 0.15, "floats": 0.04}
"""Learning rates as parts of the given one. A latent value's rate is in units of its tensor's mean scale."""

WARM_UP = 20
LEAST_RATE = 0.03
GRADIENT_NORM = 1.0
SAVE_EVERY = 100
_NAME = "endtoend"


@dataclass(frozen=True)
class TuningSteps:
    """How many steps, and how fast: ``rate`` is the part of a scale that a latent value may move in a step."""

    steps: int
    rate: float


def tune(
    student: Student,
    teacher: Encoder,
    plan: BatchPlan,
    work: TuningSteps,
    checkpoints: Checkpoints,
    report: Report | None = None,
) -> None:
    """Train the student in place. Goes on from a checkpoint where there is one.

    Raises BadWeights when the loss is no finite number.
    """
    optimizer = _optimizer(student, work.rate)
    start = _resume(student, optimizer, checkpoints)
    for step, batch in zip(range(start, work.steps), plan.training(start), strict=False):
        _set_rates(optimizer, schedule(step, work.steps))
        cosine = _step(student, teacher, optimizer, batch)
        if report is not None:
            report(step + 1, work.steps, cosine)
        if (step + 1) % SAVE_EVERY == 0 or step + 1 == work.steps:
            checkpoints.save(_NAME, _arrays(student, optimizer, step + 1))


def schedule(step: int, steps: int) -> float:
    """Part of the full rate at a step: a short linear rise, then a cosine down to LEAST_RATE."""
    fall = LEAST_RATE + (1 - LEAST_RATE) * (1 + math.cos(math.pi * step / steps)) / 2
    return min(1.0, (step + 1) / WARM_UP) * fall


def loss_of(student: Encoder, teacher: Encoder, batch: TokenBatch) -> tuple[torch.Tensor, torch.Tensor]:
    """The loss of a batch and the mean cosine of its pooled vectors: two scalars, the first differentiable."""
    ids, mask = torch.from_numpy(batch.ids), torch.from_numpy(batch.mask)
    with fast_dtype():
        with torch.no_grad():
            wanted = [state.float() for state in teacher.states(ids, mask)]
        found = [state.float() for state in student.states(ids, mask)]
    cosine = (student.pool(found[-1], mask) * teacher.pool(wanted[-1], mask)).sum(-1).mean()
    errors = [relative_error(a, b, mask) for a, b in zip(found[1:], wanted[1:], strict=True)]
    between = sum(errors[:-1], torch.zeros(())) / max(1, len(errors) - 1)
    return POOLED * (1 - cosine) + LAST * errors[-1] + BETWEEN * between, cosine.detach()


def _step(student: Student, teacher: Encoder, optimizer: torch.optim.Optimizer, batch: TokenBatch) -> float:
    loss, cosine = loss_of(student.net, teacher, batch)
    if not torch.isfinite(loss):
        raise BadWeights("tuning diverged: the loss is no finite number; use a smaller learning_rate")
    optimizer.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]  # torch's own
    torch.nn.utils.clip_grad_norm_([matrix.latent for matrix in student.matrices.values()], GRADIENT_NORM)
    optimizer.step()
    return float(cosine)


def _optimizer(student: Student, rate: float) -> torch.optim.Optimizer:
    """Adam with a rate for each kind of parameter; a fixed order, so that a checkpoint fits."""
    groups = [{"params": list(student.floats.values()), "full": RELATIVE_RATES["floats"] * rate}]
    for matrix in student.matrices.values():
        units = {"latent": matrix.step_size, "stretch": 1.0, "zeros": 1.0}
        for part, unit in units.items():
            groups.append({"params": [getattr(matrix, part)], "full": RELATIVE_RATES[part] * rate * unit})
    return torch.optim.Adam(groups, lr=rate, betas=(0.9, 0.98), fused=True)


def _set_rates(optimizer: torch.optim.Optimizer, part: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = group["full"] * part


def _arrays(student: Student, optimizer: torch.optim.Optimizer, step: int) -> dict[str, NDArray[np.float32]]:
    arrays = {"step": np.array(step)}
    for name, tensor in student.state().items():
        state = optimizer.state[tensor]
        arrays |= {
            f"{name}/value": tensor.detach().numpy(),
            f"{name}/mean": state["exp_avg"].numpy(),
            f"{name}/square": state["exp_avg_sq"].numpy(),
        }
    return arrays


def _resume(student: Student, optimizer: torch.optim.Optimizer, checkpoints: Checkpoints) -> int:
    """Put a checkpoint's values in place; returns the steps that are done."""
    arrays = checkpoints.load(_NAME)
    if arrays is None:
        return 0
    step = int(arrays["step"])
    for name, tensor in student.state().items():
        with torch.no_grad():
            tensor.copy_(torch.from_numpy(arrays[f"{name}/value"]))
        optimizer.state[tensor] = {
            "step": torch.tensor(float(step)),
            "exp_avg": torch.from_numpy(arrays[f"{name}/mean"]),
            "exp_avg_sq": torch.from_numpy(arrays[f"{name}/square"]),
        }
    return step
