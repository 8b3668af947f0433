"""What peers tell each other about versions and packages, and who decides what is wanted.

``SyncPolicy`` is the seam: subscriptions, rights and trust live behind it. Nothing here sends anything.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

Mode = Literal["delta", "full"]


@dataclass(frozen=True)
class Source:
    """The version of another model from which a derived model (another precision) was made."""

    model: str
    version: str


@dataclass(frozen=True)
class Partial:
    """A package that is still on its way to the node that offers it: from which base, which one, made with what."""

    base: str | None
    root: str
    codecs: tuple[str, ...]


@dataclass(frozen=True)
class Offer:
    """One version that a peer can send. ``bytes`` is the size of all tensors, uncompressed.

    ``lineage`` lists ancestors, newest first, so that the receiver finds the nearest base it has;
    ``publisher`` is the public key (64 hex digits) that signed the version's envelope;
    ``partial`` is None where the peer holds the version, else the package that it is receiving.
    """

    model: str
    version: str
    lineage: tuple[str, ...] = ()
    bytes: int = 0
    quant: str = "none"
    derived_from: Source | None = None
    publisher: str | None = None
    partial: Partial | None = None


@dataclass(frozen=True)
class Decision:
    """Whether a version is wanted, and from which base that is here (None: in full). ``reason`` is for logs."""

    want: bool
    base: str | None = None
    reason: str = ""


class SyncPolicy(Protocol):
    """Decides on the receiving side. Asked once for every offer."""

    def wants(self, offer: Offer) -> Decision: ...


@dataclass(frozen=True)
class PackageInfo:
    """A package as announced before its first chunk.

    ``bytes`` and ``sha256`` are those of the whole package; ``base`` is None for a full one;
    ``changed_bytes`` is the raw size of the tensors that differ from the base (all of them without one),
    ``full_bytes`` the raw size of all tensors and small files.
    """

    bytes: int
    sha256: str
    mode: Mode
    base: str | None
    changed_bytes: int
    full_bytes: int


@dataclass(frozen=True)
class Resume:
    """What the receiver has staged: of which package, and the chunks it still lacks as half-open ranges."""

    sha256: str
    missing: tuple[tuple[int, int], ...]
