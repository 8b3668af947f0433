"""The messages of the sync exchange as bytes. ``docs/protocol.md`` shows them.

A message travels as canonical JSON (``app_metadata``) and, for CHUNK alone, data bytes beside it. Every JSON
object carries ``n``, its number in this direction from 0 up, so that losses, duplicates and reordering show, and
``sum``, the CRC-32 of the object without it. Receivers check every field, its kind and its bounds. Nothing here
knows what may be said when (``session`` does).
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from typing import Any, Final, cast

from aios_node.delta.exchange.messages import (
    Abort,
    Chunk,
    Commit,
    Committed,
    Done,
    Have,
    Hello,
    Message,
    Offers,
    Ping,
    Request,
    Role,
    Share,
    Want,
)
from aios_node.delta.exchange.parts import CODECS as _CODECS
from aios_node.delta.exchange.parts import offer_json, read_offer, read_package
from aios_node.delta.fields import Fields, parse_object
from aios_node.delta.offers import Resume
from aios_node.engine.errors import Corrupt, ProtocolError, TooLarge
from aios_node.engine.weights.names import canonical_json

__all__ = [
    "Abort",
    "Chunk",
    "Commit",
    "Committed",
    "Done",
    "Have",
    "Hello",
    "Message",
    "Offers",
    "Ping",
    "Request",
    "Share",
    "Want",
    "decode",
    "encode",
]

PUSHED: Final = 1
"""The protocol in which a sender pushes all chunks of a package."""
PASSED_ON: Final = 2
"""The protocol in which receivers ask for chunks, and pass on what they have."""
METADATA_BYTES: Final = 1 << 20
DATA_BYTES: Final = 1 << 20
OFFERS_PER_MESSAGE: Final = 32
_RANGES = 32_768
_MESSAGE_TEXT = 400


def encode(message: Message, number: int) -> tuple[bytes, bytes | memoryview]:
    """(metadata, data) of a message, the ``number``-th in its direction."""
    fields: dict[str, Any] = {"type": message.kind, "n": number, **_to_json(message)}
    fields["sum"] = zlib.crc32(canonical_json(fields))
    return canonical_json(fields), message.data if isinstance(message, Chunk | Share) else b""


def decode(metadata: bytes, data: bytes | memoryview = b"") -> tuple[int, Message]:
    """(number, message). Raises Corrupt for a wrong sum, TooLarge and ProtocolError for the rest.

    A chunk's data is not compared with its CRC here: the receiver may ask for it again.
    """
    if len(metadata) > METADATA_BYTES or len(data) > DATA_BYTES:
        raise TooLarge(f"a message of {len(metadata)} + {len(data)} bytes; {METADATA_BYTES} + {DATA_BYTES} are allowed")
    values = parse_object(metadata, "message", ProtocolError)
    total = values.pop("sum", None)
    if total != _sum_of(values):
        raise Corrupt("a message was damaged on its way: its sum is wrong")
    fields = Fields(values, "message", ProtocolError)
    kind, number = fields.word("type"), fields.integer("n")
    reader = _READERS.get(kind)
    if reader is None:
        raise ProtocolError(f"unknown message {kind!r}")
    if len(data) and kind not in {Chunk.kind, Share.kind}:
        raise ProtocolError(f"message {kind!r} carries {len(data)} data bytes; only chunks and hashes may")
    message = reader(fields, data)
    if kind != Hello.kind:
        fields.close()
    return number, message


def _sum_of(values: dict[str, Any]) -> int:
    try:
        return zlib.crc32(canonical_json(values))
    except (ValueError, RecursionError):
        raise ProtocolError("a message holds values that JSON does not have") from None


def _to_json(message: Message) -> dict[str, Any]:
    match message:
        case Hello():
            return {"protocols": list(message.protocols), "codecs": list(message.codecs)}
        case Offers():
            return {"offers": [offer_json(offer) for offer in message.offers], "last": message.last}
        case Want():
            resume = message.resume
            root = {} if message.root is None else {"root": message.root}  # protocol 1 does not know it
            return {
                **root,
                "transfer": message.transfer,
                "model": message.model,
                "version": message.version,
                "base": message.base,
                "round": message.round,
                "resume": resume and {"sha256": resume.sha256, "missing": [list(span) for span in resume.missing]},
            }
        case Share():
            return {
                "transfer": message.transfer,
                "package": vars(message.package),
                "root": message.root,
                "origin": message.origin,
                "start": message.start,
                "first": message.first,
                "crc": zlib.crc32(message.data),
            }
        case Have():
            return {"transfer": message.transfer, "chunks": _lists(message.chunks)}
        case Request():
            chunks, stop = _lists(message.chunks), _lists(message.stop)
            return {"transfer": message.transfer, "chunks": chunks, "stop": stop}
        case Chunk():
            package = message.package and vars(message.package)
            return {
                "transfer": message.transfer,
                "index": message.index,
                "offset": message.offset,
                "crc": message.crc,
                "package": package,
            }
        case Commit():
            return {"transfer": message.transfer, "round": message.round, "package": vars(message.package)}
        case Committed():
            return {"transfer": message.transfer}
        case Abort():
            text = "".join(sign if sign.isprintable() else " " for sign in message.message[:_MESSAGE_TEXT])
            return {"transfer": message.transfer, "role": message.role, "code": message.code, "message": text}
        case Done() | Ping():
            return {}


def _lists(ranges: tuple[tuple[int, int], ...]) -> list[list[int]]:
    return [list(span) for span in ranges]


Data = bytes | memoryview


def _read_hello(fields: Fields, data: Data) -> Hello:
    protocols = fields.items("protocols", _CODECS)
    if not all(type(number) is int for number in protocols):
        raise ProtocolError("message.protocols must be whole numbers")
    return Hello(tuple(protocols), fields.words("codecs", _CODECS))


def _read_offers(fields: Fields, data: Data) -> Offers:
    offers = tuple(read_offer(offer) for offer in fields.objects("offers", OFFERS_PER_MESSAGE))
    return Offers(offers, fields.flag("last"))


def _read_want(fields: Fields, data: Data) -> Want:
    resume = fields.maybe("resume")
    staged = None if resume is None else Resume(resume.hexadecimal("sha256", 64), resume.ranges("missing", _RANGES))
    if resume is not None:
        resume.close()
    return Want(
        transfer=fields.integer("transfer"),
        model=fields.model(),
        version=fields.version(),
        base=fields.maybe_version("base"),
        round=fields.integer("round"),
        resume=staged,
        root=fields.hexadecimal("root", 64) if fields.has("root") else None,
    )


def _read_share(fields: Fields, data: Data) -> Share:
    if fields.integer("crc", (1 << 32) - 1) != zlib.crc32(data):
        raise Corrupt("hashes of chunks were damaged on their way")
    package = fields.maybe("package")
    if package is None:
        raise ProtocolError("a share that does not name its package")
    return Share(
        transfer=fields.integer("transfer"),
        package=read_package(package),
        root=fields.hexadecimal("root", 64),
        origin=fields.flag("origin"),
        start=fields.integer("start"),
        first=fields.integer("first"),
        data=data,
    )


def _read_have(fields: Fields, data: Data) -> Have:
    return Have(fields.integer("transfer"), fields.ranges("chunks", _RANGES))


def _read_request(fields: Fields, data: Data) -> Request:
    transfer = fields.integer("transfer")
    return Request(transfer, fields.ranges("chunks", _RANGES), fields.ranges("stop", _RANGES))


def _read_chunk(fields: Fields, data: Data) -> Chunk:
    package = fields.maybe("package")
    return Chunk(
        transfer=fields.integer("transfer"),
        index=fields.integer("index"),
        offset=fields.integer("offset"),
        crc=fields.integer("crc", (1 << 32) - 1),
        data=data,
        package=None if package is None else read_package(package),
    )


def _read_commit(fields: Fields, data: Data) -> Commit:
    package = fields.maybe("package")
    if package is None:
        raise ProtocolError("a commit that does not name its package")
    return Commit(fields.integer("transfer"), fields.integer("round"), read_package(package))


def _read_committed(fields: Fields, data: Data) -> Committed:
    return Committed(fields.integer("transfer"))


def _read_abort(fields: Fields, data: Data) -> Abort:
    transfer = fields.maybe_integer("transfer")
    role = fields.maybe_word("role")
    if (transfer is None) != (role is None) or role not in {None, "sender", "receiver"}:
        raise ProtocolError(f"an abort of transfer {transfer} by {role!r}")
    return Abort(transfer, cast("Role | None", role), fields.word("code"), fields.text("message", _MESSAGE_TEXT))


_READERS: Final[dict[str, Callable[[Fields, Data], Message]]] = {
    Hello.kind: _read_hello,
    Offers.kind: _read_offers,
    Want.kind: _read_want,
    Share.kind: _read_share,
    Have.kind: _read_have,
    Request.kind: _read_request,
    Chunk.kind: _read_chunk,
    Commit.kind: _read_commit,
    Committed.kind: _read_committed,
    Abort.kind: _read_abort,
    Done.kind: lambda fields, data: Done(),
    Ping.kind: lambda fields, data: Ping(),
}
