"""Operations on models: import, quantise, look, compare, activate, export."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from aios_node.delta.names import check_model
from aios_node.delta.offers import Source
from aios_node.engine.errors import BadRequest, UnknownModel, choices
from aios_node.node import jobs
from aios_node.node.archiving import stored_version
from aios_node.node.operations.general import NoArgs, model_summary
from aios_node.node.operations.lossy import LossyArgs, lossy_settings
from aios_node.node.operations.registry import Args, Progress, operation

if TYPE_CHECKING:
    from aios_node.delta.lossy.settings import LossySettings
    from aios_node.delta.store.heads import Pointers
    from aios_node.node.core import NodeCore

Quant = Literal["none", "fp16", "int8", "int4", "int2"]


class ModelArgs(Args):
    """A model."""

    model: str


class VersionArgs(Args):
    """A model and a version; none: the active one."""

    model: str
    version: str | None = None


class ActivateArgs(Args):
    """A version to serve."""

    model: str
    version: str


class ImportArgs(LossyArgs):
    """Files to read on the node's machine."""

    src: Path
    name: str
    format: str = "auto"
    quant: Quant = "none"


class QuantizeArgs(Args):
    """A source (a stored model's name, or files) and what to make of it."""

    src: str
    name: str
    quant: Literal["int8", "int4", "int2"] | None = None
    group: int | None = None
    method: Literal["ptq", "gptq", "tuned"] | None = None
    target_mb: float | None = None
    target_bpw: float | None = None
    calib: Path | None = None
    recipe: Path | None = None
    output: Path | None = None


class ExportArgs(Args):
    """A version and where to write it on the node's machine."""

    model: str
    dest: Path
    version: str | None = None
    format: Literal["safetensors", "parquet"] = "safetensors"


class DiffArgs(Args):
    """Two versions; the second defaults to the active one."""

    model: str
    old: str
    new: str | None = None


@operation("model_list", "{} -> {models}", "admin", "node/models")
def model_list(core: NodeCore, _args: NoArgs, _progress: Progress) -> dict[str, Any]:
    """All models."""
    return {"models": [model_summary(core, name) for name in core.store.models()]}


@operation(
    "versions",
    "{model} -> {model, active, heads, versions: [{id, parents, quant, bytes, created_at}], "
    "archived: [{id, created_at, bytes}]}",
    "read",
    "weights/{model}",
)
def versions(core: NodeCore, args: ModelArgs, _progress: Progress) -> dict[str, Any]:
    """All versions of a model, newest first."""
    known = core.store.versions(args.model)
    return {
        "model": args.model,
        "active": core.store.active(args.model),
        "heads": list(core.store.heads(args.model)),
        "versions": [
            {
                "id": info.id,
                "parents": list(info.parents),
                "quant": info.quant,
                "bytes": info.bytes,
                "created_at": info.created_at,
            }
            for info in known
        ],
        "archived": _archived(core, args.model),
    }


@operation(
    "model_show",
    "{model, version?} -> {model, version, parents, recipe, tensors, versions, archived}",
    "admin",
    "node/models",
)
def model_show(core: NodeCore, args: VersionArgs, _progress: Progress) -> dict[str, Any]:
    """One version in detail."""
    version = core.version(args.model, args.version)
    manifest = core.store.manifest(version)
    active = core.store.active(args.model)
    return {
        "model": args.model,
        "version": version,
        "parents": list(manifest.parents),
        "recipe": manifest.recipe,
        "derived_from": manifest.derived_from,
        "publisher": core.publisher_of(args.model, version),
        "files": {name: entry.bytes for name, entry in manifest.files.items()},
        "tensors": [
            {
                "name": entry.name,
                "shape": list(entry.shape),
                "dtype": entry.dtype,
                "quant": entry.quant_type,
                "bytes": entry.nbytes,
                "sha256": entry.sha256,
            }
            for entry in manifest.tensors
        ],
        "versions": [
            {"id": info.id, "parents": list(info.parents), "active": info.id == active}
            for info in core.store.versions(args.model)
        ],
        "archived": _archived(core, args.model),
    }


@operation(
    "model_import",
    "{src, name, format?, quant?, lossy?, share?} -> {model, version, tensors, bytes, kind, lossy?}",
    "admin",
    "node/models",
    long=True,
)
def model_import(core: NodeCore, args: ImportArgs, progress: Progress) -> dict[str, Any]:
    """Read a model from files and make it the active version."""
    check_model(args.name)
    if not args.src.exists():
        raise BadRequest(f"{args.src} does not exist")
    settings = lossy_settings(args)
    if settings is not None:
        return _import_lossy(core, args, settings, progress)
    with core.store.workspace() as folder:
        job = jobs.ImportJob(args.src, args.format, args.quant, folder, core.parents(args.name))
        core.workers.run(jobs.import_model, job, progress=progress)
        version = core.publish(args.name, folder)
    return _stored(core, args.name, version)


def _import_lossy(core: NodeCore, args: ImportArgs, settings: LossySettings, progress: Progress) -> dict[str, Any]:
    """Files as an update of few bits of the active version; what is lost is kept for the next update."""
    if args.quant != "none":
        raise BadRequest("quantised codes cannot take updates of few bits: import with quant none, then quantise")
    parents = core.parents(args.name)
    if not parents:
        raise BadRequest(f"{args.name} has no active version that could be updated: import it exactly first")
    with core.store.workspace() as folder, core.residuals.workspace() as kept, core.store.pin(parents[0]) as base:
        load = jobs.ImportJob(args.src, args.format, args.quant, folder, parents)
        job = jobs.LossyImportJob(load, base, jobs.LossyPlan(settings, kept))
        lost = core.workers.run(jobs.import_lossy, job, progress=progress)
        version = core.publish(args.name, folder)
        core.residuals.keep(args.name, version, kept)
    return {**_stored(core, args.name, version), "lossy": lost}


@operation(
    "model_quantize",
    "{src, name, quant|recipe|target_mb|target_bpw, group?, method?, calib?, output?} -> "
    "{model, version, bytes, source_bytes, recipe, quality, warnings, ...}",
    "admin",
    "node/models",
    long=True,
)
def model_quantize(core: NodeCore, args: QuantizeArgs, progress: Progress) -> dict[str, Any]:
    """Quantise a stored model or files: by plain rounding, GPTQ or tuning, to given bits or a size."""
    check_model(args.name)
    said = jobs.RecipeOptions(args.quant, args.group, args.method, args.target_mb, args.target_bpw, args.recipe)
    recipe = jobs.read_recipe(said)
    if args.output is not None:
        _must_be_empty(args.output)
    if args.calib is not None and not args.calib.exists():
        raise BadRequest(f"the calibration texts {args.calib} do not exist")
    with core.store.workspace() as imported, core.store.workspace() as folder:
        with _source(core, args.src, imported, progress) as (base, source):
            job = jobs.QuantizeJob(
                base,
                folder,
                recipe,
                source,
                core.parents(args.name),
                None,
                core.scratch,
                args.calib,
                args.target_bpw,
            )
            made = core.workers.run(jobs.quantize, job, progress=progress)
        version = core.publish(args.name, folder)
    if args.output is not None:
        _write_output(core, version, args.output)
    return {**_stored(core, args.name, version), **made}


@operation(
    "model_modes",
    "{} -> {file, machine, microseconds, configured, variable, quantised, models: [{name, mode}]}",
    "admin",
    "node/models",
    long=True,
)
def model_modes(core: NodeCore, _args: NoArgs, _progress: Progress) -> dict[str, Any]:
    """In which arithmetic models run here, and the measurements that this is chosen by."""
    return core.models.modes()


@operation("model_export", "{model, dest, version?, format?} -> {files, bytes}", "admin", "node/models", long=True)
def model_export(core: NodeCore, args: ExportArgs, progress: Progress) -> dict[str, Any]:
    """Write a version with its tokenizer and config to a new folder."""
    _must_be_empty(args.dest)
    version = core.version(args.model, args.version)
    with core.store.pin(version) as folder:
        job = jobs.ExportJob(folder, args.dest, args.format)
        written = core.workers.run(jobs.export, job, progress=progress)
    return {"model": args.model, "version": version, **written}


@operation(
    "model_diff",
    "{model, old, new?} -> {tensors, delta_bytes, full_bytes, ratio, changed_ratio}",
    "admin",
    "node/models",
    long=True,
)
def model_diff(core: NodeCore, args: DiffArgs, progress: Progress) -> dict[str, Any]:
    """What changed between two versions, and what it costs on the wire."""
    old, new = core.version(args.model, args.old), core.version(args.model, args.new)
    with core.store.pin(old) as base, core.store.pin(new) as target:
        found = core.workers.run(jobs.diff, jobs.DiffJob(base, target), progress=progress)
    return {"model": args.model, "old": old, "new": new, **found}


@operation("activate", "{model, version} -> {model, active, previous}", "admin", "weights/{model}")
def activate(core: NodeCore, args: ActivateArgs, _progress: Progress) -> dict[str, Any]:
    """Serve another version from now on; one that is only archived is rebuilt before."""
    return _pointers(core.store.activate(args.model, stored_version(core, args.model, args.version)))


@operation("rollback", "{model} -> {model, active, previous}", "admin", "weights/{model}")
def rollback(core: NodeCore, args: ModelArgs, _progress: Progress) -> dict[str, Any]:
    """Serve the version that was active before."""
    return _pointers(core.store.rollback(args.model))


def _pointers(pointers: Pointers) -> dict[str, Any]:
    return {"model": pointers.model, "active": pointers.active, "previous": pointers.previous}


def _archived(core: NodeCore, model: str) -> list[dict[str, Any]]:
    """Versions that ``activate`` can bring back, newest first; ``bytes`` is what each takes in the archive."""
    entries = core.store.archive.entries
    return [
        {"id": version, "created_at": member.created_at, "bytes": entries[version].size}
        for version, member in core.store.archived(model).items()
        if version in entries
    ]


def _stored(core: NodeCore, model: str, version: str) -> dict[str, Any]:
    manifest = core.store.manifest(version)
    return {
        "model": model,
        "version": version,
        "tensors": len(manifest.tensors),
        "bytes": manifest.nbytes,
        "kind": core.models.kind(model),
    }


@contextmanager
def _source(core: NodeCore, src: str, imported: Path, progress: Progress) -> Iterator[tuple[Path, Source | None]]:
    """Folder of the source, and its name where it is a stored model."""
    if src in core.store.models():
        version = core.version(src, None)
        with core.store.pin(version) as folder:
            yield folder, Source(src, version)
        return
    path = Path(src)
    if not path.exists():
        raise UnknownModel(f"{src!r} is neither a stored model nor a path: {choices(src, core.store.models())}")
    job = jobs.ImportJob(path, "auto", "none", imported, ())
    core.workers.run(jobs.import_model, job, progress=progress)
    yield imported, None


def _must_be_empty(folder: Path) -> None:
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise BadRequest(f"{folder} exists and is not an empty folder: name another one")


def _write_output(core: NodeCore, version: str, output: Path) -> None:
    with core.store.pin(version) as folder:
        core.workers.run(jobs.export, jobs.ExportJob(folder, output, "parquet"))
