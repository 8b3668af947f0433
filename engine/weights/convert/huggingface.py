"""Hugging Face folders: config.json, tokenizer.json, and weights in one or several files.

Sentence Transformers' description of pooling is read from the files beside it and kept in config.json under
``aios``, so that a version carries all that its vectors depend on. Knows file layouts; runs no network.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from aios_node.engine.errors import BadWeights, Corrupt, NotFound
from aios_node.engine.quant.blocks import Tensor
from aios_node.engine.weights.convert import pytorch
from aios_node.engine.weights.convert.safetensors import SafetensorsFile
from aios_node.engine.weights.convert.source import ModelSource, check_weights, small_files
from aios_node.engine.weights.disk import read_file
from aios_node.engine.weights.loader import LazyWeightDict
from aios_node.engine.weights.manifest import tensor_hash
from aios_node.engine.weights.names import check_file_name
from aios_node.engine.weights.shard import Shard

KEPT = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")
"""Small files that a version carries besides config.json."""

_CONFIG = "config.json"
_WEIGHTS, _INDEX, _PYTORCH = "model.safetensors", "model.safetensors.index.json", "pytorch_model.bin"
_MAX_JSON = 64 * 2**20
_MAX_SHARDS = 10_000
_DEFAULT_TOKENS = 256
_POOLINGS = {"pooling_mode_mean_tokens": "mean", "pooling_mode_cls_token": "cls"}


def import_folder(path: Path, *, embedding_space: str | None = None) -> ModelSource:
    """Import a model folder; safetensors stay mapped.

    A BERT-style encoder needs tokenizer.json and gets, in config.json, the section ``aios``: kind, pooling,
    normalize, max_tokens and embedding_space (by default a name derived from the weights, so that every node
    that imports the same files names the same space). Raises NotFound, Corrupt, BadWeights, TooLarge.
    """
    if not path.is_dir():
        raise NotFound(f"{path} does not exist or is no folder")
    config = _json_object(path / _CONFIG)
    files = dict(small_files(path, KEPT))
    weights = _weights(path)
    try:
        check_weights(weights)
        config["aios"] = _aios(path, config, weights, embedding_space)
        kind = config["aios"]["kind"]
        if kind == "encoder" and "tokenizer.json" not in files:
            raise BadWeights(f"{path} has no tokenizer.json: save the tokenizer in the fast format and import again")
        files[_CONFIG] = _json_bytes(config)
    except BaseException:
        if isinstance(weights, LazyWeightDict):
            weights.close()
        raise
    return ModelSource(weights, files, kind)


def _weights(path: Path) -> Mapping[str, Tensor]:
    if (path / _WEIGHTS).is_file():
        return LazyWeightDict([SafetensorsFile.open(path / _WEIGHTS)])
    if (path / _INDEX).is_file():
        return _sharded(path)
    if (path / _PYTORCH).is_file():
        return pytorch.import_file(path / _PYTORCH).weights
    raise NotFound(f"{path} holds no weights: {_WEIGHTS}, {_INDEX} or {_PYTORCH} is needed")


def _sharded(path: Path) -> LazyWeightDict:
    """The files that the index names, which must hold exactly the tensors that it lists."""
    listed = _json_object(path / _INDEX).get("weight_map")
    if not isinstance(listed, dict) or not all(isinstance(file, str) for file in listed.values()):
        raise Corrupt(f"{path / _INDEX} has no weight_map of tensor names to files")
    names = sorted({check_file_name(file) for file in listed.values()})
    if len(names) > _MAX_SHARDS:
        raise Corrupt(f"{path / _INDEX} names {len(names)} files; at most {_MAX_SHARDS} make a model")
    shards: list[Shard] = []
    try:
        for name in names:
            shards.append(SafetensorsFile.open(path / name))  # noqa: PERF401  (must be closed when one fails)
        weights = LazyWeightDict(shards)
        if {name: weights.file_of(name) for name in weights} != listed:
            raise Corrupt(f"{path / _INDEX} does not list exactly the tensors that its files hold")
    except BaseException:
        for shard in shards:
            shard.close()
        raise
    return weights


def _aios(path: Path, config: dict[str, Any], weights: Mapping[str, Tensor], space: str | None) -> dict[str, Any]:
    """The section ``aios`` of the new config.json; one that is there already is kept."""
    kept = config.get("aios")
    if isinstance(kept, dict) and isinstance(kept.get("kind"), str):
        return {**kept, "embedding_space": space} if space else kept
    if config.get("model_type") != "bert":
        return {"kind": "weights"}
    pooling, normalize = _pooling(path)
    return {
        "kind": "encoder",
        "pooling": pooling,
        "normalize": normalize,
        "max_tokens": _max_tokens(path, config),
        "embedding_space": space or _space(config, weights),
    }


def _pooling(path: Path) -> tuple[str, bool]:
    """Pooling and normalisation as Sentence Transformers' modules.json describes them; mean and True without."""
    if not (path / "modules.json").is_file():
        return "mean", True
    modules = _json(path / "modules.json")
    if not isinstance(modules, list) or not all(isinstance(module, dict) for module in modules):
        raise Corrupt(f"{path / 'modules.json'} is not a list of modules")
    kinds = {str(module.get("type", "")).rsplit(".", 1)[-1]: module for module in modules}
    if unknown := set(kinds) - {"Transformer", "Pooling", "Normalize"}:
        raise BadWeights(f"{path} needs module {min(unknown)[:60]!r} after the encoder, which is not supported")
    pooling = "mean"
    if "Pooling" in kinds:
        folder = check_file_name(kinds["Pooling"].get("path"))
        modes = _json_object(path / folder / _CONFIG)
        chosen = [key for key, value in modes.items() if key.startswith("pooling_mode_") and value is True]
        if len(chosen) != 1 or chosen[0] not in _POOLINGS:
            raise BadWeights(f"{path} pools by {chosen}; supported are: {', '.join(_POOLINGS)}")
        pooling = _POOLINGS[chosen[0]]
    return pooling, "Normalize" in kinds


def _max_tokens(path: Path, config: Mapping[str, Any]) -> int:
    beside = path / "sentence_bert_config.json"
    asked = _json_object(beside).get("max_seq_length") if beside.is_file() else None
    positions = config.get("max_position_embeddings")
    limit = positions if type(positions) is int and positions > 0 else _DEFAULT_TOKENS
    return min(asked if type(asked) is int and asked > 0 else _DEFAULT_TOKENS, limit)


def _space(config: Mapping[str, Any], weights: Mapping[str, Tensor]) -> str:
    """A name for the vectors of exactly these weights: kind, width, and a hash over all tensors."""
    digest = hashlib.sha256()
    for name in sorted(weights):
        digest.update(f"{tensor_hash(weights[name])} {name}\n".encode())
    return f"{config.get('model_type')}-{config.get('hidden_size')}-{digest.hexdigest()[:12]}"


def _json(path: Path) -> Any:
    try:
        return json.loads(read_file(path, _MAX_JSON))
    except (ValueError, RecursionError) as error:
        raise Corrupt(f"{path} is not valid JSON: {str(error)[:200]}") from None


def _json_object(path: Path) -> dict[str, Any]:
    value = _json(path)
    if not isinstance(value, dict):
        raise Corrupt(f"{path} is not a JSON object")
    return value


def _json_bytes(config: dict[str, Any]) -> bytes:
    try:
        return json.dumps(config, indent=2, sort_keys=True, allow_nan=False).encode() + b"\n"
    except (ValueError, RecursionError):
        raise Corrupt("config.json holds NaN or Inf") from None
