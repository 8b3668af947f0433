"""Version folders -> package to send, and package that arrived -> version folder."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from aios_node.delta.offers import PackageInfo

if TYPE_CHECKING:
    from aios_node.delta.store.backward import Route

Progress = Callable[[float, str], None]
CLOSE_TO_FULL: Final = 0.5
"""A delta that takes more than this share of the raw version is compared with a full package."""


@dataclass(frozen=True)
class PackageJob:
    """A version to send, from a base or in full, into the file ``out``."""

    base: Path | None
    target: Path
    envelope: bytes | None
    codecs: tuple[str, ...]
    out: Path


@dataclass(frozen=True)
class ApplyJob:
    """A package, the base it was made from, and an empty folder for the version."""

    package: Path
    base: Path | None
    folder: Path


@dataclass(frozen=True)
class RebuildJob:
    """The way to an archived version, and an empty folder for it."""

    route: Route
    folder: Path


def build_package(job: PackageJob, progress: Progress) -> PackageInfo:
    """Write the package to ``job.out``, never larger than a full one; the same job always gives the same bytes."""
    info = _build(job, job.base, job.out, progress)
    if info.mode == "full" or info.bytes <= info.full_bytes * CLOSE_TO_FULL:
        return info
    beside = job.out.with_name(job.out.name + ".full")
    try:
        full = _build(job, None, beside, progress)
        if full.bytes >= info.bytes:
            return info
        beside.replace(job.out)
        return full
    finally:
        beside.unlink(missing_ok=True)


def rebuild_version(job: RebuildJob, _progress: Progress) -> None:
    """Follow backward deltas to an archived version and write it to ``job.folder``."""
    from aios_node.delta.store.backward import rebuild

    rebuild(job.route, job.folder)


def _build(job: PackageJob, base: Path | None, path: Path, progress: Progress) -> PackageInfo:
    from aios_node.delta.codec.body import Coding
    from aios_node.delta.package.package import build_package as build
    from aios_node.engine.weights.folder import read_folder

    with path.open("w+b") as out:
        return build(
            out,
            base=read_folder(base) if base else None,
            target=read_folder(job.target),
            envelope=job.envelope,
            coding=Coding(codecs=job.codecs),
            progress=lambda done, size: progress(done / max(size, 1), "encoding"),
        )


def apply_package(job: ApplyJob, progress: Progress) -> bytes | None:
    """Check the package, apply it to its base, write the version; returns the envelope that came along.

    Raises BadWeights for NaN and Inf, whoever signed them, and what opening packages raises.
    """
    from aios_node.delta.package.package import open_package
    from aios_node.engine.weights.convert.source import check_weights
    from aios_node.engine.weights.folder import read_folder, write_folder

    base = read_folder(job.base) if job.base else None
    with job.package.open("rb") as file, open_package(file, find_base=lambda _version: base) as package:
        progress(0.1, "applying")
        manifest = package.manifest
        written = write_folder(
            job.folder,
            package.weights,
            package.files,
            parents=manifest.parents,
            recipe=manifest.recipe,
            derived_from=manifest.derived_from,
            reuse=base,
        )
        with written.weights() as weights:
            check_weights(weights)
        return package.envelope
