"""Is a version folder what it claims to be? In full before a commit, at a glance when a store opens."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from aios_node.delta.names import check_model, check_version, short
from aios_node.delta.offers import Source
from aios_node.delta.store.heads import Facts
from aios_node.engine.errors import AiosError, HashMismatch
from aios_node.engine.weights.folder import read_folder, verify_folder
from aios_node.engine.weights.manifest import Manifest


def verify_version(folder: Path, expected: str | None = None) -> Manifest:
    """Recompute every hash in a version folder. Raises Corrupt, or HashMismatch if it is not ``expected``."""
    manifest = verify_folder(folder).manifest
    if expected is not None and manifest.version != expected:
        raise HashMismatch(
            f"the version has the id {short(manifest.version)} instead of {short(expected)}: nothing was changed"
        )
    return manifest


def quick_check(folder: Path, version: str) -> str | None:
    """What is wrong with a stored version, as far as names, sizes and the manifest's hash tell; None if nothing."""
    try:
        found = read_folder(folder)
    except AiosError as error:
        return error.message
    return None if found.version == version else "its manifest has another hash"


def facts_of(manifest: Manifest, ancestors: Sequence[str] = ()) -> Facts:
    """What the store keeps in its books about a version."""
    source = manifest.derived_from
    return Facts(
        id=manifest.version,
        parents=tuple(manifest.parents),
        quant=manifest.quant,
        bytes=manifest.nbytes,
        derived_from=Source(check_model(source["model"]), check_version(source["version"])) if source else None,
        ancestors=tuple(check_version(version) for version in ancestors),
    )
