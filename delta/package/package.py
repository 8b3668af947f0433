"""What travels in a sync: a whole version as one deterministic stream of bytes, in full or as a delta.

    magic AIOSPKG1 | section: settings (JSON) | section: envelope | section: manifest | section per small file | body

The manifest of a delta is compressed with the base's manifest as dictionary, and small files that the base has are not
sent; a full package stands for itself. Building reads two version folders; opening reads a file and, for a delta, the
folder of the base. Every hash is checked before a caller sees content. Knows no network and writes no folders.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from types import TracebackType
from typing import BinaryIO, Final, Protocol

from aios_node.delta.checks import bounded
from aios_node.delta.codec.body import Change, Coding, write_tensors
from aios_node.delta.codec.compression import compress, decompress
from aios_node.delta.codec.plan import Step, changed_bytes, plan
from aios_node.delta.codec.stream import read_exactly, read_section, write_section
from aios_node.delta.limits import DEFAULT_LIMITS, Limits, check_size
from aios_node.delta.names import short
from aios_node.delta.offers import Mode, PackageInfo
from aios_node.delta.package.format import MAGIC, Settings, files_to_send
from aios_node.delta.package.weights import PackageWeights
from aios_node.engine.errors import Corrupt, HashMismatch, NoBase
from aios_node.engine.quant.blocks import Tensor
from aios_node.engine.weights.folder import VersionFolder
from aios_node.engine.weights.manifest import Manifest, file_entry
from aios_node.engine.weights.prediction import Prediction, read_prediction

_SETTINGS_BYTES: Final = 64 * 1024
_ENVELOPE_BYTES: Final = 64 * 1024
_LEVEL: Final = 9

Progress = Callable[[int, int], None]
"""Called with (raw bytes done, raw bytes in all)."""


class BaseVersion(Protocol):
    """What a delta is opened against: a version folder, or anything else that holds a whole version."""

    @property
    def version(self) -> str: ...

    @property
    def manifest(self) -> Manifest: ...

    def read_file(self, name: str) -> bytes: ...

    def weights(self) -> AbstractContextManager[Mapping[str, Tensor]]: ...


FindBase = Callable[[str], BaseVersion | None]
"""version id -> the version, or None where it is not here"""


def build_package(
    out: BinaryIO,
    *,
    base: VersionFolder | None,
    target: VersionFolder,
    envelope: bytes | None = None,
    coding: Coding | None = None,
    progress: Progress | None = None,
) -> PackageInfo:
    """Write the package that leads from ``base`` to ``target`` into an empty, seekable file.

    Without a base, or where coding against it saves nothing, the package is full. The same folders, envelope and
    coding give the same bytes. Raises what reading damaged folders raises.
    """
    coding = coding or Coding()
    info, base_used = _build(out, base, target, envelope, coding, progress)
    if base is not None and not base_used:
        out.seek(0)
        out.truncate()
        info, _ = _build(out, None, target, envelope, coding, progress)
    return info


def _build(
    out: BinaryIO,
    base: VersionFolder | None,
    target: VersionFolder,
    envelope: bytes | None,
    coding: Coding,
    progress: Progress | None,
) -> tuple[PackageInfo, bool]:
    """The package, and whether anything of the base was of use."""
    old, new = None if base is None else base.manifest, target.manifest
    settings = Settings(
        mode="full" if base is None else "delta",
        base=None if old is None else old.version,
        version=new.version,
        files=tuple(sorted(files_to_send(old, new))),
        coding=coding,
    )
    counted = _Counted(out)
    counted.write(MAGIC)
    write_section(counted, settings.to_bytes())
    write_section(counted, envelope or b"")
    write_section(counted, compress(new.to_bytes(), _LEVEL, dictionary=b"" if old is None else old.to_bytes()))
    for name in settings.files:
        write_section(counted, compress(target.read_file(name), _LEVEL))
    steps = plan(old, new)
    used = _write_body(counted, base, target, steps, coding, progress)
    info = PackageInfo(
        bytes=counted.bytes,
        sha256=counted.digest.hexdigest(),
        mode=settings.mode,
        base=settings.base,
        changed_bytes=changed_bytes(steps),
        full_bytes=new.nbytes + sum(entry.bytes for entry in new.files.values()),
    )
    return info, used


def _write_body(
    out: _Counted,
    base: VersionFolder | None,
    target: VersionFolder,
    steps: tuple[Step, ...],
    coding: Coding,
    progress: Progress | None,
) -> bool:
    """Returns whether anything of the base was used."""
    total = target.manifest.nbytes
    coded = [step for step in steps if step.mode != "same"]
    used, done = len(coded) < len(steps), total - sum(step.entry.nbytes for step in coded)
    with ExitStack() as stack:
        new = stack.enter_context(target.weights())
        old = None if base is None else stack.enter_context(base.weights())
        changes = (Change(step.entry, new[step.entry.name], *_origin(step, old, new)) for step in coded)
        tell = progress or (lambda _done, _total: None)
        tell(done, total)
        for entry, of_use in write_tensors(out, changes, coding):
            used |= of_use
            done += entry.nbytes
            tell(done, total)
    return used


def _origin(
    step: Step, old: Mapping[str, Tensor] | None, new: Mapping[str, Tensor]
) -> tuple[Tensor | None, Prediction | None]:
    """What a tensor may be coded against: its base, and what tensors beside it make of that."""
    if old is None or step.base is None:
        return None, None
    return old[step.entry.name], read_prediction(new, step.entry.name)


class _Counted:
    """A writer that counts and hashes what goes through."""

    def __init__(self, out: BinaryIO) -> None:
        self._out = out
        self.bytes = 0
        self.digest = hashlib.sha256()

    def write(self, data: bytes | memoryview, /) -> None:
        self._out.write(data)
        self.digest.update(data)
        self.bytes += len(data)


@dataclass(frozen=True)
class Package:
    """An open package. ``weights`` decodes a tensor each time it is asked for; ``files`` are all small files."""

    mode: Mode
    base: str | None
    manifest: Manifest
    envelope: bytes | None
    files: Mapping[str, bytes]
    weights: PackageWeights

    def __enter__(self) -> Package:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the base's files; the package's own file belongs to the caller."""
        self.weights.close()


def open_package(file: BinaryIO, *, find_base: FindBase | None = None, limits: Limits = DEFAULT_LIMITS) -> Package:
    """Open a package in a seekable file; close it after use.

    Raises NoBase for a delta whose base ``find_base`` does not have, HashMismatch when manifest or small files are not
    the promised ones, Corrupt, TooLarge or BadWeights for damaged and hostile bytes.
    """
    if read_exactly(file, len(MAGIC)) != MAGIC:
        raise Corrupt("this is not a package: it does not begin with AIOSPKG1")
    settings = Settings.from_bytes(read_section(file, "the settings of a package", _SETTINGS_BYTES))
    envelope = read_section(file, "the envelope", _ENVELOPE_BYTES)
    base = _find(settings, find_base)
    manifest = _read_manifest(file, settings, None if base is None else base.manifest, limits)
    files = _read_files(file, settings, manifest, base, limits)
    with ExitStack() as stack:
        old = {} if base is None else stack.enter_context(base.weights())
        steps = plan(None if base is None else base.manifest, manifest)
        weights = PackageWeights(file, steps, settings.coding, old, close=stack.pop_all())
    return Package(settings.mode, settings.base, manifest, envelope or None, files, weights)


def _find(settings: Settings, find_base: FindBase | None) -> BaseVersion | None:
    if settings.base is None:
        return None
    base = None if find_base is None else find_base(settings.base)
    if base is None or base.version != settings.base:
        raise NoBase(f"the package was made from version {short(settings.base)}, which is not here: ask for it in full")
    return base


def _read_manifest(file: BinaryIO, settings: Settings, base: Manifest | None, limits: Limits) -> Manifest:
    packed = read_section(file, "the manifest", limits.header_bytes)
    dictionary = b"" if base is None else base.to_bytes()
    manifest = Manifest.from_bytes(decompress(packed, most=limits.header_bytes, dictionary=dictionary))
    if manifest.version != settings.version:
        raise HashMismatch(
            f"the package promises version {short(settings.version)} and holds manifest {short(manifest.version)}"
        )
    return bounded(manifest, limits)


def _read_files(
    file: BinaryIO, settings: Settings, manifest: Manifest, base: BaseVersion | None, limits: Limits
) -> dict[str, bytes]:
    """Small files from the package, and the rest from the base."""
    sent = files_to_send(None if base is None else base.manifest, manifest)
    if settings.files != tuple(sorted(sent)):
        raise Corrupt("the package does not carry exactly the files that its manifest and base call for")
    check_size("all small files together", sum(entry.bytes for entry in manifest.files.values()), limits.files_bytes)
    files: dict[str, bytes] = {}
    for name in settings.files:
        packed = read_section(file, f"file {name}", limits.files_bytes)
        data = files[name] = decompress(packed, most=limits.files_bytes, exactly=sent[name].bytes)
        if file_entry(data) != sent[name]:
            raise HashMismatch(f"file {name} of the package does not have the hash that its manifest states")
    if base is not None:
        held = {entry.sha256: name for name, entry in base.manifest.files.items()}
        files |= {
            name: base.read_file(held[entry.sha256]) for name, entry in manifest.files.items() if name not in sent
        }
    return files
