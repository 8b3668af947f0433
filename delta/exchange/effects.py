"""What a session asks its driver to do, and what it reports. The session itself does nothing to the world.

The driver performs the effects in order, except that ``PreparePackage`` and ``CommitTransfer`` may run elsewhere
meanwhile, and hands every outcome back with ``SyncSession.complete(effect, value)`` or ``fail(effect, error)``:

    effect            what to do                                                   value of complete
    Send              write the two byte strings to the stream, in order           None
    FindStaged        look what is staged of this transfer                         Resume or None
    OpenStaged        open the staging, keep the chunks whose hashes fit           missing ranges
    StageChunk        store one chunk durably (opening the staging at the first)   None
    CommitTransfer    check the package, apply it, commit the version              None
    DiscardStaged     forget what is staged                                        None
    PreparePackage    build the package into a file                                PackageInfo
    SharePackage      the same, or open the one that is arriving here              Shared
    ReadChunk         read one piece of that file                                  bytes
    ReleasePackage    the file is not needed any more                              None
    TransferDone      take note                                                    None
    SessionDone       take note; the stream may be closed                          None
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from aios_node.delta.chunks import TransferKey
from aios_node.delta.exchange.wire import Message
from aios_node.delta.offers import Mode, Offer, PackageInfo
from aios_node.delta.swarm.description import Description

Direction = Literal["received", "sent"]


@dataclass(frozen=True)
class TransferResult:
    """How one transfer ended. Sizes in bytes.

    ``bytes`` is what travelled as chunk data in this session, ``resumed_bytes`` what had been staged before;
    ``mode`` is None where no package was ever announced. ``hash_ok`` says that the receiver verified and committed
    the version; otherwise ``error`` is the code of what went wrong.
    """

    model: str
    from_version: str | None
    to_version: str
    direction: Direction
    mode: Mode | None = None
    bytes: int = 0
    resumed_bytes: int = 0
    changed_bytes: int = 0
    full_bytes: int = 0
    hash_ok: bool = False
    error: str | None = None
    message: str = ""

    @classmethod
    def of(
        cls,
        key: TransferKey,
        direction: Direction,
        package: PackageInfo | None,
        *,
        carried: int,
        resumed: int,
        error: str | None,
        message: str,
    ) -> TransferResult:
        """The end of the transfer of ``key``, whose package was ``package`` if it came to be described."""
        return cls(
            model=key.model,
            from_version=package.base if package else key.base,
            to_version=key.version,
            direction=direction,
            mode=package.mode if package else None,
            bytes=carried,
            resumed_bytes=resumed,
            changed_bytes=package.changed_bytes if package else 0,
            full_bytes=package.full_bytes if package else 0,
            hash_ok=error is None,
            error=error,
            message=message,
        )


@dataclass(frozen=True)
class Send:
    metadata: bytes
    data: bytes | memoryview
    message: Message


@dataclass(frozen=True)
class FindStaged:
    transfer: int
    key: TransferKey


@dataclass(frozen=True)
class OpenStaged:
    """Protocol 2: sessions that gather the same package share what is staged."""

    transfer: int
    key: TransferKey
    description: Description


@dataclass(frozen=True)
class StageChunk:
    transfer: int
    key: TransferKey
    package: PackageInfo
    index: int
    data: bytes | memoryview


@dataclass(frozen=True)
class CommitTransfer:
    """``codecs``: those that a gathered package may have been made with, so that it can be passed on."""

    transfer: int
    key: TransferKey
    package: PackageInfo
    offer: Offer
    codecs: tuple[str, ...] = ()


@dataclass(frozen=True)
class DiscardStaged:
    transfer: int
    key: TransferKey


@dataclass(frozen=True)
class PreparePackage:
    """``codecs`` are those that the peer can decode. Without the base at hand, build a full package."""

    transfer: int
    key: TransferKey
    codecs: tuple[str, ...]


@dataclass(frozen=True)
class SharePackage:
    """Protocol 2. ``arriving`` describes the package that is being gathered here; None: build it."""

    transfer: int
    key: TransferKey
    codecs: tuple[str, ...]
    arriving: Description | None


@dataclass(frozen=True)
class Shared:
    """What SharePackage found. ``origin``: the package was built here, not received."""

    description: Description
    origin: bool


@dataclass(frozen=True)
class ReadChunk:
    transfer: int
    key: TransferKey
    index: int
    offset: int
    length: int


@dataclass(frozen=True)
class ReleasePackage:
    transfer: int
    key: TransferKey


@dataclass(frozen=True)
class TransferDone:
    result: TransferResult


@dataclass(frozen=True)
class SessionDone:
    """``error`` is None after both sides were done, else the code of what ended the session."""

    error: str | None
    message: str
    results: tuple[TransferResult, ...]


Effect = (
    Send
    | FindStaged
    | OpenStaged
    | StageChunk
    | CommitTransfer
    | DiscardStaged
    | PreparePackage
    | SharePackage
    | ReadChunk
    | ReleasePackage
    | TransferDone
    | SessionDone
)
