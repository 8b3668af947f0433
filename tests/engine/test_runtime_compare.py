"""Comparing the answers of two encoders."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from aios_node.engine.errors import BadRequest, BadWeights
from aios_node.engine.nets.sentences import SentenceEncoder
from aios_node.engine.quant.ptq import ArrowQuantizer
from aios_node.engine.quant.recipe import preset
from aios_node.engine.runtime.compare import compare_answers, open_stored
from aios_node.engine.runtime.engine import ArrowEngine
from aios_node.engine.tokenizer import FastTokenizer
from aios_node.engine.weights.folder import write_folder

TEXTS = ["a short one", "and another text, which is rather longer than the first", "", "word " * 100]


def test_a_model_agrees_with_itself(tiny_versions: tuple[Path, Path]) -> None:
    same = open_stored(tiny_versions[0])
    found = compare_answers(same, same, TEXTS)
    assert [layer.name for layer in found.layers] == ["embeddings", "encoder.layer.0", "encoder.layer.1"]
    assert [(layer.relative_error, layer.cosine) for layer in found.layers] == [(0, pytest.approx(1))] * 3
    with ArrowEngine.open(tiny_versions[0], device="cpu") as engine:
        np.testing.assert_allclose(found.reference, engine.encode(TEXTS), atol=1e-5)
    np.testing.assert_array_equal(found.reference, found.candidate)


def test_errors_are_those_of_the_real_tokens(tiny_versions: tuple[Path, Path]) -> None:
    """Text by text there is no padding: what comes out then is what must come out in batches, too."""
    one, other = map(open_stored, tiny_versions)
    batched = compare_answers(one, other, TEXTS)
    before, after = [], []
    for text in TEXTS:
        ids = torch.tensor(one.tokenizer.token_ids([text], 32))
        for net, states in ((one.net, before), (other.net, after)):
            states.append([state.detach().double().flatten() for state in net.states(ids, torch.ones_like(ids))])
    for number, layer in enumerate(batched.layers):
        b, a = (torch.cat([states[number] for states in every]) for every in (before, after))
        assert layer.relative_error == pytest.approx(float((a - b).norm() / b.norm()), rel=1e-5)
        assert layer.cosine == pytest.approx(float(a @ b / a.norm() / b.norm()), rel=1e-5)


def test_fewer_bits_are_further_away(
    tiny_weights: Callable[[int], dict[str, Any]], tiny_files: dict[str, bytes], tmp_path: Path
) -> None:
    weights = tiny_weights(1)
    reference = open_stored(write_folder(tmp_path / "fp32", weights, tiny_files).path)
    errors = []
    for quant in ("int8", "int4", "int2"):
        low = write_folder(tmp_path / quant, ArrowQuantizer(preset(quant)).quantize(weights), tiny_files)
        layers = compare_answers(reference, open_stored(low.path), TEXTS).layers
        errors.append([layer.relative_error for layer in layers[1:]])  # int4 has the same embeddings as int8
    assert np.all(np.diff(np.array(errors), axis=0) > 0)


def test_progress_counts_texts(tiny_versions: tuple[Path, Path]) -> None:
    seen: list[tuple[int, int]] = []
    same = open_stored(tiny_versions[0])
    compare_answers(same, same, TEXTS * 40, lambda done, count: seen.append((done, count)))
    assert seen == sorted(set(seen))
    assert seen[-1] == (160, 160)


def test_no_texts(tiny_versions: tuple[Path, Path]) -> None:
    same = open_stored(tiny_versions[0])
    with pytest.raises(BadRequest, match="no texts"):
        compare_answers(same, same, [])


def test_other_tokens_and_other_layers_are_refused(
    tiny_versions: tuple[Path, Path], tiny_files: dict[str, bytes], minilm_version: Path
) -> None:
    one = open_stored(tiny_versions[0])
    with pytest.raises(BadWeights, match="6 layers of width 384"):
        compare_answers(one, open_stored(minilm_version), TEXTS)
    settings = json.loads(tiny_files["tokenizer.json"])
    settings["normalizer"]["lowercase"] = False
    shouting = SentenceEncoder(one.net, FastTokenizer.from_bytes(json.dumps(settings).encode()))
    with pytest.raises(BadWeights, match="different tokens"):
        compare_answers(one, shouting, ["LOUD"])


def test_what_cannot_be_run_is_told(tmp_path: Path, tiny_weights: Callable[[int], dict[str, Any]]) -> None:
    folder = write_folder(tmp_path / "v", tiny_weights(1), {})
    with pytest.raises(BadWeights, match=r"has no config\.json"):
        open_stored(folder.path)
