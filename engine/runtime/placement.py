"""Where a model's weights go, and what happens when an accelerator has no room for them.

A model that does not fit is computed on the CPU instead, and so is one whose accelerator runs out of memory while it
encodes; the log says so, and no request fails for it. Knows no files and no networks.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from aios_node.engine.devices import Device
from aios_node.engine.nets.sentences import SentenceEncoder

CPU = Device("cpu")

RESERVE = 256 * 2**20
"""Bytes that stay free beside the weights: activations of a batch, and what the driver takes."""

_log = logging.getLogger(__name__)


class MemoryWatch(Protocol):
    """Asks an accelerator about its memory."""

    def free_and_total(self, device: Device) -> tuple[int, int] | None:
        """Bytes that are free, and that there are; None where nobody can say."""
        ...

    def let_go(self, device: Device) -> None:
        """Give memory that is kept for later back to the device."""
        ...


class TorchMemory:
    """The watch that asks torch (or what is given in its place)."""

    def __init__(self, module: Any = torch) -> None:
        self._torch = module

    def free_and_total(self, device: Device) -> tuple[int, int] | None:
        """CUDA, ROCm and XPU tell both; MPS tells what is recommended, and what this process has."""
        if device.kind == "mps":
            total = int(self._torch.mps.recommended_max_memory())
            return max(0, total - int(self._torch.mps.driver_allocated_memory())), total
        backend = self._backend(device)
        if not hasattr(backend, "mem_get_info"):
            return None
        free, total = backend.mem_get_info(device.index)
        return int(free), int(total)

    def let_go(self, device: Device) -> None:
        """Empty torch's cache of the device."""
        backend = self._backend(device)
        if hasattr(backend, "empty_cache"):
            backend.empty_cache()

    def _backend(self, device: Device) -> Any:
        return getattr(self._torch, "cuda" if device.kind == "rocm" else device.kind, None)


def place(device: Device, nbytes: int, watch: MemoryWatch) -> Device:
    """The device itself if ``nbytes`` of weights fit there beside what must stay free, else the CPU."""
    if device.kind == "cpu":
        return device
    known = watch.free_and_total(device)
    if known is None or nbytes + RESERVE <= known[0]:
        return device
    _log.warning(
        "%s has %d of %d MiB free and the model needs %d: it runs on the CPU",
        device, known[0] >> 20, known[1] >> 20, (nbytes + RESERVE) >> 20,
    )  # fmt: skip
    return CPU


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that a device has no memory left."""
    if isinstance(error, torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and "out of memory" in str(error).lower()


class Rescue:
    """Encodes on an accelerator; when that runs out of memory, in smaller batches, then on the CPU for good.

    Safe to call from several threads. ``on_cpu`` builds the encoder for the CPU.
    """

    def __init__(
        self, sentences: SentenceEncoder, device: Device, on_cpu: Callable[[], SentenceEncoder], watch: MemoryWatch
    ) -> None:
        self._sentences = sentences
        self._device = device
        self._on_cpu = on_cpu
        self._watch = watch
        self._change = threading.Lock()

    @property
    def device(self) -> Device:
        """Where the next request is computed."""
        return self._device

    @property
    def sentences(self) -> SentenceEncoder:
        """What computes the next request."""
        return self._sentences

    def encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """One vector per text, float32 [n, d]. Raises what the encoder raises, but for memory of the accelerator."""
        sentences = self._sentences
        try:
            return sentences.encode(texts)
        except RuntimeError as error:
            if not self._is_full(sentences, error):
                raise
        smaller = replace(sentences, most_tokens=max(1, sentences.batch_tokens // 8))
        try:
            return smaller.encode(texts)
        except RuntimeError as error:
            if not self._is_full(sentences, error):
                raise
        return self._moved(sentences).encode(texts)

    def _is_full(self, sentences: SentenceEncoder, error: RuntimeError) -> bool:
        """Whether the accelerator is out of memory; then what can be given back is."""
        if sentences.device == "cpu" or not out_of_memory(error):
            return False
        _log.warning("%s is out of memory while it encodes: %s", self._device, str(error).split("\n", 1)[0][:200])
        self._watch.let_go(self._device)
        return True

    def _moved(self, full: SentenceEncoder) -> SentenceEncoder:
        """The encoder on the CPU; built once, by whoever comes first."""
        with self._change:
            if self._sentences is full:
                _log.warning("the model moves from %s to the CPU until it is opened again", self._device)
                self._sentences, left = self._on_cpu(), self._device
                self._device = CPU
                self._watch.let_go(left)
            return self._sentences
