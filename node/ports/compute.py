"""Inference as Flight serves it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from aios_node.flight.ports import Encoder
from aios_node.node.models import ModelHost

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from aios_node.node.metrics import Metrics


class HostedCompute:
    """ComputePort over the open models."""

    def __init__(self, models: ModelHost, metrics: Metrics) -> None:
        self._models = models
        self._metrics = metrics

    def encoder(self, model: str | None) -> Encoder:
        """The encoder of this name, or the node's. Raises UnknownModel or AmbiguousModel."""
        name = self._models.encoder_name(model)
        engine = self._models.engine(name)
        return Encoder(name, engine.version, engine.dimension, self._models.space(name) or name)

    def encode(self, model: str, texts: Sequence[str]) -> tuple[NDArray[np.float32], str]:
        """Vectors float32 [n, d] of unit length, and the version that made them. Raises Busy."""
        started = time.perf_counter()
        vectors, version = self._models.encode(model, texts)
        self._metrics.encode_seconds.observe(time.perf_counter() - started)
        self._metrics.encoded.inc(len(texts))
        return vectors, version
