"""Coverage-guided fuzzing of one decoder with atheris: ``run_fuzz.py TARGET SECONDS CORPUS``, or ``--list``.

The corpus folder is seeded from the golden files and kept between runs, so that a second run goes on where the
first stopped. An error outside of the project's tree, a crash, a hang of 20 seconds or 2 GB of memory end the run
with the input left in ``CORPUS/../TARGET.crash-*``.
"""

from __future__ import annotations

import hashlib
import re
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "support"))

HANG_S = 20
MEMORY_MB = 2048
MOST_BYTES = 65_536


def main() -> None:
    if sys.argv[1:] == ["--list"]:
        print("\n".join(targets()))
        return
    import atheris

    name, seconds, corpus = sys.argv[1], int(sys.argv[2]), Path(sys.argv[3]) / sys.argv[1]
    # Only what decodes: importing NumPy or Arrow instrumented takes minutes and tells nothing.
    with atheris.instrument_imports(include=["aios_node", "sqlglot", "yaml"], exclude=compiled()):
        known = targets()
    from aios_node.engine.errors import AiosError

    target = known[name]
    corpus.mkdir(parents=True, exist_ok=True)
    for seed in target.seeds:
        (corpus / hashlib.sha256(seed).hexdigest()[:16]).write_bytes(seed)

    def one(data: bytes) -> None:
        try:
            target.run(data)
        except AiosError:
            return

    options = [
        sys.argv[0],
        str(corpus),
        f"-max_total_time={seconds}",
        f"-max_len={max(MOST_BYTES, 2 * max(map(len, target.seeds)))}",
        f"-timeout={HANG_S}",
        f"-rss_limit_mb={MEMORY_MB}",
        f"-artifact_prefix={corpus.parent / name}.",
        "-print_final_stats=1",
        "-verbosity=0",
    ]
    atheris.Setup(options, one)
    atheris.Fuzz()


def compiled() -> list[str]:
    """Modules with loops that numba compiles: it cannot compile them once they are instrumented."""
    root = Path(__file__).resolve().parents[2]
    rooms = [path for room in ("delta", "engine", "memory") for path in (root / room).rglob("*.py")]
    found = [path for path in rooms if re.search(r"engine\.jit|numba", path.read_text(encoding="utf-8"))]
    return ["aios_node." + ".".join(path.relative_to(root).with_suffix("").parts) for path in found]


def targets() -> dict[str, object]:
    """All decoders by name."""
    import delta_targets
    import node_targets
    import privacy_targets

    return {**delta_targets.TARGETS, **node_targets.TARGETS, **privacy_targets.TARGETS}


if __name__ == "__main__":
    main()
