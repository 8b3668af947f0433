"""How far a version is from its reference: weights, what every layer gives, and the vectors of real texts."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from aios_node.node.jobs.probe import PROBE_TEXTS

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from aios_node.engine.weights.folder import VersionFolder

Progress = Callable[[float, str], None]
WORST = 5
COLUMNS = 24
"""Columns of the histogram of cosines."""

SHOWN_CHARACTERS = 200
"""So much is quoted of a text that came out badly."""

MAX_TEXTS = 2000
"""Texts that answers are compared on, at most: a sample of a larger file."""


@dataclass(frozen=True)
class CompareJob:
    """A version against its reference, on the texts of a file or the built-in ones.

    ``others``: further versions made of the same reference, by name, whose answers are measured too.
    """

    folder: Path
    reference: Path
    texts: Path | None = None
    others: tuple[tuple[str, Path], ...] = ()


def compare(job: CompareJob, progress: Progress) -> dict[str, Any]:
    """Per-tensor errors; where both are encoders, per-layer errors and the agreement of their vectors too."""
    from aios_node.engine.quant.validate import PrecisionValidator
    from aios_node.engine.weights.folder import read_folder
    from aios_node.engine.weights.network import NetworkWeights

    texts, source = _texts(job.texts)  # first: a file that cannot be read should not cost the rest
    mine, theirs = read_folder(job.folder), read_folder(job.reference)
    progress(0.2, "comparing weights")
    with mine.weights() as weights, theirs.weights() as reference:
        found = PrecisionValidator().compare(NetworkWeights(reference), NetworkWeights(weights)).to_json()
    for empty in ("failures", "passed"):
        del found[empty]  # nothing was demanded of them
    result = {
        "bytes": mine.manifest.nbytes,
        "reference_bytes": theirs.manifest.nbytes,
        "weights": found,
        "worst": sorted(found["tensors"], key=lambda tensor: tensor["cosine"])[:WORST],
        "embedding": None,
        "layers": [],
        "precisions": [],
    }
    if is_encoder(mine) and is_encoder(theirs):
        result |= _answers(job, texts, source, progress)
    return result


def quality(reference: Path, candidate: Path) -> dict[str, float] | None:
    """Agreement of the vectors of the built-in texts; None where a version computes none."""
    from aios_node.engine.errors import AiosError
    from aios_node.engine.runtime.compare import open_stored
    from aios_node.engine.weights.folder import read_folder

    if not is_encoder(read_folder(candidate)):
        return None
    try:
        return _agreement(candidate, PROBE_TEXTS, open_stored(reference).encode(PROBE_TEXTS))
    except AiosError:
        return None  # not an encoder that can be run: it was quantised by its weights alone


def is_encoder(folder: VersionFolder) -> bool:
    """Whether a version computes vectors of texts."""
    if "config.json" not in folder.files:
        return False
    settings: Mapping[str, Any] = json.loads(folder.read_file("config.json")).get("aios", {})
    return settings.get("kind") == "encoder"


def _texts(path: Path | None) -> tuple[Sequence[str], str]:
    from aios_node.engine.calibration.load import load_texts

    if path is None:
        return PROBE_TEXTS, "built in"
    return load_texts(path, limit=MAX_TEXTS).texts, str(path)


def _answers(job: CompareJob, texts: Sequence[str], source: str, progress: Progress) -> dict[str, Any]:
    from aios_node.engine.quant.agreement import agreement, cosines
    from aios_node.engine.runtime.compare import compare_answers, open_stored

    share = 0.6 / (1 + len(job.others))
    found = compare_answers(
        open_stored(job.reference),
        open_stored(job.folder),
        texts,
        lambda done, count: progress(0.4 + share * done / count, "comparing answers"),
    )
    cosine = cosines(found.reference, found.candidate)
    embedding = {
        **agreement(found.reference, found.candidate).to_json(),
        "source": source,
        "histogram": _histogram(cosine),
        "farthest": _farthest(texts, cosine),
    }
    precisions = []
    for number, (name, folder) in enumerate(job.others, 1):
        progress(0.4 + share * number, f"measuring {name}")
        precisions.append(_precision(name, folder, texts, found.reference))
    layers = [layer.to_json() for layer in found.layers]
    return {"embedding": embedding, "layers": layers, "precisions": precisions}


def _precision(name: str, path: Path, texts: Sequence[str], reference: NDArray[np.float32]) -> dict[str, Any]:
    """Size and quality of another version; without quality where its vectors cannot be compared."""
    from aios_node.engine.errors import AiosError
    from aios_node.engine.weights.folder import read_folder

    size = {"name": name, "bytes": read_folder(path).manifest.nbytes}
    try:
        return {**size, **_agreement(path, texts, reference)}
    except AiosError as error:
        return {**size, "problem": error.message}


def _agreement(path: Path, texts: Sequence[str], reference: NDArray[np.float32]) -> dict[str, float]:
    """How far a version's vectors of texts are from the reference's. Raises as ``open_stored``, ``agreement`` do."""
    from aios_node.engine.quant.agreement import agreement
    from aios_node.engine.runtime.compare import open_stored

    return agreement(reference, open_stored(path).encode(texts)).to_json()


def _histogram(cosine: NDArray[np.float64]) -> dict[str, list[float] | list[int]]:
    least = min(float(cosine.min()), 1 - 1e-4)  # vectors that are all alike still need columns of some width
    counts, edges = np.histogram(cosine, bins=COLUMNS, range=(least, 1.0))
    return {"counts": counts.tolist(), "edges": edges.tolist()}


def _farthest(texts: Sequence[str], cosine: NDArray[np.float64]) -> list[dict[str, Any]]:
    return [
        {"text": texts[index][:SHOWN_CHARACTERS], "cosine": float(cosine[index])}
        for index in np.argsort(cosine, kind="stable")[:WORST]
    ]


def failures(result: Mapping[str, Any], min_cosine: float | None, max_relative_error: float | None) -> list[str]:
    """What breaks the limits, a sentence each.

    Limits are for answers: the mean cosine of the vectors, and the relative error of every layer. For a model
    that gives none they are for the cosine and relative error of every tensor.
    """
    if result["embedding"]:
        cosines = [("the mean cosine of the embeddings", result["embedding"]["mean"])]
        errors = [(f"the relative error after {each['name']}", each["relative_error"]) for each in result["layers"]]
    else:
        tensors = result["weights"]["tensors"]
        cosines = [(f"the cosine of tensor {each['name']}", each["cosine"]) for each in tensors]
        errors = [(f"the relative error of tensor {each['name']}", each["relative_error"]) for each in tensors]
    low = [
        f"{what} is {value:.6f}, below {min_cosine:g}"
        for what, value in cosines
        if min_cosine is not None and not value >= min_cosine
    ]
    high = [
        f"{what} is {value:.6f}, above {max_relative_error:g}"
        for what, value in errors
        if max_relative_error is not None and not value <= max_relative_error
    ]
    return low + high
