"""ArrowEngine: runs the version in a folder, and changes to another without failing a request.

Knows folders and devices; does not know model names, stores or peers (node/ resolves names to paths).
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType

import numpy as np
from numpy.typing import NDArray

from aios_node.engine.devices import Device, choose
from aios_node.engine.errors import Unavailable
from aios_node.engine.nets.measured import batch_timings
from aios_node.engine.nets.modes import Mode, Timings
from aios_node.engine.runtime.snapshot import Snapshot
from aios_node.engine.tokenizer import checked_texts


class ArrowEngine:
    """One model, open. All methods may be called from several threads at once."""

    def __init__(
        self,
        snapshot: Snapshot,
        memory: object | None = None,
        mode: str = "auto",
        device: Device | None = None,
        compiled: bool = False,
        timings: Callable[[], Timings] = batch_timings,
    ) -> None:
        self.memory = memory
        self._snapshot: Snapshot | None = snapshot
        self._device = device or snapshot.device
        self._requested_mode = mode
        self._compiled = compiled
        self._timings = timings
        self._change = threading.Lock()

    @classmethod
    def open(
        cls,
        path: Path | str,
        device: str = "auto",
        memory: object | None = None,
        *,
        mode: str = "auto",
        compiled: bool = False,
        timings: Callable[[], Timings] = batch_timings,
    ) -> ArrowEngine:
        """Open a version folder (``manifest.json``, Parquet shards, ``config.json``, ``tokenizer.json``).

        ``device``: ``auto`` (the best there is), ``cpu``, ``cuda``, ``cuda:1``, ``rocm``, ``xpu``, ``mps``.
        ``memory``: the memory store that belongs to this engine; encoding has no use for it.
        ``mode``: the arithmetic, ``auto`` or one of nets.modes: ``float32``, ``bfloat16``, ``float16``,
        ``int8`` (fast for many texts), ``packed`` (weights stay as small as they are stored).
        ``compiled``: let torch.compile make one program of a float model; the first requests wait for that.
        ``timings``: this machine's, by which ``auto`` chooses; the first time ever they take seconds (see prepared).
        Raises BadConfig for a device or mode that is not here, and what Snapshot.open raises.
        """
        chosen = choose(device)
        snapshot = Snapshot.open(Path(path), chosen, mode, compiled=compiled, timings=timings)
        return cls(snapshot, memory, mode, chosen, compiled, timings)

    @property
    def snapshot(self) -> Snapshot:
        """The version that new requests run on. Raises Unavailable when the engine is closed."""
        if (snapshot := self._snapshot) is None:
            raise Unavailable("this engine is closed: open the model again")
        return snapshot

    @property
    def device(self) -> Device:
        """Where it computes: what was chosen at first, or the CPU where that had no room for the open version."""
        return self._snapshot.computes_on if self._snapshot else self._device

    @property
    def mode(self) -> Mode:
        """In which arithmetic the open version runs; ``auto`` may mean another one for the version after a swap."""
        return self.snapshot.mode

    @property
    def version(self) -> str:
        """Id of the open version (64 hex characters)."""
        return self.snapshot.version

    @property
    def dimension(self) -> int:
        """Length of a vector."""
        return self.snapshot.config.hidden_size

    @property
    def space(self) -> str:
        """Name of the embedding space: vectors of the same space may be compared."""
        return self.snapshot.config.space

    def encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """One unit vector per text, float32 [n, d]; texts beyond the model's ``max_tokens`` are cut.

        All vectors of a call come from one version, whatever is swapped meanwhile. Raises BadRequest
        for anything but a sequence of strings, Unavailable when closed.
        """
        return self.snapshot.encode(checked_texts(texts))

    def tokenize(self, texts: Sequence[str]) -> list[list[int]]:
        """Exact token ids of each text, special tokens included, never cut."""
        return self.snapshot.tokenizer.token_ids(texts)

    def detokenize(self, ids: Sequence[Sequence[int]]) -> list[str]:
        """Text of each row of ids, without special tokens. Raises BadRequest for unknown ids."""
        return self.snapshot.tokenizer.decode(ids)

    def swap(self, path: Path | str) -> str:
        """Open another version beside this one, then serve it; returns its id.

        Requests that run finish on the old version, whose memory is freed after the last of them.
        When anything is wrong with the new version, this raises as ``open`` does and nothing changes.
        """
        with self._change:
            _ = self.snapshot  # raises when closed
            self._snapshot = new = self._opened(Path(path))
        return new.version

    def reopen(self, path: Path | str) -> bool:
        """Open the served version once more, in the mode that ``auto`` means by now; False where another is served.

        ``path``: the folder of that version. Raises as ``swap`` does; then nothing changes.
        """
        with self._change:
            new = self._opened(Path(path))
            if new.version != self.snapshot.version:
                return False
            self._snapshot = new
        return True

    def _opened(self, path: Path) -> Snapshot:
        new = Snapshot.open(path, self._device, self._requested_mode, compiled=self._compiled, timings=self._timings)
        new.warm_up()
        return new

    def close(self) -> None:
        """Let go of the model; requests that run finish. May be called again."""
        with self._change:
            self._snapshot = None

    def __enter__(self) -> ArrowEngine:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
