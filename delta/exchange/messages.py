"""The messages of the sync exchange as frozen dataclasses; ``docs/protocol.md`` shows them, ``wire`` makes them bytes.

COMMIT belongs to protocol 1; SHARE, HAVE and REQUEST to protocol 2. Nothing here knows what may be said when.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from aios_node.delta.offers import Offer, PackageInfo, Resume

Role = Literal["sender", "receiver"]


@dataclass(frozen=True)
class Hello:
    """First of all: which protocols and codecs one speaks. Unknown fields are ignored: later protocols add some."""

    kind: ClassVar[str] = "hello"
    protocols: tuple[int, ...]
    codecs: tuple[str, ...]


@dataclass(frozen=True)
class Offers:
    """OFFER: versions that can be had; ``last`` ends the list."""

    kind: ClassVar[str] = "offer"
    offers: tuple[Offer, ...]
    last: bool


@dataclass(frozen=True)
class Want:
    """The receiver asks for a version. ``transfer`` counts the asker's transfers from 0.

    ``round`` 0 begins the transfer; ``resume`` tells what is staged. Higher rounds ask once more for the damaged
    chunks that ``resume.missing`` names. In protocol 2 nothing is said about rounds and staged chunks; ``root`` is that
    of the package whose hashes are known already.
    """

    kind: ClassVar[str] = "want"
    transfer: int
    model: str
    version: str
    base: str | None
    round: int = 0
    resume: Resume | None = None
    root: str | None = None


@dataclass(frozen=True)
class Share:
    """The answer to WANT in protocol 2: the package, and the hashes of its chunks from ``first`` on.

    ``data`` is empty where the asker knows the root, and comes in several messages where it is long. ``start`` is the
    chunk to begin with, ``origin`` says that the sender had the version before.
    """

    kind: ClassVar[str] = "share"
    transfer: int
    package: PackageInfo
    root: str
    origin: bool
    start: int
    first: int
    data: bytes | memoryview


@dataclass(frozen=True)
class Have:
    """The sender of a transfer can give these chunks, too."""

    kind: ClassVar[str] = "have"
    transfer: int
    chunks: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Request:
    """The receiver of a transfer asks for chunks, and takes back what it asked for but does not need any more."""

    kind: ClassVar[str] = "request"
    transfer: int
    chunks: tuple[tuple[int, int], ...]
    stop: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Chunk:
    """One piece of a package; the transfer's first carries the package's description. ``crc`` is CRC-32 of the data."""

    kind: ClassVar[str] = "chunk"
    transfer: int
    index: int
    offset: int
    crc: int
    data: bytes | memoryview
    package: PackageInfo | None = None


@dataclass(frozen=True)
class Commit:
    """The sender has sent every chunk that was asked for up to ``round``."""

    kind: ClassVar[str] = "commit"
    transfer: int
    round: int
    package: PackageInfo


@dataclass(frozen=True)
class Committed:
    """The receiver holds the version, verified and durable."""

    kind: ClassVar[str] = "committed"
    transfer: int


@dataclass(frozen=True)
class Abort:
    """A transfer, or with no ``transfer`` the whole session, ends here. ``role`` is that of the one who says so."""

    kind: ClassVar[str] = "abort"
    transfer: int | None
    role: Role | None
    code: str
    message: str


@dataclass(frozen=True)
class Done:
    """I shall ask for nothing more. When both have said it, the session is over."""

    kind: ClassVar[str] = "done"


@dataclass(frozen=True)
class Ping:
    """A slow job makes progress here."""

    kind: ClassVar[str] = "ping"


Message = Hello | Offers | Want | Share | Have | Request | Chunk | Commit | Committed | Abort | Done | Ping
