"""Objects inside messages, offers and packages, as JSON and back. Every field is checked, its kind and its bounds."""

from __future__ import annotations

from typing import Any, Final, cast

from aios_node.delta.fields import Fields
from aios_node.delta.offers import Mode, Offer, PackageInfo, Partial, Source
from aios_node.engine.errors import ProtocolError

LINEAGE: Final = 256
CODECS: Final = 64


def offer_json(offer: Offer) -> dict[str, Any]:
    """The field ``partial`` is there only where it says something: protocol 1 does not know it."""
    source, partial = offer.derived_from, offer.partial
    fields: dict[str, Any] = {
        "model": offer.model,
        "version": offer.version,
        "lineage": list(offer.lineage[:LINEAGE]),
        "bytes": offer.bytes,
        "quant": offer.quant,
        "derived_from": source and {"model": source.model, "version": source.version},
        "publisher": offer.publisher,
    }
    if partial is not None:
        fields["partial"] = {"base": partial.base, "root": partial.root, "codecs": list(partial.codecs)}
    return fields


def read_offer(fields: Fields) -> Offer:
    """Raises ProtocolError."""
    source = fields.maybe("derived_from")
    partial = fields.maybe("partial") if fields.has("partial") else None
    offer = Offer(
        model=fields.model(),
        version=fields.version(),
        lineage=fields.versions("lineage", LINEAGE),
        bytes=fields.integer("bytes"),
        quant=fields.word("quant"),
        derived_from=None if source is None else Source(source.model(), source.version()),
        publisher=fields.maybe_version("publisher"),
        partial=None if partial is None else _read_partial(partial),
    )
    fields.close()
    if source is not None:
        source.close()
    return offer


def _read_partial(fields: Fields) -> Partial:
    partial = Partial(
        base=fields.maybe_version("base"),
        root=fields.hexadecimal("root", 64),
        codecs=fields.words("codecs", CODECS),
    )
    fields.close()
    return partial


def read_package(fields: Fields) -> PackageInfo:
    """Raises ProtocolError."""
    mode = fields.word("mode")
    base = fields.maybe_version("base")
    if mode not in {"delta", "full"} or (mode == "delta") != (base is not None):
        raise ProtocolError(f"a package of mode {mode!r} {'with' if base else 'without'} a base")
    package = PackageInfo(
        bytes=fields.integer("bytes"),
        sha256=fields.hexadecimal("sha256", 64),
        mode=cast("Mode", mode),
        base=base,
        changed_bytes=fields.integer("changed_bytes"),
        full_bytes=fields.integer("full_bytes"),
    )
    fields.close()
    if package.bytes == 0:
        raise ProtocolError("a package without bytes")
    return package
