"""The error tree of the whole project. Every class carries the code that peers and clients see.

AiosError                     internal
├── BadRequest                bad_request
│   ├── BadConfig             bad_config
│   ├── AmbiguousModel        ambiguous_model
│   └── SpaceMismatch         space_mismatch
├── NotFound                  not_found
│   ├── UnknownModel          unknown_model
│   ├── UnknownTable          unknown_table
│   └── UnknownVersion        unknown_version
├── AccessError
│   ├── Unauthenticated       unauthenticated
│   └── Unauthorized          unauthorized
├── DataError
│   ├── Corrupt               corrupt
│   ├── BadWeights            bad_weights
│   ├── HashMismatch          hash_mismatch
│   ├── NoBase                no_base
│   └── TooLarge              too_large
├── ProtocolError             protocol_error
├── TransferAborted           aborted          (retryable)
└── ResourceError
    ├── Unavailable           unavailable      (retryable)
    ├── Busy                  busy             (retryable)
    ├── StorageFull           storage_full     (retryable)
    ├── WorkerFailed          worker_failed    (retryable)
    ├── StorageError          storage_error
    └── FolderLocked          folder_locked
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import ClassVar


class AiosError(Exception):
    """Base of all errors that users and peers may see.

    The message says what was wrong, where, and what to do. It never holds secrets or tracebacks.
    """

    code: ClassVar[str] = "internal"
    retryable: ClassVar[bool] = False

    def __init__(self, message: str, *, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.retry_after_s = retry_after_s


class BadRequest(AiosError):
    """The caller asked for something that can never work as asked."""

    code = "bad_request"


class BadConfig(BadRequest):
    """A configuration or recipe is wrong; the message names key, value and what is allowed."""

    code = "bad_config"


class AmbiguousModel(BadRequest):
    """Several models could serve the request and none was named."""

    code = "ambiguous_model"


class SpaceMismatch(BadRequest):
    """A vector comes from another embedding space than the table's."""

    code = "space_mismatch"


class NotFound(AiosError):
    """A name does not exist here."""

    code = "not_found"


class UnknownModel(NotFound):
    """No model of this name."""

    code = "unknown_model"


class UnknownTable(NotFound):
    """No memory table of this name."""

    code = "unknown_table"


class UnknownVersion(NotFound):
    """No such version, or a prefix that fits several."""

    code = "unknown_version"


class AccessError(AiosError):
    """The caller may not do this."""


class Unauthenticated(AccessError):
    """No identity, or one that could not be proved."""

    code = "unauthenticated"


class Unauthorized(AccessError):
    """A known identity without the right that this call needs."""

    code = "unauthorized"


class DataError(AiosError):
    """Bytes from a file or a peer are not what they claim to be."""


class Corrupt(DataError):
    """A file or message is truncated, damaged or contradicts itself."""

    code = "corrupt"


class BadWeights(DataError):
    """Weights that no model may hold: NaN, Inf, impossible shapes."""

    code = "bad_weights"


class HashMismatch(DataError):
    """Content does not have the hash that was promised."""

    code = "hash_mismatch"


class NoBase(DataError):
    """A delta was made from a base that is not at hand."""

    code = "no_base"


class TooLarge(DataError):
    """A size exceeds what is allowed; nothing was allocated for it."""

    code = "too_large"


class ProtocolError(AiosError):
    """A peer sent a message that the exchange does not allow at this point."""

    code = "protocol_error"


class TransferAborted(AiosError):
    """A transfer ended before it was committed."""

    code = "aborted"
    retryable = True


class ResourceError(AiosError):
    """This machine cannot do it now."""


class Unavailable(ResourceError):
    """The node is draining, starting, or a peer cannot be reached."""

    code = "unavailable"
    retryable = True


class Busy(ResourceError):
    """Too many streams or requests at once."""

    code = "busy"
    retryable = True


class WorkerFailed(ResourceError):
    """A worker process died: most often it was out of memory."""

    code = "worker_failed"
    retryable = True


class StorageFull(ResourceError):
    """The disk is full."""

    code = "storage_full"
    retryable = True


class StorageError(ResourceError):
    """The disk refuses: read-only, missing rights, input or output errors."""

    code = "storage_error"


class FolderLocked(ResourceError):
    """Another process owns this folder."""

    code = "folder_locked"


def choices(name: str, existing: Iterable[str], *, limit: int = 8) -> str:
    """Say what exists, nearest names first: the second half of every 'unknown' message."""
    known = sorted(existing)
    if not known:
        return "there are none yet"
    near = difflib.get_close_matches(name, known, n=1)
    shown = ", ".join(known[:limit]) + (", ..." if len(known) > limit else "")
    return (f"did you mean {near[0]}? " if near else "") + f"there are: {shown}"
