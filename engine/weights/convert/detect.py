"""One way in for every format: look at what a path holds and call the importer for it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from aios_node.engine.errors import BadRequest, NotFound, choices
from aios_node.engine.weights.convert import pytorch, safetensors
from aios_node.engine.weights.convert.huggingface import KEPT, import_folder
from aios_node.engine.weights.convert.source import ModelSource, check_weights, small_files
from aios_node.engine.weights.folder import MANIFEST, verify_folder
from aios_node.engine.weights.loader import WeightLoader

_SUFFIXES = {
    ".safetensors": "safetensors",
    ".parquet": "parquet",
    ".bin": "pytorch",
    ".ckpt": "pytorch",
    ".pt": "pytorch",
    ".pth": "pytorch",
}


def import_any(src: Path | str, format: str = "auto") -> ModelSource:  # noqa: A002  (named as on the command line)
    """Import a model from a file or folder of any known format.

    Raises NotFound, BadRequest for an unknown format, and what the importers raise for bad content.
    """
    path = Path(src)
    if not path.exists():
        raise NotFound(f"{path} does not exist")
    chosen = detect(path) if format == "auto" else format
    if chosen not in IMPORTERS:
        raise BadRequest(f"there is no format {format!r:.60}: {choices(format, IMPORTERS)}")
    return IMPORTERS[chosen](path)


def detect(path: Path) -> str:
    """The format of a file or folder, by what it is called and holds. Raises BadRequest."""
    if path.is_file():
        if path.suffix.lower() in _SUFFIXES:
            return _SUFFIXES[path.suffix.lower()]
        raise BadRequest(f"{path} has none of the known endings: {', '.join(_SUFFIXES)}; or say which --format it has")
    if (path / MANIFEST).is_file() or any(path.glob("*.parquet")):
        return "parquet"
    if (path / "config.json").is_file():
        return "hf"
    raise BadRequest(f"{path} is no model folder: config.json with weights, or Parquet files are needed")


def import_parquet(path: Path) -> ModelSource:
    """Import a version folder (every hash is verified), a plain folder of Parquet files, or one file."""
    if path.is_dir() and (path / MANIFEST).is_file():
        folder = verify_folder(path)
        weights = folder.weights()
        files = {name: folder.read_file(name) for name in folder.files}
    else:
        weights = WeightLoader(path).open()
        files = dict(small_files(path, ("config.json", *KEPT))) if path.is_dir() else {}
    try:
        check_weights(weights)
    except BaseException:
        weights.close()
        raise
    return ModelSource(weights, files, _kind(files))


def _kind(files: dict[str, bytes]) -> str:
    """What config.json says this model is."""
    try:
        kind = json.loads(files["config.json"])["aios"]["kind"]
    except (KeyError, TypeError, ValueError, RecursionError):
        return "weights"
    return str(kind)


IMPORTERS: dict[str, Callable[[Path], ModelSource]] = {
    "hf": import_folder,
    "safetensors": safetensors.import_file,
    "pytorch": pytorch.import_file,
    "parquet": import_parquet,
}
