"""Messages of a secure sum as bytes and back: canonical JSON, and for a masked vector its data beside it.

Every field is checked, its kind and its bounds, before anything is made of it: lists are no longer than there are
participants, a vector has exactly the size of the terms. Who may say what when, and signatures, are checked later.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from aios_node.delta.fields import Fields, parse_object
from aios_node.delta.privacy.aggregation.keys import SEALED_BYTES
from aios_node.delta.privacy.aggregation.messages import (
    Consent,
    Consents,
    Delivery,
    Keys,
    Masked,
    Message,
    Reveal,
    Roster,
    Shares,
    Survivors,
)
from aios_node.delta.privacy.aggregation.shamir import SHARE_BYTES
from aios_node.delta.privacy.aggregation.terms import Terms
from aios_node.engine.errors import ProtocolError, TooLarge
from aios_node.engine.weights.names import canonical_json

METADATA_BYTES: Final = 1 << 20
_SIGNATURE_BYTES = 64

Data = bytes | memoryview
Pairs = tuple[tuple[str, bytes], ...]


def encode(message: Message) -> tuple[bytes, Data]:
    """(metadata, data) of a message."""
    fields: dict[str, Any] = {"type": message.kind, **_to_json(message)}
    return canonical_json(fields), message.data if isinstance(message, Masked) else b""


def decode(terms: Terms, metadata: bytes, data: Data = b"") -> Message:
    """The message. Raises TooLarge for more bytes than there can be, ProtocolError for everything else."""
    if len(metadata) > METADATA_BYTES or len(data) > terms.vector_bytes:
        raise TooLarge(f"a message of {len(metadata)} + {len(data)} bytes; {METADATA_BYTES} + {terms.vector_bytes} fit")
    fields = Fields(parse_object(metadata, "message", ProtocolError), "message", ProtocolError)
    kind = fields.word("type")
    reader = _READERS.get(kind)
    if reader is None:
        raise ProtocolError(f"unknown message {kind!r}")
    if len(data) != (terms.vector_bytes if kind == Masked.kind else 0):
        raise ProtocolError(f"message {kind!r} carries {len(data)} data bytes")
    message = reader(fields, len(terms.participants), data)
    fields.close()
    return message


def _to_json(message: Message) -> dict[str, Any]:
    match message:
        case Keys() | Shares() | Consent() | Reveal():
            return {"sender": message.sender, "signature": message.signature.hex(), **message.said()}
        case Masked():
            return {"sender": message.sender, "signature": message.signature.hex()}
        case Roster():
            return {"keys": [{"type": entry.kind, **_to_json(entry)} for entry in message.keys]}
        case Delivery():
            return {"sealed": _pairs_json(message.sealed)}
        case Survivors():
            return {"survivors": list(message.survivors)}
        case Consents():
            return {"signatures": _pairs_json(message.signatures)}


def _pairs_json(pairs: Pairs) -> list[list[str]]:
    return [[name, data.hex()] for name, data in pairs]


def _pairs(fields: Fields, name: str, most: int, size: int) -> Pairs:
    """(node id, bytes) with the node ids ascending and each value of ``size`` bytes."""
    pairs: list[tuple[str, bytes]] = []
    for item in fields.items(name, most):
        if not isinstance(item, list) or len(item) != 2:
            raise ProtocolError(f"message.{name} must be a list of pairs")
        pair = Fields(dict(zip(("node", "value"), item, strict=True)), f"message.{name}", ProtocolError)
        pairs.append((pair.version("node"), bytes.fromhex(pair.hexadecimal("value", 2 * size))))
    _require_ascending(name, [node for node, _ in pairs])
    return tuple(pairs)


def _nodes(fields: Fields, name: str, most: int) -> tuple[str, ...]:
    nodes = fields.versions(name, most)
    _require_ascending(name, list(nodes))
    return nodes


def _require_ascending(name: str, nodes: list[str]) -> None:
    if nodes != sorted(set(nodes)):
        raise ProtocolError(f"message.{name} must name nodes in ascending order, each once")


def _signed(fields: Fields) -> tuple[str, bytes]:
    return fields.version("sender"), bytes.fromhex(fields.hexadecimal("signature", 2 * _SIGNATURE_BYTES))


def _read_keys(fields: Fields, most: int, data: Data) -> Keys:
    sender, signature = _signed(fields)
    mask_key, seal_key, promise = (fields.hexadecimal(name, 64) for name in ("mask_key", "seal_key", "commitment"))
    return Keys(sender, mask_key, seal_key, promise, signature)


def _read_shares(fields: Fields, most: int, data: Data) -> Shares:
    sender, signature = _signed(fields)
    return Shares(sender, _pairs(fields, "sealed", most, SEALED_BYTES), signature)


def _read_masked(fields: Fields, most: int, data: Data) -> Masked:
    sender, signature = _signed(fields)
    return Masked(sender, data, signature)


def _read_consent(fields: Fields, most: int, data: Data) -> Consent:
    sender, signature = _signed(fields)
    return Consent(sender, _nodes(fields, "members", most), _nodes(fields, "survivors", most), signature)


def _read_reveal(fields: Fields, most: int, data: Data) -> Reveal:
    sender, signature = _signed(fields)
    seeds, mask_keys = (_pairs(fields, name, most, SHARE_BYTES) for name in ("seeds", "mask_keys"))
    return Reveal(sender, seeds, mask_keys, signature)


def _read_roster(fields: Fields, most: int, data: Data) -> Roster:
    entries: list[Keys] = []
    for entry in fields.objects("keys", most):
        entries.append(_read_keys(entry, most, data))
        if entry.word("type") != Keys.kind:
            raise ProtocolError("a roster holds keys, nothing else")
        entry.close()
    _require_ascending("keys", [entry.sender for entry in entries])
    return Roster(tuple(entries))


def _read_delivery(fields: Fields, most: int, data: Data) -> Delivery:
    return Delivery(_pairs(fields, "sealed", most, SEALED_BYTES))


def _read_survivors(fields: Fields, most: int, data: Data) -> Survivors:
    return Survivors(_nodes(fields, "survivors", most))


def _read_consents(fields: Fields, most: int, data: Data) -> Consents:
    return Consents(_pairs(fields, "signatures", most, _SIGNATURE_BYTES))


_READERS: Final[dict[str, Callable[[Fields, int, Data], Message]]] = {
    Keys.kind: _read_keys,
    Shares.kind: _read_shares,
    Masked.kind: _read_masked,
    Consent.kind: _read_consent,
    Reveal.kind: _read_reveal,
    Roster.kind: _read_roster,
    Delivery.kind: _read_delivery,
    Survivors.kind: _read_survivors,
    Consents.kind: _read_consents,
}
