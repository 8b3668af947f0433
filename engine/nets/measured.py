"""What products cost on this machine: a small table, measured once and kept as JSON.

One row of the table is one number of rows multiplied with a weight of [1536, 384]; its entries are microseconds per
mode. A file belongs to one machine: processor, its features, versions of torch and numba, number of threads. It may
be read, deleted (it is measured anew) or edited by people. Knows no networks.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from aios_node.engine.nets.int8 import Int8Linear, Rows, int8_works
from aios_node.engine.nets.kernels import affine
from aios_node.engine.nets.modes import Timings

ROWS = (1, 16, 256)
OUTPUTS, INPUTS = 1536, 384
REPEATS = 7
FEATURES = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "avx_vnni", "amx_int8", "asimddp", "i8mm", "bf16")
"""Names in /proc/cpuinfo of what makes products of few bits fast."""

_MAX_BYTES = 65_536
_log = logging.getLogger(__name__)
_in_memory: dict[str, dict[str, Any]] = {}

Measure = Callable[[], Mapping[str, Timings]]
"""Returns microseconds by number of rows (as text) and mode."""


def machine() -> dict[str, Any]:
    """What the measurements depend on."""
    info = Path("/proc/cpuinfo")
    words = info.read_text(encoding="utf-8", errors="replace") if info.is_file() else ""
    model = next((line.split(":", 1)[1].strip() for line in words.splitlines() if line.startswith("model name")), "")
    present = set(words.split())
    return {
        "processor": model or platform.processor() or platform.machine(),
        "features": [name for name in FEATURES if name in present],
        "torch": torch.__version__,
        "numba": metadata.version("numba"),
        "threads": torch.get_num_threads(),
    }


def default_folder(environment: Mapping[str, str] = os.environ) -> Path:
    """Where tables are kept when nobody says: ``$XDG_CACHE_HOME/aios-node``, else ``~/.cache/aios-node``."""
    base = environment.get("XDG_CACHE_HOME", "")
    return (Path(base) if Path(base).is_absolute() else Path.home() / ".cache") / "aios-node"


def kernel_table(folder: Path | None = None, *, measure: Measure | None = None) -> dict[str, Any]:
    """This machine's table: ``{"machine": ..., "microseconds": {"256": {"float32": ..., "int8": ...}, ...}}``.

    Read from ``folder`` (``default_folder()``), or measured and written there, where that is possible; measuring takes
    some milliseconds, besides compiling kernels the first time ever.
    """
    here = machine()
    path = _path(here, folder)
    known = _in_memory.get(str(path)) or _read(path)
    if known is None:
        found = (measure or measure_products)()
        known = {"machine": here, "microseconds": {rows: dict(row) for rows, row in found.items()}}
        _write(path, known)
    _in_memory[str(path)] = known
    return known


def table_path(folder: Path | None = None) -> Path:
    """Where this machine's table lies, or will."""
    return _path(machine(), folder)


def _path(here: Mapping[str, Any], folder: Path | None) -> Path:
    key = hashlib.sha256(json.dumps(here, sort_keys=True).encode()).hexdigest()[:16]
    return (folder or default_folder()) / f"kernels-{key}.json"


def batch_timings(folder: Path | None = None, *, measure: Measure | None = None) -> Timings:
    """The table's row for batches: microseconds per mode."""
    timings: Timings = kernel_table(folder, measure=measure)["microseconds"].get(str(max(ROWS)), {})
    return timings


def measure_products() -> dict[str, dict[str, float]]:
    """Measure now; medians of a few runs. A mode that does not run here is left out."""
    return {str(rows): {mode: _median(run) for mode, run in _candidates(rows).items()} for rows in ROWS}


def _candidates(rows: int) -> dict[str, Callable[[], object]]:
    weight, bias = torch.full((OUTPUTS, INPUTS), 0.01), torch.zeros(OUTPUTS)
    x = torch.full((rows, INPUTS), 0.5)
    half = [tensor.to(torch.bfloat16) for tensor in (x, weight, bias)]
    found: dict[str, Callable[[], object]] = {
        "float32": lambda: affine(x, weight, bias),
        "bfloat16": lambda: torch.nn.functional.linear(*half),
    }
    if int8_works():
        small, floats = Int8Linear.of(weight, bias), x.numpy()
        found["int8"] = lambda: small.floats(Rows.of(floats))
    return found


@torch.inference_mode()
def _median(run: Callable[[], object]) -> float:
    """Microseconds of a call."""
    run()
    times = []
    for _ in range(REPEATS):
        started = time.perf_counter()
        run()
        times.append(time.perf_counter() - started)
    return round(1e6 * statistics.median(times), 1)


def _read(path: Path) -> dict[str, Any] | None:
    """A table that was kept, or None where there is none that can be used."""
    try:
        if path.stat().st_size > _MAX_BYTES:
            return None
        found = json.loads(path.read_bytes())
        rows = found["microseconds"].values()
        numbers = [value for row in rows for value in row.values()]
        usable = all(type(value) in {int, float} and math.isfinite(value) and value > 0 for value in numbers)
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return None
    return found if usable and numbers else None


def _write(path: Path, table: Mapping[str, Any]) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        scratch = path.with_suffix(f".{os.getpid()}.tmp")
        scratch.write_text(json.dumps(table, indent=2) + "\n", encoding="utf-8")
        scratch.replace(path)
    except OSError as error:
        _log.debug("measurements are not kept: %s", error)
