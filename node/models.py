"""Open models: which engine answers for which name, and the swap when another version becomes active.

Models are opened on first use (or at start, when configured), kept open, and swapped between two
requests when the store says that another version is active. Knows nothing about Flight.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import structlog

from aios_node.delta.store.events import Event
from aios_node.delta.store.heads import Facts
from aios_node.delta.store.store import VersionStore
from aios_node.engine.errors import AiosError, AmbiguousModel, BadRequest, Unavailable, UnknownModel, choices

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from aios_node.engine.runtime.engine import ArrowEngine
    from aios_node.engine.runtime.executor import DeviceExecutor
    from aios_node.engine.runtime.prepared import Preparation
    from aios_node.node.config.model import EngineSection

MAX_CONFIG_BYTES = 1 << 20

PREPARED_WITHIN_S = 15.0
"""A stop waits at most so long for loops that are being compiled."""

log = structlog.get_logger("models")


class ModelHost:
    """The engines of one node. Thread-safe."""

    def __init__(self, store: VersionStore, config: EngineSection, encoder: str | None) -> None:
        self._store = store
        self._config = config
        self._encoder = encoder
        self._lock = threading.RLock()
        self._engines: dict[str, ArrowEngine] = {}
        self._read: dict[str, dict[str, object]] = {}  # settings by version
        self._executor: DeviceExecutor | None = None
        self._preparation: Preparation | None = None
        self._closed = False
        self.on_swap: Callable[[str, str], None] = lambda _model, _version: None
        self._unsubscribe = store.subscribe(self._changed)

    def encoders(self) -> list[str]:
        """Names of all models that turn texts into vectors."""
        return [model for model in self._store.models() if self._store.active(model) and self.kind(model) == "encoder"]

    def kind(self, model: str) -> str:
        """What a model is, by its config: ``encoder`` or ``weights``."""
        return str(self._settings(model).get("kind", "weights"))

    def space(self, model: str) -> str | None:
        """The embedding space of an encoder."""
        space = self._settings(model).get("embedding_space")
        return str(space) if space else None

    def default_encoder(self) -> str | None:
        """The configured encoder; else the fullest of those not derived from another one here, if one space is all.

        Encoders of different embedding spaces are never chosen between: None.
        """
        encoders = self.encoders()
        if self._encoder is not None:
            return self._encoder if self._encoder in encoders else None
        facts = {model: self._facts(model) for model in encoders}
        roots = [m for m in encoders if (origin := facts[m].derived_from) is None or origin.model not in encoders]
        if len({self.space(model) for model in roots}) != 1:
            return None
        return max(roots, key=lambda model: (facts[model].bytes, model))

    def encoder_name(self, model: str | None) -> str:
        """The encoder that a request means. Raises UnknownModel or AmbiguousModel."""
        encoders = self.encoders()
        name = model or self.default_encoder()
        if name is None and len(encoders) > 1:
            raise AmbiguousModel(f"several encoders are open: name one of {', '.join(encoders)}")
        if name is None or name not in encoders:
            wanted = name or self._encoder or "encoder"
            raise UnknownModel(
                f"no encoder {wanted!r} on this node: {choices(wanted, encoders)}; `aios-node model import` adds one"
            )
        return name

    def engine(self, model: str) -> ArrowEngine:
        """The open engine of a model's active version. Raises UnknownModel, Unavailable, Corrupt."""
        with self._lock:
            if self._closed:
                raise Unavailable("the node is stopping")
            engine = self._engines.get(model)
            if engine is None:
                engine = self._engines[model] = self._open(model)
            return engine

    def mode(self, model: str) -> str | None:
        """The arithmetic that an open model runs in; None while it is not open."""
        with self._lock:
            engine = self._engines.get(model)
            return engine.mode if engine else None

    def modes(self) -> dict[str, Any]:
        """What ``auto`` chooses by here: this machine's measurements, made now where there are none, and their file."""
        from aios_node.engine.nets.measured import batch_timings, kernel_table, table_path
        from aios_node.engine.nets.modes import VARIABLE, automatic, requested

        self._device()  # sets the number of threads, which the measurements depend on
        table = kernel_table()
        wanted = requested(self._config.mode)
        chosen = automatic(on_cpu=True, quantised=True, timings=batch_timings()) if wanted == "auto" else wanted
        return {
            "file": str(table_path()),
            "machine": table["machine"],
            "microseconds": table["microseconds"],
            "configured": self._config.mode,
            "variable": VARIABLE,
            "quantised": chosen,
            "models": [{"name": model, "mode": self.mode(model)} for model in self.encoders()],
        }

    def encode(self, model: str, texts: Sequence[str]) -> tuple[NDArray[np.float32], str]:
        """Vectors float32 [n, d] of unit length, and the version that made them."""
        return self._device().submit_encode(self.engine(model), texts).result()

    def preload(self) -> None:
        """Open the default encoder, so that the first request does not wait for it."""
        name = self.default_encoder()
        if name is not None:
            self.encode(name, ["ready"])

    def close(self) -> None:
        """Finish what is computed, then close every model."""
        self._unsubscribe()
        with self._lock:
            self._closed = True
            executor, engines = self._executor, list(self._engines.values())
            preparation = self._preparation
            self._engines.clear()
        if preparation is not None:
            preparation.close(PREPARED_WITHIN_S)
        if executor is not None:
            executor.close()
        for engine in engines:
            engine.close()

    def _device(self) -> DeviceExecutor:
        from aios_node.engine.devices import use_threads
        from aios_node.engine.runtime.executor import DeviceExecutor

        with self._lock:
            if self._closed:
                raise Unavailable("the node is stopping")
            if self._executor is None:
                use_threads(self._config.threads or None)
                self._executor = DeviceExecutor(max_batch=self._config.batch_max, max_queue=self._config.queue_max)
            return self._executor

    def _open(self, model: str) -> ArrowEngine:
        from aios_node.engine.runtime.engine import ArrowEngine

        version = self._store.active(model)
        if version is None:
            raise UnknownModel(f"model {model!r} has no active version")
        with self._store.pin(version) as path:
            return ArrowEngine.open(
                path, device=self._config.device, mode=self._config.mode, timings=self._prepared().timings
            )

    def _prepared(self) -> Preparation:
        from aios_node.engine.runtime.prepared import Preparation

        if self._preparation is None:
            self._preparation = Preparation(self._reopen)
        return self._preparation

    def _reopen(self) -> None:
        """Open models again that were opened before this machine was ready for few bits."""
        with self._lock:
            waiting = [model for model in self._engines if self._facts(model).quant != "none"]
        for model in waiting:
            self._open_again(model)

    def _open_again(self, model: str) -> None:
        with self._lock:
            engine = self._engines.get(model)
            version = self._store.active(model)
        if engine is None or version is None:
            return  # closed meanwhile
        try:
            with self._store.pin(version) as path:
                changed = engine.reopen(path)
        except AiosError as error:
            log.warning("model stays as it was opened", model=model, mode="float32", error=error.message)
        else:
            if changed:
                log.info("model opened again", model=model, mode=engine.mode)

    def _changed(self, event: Event) -> None:
        if event.kind != "activated":
            return
        with self._lock:
            engine = self._engines.get(event.model)
        if engine is None or engine.version == event.version:
            return
        with self._store.pin(event.version) as path:
            engine.swap(path)
        self.on_swap(event.model, event.version)

    def _facts(self, model: str) -> Facts:
        state = self._store.picture.model(model)
        return self._store.picture.facts[state.pointers.active or state.versions[-1]]

    def _settings(self, model: str) -> dict[str, object]:
        """What the active version's config.json says for us; read once, as versions never change."""
        version = self._store.active(model)
        if version is None:
            return {}
        settings = self._read.get(version)
        if settings is None:
            settings = self._read_settings(version)
            if settings is not None:
                self._read[version] = settings
        return settings or {}

    def _read_settings(self, version: str) -> dict[str, object] | None:
        """None where the file cannot be read now: a damaged version may be healed."""
        try:
            with self._store.pin(version) as path:
                file = path / "config.json"
                if not file.is_file() or file.stat().st_size > MAX_CONFIG_BYTES:
                    return {}
                settings = json.loads(file.read_bytes()).get("aios", {})
        except (OSError, AiosError):
            return None
        except (ValueError, AttributeError):
            return {}
        return settings if isinstance(settings, dict) else {}


class NodeEmbedder:
    """Memory's embedder: the node's default encoder, whichever version is active."""

    def __init__(self, models: ModelHost) -> None:
        self._models = models

    @property
    def ready(self) -> bool:
        """Whether there is an encoder at all."""
        return self._models.default_encoder() is not None

    @property
    def space(self) -> str:
        """The embedding space that all versions and precisions of the encoder share."""
        name = self._models.encoder_name(None)
        return self._models.space(name) or name

    @property
    def dimension(self) -> int:
        """Length of a vector."""
        return self._models.engine(self._models.encoder_name(None)).dimension

    def encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Vectors float32 [n, d] of unit length."""
        if not texts:
            raise BadRequest("there is no text to embed")
        return self._models.encode(self._models.encoder_name(None), texts)[0]
