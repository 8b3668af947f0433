"""An opened version of a model: network, tokeniser and configuration that belong together.

Immutable and safe to share between threads. It lives as long as somebody holds it: a request that
started on a snapshot finishes on it, and its memory maps go when the last holder lets go.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from aios_node.engine.devices import Device
from aios_node.engine.errors import BadWeights
from aios_node.engine.nets.compiled import check_compiler, compile_blocks
from aios_node.engine.nets.config import EncoderConfig
from aios_node.engine.nets.encoder import Encoder, tensor_shapes
from aios_node.engine.nets.lowbit import build_encoder
from aios_node.engine.nets.measured import batch_timings
from aios_node.engine.nets.modes import Mode, Timings, automatic, check_mode, requested
from aios_node.engine.nets.sentences import SentenceEncoder
from aios_node.engine.runtime.placement import CPU, MemoryWatch, Rescue, TorchMemory, out_of_memory, place
from aios_node.engine.tokenizer import FastTokenizer
from aios_node.engine.weights.folder import VersionFolder, read_folder

Build = Callable[..., Encoder]
"""Builds a network as ``build_encoder`` does."""

_log = logging.getLogger(__name__)

WARM_UP = "a sentence of ordinary length, as most requests are"
"""What is encoded before a version is served."""


@dataclass(frozen=True, eq=False)
class Snapshot:
    """One version, ready to compute on one device."""

    version: str
    device: Device
    sentences: SentenceEncoder
    mode: Mode = "float32"
    rescue: Rescue | None = None  # on accelerators

    @classmethod
    def open(
        cls,
        path: Path,
        device: Device,
        mode: str = "auto",
        *,
        compiled: bool = False,
        timings: Callable[[], Timings] = batch_timings,
        watch: MemoryWatch | None = None,
        build: Build = build_encoder,
    ) -> Snapshot:
        """Open a version folder, to compute in a mode (see nets.modes).

        On the CPU, float32 tensors are views of the mapped files: nothing is read until it is used; in mode
        ``packed`` so are the codes of quantised ones, in all others these become what the mode computes with.
        ``compiled`` asks for torch.compile (see nets.compiled). ``timings`` are this machine's, asked for only where
        ``auto`` must choose. A device without room for the weights (``watch`` asks it) is replaced by the CPU, now or
        when it runs out of memory later. Raises NotFound, Corrupt, HashMismatch (small files), BadWeights,
        StorageError, and BadConfig for a mode that does not run here.
        """
        folder = read_folder(path)
        config = EncoderConfig.from_bytes(_needed(folder, "config.json"))
        tokenizer = FastTokenizer.from_bytes(_needed(folder, "tokenizer.json"))
        watch = watch or TorchMemory()

        def on(there: Device, chosen: Mode) -> SentenceEncoder:
            with folder.weights() as weights:
                net = build(config, weights, chosen, device=there.torch_name)
            net = compile_blocks(net) if compiled else net
            return SentenceEncoder(net, tokenizer, there.torch_name, chosen)

        placed = place(device, _bytes_as_floats(config), watch)
        chosen = _mode(mode, placed, folder, timings)
        if compiled:
            check_compiler(chosen, on_cpu=placed.kind == "cpu")
        try:
            sentences = on(placed, chosen)
        except RuntimeError as error:
            if placed.kind == "cpu" or not out_of_memory(error):
                raise
            _log.warning("%s is out of memory: version %s runs on the CPU", placed, folder.version[:12])
            watch.let_go(placed)
            placed, chosen = CPU, "float32"
            sentences = on(placed, chosen)
        rescue = None if placed.kind == "cpu" else Rescue(sentences, placed, lambda: on(CPU, "float32"), watch)
        return cls(folder.version, placed, sentences, chosen, rescue)

    @property
    def computes_on(self) -> Device:
        """Where the next request is computed: ``device``, or the CPU after that ran out of memory."""
        return self.rescue.device if self.rescue else self.device

    @property
    def config(self) -> EncoderConfig:
        """The network's configuration."""
        return self.sentences.net.config

    @property
    def tokenizer(self) -> FastTokenizer:
        """The version's own tokeniser."""
        return self.sentences.tokenizer

    def encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """One vector per text, float32 [n, d]. Raises BadRequest for anything but strings."""
        return (self.rescue or self.sentences).encode(texts)

    def warm_up(self) -> None:
        """Compute once, so that the first request does not wait for pages of the mapped files.

        Raises BadWeights when what comes out is not finite: such a version must not be served.
        """
        if not np.isfinite(self.encode([WARM_UP])).all():
            raise BadWeights(f"version {self.version[:12]} computes vectors that are not finite")


def _bytes_as_floats(config: EncoderConfig) -> int:
    """Bytes of all tensors as float32."""
    return 4 * sum(math.prod(shape) for shape in tensor_shapes(config).values())


def _mode(wanted: str, device: Device, folder: VersionFolder, timings: Callable[[], Timings]) -> Mode:
    """The mode to compute in. Raises BadConfig for one that does not exist or not on this device."""
    on_cpu, name = device.kind == "cpu", requested(wanted)
    if name != "auto":
        return check_mode(name, on_cpu=on_cpu)
    quantised = folder.manifest.quant != "none"
    return automatic(on_cpu=on_cpu, quantised=quantised, timings=timings() if on_cpu and quantised else {})


def _needed(folder: VersionFolder, name: str) -> bytes:
    if name not in folder.manifest.files:
        raise BadWeights(f"version {folder.version[:12]} has no {name}: it cannot be run, only stored")
    return folder.read_file(name)
