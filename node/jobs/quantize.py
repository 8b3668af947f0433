"""Version folder -> quantised version folder."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aios_node.delta.offers import Source
from aios_node.engine.errors import BadConfig

Progress = Callable[[float, str], None]
MAX_RECIPE_BYTES = 1 << 20


@dataclass(frozen=True)
class QuantizeJob:
    """``recipe`` is a QuantizationConfig as JSON; ``previous``: the version whose scales stay frozen."""

    source_folder: Path
    folder: Path
    recipe: Mapping[str, Any]
    source: Source | None
    parents: tuple[str, ...]
    previous: Path | None


def quantize(job: QuantizeJob, progress: Progress) -> int:
    """Write the quantised version to ``job.folder``; returns the bytes of the source's tensors."""
    from aios_node.engine.quant.ptq import ArrowQuantizer
    from aios_node.engine.quant.recipe import QuantizationConfig
    from aios_node.engine.weights.folder import read_folder, write_folder

    config = QuantizationConfig.from_json(job.recipe)
    source = read_folder(job.source_folder)
    with ExitStack() as stack:
        weights = stack.enter_context(source.weights())
        old = read_folder(job.previous) if job.previous else None
        previous = stack.enter_context(old.weights()) if old else None
        quantizer = ArrowQuantizer(config)
        quantized = quantizer.quantize(weights, previous=previous, progress=by_tensor(progress))
        progress(0.9, "writing")
        write_folder(
            job.folder,
            quantized,
            {name: source.read_file(name) for name in source.files},
            parents=job.parents,
            recipe=config.to_json(),
            derived_from={"model": job.source.model, "version": job.source.version} if job.source else None,
            reuse=old,
        )
    return source.manifest.nbytes


def by_tensor(progress: Progress) -> Callable[[str, int, int], None]:
    """The quantiser's progress (tensor, done, all) as a job's; writing takes the last tenth."""

    def report(name: str, done: int, count: int) -> None:
        progress(0.9 * done / max(count, 1), name)

    return report


def read_recipe(quant: str | None, group: int | None, file: Path | None) -> dict[str, Any]:
    """The recipe that options or a YAML file ask for, checked before any work starts. Raises BadConfig."""
    from aios_node.engine.quant.recipe import QuantizationConfig, preset

    if file is not None:
        if quant is not None or group is not None:
            raise BadConfig("a recipe file says everything: leave out --quant and --group")
        return QuantizationConfig.from_json(_load(file)).to_json()
    if quant is None:
        raise BadConfig("say what to make: --quant int8, int4 or int2, or --recipe FILE")
    recipe = preset(quant).to_json()
    if group is not None:
        recipe["group_size"] = group
    return QuantizationConfig.from_json(recipe).to_json()


def _load(file: Path) -> dict[str, Any]:
    import yaml

    try:
        if file.stat().st_size > MAX_RECIPE_BYTES:
            raise BadConfig(f"{file} is larger than 1 MiB, which no recipe is")
        loaded = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise BadConfig(f"recipe {file} cannot be read: {error}") from None
    except yaml.YAMLError as error:
        raise BadConfig(f"recipe {file} is not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(loaded, dict):
        raise BadConfig(f"recipe {file} must be a mapping such as `quant: int4`")
    return loaded
