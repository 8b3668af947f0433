"""The first section of a package, and which small files it carries: what both ends must agree on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, cast

from aios_node.delta.codec.body import Coding
from aios_node.delta.fields import Fields, parse_object
from aios_node.delta.offers import Mode
from aios_node.engine.errors import Corrupt
from aios_node.engine.weights.manifest import FileEntry, Manifest
from aios_node.engine.weights.names import canonical_json

MAGIC: Final = b"AIOSPKG1"


@dataclass(frozen=True)
class Settings:
    """The first section: what the rest is, readable without the base."""

    mode: Mode
    base: str | None
    version: str
    files: tuple[str, ...]
    coding: Coding

    def to_bytes(self) -> bytes:
        return canonical_json(
            {
                "format": 1,
                "mode": self.mode,
                "base": self.base,
                "version": self.version,
                "files": list(self.files),
                "codecs": list(self.coding.codecs),
                "block": self.coding.block,
            }
        )

    @classmethod
    def from_bytes(cls, data: bytes) -> Settings:
        """Raises Corrupt."""
        fields = Fields(parse_object(data, "package", Corrupt), "package", Corrupt)
        if fields.integer("format") != 1:
            raise Corrupt("the package has another format than 1: update this node")
        mode, base = fields.word("mode"), fields.maybe_version("base")
        if mode not in {"delta", "full"} or (mode == "delta") != (base is not None):
            raise Corrupt(f"a package of mode {mode!r} {'with' if base else 'without'} a base")
        settings = cls(
            mode=cast("Mode", mode),
            base=base,
            version=fields.version(),
            files=fields.names("files", 255),
            coding=Coding(fields.words("codecs", 255), fields.integer("block")),
        )
        fields.close()
        return settings


def files_to_send(old: Manifest | None, new: Manifest) -> Mapping[str, FileEntry]:
    """The small files that the base does not have under any name."""
    known = set() if old is None else {entry.sha256 for entry in old.files.values()}
    return {name: entry for name, entry in new.files.items() if entry.sha256 not in known}
