"""Settings of an adaptation. Knows ranges, and nothing else."""

from __future__ import annotations

from dataclasses import dataclass

from aios_node.engine.errors import BadConfig

_POSITIVE = ("rank", "alpha", "learning_rate", "temperature", "max_seconds")
_NOT_NEGATIVE = ("first_layer", "anchor", "prox_mu", "weight_decay", "seed")


@dataclass(frozen=True)
class LoRAConfig:
    """How an encoder is adapted. Raises BadConfig for a value that cannot work.

    The defaults take well under a minute on two cores, and on held-out questions about a thousand
    documents raise recall clearly while vectors stay near the old ones (mean cosine above 0.9).
    """

    rank: int = 8
    alpha: float = 16.0
    targets: tuple[str, ...] = ("query", "value")
    """Last name parts of the linear maps that get adapters."""
    first_layer: int = 2
    """Layers below keep their weights: a third less to compute and to send, at no measurable loss."""
    steps: int = 40
    batch_size: int = 32
    learning_rate: float = 2e-3
    warmup: float = 0.1
    """Share of the steps in which the learning rate rises; then it falls as a cosine."""
    weight_decay: float = 0.01
    temperature: float = 0.05
    anchor: float = 2.0
    """Weight of the distance from the old vectors: rows that are stored already stay findable."""
    prox_mu: float = 0.0
    """FedProx: mu of the pull of weights towards where training began, for nodes whose data differ; 0: none."""
    question_tokens: int = 32
    document_tokens: int = 64
    """Where texts are cut in training (never in use): most of the cost is in the documents."""
    max_seconds: float = 300.0
    """Training stops after this time even if steps are left; the result then depends on the machine."""
    seed: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "targets", tuple(self.targets))
        _require("targets", self.targets, bool(self.targets), "at least one name")
        for name in _POSITIVE:
            _require(name, getattr(self, name), getattr(self, name) > 0, "above 0")
        for name in _NOT_NEGATIVE:
            _require(name, getattr(self, name), getattr(self, name) >= 0, "0 or more")
        _require("steps", self.steps, self.steps >= 1, "1 or more")
        _require("batch_size", self.batch_size, self.batch_size >= 2, "2 or more: the others are the negatives")
        _require("warmup", self.warmup, 0 <= self.warmup < 1, "from 0 to below 1")
        for name in ("question_tokens", "document_tokens"):
            _require(name, getattr(self, name), getattr(self, name) >= 8, "8 or more")


def _require(name: str, value: object, holds: bool, allowed: str) -> None:
    if not holds:
        raise BadConfig(f"{name} is {value}: it must be {allowed}")
