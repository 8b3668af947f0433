"""The project's errors as Flight errors, and back. Nothing else ever leaves the server.

pyarrow sends the traceback of any exception that is not a Flight error to the client, so every method and
every generator of the server passes its exceptions through ``to_flight``. The details travel in
``extra_info`` as JSON ``{code, message, retryable, retry_after_s?, id}``; the same id stands in the log.
"""

from __future__ import annotations

import errno
import json
import logging
import re
import uuid
from collections.abc import Iterable, Iterator
from typing import Any

import pyarrow as pa
import pyarrow.flight as fl

from aios_node.engine import errors
from aios_node.engine.errors import AiosError

log = logging.getLogger("aios_node.flight")

# gRPC carries the message twice in trailers (as text and inside extra_info) that may hold 8 KB in all.
_MAX_MESSAGE_BYTES = 1000
_CONTROL = re.compile(r"[\x00-\x1f\x7f]+")


def _tree(root: type[AiosError]) -> Iterator[type[AiosError]]:
    yield root
    for child in root.__subclasses__():
        yield from _tree(child)


# Breadth of the tree, parents first: a code that a class inherits belongs to the ancestor that defined it.
_BY_CODE: dict[str, type[AiosError]] = {}
for _class in _tree(AiosError):
    _BY_CODE.setdefault(_class.code, _class)

_FLIGHT_CLASS: dict[str, type[Exception]] = {
    "unauthenticated": fl.FlightUnauthenticatedError,
    "unauthorized": fl.FlightUnauthorizedError,
    "unavailable": fl.FlightUnavailableError,
    "busy": fl.FlightUnavailableError,
}
_OTHERS: type[Exception] = fl.FlightServerError
_FULL = {errno.ENOSPC, errno.EDQUOT}
_REFUSED = {errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO}


def clip(message: str, limit: int = _MAX_MESSAGE_BYTES) -> str:
    """One line of at most ``limit`` bytes of UTF-8."""
    line = _CONTROL.sub(" ", message).strip()
    data = line.encode("utf-8", "replace")
    if len(data) <= limit:
        return data.decode("utf-8")
    return data[: limit - 3].decode("utf-8", "ignore") + "..."


def to_flight(exc: BaseException, where: str) -> Exception:
    """The Flight error that tells a client about ``exc``, logged with its id.

    ``where`` names the call in the log. An unexpected exception becomes code ``internal``; its text and
    traceback stay in the log.
    """
    known = _known(exc)
    error_id = uuid.uuid4().hex[:12]
    if known is None:
        log.error("internal error %s in %s", error_id, where, exc_info=exc)
        known = AiosError(f"internal error {error_id}: the node's log says more under this id")
    else:
        log.info("%s refused with %s (%s): %s", where, known.code, error_id, known.message)
    message = clip(known.message)
    info: dict[str, Any] = {
        "code": known.code,
        "message": message,
        "retryable": known.retryable,
        "id": error_id,
    }
    if known.retry_after_s is not None:
        info["retry_after_s"] = known.retry_after_s
    extra = json.dumps(info, ensure_ascii=False).encode("utf-8")
    return _FLIGHT_CLASS.get(known.code, _OTHERS)(message, extra)


def _known(exc: BaseException) -> AiosError | None:
    """The project's own error that ``exc`` is or stands for; None when nobody expected it."""
    if isinstance(exc, AiosError):
        return exc
    if isinstance(exc, OSError) and not isinstance(exc, fl.FlightError):
        if exc.errno in _FULL:
            return errors.StorageFull("the node's disk is full; free some space and try again")
        if exc.errno in _REFUSED:
            return errors.StorageError(f"the node's disk refuses: {errno.errorcode[exc.errno]}")
    return None


def guarded(items: Iterable[Any], where: str) -> Iterator[Any]:
    """Pass a generator's items on; its exceptions leave as Flight errors."""
    try:
        yield from items
    except GeneratorExit:
        raise
    except BaseException as exc:  # a SystemExit in a handler must not reach gRPC's thread either
        raise to_flight(exc, where) from None


def for_get_schema(error: Any, context: Any) -> Exception:
    """The same Flight error for ``get_schema``, the one method in which pyarrow 26 treats it as unexpected.

    There it would send the traceback, and no ``extra_info``. Half a surrogate pair in a note makes the
    traceback unprintable for pyarrow, which then sends the message alone; the details go into the trailer
    where Flight clients look for them (pyarrow's own ``get_schema`` looks at neither).
    """
    context.add_trailer("grpc-status-details-bin", error.extra_info)
    error.add_note("\udcff")
    return error  # type: ignore[no-any-return]  # pyarrow is untyped


def from_flight(exc: Exception, uri: str) -> AiosError:
    """The project's error behind what a pyarrow Flight client raised while talking to ``uri``."""
    info = _extra(exc)
    if info is not None:
        return _BY_CODE.get(str(info.get("code")), AiosError)(
            clip(str(info.get("message", "")), 4000), retry_after_s=_seconds(info.get("retry_after_s"))
        )
    text = clip(str(exc).split(". gRPC client debug context", 1)[0], 500)
    if isinstance(exc, fl.FlightUnavailableError):
        return errors.Unavailable(f"{uri} cannot be reached (not running, or TLS refused): {text}")
    if isinstance(exc, fl.FlightTimedOutError):
        return errors.Unavailable(f"{uri} did not answer in time: {text}")
    if isinstance(exc, fl.FlightUnauthenticatedError):
        return errors.Unauthenticated(f"{uri} does not accept this identity: {text}")
    if isinstance(exc, fl.FlightUnauthorizedError):
        return errors.Unauthorized(f"{uri} refused: {text}")
    if isinstance(exc, fl.FlightCancelledError):
        return errors.TransferAborted(f"the stream with {uri} was cancelled: {text}")
    if isinstance(exc, (fl.FlightError, OSError)):
        return errors.TransferAborted(f"the call to {uri} broke off: {text}")
    if isinstance(exc, pa.ArrowException):
        return errors.Corrupt(f"{uri} sent something that is not valid Arrow: {text}")
    return AiosError(f"the call to {uri} failed: {text}")


def answered(exc: Exception) -> bool:
    """Whether the server itself said no (rather than the connection failing)."""
    return _extra(exc) is not None


def _extra(exc: Exception) -> dict[str, Any] | None:
    raw = getattr(exc, "extra_info", None)
    if not raw:
        return None
    try:
        info = json.loads(raw)
    except ValueError:
        return None
    return info if isinstance(info, dict) and "code" in info else None


def _seconds(value: object) -> float | None:
    if isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value < 86_400:
        return float(value)
    return None
