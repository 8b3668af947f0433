"""Collects what one input makes a session do: messages numbered in the order they are said, and effects."""

from __future__ import annotations

from collections import Counter

from aios_node.delta.exchange.effects import Effect, Send
from aios_node.delta.exchange.wire import Message, encode


class Outbox:
    """The effects of the current input, and how many of each kind still await an answer."""

    def __init__(self) -> None:
        self._effects: list[Effect] = []
        self._number = 0
        self._open: Counter[type] = Counter()

    def say(self, message: Message) -> None:
        """Send a message with the next number of this direction."""
        metadata, data = encode(message, self._number)
        self._number += 1
        self.ask(Send(metadata, data, message))

    def ask(self, effect: Effect) -> None:
        self._open[type(effect)] += 1
        self._effects.append(effect)

    def answered(self, effect: Effect) -> None:
        self._open[type(effect)] -= 1

    def open(self, *kinds: type) -> int:
        """Effects of these kinds that have not been answered."""
        return sum(self._open[kind] for kind in kinds)

    def drain(self) -> list[Effect]:
        effects, self._effects = self._effects, []
        return effects
