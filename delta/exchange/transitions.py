"""Transition tables: what is not listed is a protocol error. Used by the session and by both ends of a transfer."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from enum import Enum
from typing import Any

from aios_node.engine.errors import ProtocolError

Table = Mapping[tuple[Enum, type], Callable[..., Any]]


def listed(table: Table, state: Enum, event: object, where: str) -> Callable[..., Any]:
    """The handler of an event in a state. Raises ProtocolError when the table lists none."""
    handler = table.get((state, type(event)))
    if handler is None:
        raise ProtocolError(f"{type(event).__name__} is not allowed {where} while {state.name.lower()}")
    return handler
