"""What a machine needs once before it computes in few bits: measurements, and compiled loops.

The first time on a machine that takes some seconds, later a part of one. It is done by a thread of its own, and whoever
opens a model meanwhile does without: it opens in float32, and again when all is ready. Knows no models.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

import torch

from aios_node.engine.nets.int8 import SHORT, Int8Block, Int8Linear
from aios_node.engine.nets.linear import LayerNorm
from aios_node.engine.nets.measured import batch_timings
from aios_node.engine.nets.modes import Timings, automatic

PATIENCE_S = 1.0
"""Who needs measurements waits so long for them: enough where all was made before, by this process or another."""

_log = logging.getLogger(__name__)


def prepare() -> Timings:
    """This machine's timings; where they are in favour of 8 bits, the loops for these are compiled as well."""
    timings = batch_timings()
    if automatic(on_cpu=True, quantised=True, timings=timings) == "int8":
        compile_loops()
    return timings


@torch.inference_mode()
def compile_loops() -> None:
    """Compile what an 8-bit block needs, or read what was compiled before, by running a tiny one."""
    width = 16
    narrow, wide, back = (
        Int8Linear.of(torch.ones(out, of) / of, torch.zeros(out))
        for out, of in ((width, width), (2 * width, width), (width, 2 * width))
    )
    norm = LayerNorm(torch.ones(width), torch.zeros(width), 1e-6)
    block = Int8Block(Int8Linear.joined([narrow] * 3), narrow, norm, wide, "gelu", back, norm, heads=2)
    for length in (SHORT, SHORT + 1):  # both ways through attention
        block(torch.linspace(-1, 1, length * width).view(1, length, width), None)


class Preparation:
    """``prepare`` in a thread of its own, started by the first who asks."""

    def __init__(
        self,
        on_late: Callable[[], None],
        *,
        work: Callable[[], Timings] = prepare,
        patience_s: float = PATIENCE_S,
    ) -> None:
        """``on_late`` is called, by that thread, when all is ready and somebody was not told in time."""
        self._on_late, self._work, self._patience_s = on_late, work, patience_s
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._ready = threading.Event()
        self._found: Timings = {}
        self._late = False

    def timings(self) -> Timings:
        """What was measured; nothing where it is not ready within the patience: then float32 is what to open with."""
        with self._lock:
            if self._thread is None:
                self._thread = threading.Thread(target=self._prepare, name="prepare", daemon=True)
                self._thread.start()
        self._ready.wait(self._patience_s)
        with self._lock:
            self._late = self._late or not self._ready.is_set()
            return self._found

    def close(self, timeout_s: float) -> None:
        """Wait for the thread: what compiles cannot be interrupted."""
        with self._lock:
            thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            thread.join(timeout_s)

    def _prepare(self) -> None:
        try:
            found = self._work()
        except Exception:  # whatever it is, models run in float32
            _log.exception("preparing 8-bit arithmetic failed: quantised models run in float32")
            found = {}
        with self._lock:
            self._found = found
            self._ready.set()
            late = self._late
        if late and found:
            self._on_late()
