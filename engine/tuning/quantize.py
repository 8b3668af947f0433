"""Quantising a whole model by a recipe of any method: what the command, imports and derived models call.

Plain post-training quantisation needs weights alone; gptq and tuned, and sharing bits out, run the network on
calibration texts. Long work leaves checkpoints and goes on from them, with the same result to the bit on the same
machine. Knows no stores and no names of models.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from aios_node.engine.calibration.sets import CalibrationSet
from aios_node.engine.calibration.synthetic import synthetic
from aios_node.engine.errors import BadConfig, BadRequest
from aios_node.engine.nets.config import EncoderConfig
from aios_node.engine.nets.encoder import Encoder
from aios_node.engine.quant.blocks import QuantizedTensor, Tensor
from aios_node.engine.quant.ptq import ArrowQuantizer, same_layout
from aios_node.engine.quant.recipe import QuantizationConfig
from aios_node.engine.tokenizer import FastTokenizer
from aios_node.engine.tuning.batches import BatchPlan
from aios_node.engine.tuning.blockwise import BlockwiseQuantizer
from aios_node.engine.tuning.checkpoint import Checkpoints
from aios_node.engine.tuning.endtoend import TuningSteps, tune
from aios_node.engine.tuning.heldout import HeldOut, split
from aios_node.engine.tuning.rounding import RoundingSteps
from aios_node.engine.tuning.sensitivity import share_out
from aios_node.engine.tuning.student import Student

Progress = Callable[[float, str], None]
"""Told which part of all work is done, 0 to 1, and what is being done."""

Warn = Callable[[str], None]
"""Told, in a sentence, what could not be done as the recipe asks."""

PROBE_TEXTS = 96
"""Texts by which tensors' sensitivities are measured: enough for an order, few enough for half a minute."""

_PROBE_TOKENS = 64

WARM_START = 10
"""Tuning that starts from an earlier version's codes takes this part of the steps."""


@dataclass(frozen=True, eq=False)
class Network:
    """What it takes to run a model: its configuration and tokeniser."""

    config: EncoderConfig
    tokenizer: FastTokenizer

    @classmethod
    def of(cls, files: Mapping[str, bytes]) -> Network:
        """From a version's small files. Raises BadRequest where they do not describe a network that can be run."""
        for name in ("config.json", "tokenizer.json"):
            if name not in files:
                raise BadRequest(
                    f"the model has no {name}: it cannot be run; only method ptq without a target can quantise it"
                )
        return cls(EncoderConfig.from_bytes(files["config.json"]), FastTokenizer.from_bytes(files["tokenizer.json"]))


@dataclass(frozen=True, eq=False)
class Quantization:
    """A quantised model and the recipe as it was carried out: bits shared out, calibration named."""

    weights: dict[str, Tensor]
    recipe: QuantizationConfig


def needs_texts(recipe: QuantizationConfig) -> bool:
    """Whether the recipe runs the network."""
    return recipe.method != "ptq" or recipe.target_bytes is not None


def quantize_model(
    weights: Mapping[str, Tensor],
    recipe: QuantizationConfig,
    *,
    network: Network | None = None,
    texts: CalibrationSet | None = None,
    previous: Mapping[str, Tensor] | None = None,
    work: Path | None = None,
    progress: Progress | None = None,
    warn: Warn | None = None,
) -> Quantization:
    """Quantise a model. ``network`` and ``texts`` are needed where ``needs_texts`` says so.

    ``previous``: an earlier version's result, whose scales are kept where plain rounding may (see ArrowQuantizer).
    ``work``: a folder for checkpoints that belongs to exactly this work. Raises BadConfig for what the recipe lacks or
    a target that cannot be met, BadWeights for weights that are not the network's or not finite, StorageError.
    """
    run = _Run(recipe, weights, Checkpoints(work), progress or _silent, warn or _silent)
    if not needs_texts(recipe):
        return Quantization(run.plain(recipe, previous, 1.0), recipe)
    if network is None or texts is None:
        raise BadConfig("this recipe runs the network: it needs calibration texts and a model that can be run")
    return run.by_answers(network, texts, previous)


@dataclass(frozen=True, eq=False)
class _Run:
    recipe: QuantizationConfig
    weights: Mapping[str, Tensor]
    checkpoints: Checkpoints
    progress: Progress
    warn: Warn

    def plain(
        self, recipe: QuantizationConfig, previous: Mapping[str, Tensor] | None, share: float, start: float = 0.0
    ) -> dict[str, Tensor]:
        """Plain rounding; ``share`` of the whole work, from ``start`` on."""
        report = partial(_counted, self.progress, start, share)
        by_weights = replace(recipe, method="ptq", options={}, target_bytes=None, calibration=None)
        return ArrowQuantizer(by_weights).quantize(self.weights, previous=previous, progress=report)

    def by_answers(
        self, network: Network, texts: CalibrationSet, previous: Mapping[str, Tensor] | None
    ) -> Quantization:
        recipe = self._shared_out(network, texts)
        plain = self.plain(recipe, previous, 0.02, 0.05)
        named = replace(recipe, calibration={"source": texts.source, "sha256": texts.sha256, "texts": len(texts.texts)})
        if recipe.method == "ptq":
            return Quantization(plain, named)
        chosen = texts.first(int(recipe.options["texts"])).texts
        if recipe.method == "gptq":
            return Quantization(self._blockwise(network, recipe, plain, self._plan(network, chosen)), named)
        return Quantization(self._by_tuning(network, recipe, plain, previous, chosen), named)

    def _by_tuning(
        self,
        network: Network,
        recipe: QuantizationConfig,
        plain: Mapping[str, Tensor],
        previous: Mapping[str, Tensor] | None,
        texts: Sequence[str],
    ) -> dict[str, Tensor]:
        """Blockwise, then end to end; or end to end from an earlier version. What is better on texts held out."""
        learned, kept = split(texts)
        made_up = _made_up(network.tokenizer, len(learned) // 2, int(recipe.options["seed"]))
        plan = self._plan(network, (*learned, *made_up))
        steps = int(recipe.options["steps"])
        start, what = _warm_start(plain, previous), "the codes of the version before"
        if start is not None:
            steps = -(-steps // WARM_START)
        else:
            start, what = self._blockwise(network, recipe, plain, plan), "the results of rounding block by block"
        tuned = self._tuned(network, start, plan, steps)
        judge = HeldOut(network.config, self.weights, self._plan(network, kept).plain(len(kept)))
        before, after = judge.cosine(start), judge.cosine(tuned)
        if after > before or not steps:
            return tuned
        self.warn(
            f"tuning end to end made it no better: a mean cosine of {after:.4f} instead of {before:.4f} on "
            f"{len(kept)} calibration texts that it was not shown; {what} are kept"
        )
        return start

    def _shared_out(self, network: Network, texts: CalibrationSet) -> QuantizationConfig:
        if self.recipe.target_bytes is None or self.recipe.calibration is not None:
            return self.recipe  # no target, or bits were shared out when the recipe was first carried out
        probe = BatchPlan.of(
            texts.texts[: 2 * PROBE_TEXTS], network.tokenizer, max_tokens=_PROBE_TOKENS, budget=1024, seed=0
        )
        report = partial(_counted, self.progress, 0.0, 0.05)
        return share_out(self.recipe, network.config, self.weights, probe.plain(PROBE_TEXTS), report)

    def _plan(self, network: Network, texts: Sequence[str]) -> BatchPlan:
        options = self.recipe.options
        return BatchPlan.of(
            texts,
            network.tokenizer,
            max_tokens=network.config.max_tokens,
            budget=int(options.get("batch_tokens", 2048)),
            seed=int(options["seed"]),
        )

    def _blockwise(
        self, network: Network, recipe: QuantizationConfig, plain: Mapping[str, Tensor], plan: BatchPlan
    ) -> dict[str, Tensor]:
        steps = RoundingSteps(int(recipe.options.get("block_steps", 0)), int(recipe.options["seed"]))
        share = 0.93 if recipe.method == "gptq" else 0.2
        quantizer = BlockwiseQuantizer(
            network.config,
            recipe,
            self.weights,
            plain,
            rounding=steps,
            checkpoints=self.checkpoints,
            report=partial(_counted, self.progress, 0.07, share),
            warn=self.warn,
        )
        return quantizer.quantize(plan.plain(int(recipe.options.get("block_texts", len(plan.rows)))))

    def _tuned(self, network: Network, rounded: Mapping[str, Tensor], plan: BatchPlan, steps: int) -> dict[str, Tensor]:
        student = Student(network.config, self.weights, rounded)
        teacher = Encoder.build(network.config, self.weights)
        work = TuningSteps(steps, float(self.recipe.options["learning_rate"]))
        tune(student, teacher, plan, work, self.checkpoints, self._tuning_report)
        return student.export()

    def _tuning_report(self, step: int, steps: int, cosine: float) -> None:
        self.progress(0.27 + 0.73 * step / max(1, steps), f"tuning, step {step} of {steps}, cosine {cosine:.3f}")


def _made_up(tokenizer: FastTokenizer, count: int, seed: int) -> tuple[str, ...]:
    """Texts of the tokeniser's own words; none where it has too few whole ones."""
    try:
        return synthetic(tokenizer.tokens, max(1, count), seed).texts
    except BadRequest:
        return ()


def _warm_start(plain: Mapping[str, Tensor], previous: Mapping[str, Tensor] | None) -> dict[str, Tensor] | None:
    """The blocks as an earlier version has them, everything else as it is now; None where they do not fit."""
    if previous is None or set(previous) != set(plain):
        return None
    for name, tensor in plain.items():
        old = previous[name]
        if isinstance(tensor, QuantizedTensor) != isinstance(old, QuantizedTensor) or tensor.shape != old.shape:
            return None
        if isinstance(tensor, QuantizedTensor) and isinstance(old, QuantizedTensor) and not same_layout(tensor, old):
            return None
    return {name: previous[name] if "encoder.layer." in name else tensor for name, tensor in plain.items()}


def _counted(progress: Progress, start: float, share: float, name: str, done: int, count: int) -> None:
    progress(start + share * done / max(1, count), name)


def _silent(*_told: object) -> None:
    """Nobody asked."""
