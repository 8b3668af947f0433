"""Structured logs through structlog: one event per line, as text or JSON, secrets left out."""

from __future__ import annotations

import logging
import sys
from collections.abc import Mapping, MutableMapping
from pathlib import Path
from typing import Any

import structlog

_SECRET_KEYS = ("token", "secret", "authorization", "password", "key")
_LEVELS = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}


def start_logging(level: str, style: str, file: Path | None) -> None:
    """Send the log to ``file``, or to stderr. ``style``: ``text`` or ``json``."""
    stream = file.open("a", encoding="utf-8", buffering=1) if file else sys.stderr
    renderer: Any = (
        structlog.processors.JSONRenderer()
        if style == "json"
        else structlog.dev.ConsoleRenderer(colors=stream.isatty(), pad_event_to=24)
    )
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            without_secrets,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(_LEVELS[level]),
        logger_factory=structlog.PrintLoggerFactory(stream),
        cache_logger_on_first_use=False,
    )
    logging.basicConfig(level=logging.WARNING, stream=stream, format="%(levelname)s %(name)s %(message)s")


def without_secrets(_logger: object, _method: str, event: MutableMapping[str, Any]) -> Mapping[str, Any]:
    """A structlog processor that blanks values whose key looks like a secret's."""
    for key in event:
        if any(key == secret or key.endswith(f"_{secret}") for secret in _SECRET_KEYS):
            event[key] = "***"
    return event
