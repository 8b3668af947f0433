"""Version folders -> package to send, and package that arrived -> version folder."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

Progress = Callable[[float, str], None]


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
