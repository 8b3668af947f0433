"""Backward deltas: made from a kept version to a pruned one, and applied in chains to get the pruned one back.

A chain is read in layers: each package takes its base's tensors from the layer below as they are asked for, so
that rebuilding a version writes that version only and holds a few tensors, however long the chain is. Works on
files and folders that it is given; knows nothing of stores, models or bounds.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from aios_node.delta.disk import remove_folder
from aios_node.delta.names import short
from aios_node.delta.offers import PackageInfo
from aios_node.delta.package.package import BaseVersion, Package, build_package, open_package
from aios_node.engine.errors import HashMismatch, NoBase
from aios_node.engine.quant.blocks import Tensor
from aios_node.engine.weights.folder import VersionFolder, read_folder, write_folder
from aios_node.engine.weights.manifest import Manifest

HELD_BYTES: Final = 256 << 20
"""Decoded tensors that are kept while a version is written, so that none of a smaller one is decoded twice."""
LAYERS: Final = 32
"""Packages that are open over each other at once; longer chains write a folder in between."""

Encode = Callable[[Path, Path, Path], PackageInfo]
"""(folder of the successor, folder of the version that goes, file to write) -> what the package is"""


@dataclass(frozen=True)
class Route:
    """How to get an archived version back: the backward deltas to apply to the folder ``root``, in this order."""

    version: str
    root: Path
    links: tuple[Path, ...]


Rebuild = Callable[[Route, Path], None]
"""Follow a route and write the version into a folder that is empty."""


def encode_backward(successor: Path, target: Path, out: Path) -> PackageInfo:
    """Write the package that leads from a successor back to a version. Durable where the caller syncs it."""
    with out.open("w+b") as file:
        return build_package(file, base=read_folder(successor), target=read_folder(target))


def rebuild(route: Route, folder: Path) -> None:
    """Apply a chain of backward deltas and write the version at its end into ``folder``.

    Folders in between lie beside ``folder`` and go as soon as they are not needed: two at most. Every tensor is
    checked against its hash. Raises NoBase where a link is gone, HashMismatch or Corrupt where one is damaged.
    """
    stages = [route.links[start : start + LAYERS] for start in range(0, len(route.links), LAYERS)]
    between = [folder.with_name(f"{folder.name}.{number}") for number in range(1, len(stages))]
    below, version = route.root, ""
    try:
        for links, above in zip(stages, [*between, folder], strict=True):
            version = _write(below, links, above)
            if below != route.root:
                remove_folder(below)
            below = above
    finally:
        for stage in between:
            with contextlib.suppress(OSError):
                remove_folder(stage)
    if version != route.version:
        raise HashMismatch(f"the archive leads to version {short(version)} instead of {short(route.version)}")


@dataclass(frozen=True)
class _Layer:
    """A version that is not on disk: an open package as the base of another one."""

    package: Package

    @property
    def version(self) -> str:
        return self.package.manifest.version

    @property
    def manifest(self) -> Manifest:
        return self.package.manifest

    def read_file(self, name: str) -> bytes:
        return self.package.files[name]

    def weights(self) -> contextlib.AbstractContextManager[Mapping[str, Tensor]]:
        return contextlib.nullcontext(self.package.weights)


class _Held(Mapping[str, Tensor]):
    """Tensors that are kept once they were decoded, up to ``HELD_BYTES``."""

    def __init__(self, weights: Mapping[str, Tensor]) -> None:
        self._weights = weights
        self._kept: dict[str, Tensor] = {}
        self._room = HELD_BYTES

    def __getitem__(self, name: str) -> Tensor:
        if name in self._kept:
            return self._kept[name]
        tensor = self._weights[name]
        if tensor.nbytes <= self._room:
            self._room -= tensor.nbytes
            self._kept[name] = tensor
        return tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self._weights)

    def __len__(self) -> int:
        return len(self._weights)


def _write(root: Path, links: Sequence[Path], folder: Path) -> str:
    """Apply a few links over each other and write what is on top; returns its version id."""
    below: VersionFolder = read_folder(root)
    with ExitStack() as stack:
        layer: BaseVersion = below
        for link in links:
            layer = stack.enter_context(_opened(link, layer))
        manifest = layer.manifest
        written = write_folder(
            folder,
            _Held(stack.enter_context(layer.weights())),
            {name: layer.read_file(name) for name in manifest.files},
            parents=manifest.parents,
            recipe=manifest.recipe,
            derived_from=manifest.derived_from,
            reuse=below,
        )
    if written.version != manifest.version:
        raise HashMismatch(f"version {short(manifest.version)} came out as {short(written.version)}")
    return written.version


@contextlib.contextmanager
def _opened(link: Path, below: BaseVersion) -> Iterator[_Layer]:
    try:
        file = link.open("rb")
    except OSError as error:
        raise NoBase(f"a part of the archive is gone ({error.strerror}): ask for the version in full") from None
    with file, open_package(file, find_base=lambda version: below if version == below.version else None) as package:
        yield _Layer(package)
