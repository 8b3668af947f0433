"""ArrowEngine: opening, encoding, swapping under load, closing."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import aios_node.engine
from aios_node.engine import ArrowEngine
from aios_node.engine.errors import (
    AiosError,
    BadConfig,
    BadRequest,
    BadWeights,
    Corrupt,
    HashMismatch,
    NotFound,
    Unavailable,
)
from aios_node.engine.quant.ptq import ArrowQuantizer
from aios_node.engine.quant.recipe import presets
from aios_node.engine.weights.folder import read_folder, write_folder

TEXTS = ["How do I open a file?", "", "Sparrows and other birds", "word " * 500]
SENTENCES = [
    "A man is eating food.",
    "The girl is carrying a baby, and somebody else rides a horse on an enclosed ground.",
    "Return the current working directory as a string.",
    "Deltas travel between machines; hashes prove that nothing was lost on the way.",
    "The stock market fell sharply on Monday after a long summer of gains.",
    "Connect to a remote host and negotiate an encrypted channel before any data is sent.",
]


def test_minilm_from_its_version_folder(minilm_version: Path) -> None:
    with ArrowEngine.open(minilm_version) as engine:
        assert engine.dimension == 384
        assert engine.space == "minilm"
        assert engine.version == read_folder(minilm_version).version
        vectors = engine.encode(TEXTS)
        np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
        assert engine.encode([]).shape == (0, 384)
        assert engine.encode(("tuple",)).dtype == np.float32


@pytest.mark.parametrize(("quant", "least"), [("int8", 0.999), ("int4", 0.96)])
def test_quantised_folders_are_recognised_by_themselves(
    minilm_version: Path,
    minilm_weights: dict[str, Any],
    minilm_files: dict[str, bytes],
    tmp_path: Path,
    quant: str,
    least: float,
) -> None:
    small = ArrowQuantizer(presets()[quant]).quantize(minilm_weights)
    folder = write_folder(tmp_path / quant, small, minilm_files)
    opened = ArrowEngine.open(folder.path, device="cpu", mode="float32")
    with opened as engine, ArrowEngine.open(minilm_version) as full:
        assert engine.version != full.version
        cosine = (engine.encode(SENTENCES) * full.encode(SENTENCES)).sum(axis=1)
    assert cosine.mean() > least


def test_tokens_and_back(tiny_versions: tuple[Path, Path]) -> None:
    with ArrowEngine.open(tiny_versions[0]) as engine:
        assert engine.tokenize(["hello world"]) == [[101, 7592, 2088, 102]]
        assert len(engine.tokenize(["word " * 500])[0]) == 502
        assert engine.detokenize([[101, 7592, 2088, 102]]) == ["hello world"]
        with pytest.raises(BadRequest, match="vocabulary"):
            engine.detokenize([[-5]])


@pytest.mark.parametrize("texts", ["one", b"one", 5, [1], [None], ["\udfff"], {"a"}, iter(["a"])])
def test_bad_texts_are_refused(tiny_versions: tuple[Path, Path], texts: Any) -> None:
    with ArrowEngine.open(tiny_versions[0]) as engine, pytest.raises(BadRequest):
        engine.encode(texts)


def test_the_memory_it_is_given_is_kept(tiny_versions: tuple[Path, Path]) -> None:
    memory = object()
    with ArrowEngine.open(tiny_versions[0], memory=memory) as engine:
        assert engine.memory is memory


def test_unknown_devices_are_refused(tiny_versions: tuple[Path, Path]) -> None:
    with pytest.raises(BadConfig, match="device"):
        ArrowEngine.open(tiny_versions[0], device="abacus")


def test_swap_changes_vectors_version_and_nothing_else(tiny_versions: tuple[Path, Path]) -> None:
    old, new = tiny_versions
    with ArrowEngine.open(old) as engine, ArrowEngine.open(new) as other:
        before = engine.encode(TEXTS)
        device = engine.device
        assert engine.swap(str(new)) == engine.version == other.version
        assert np.allclose(engine.encode(TEXTS), other.encode(TEXTS), atol=1e-6)
        assert not np.allclose(engine.encode(TEXTS), before, atol=1e-2)
        assert engine.device == device
        engine.swap(old)
        assert np.allclose(engine.encode(TEXTS), before, atol=1e-6)


def test_a_request_that_runs_finishes_on_its_version(tiny_versions: tuple[Path, Path]) -> None:
    old, new = tiny_versions
    with ArrowEngine.open(old) as engine:
        expected = engine.encode(TEXTS)
        running = engine.snapshot
        engine.swap(new)
        engine.close()
        np.testing.assert_allclose(running.encode(TEXTS), expected, atol=1e-6)


@pytest.mark.parametrize("seed", range(3))
def test_encoding_while_swapping_never_fails_and_never_mixes(tiny_versions: tuple[Path, Path], seed: int) -> None:
    random = np.random.default_rng(seed)
    texts = [f"{word} number {n}" for n in range(30) for word in ("file", "socket", "bird")]
    with ArrowEngine.open(tiny_versions[0]) as old, ArrowEngine.open(tiny_versions[1]) as new:
        expected = [old.encode(texts), new.encode(texts)]
    picks = [random.choice(len(texts), size=random.integers(1, 12)) for _ in range(60)]
    stop = threading.Event()
    with ArrowEngine.open(tiny_versions[0]) as engine, ThreadPoolExecutor(5) as pool:

        def swap_on() -> int:
            swaps = 0
            while not stop.is_set() or swaps < 4:
                swaps += 1
                engine.swap(tiny_versions[swaps % 2])
            return swaps

        def is_one_of_both(pick: np.ndarray[Any, Any]) -> bool:
            vectors = engine.encode([texts[index] for index in pick])
            return any(np.allclose(vectors, version[pick], atol=1e-5) for version in expected)

        swaps = pool.submit(swap_on)
        try:
            assert all(pool.map(is_one_of_both, picks))
        finally:
            stop.set()
        assert swaps.result() >= 4


def test_after_close_everything_says_so(tiny_versions: tuple[Path, Path]) -> None:
    engine = ArrowEngine.open(tiny_versions[0])
    engine.close()
    engine.close()
    questions: list[Callable[[], object]] = [
        lambda: engine.encode(["x"]),
        lambda: engine.tokenize(["x"]),
        lambda: engine.version,
        lambda: engine.dimension,
        lambda: engine.swap(tiny_versions[1]),
    ]
    for question in questions:
        with pytest.raises(Unavailable, match="closed"):
            question()


def _without_config(folder: Path) -> None:
    (folder / "config.json").unlink()


def _other_config(folder: Path) -> None:
    data = (folder / "config.json").read_bytes()
    (folder / "config.json").write_bytes(data.replace(b"0.1", b"0.2", 1))


def _short_shard(folder: Path) -> None:
    shard = next(folder.glob("*.parquet"))
    shard.write_bytes(shard.read_bytes()[:-100])


def _no_manifest(folder: Path) -> None:
    (folder / "manifest.json").unlink()


def _broken_manifest(folder: Path) -> None:
    (folder / "manifest.json").write_bytes(b"{}")


@pytest.mark.parametrize(
    ("harm", "error"),
    [
        (_without_config, NotFound),
        (_other_config, HashMismatch),
        (_short_shard, Corrupt),
        (_no_manifest, NotFound),
        (_broken_manifest, Corrupt),
    ],
)
def test_a_harmed_version_is_neither_opened_nor_swapped_in(
    tiny_versions: tuple[Path, Path],
    tiny_weights: Callable[[int], dict[str, Any]],
    tiny_files: dict[str, bytes],
    tmp_path: Path,
    harm: Callable[[Path], None],
    error: type[AiosError],
) -> None:
    broken = write_folder(tmp_path / "broken", tiny_weights(5), tiny_files).path
    harm(broken)
    with pytest.raises(error):
        ArrowEngine.open(broken)
    with ArrowEngine.open(tiny_versions[0]) as engine:
        before, version = engine.encode(TEXTS), engine.version
        with pytest.raises(error):
            engine.swap(broken)
        assert engine.version == version
        assert np.array_equal(engine.encode(TEXTS), before)


def test_a_version_without_a_tokeniser_is_stored_but_not_run(
    tiny_weights: Callable[[int], dict[str, Any]], tiny_files: dict[str, bytes], tmp_path: Path
) -> None:
    folder = write_folder(tmp_path / "bare", tiny_weights(1), {"config.json": tiny_files["config.json"]})
    with pytest.raises(BadWeights, match=r"no tokenizer\.json"):
        ArrowEngine.open(folder.path)


def test_a_version_that_computes_nonsense_is_not_swapped_in(
    tiny_versions: tuple[Path, Path],
    tiny_weights: Callable[[int], dict[str, Any]],
    tiny_files: dict[str, bytes],
    tmp_path: Path,
) -> None:
    huge = {name: tensor * np.float32(1e30) for name, tensor in tiny_weights(1).items()}
    folder = write_folder(tmp_path / "huge", huge, tiny_files)
    with ArrowEngine.open(tiny_versions[0]) as engine:
        version = engine.version
        with pytest.raises(BadWeights, match="not finite"):
            engine.swap(folder.path)
        assert engine.version == version


def test_a_configuration_for_other_weights_is_refused(
    tiny_weights: Callable[[int], dict[str, Any]], tiny_files: dict[str, bytes], tmp_path: Path
) -> None:
    config = json.loads(tiny_files["config.json"]) | {"num_hidden_layers": 3}
    files = tiny_files | {"config.json": json.dumps(config).encode()}
    folder = write_folder(tmp_path / "three", tiny_weights(1), files)
    with pytest.raises(BadWeights, match=r"encoder\.layer\.2.*missing"):
        ArrowEngine.open(folder.path)


def test_the_public_names_are_these() -> None:
    assert aios_node.engine.__all__ == ["ArrowEngine"]
    with pytest.raises(AttributeError, match="no attribute 'Engine'"):
        aios_node.engine.Engine  # noqa: B018
