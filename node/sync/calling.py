"""Hearing of news without being reachable: a node that only dials keeps asking its peers whether there is any.

One thread per peer holds one call open at a time, which the peer answers when something has changed there or
after a while. What to do about news is the caller's matter.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

from aios_node.engine.errors import AiosError
from aios_node.node.peers import Peer

HELD_S = 20.0
"""Seconds that a peer holds a question for news before it answers that there is none."""

Ask = Callable[[Peer, int], int]
"""(peer, number of its news that is known here) -> the number now, at once if it is another one"""


class NewsCaller:
    """Asks peers for news until it is stopped."""

    def __init__(
        self, find: Callable[[str], Peer | None], ask: Ask, on_news: Callable[[str], None], stopping: threading.Event
    ) -> None:
        """``find`` gives a peer by its URI, None once it is gone; ``on_news`` gets that URI."""
        self._find = find
        self._ask = ask
        self._on_news = on_news
        self._stopping = stopping

    def start(self, uri: str) -> None:
        """Ask this peer from now on."""
        threading.Thread(target=self.stay, args=(uri,), name="news", daemon=True).start()

    def stay(self, uri: str) -> None:
        """Ask until the peer is gone or it is time to stop; ``start`` does it in a thread."""
        known = -1  # the first answer comes at once and says where the peer stands
        while not self._stopping.is_set() and (peer := self._find(uri)) is not None:
            try:
                number = self._ask(peer, known)
            except AiosError:
                self._stopping.wait(HELD_S)  # visits find out what is wrong, and say so
                known = -1
                continue
            if number != known and known != -1:
                self._on_news(uri)
            known = number
