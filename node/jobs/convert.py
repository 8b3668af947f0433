"""Model files -> version folder, and version folder -> files for people."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aios_node.engine.errors import Corrupt

if TYPE_CHECKING:
    from aios_node.engine.quant.blocks import Tensor

Progress = Callable[[float, str], None]


@dataclass(frozen=True)
class ImportJob:
    """Files ``src`` -> version folder."""

    src: Path
    format: str
    quant: str
    folder: Path
    parents: tuple[str, ...]


@dataclass(frozen=True)
class ExportJob:
    """A version folder -> ``dest`` as ``safetensors`` or ``parquet``."""

    folder: Path
    dest: Path
    format: str


def import_model(job: ImportJob, progress: Progress) -> str:
    """Read, check, convert and write; returns the kind of model."""
    from aios_node.engine.weights.convert.detect import import_any
    from aios_node.engine.weights.folder import write_folder

    progress(0.0, "reading")
    source = import_any(job.src, job.format)
    weights, recipe = _in_precision(source.weights, job.quant, progress)
    progress(0.9, "writing")
    write_folder(job.folder, weights, source.files, parents=job.parents, recipe=recipe)
    return source.kind


def export(job: ExportJob, progress: Progress) -> dict[str, Any]:
    """Write a version to a new folder; returns the files' names and bytes together."""
    from aios_node.engine.weights.folder import read_folder, write_folder

    progress(0.0, "writing")
    source = read_folder(job.folder)
    files = {name: source.read_file(name) for name in source.files}
    with source.weights() as weights:
        if job.format == "parquet":
            manifest = source.manifest
            written = write_folder(
                job.dest,
                weights,
                files,
                parents=manifest.parents,
                recipe=manifest.recipe,
                derived_from=manifest.derived_from,
            )
            if written.version != source.version:
                raise Corrupt(f"the export of {source.version[:12]} came out as {written.version[:12]}")
        else:
            _write_safetensors(weights, files, job.dest)
    names = sorted(path.name for path in job.dest.iterdir())
    return {"files": names, "bytes": sum((job.dest / name).stat().st_size for name in names)}


def _write_safetensors(weights: Mapping[str, Tensor], files: Mapping[str, bytes], dest: Path) -> None:
    from aios_node.engine.weights.convert.safetensors import export_file
    from aios_node.engine.weights.network import NetworkWeights

    dest.mkdir(parents=True, exist_ok=True)
    export_file(dest / "model.safetensors", NetworkWeights(weights))
    for name, data in files.items():
        (dest / name).write_bytes(data)


def _in_precision(
    weights: Mapping[str, Tensor], quant: str, progress: Progress
) -> tuple[Mapping[str, Tensor], dict[str, Any] | None]:
    if quant == "none":
        return weights, None
    if quant == "fp16":
        from aios_node.engine.quant.cast import cast_weights

        return cast_weights(weights, "float16"), {"method": "cast", "dtype": "float16"}
    from aios_node.engine.quant.ptq import ArrowQuantizer
    from aios_node.engine.quant.recipe import preset

    config = preset(quant)
    quantized = ArrowQuantizer(config).quantize(weights, progress=_by_tensor(progress))
    return quantized, config.to_json()


def _by_tensor(progress: Progress) -> Callable[[str, int, int], None]:
    """The quantiser's progress (tensor, done, all) as a job's; writing takes the last tenth."""

    def report(name: str, done: int, count: int) -> None:
        progress(0.9 * done / max(count, 1), name)

    return report
