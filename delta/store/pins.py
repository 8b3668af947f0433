"""Who is reading which version, so that garbage collection leaves it alone."""

from __future__ import annotations

import threading
from collections import Counter
from pathlib import Path
from types import TracebackType


class Pins:
    """Counts the readers of every version."""

    def __init__(self) -> None:
        self._mutex = threading.Lock()
        self._readers: Counter[str] = Counter()

    def pin(self, version: str, path: Path) -> Pin:
        """Add a reader. The caller makes sure that the version is not just being collected."""
        with self._mutex:
            self._readers[version] += 1
        return Pin(self, version, path)

    def release(self, version: str) -> None:
        with self._mutex:
            self._readers[version] -= 1

    def held(self) -> frozenset[str]:
        """Versions that have readers now."""
        with self._mutex:
            return frozenset(version for version, readers in self._readers.items() if readers > 0)


class Pin:
    """Keeps one version's folder in place until ``release``; in a ``with`` block it gives the folder."""

    def __init__(self, pins: Pins, version: str, path: Path) -> None:
        self.version, self.path = version, path
        self._pins: Pins | None = pins

    def release(self) -> None:
        """Let go; a second call does nothing."""
        pins, self._pins = self._pins, None
        if pins is not None:
            pins.release(self.version)

    def __enter__(self) -> Path:
        return self.path

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()
