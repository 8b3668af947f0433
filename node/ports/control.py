"""Actions as Flight serves them: every operation under its own name, with progress for the long ones."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from aios_node.flight.ports import Action, Principal
from aios_node.node.core import NodeCore
from aios_node.node.operations import OPERATIONS, find_operation, run_operation


class Operations:
    """ControlPort over the operations."""

    def __init__(self, core: NodeCore) -> None:
        self._core = core

    def actions(self) -> Sequence[Action]:
        """Every operation's action."""
        return [operation.action for operation in OPERATIONS.values()]

    def call(self, op: str, args: Mapping[str, Any], principal: Principal) -> Iterator[Mapping[str, Any]]:
        """Run one; yields ``{progress, text}`` while a long one works, then its result."""
        if not find_operation(op).long:
            yield run_operation(self._core, op, args, lambda _fraction, _text: None)
            return
        yield from self._reporting(op, args)

    def _reporting(self, op: str, args: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
        messages: queue.Queue[Mapping[str, Any] | Exception | None] = queue.Queue()

        def work() -> None:
            try:
                result = run_operation(
                    self._core, op, args, lambda fraction, text: messages.put({"progress": fraction, "text": text})
                )
                messages.put(result)
            except Exception as error:
                messages.put(error)
            messages.put(None)

        threading.Thread(target=work, name=f"operation-{op}", daemon=True).start()
        while (message := messages.get()) is not None:
            if isinstance(message, Exception):
                raise message
            yield message
