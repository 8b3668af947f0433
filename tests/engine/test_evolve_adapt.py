"""Adaptation from start to end: the report on a tiny encoder, and real gain on MiniLM."""

from __future__ import annotations

import ast
import json
import sysconfig
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from aios_node.engine import ArrowEngine
from aios_node.engine.errors import BadRequest
from aios_node.engine.evolve.adapt import AdaptReport, adapt
from aios_node.engine.evolve.config import LoRAConfig
from aios_node.engine.evolve.pairs import Document, Pair, Split, make_pairs, split_pairs
from aios_node.engine.evolve.retrieval import Scores, evaluate
from aios_node.engine.evolve.train import Progress, TrainReport
from aios_node.engine.weights.folder import read_folder, write_folder

WORDS = ("file", "socket", "bird", "river", "number", "letter", "table", "window", "garden", "engine", "paper", "stone")
SPLIT = split_pairs(
    [Pair(f"about the {word}", f"somebody who looks for a {word} finds it here", n) for n, word in enumerate(WORDS)],
    held_out=0.4,
)
SMALL = LoRAConfig(rank=2, first_layer=0, steps=3, batch_size=4, question_tokens=8, document_tokens=16)


def test_the_report_says_what_the_new_weights_do(
    tiny_weights: Callable[[int], dict[str, Any]],
    tiny_files: dict[str, bytes],
    tiny_versions: tuple[Path, Path],
    tmp_path: Path,
) -> None:
    heard: list[Progress] = []
    result = adapt(tiny_weights(1), tiny_files, SPLIT, SMALL, heard.append)
    report = result.report
    assert len(heard) == report.training.steps == 3
    folder = write_folder(tmp_path / "new", result.weights, tiny_files, parents=[read_folder(tiny_versions[0]).version])
    questions = [pair.question for pair in SPLIT.held_out]
    documents = [pair.answer for pair in (*SPLIT.train, *SPLIT.held_out)]
    answers = [len(SPLIT.train) + number for number in range(len(SPLIT.held_out))]
    with ArrowEngine.open(tiny_versions[0], "cpu") as old, ArrowEngine.open(folder.path, "cpu") as new:
        assert report.before == evaluate(old.encode, questions, documents, answers)
        assert report.after == evaluate(new.encode, questions, documents, answers)
        assert report.stored == evaluate(new.encode, questions, documents, answers, stored=old.encode(documents))
        cosine = (old.encode(questions) * new.encode(questions)).sum(axis=1).mean()
        assert report.question_similarity == pytest.approx(cosine, abs=1e-5)
    raw = json.loads(json.dumps(report.to_json()))
    assert raw["before"]["questions"] == len(SPLIT.held_out)
    assert raw["similarity"] == pytest.approx((report.question_similarity + report.document_similarity) / 2)


def scores(mrr: float, recall: float = 0.5) -> Scores:
    return Scores(recall, recall, mrr, 10, 20)


@pytest.mark.parametrize(
    ("before", "after", "stored", "better"),
    [
        (scores(0.5), scores(0.6), scores(0.55), True),
        (scores(0.5), scores(0.6), scores(0.5), True),
        (scores(0.5), scores(0.5), scores(0.6), False),
        (scores(0.5), scores(0.6), scores(0.49), False),
        (scores(0.5, 0.5), scores(0.6, 0.4), scores(0.6), False),
    ],
)
def test_better_means_found_sooner_with_new_rows_and_no_later_with_old(
    before: Scores, after: Scores, stored: Scores, better: bool
) -> None:
    training = TrainReport(1, 2, 1.0, 0.5, 1.0, "steps")
    assert AdaptReport(before, after, stored, 0.95, 0.97, training).better is better


@pytest.mark.parametrize("missing", ["config.json", "tokenizer.json"])
def test_a_version_that_is_no_encoder_is_refused(
    tiny_weights: Callable[[int], dict[str, Any]], tiny_files: dict[str, bytes], missing: str
) -> None:
    files = {name: data for name, data in tiny_files.items() if name != missing}
    with pytest.raises(BadRequest, match=f"no {missing}"):
        adapt(tiny_weights(1), files, SPLIT, SMALL)


def test_without_held_out_questions_there_is_no_judgement(
    tiny_weights: Callable[[int], dict[str, Any]], tiny_files: dict[str, bytes]
) -> None:
    with pytest.raises(BadRequest, match="no pairs are held out"):
        adapt(tiny_weights(1), tiny_files, Split(SPLIT.train, ()), SMALL)


def docstrings() -> Iterator[Document]:
    """Documented functions and classes of some modules that every Python has, with their names."""
    root = Path(sysconfig.get_paths()["stdlib"])
    for name in ("argparse", "csv", "fractions", "mailbox", "pathlib", "random", "shutil", "statistics", "zipfile"):
        path = root / f"{name}.py" if (root / f"{name}.py").is_file() else root / name / "__init__.py"
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, (ast.ClassDef, ast.FunctionDef)) and (text := ast.get_docstring(node)):
                yield Document(f"{name}.{node.name}", text)


@pytest.mark.slow
def test_minilm_learns_to_find_documentation(minilm_weights: dict[str, Any], minilm_files: dict[str, bytes]) -> None:
    split = split_pairs(make_pairs(list(docstrings())), held_out=0.3)
    config = LoRAConfig(steps=12, batch_size=16, document_tokens=48)
    result = adapt(minilm_weights, minilm_files, split, config)
    report = result.report
    assert report.better
    assert report.after.mrr > report.before.mrr + 0.03
    assert report.similarity > 0.9
    changed = {name for name, tensor in minilm_weights.items() if result.weights[name] is not tensor}
    assert changed == {
        f"encoder.layer.{layer}.attention.self.{part}.weight" for layer in range(2, 6) for part in ("query", "value")
    }
    assert all(np.isfinite(result.weights[name]).all() for name in changed)
