"""Jobs of secure sums: which tensors are trained, one member's vector, and the version that the sum makes.

The update itself never leaves the worker process: what is written is clipped and has its part of the noise.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aios_node.node.jobs.adapt import read_documents

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from aios_node.delta.privacy.contribution import NoisySum
    from aios_node.delta.privacy.layout import Layout
    from aios_node.engine.evolve.train import LoRATrainer
    from aios_node.engine.quant.blocks import Tensor

Progress = Callable[[float, str], None]


@dataclass(frozen=True)
class LayoutJob:
    """``base``: folder of an encoder's version."""

    base: Path


@dataclass(frozen=True)
class ContributeJob:
    """``vector``: file to write the residues to; ``layout`` and ``noisy``: what was agreed on."""

    base: Path
    documents: Path
    steps: int | None
    layout: str
    noisy: NoisySum
    vector: Path


@dataclass(frozen=True)
class SumJob:
    """``total``: file of the sum's residues; ``members``: how many vectors are in it."""

    base: Path
    folder: Path
    total: Path
    noisy: NoisySum
    members: int
    parent: str
    recipe: Mapping[str, Any]


def trained_layout(job: LayoutJob, progress: Progress) -> Layout:
    """Names and shapes of what training changes, by the model alone."""
    from aios_node.engine.weights.folder import read_folder

    source = read_folder(job.base)
    with source.weights() as found:
        weights = dict(found)
        return _layout(weights, _trainer(weights, source, None).merge())


def contribute(job: ContributeJob, progress: Progress) -> None:
    """Train on the documents and write this node's vector. Raises BadRequest where another one was agreed on."""
    from aios_node.engine.errors import BadRequest
    from aios_node.engine.evolve.pairs import make_pairs
    from aios_node.engine.weights.folder import read_folder

    source = read_folder(job.base)
    with source.weights() as found:
        weights = dict(found)
        trainer = _trainer(weights, source, job.steps)
        layout = _layout(weights, trainer.merge())
        if layout.digest != job.layout:
            raise BadRequest("this node would train other tensors than were agreed on: is its version another one?")
        pairs = make_pairs(list(read_documents(job.documents)))
        trainer.train(pairs, lambda at: progress(at.step / at.steps, f"loss {at.loss:.3f}"))
        merged = trainer.merge()
        update = {name: _floats(merged[name]) - _floats(weights[name]) for name, _ in layout.shapes}
    job.vector.write_bytes(job.noisy.contribution(layout.flat(update)).data)


def apply_sum(job: SumJob, progress: Progress) -> None:
    """Base plus the mean of the members' updates, as a version folder."""
    import numpy as np

    from aios_node.delta.privacy.aggregation.ring import dtype_of_ring
    from aios_node.engine.weights.folder import read_folder, write_folder
    from aios_node.engine.weights.names import FACTORS

    source = read_folder(job.base)
    files = {name: source.read_file(name) for name in source.files}
    with source.weights() as found:
        weights = {name: tensor for name, tensor in found.items() if not name.startswith(FACTORS)}
        layout = _layout(weights, _trainer(weights, source, None).merge())
        total = np.frombuffer(job.total.read_bytes(), dtype_of_ring(job.noisy.bits))
        for name, part in layout.parts(job.noisy.decode(total) / job.members).items():
            weights[name] = (_floats(weights[name]) + part).astype(np.dtype(weights[name].dtype))
        write_folder(job.folder, weights, files, parents=[job.parent], recipe=job.recipe, reuse=source)


def _trainer(weights: Mapping[str, Any], source: Any, steps: int | None) -> LoRATrainer:
    from aios_node.engine.evolve.config import LoRAConfig
    from aios_node.engine.evolve.train import LoRATrainer
    from aios_node.engine.nets.config import EncoderConfig
    from aios_node.engine.tokenizer import FastTokenizer

    config = LoRAConfig() if steps is None else replace(LoRAConfig(), steps=steps)
    network = EncoderConfig.from_bytes(source.read_file("config.json"))
    return LoRATrainer(weights, network, FastTokenizer.from_bytes(source.read_file("tokenizer.json")), config)


def _floats(tensor: Tensor) -> NDArray[np.float64]:
    import numpy as np

    return np.asarray(tensor, np.float64)


def _layout(weights: Mapping[str, Any], merged: Mapping[str, Any]) -> Layout:
    """Of the network's tensors that merging makes anew, whatever was learned."""
    from aios_node.delta.privacy.layout import Layout
    from aios_node.engine.weights.network import NetworkWeights

    return Layout.of({name: merged[name] for name in NetworkWeights(weights) if merged[name] is not weights[name]})
