"""Lists of name patterns as the configuration has them: ``["*", "!*.int2"]``."""

from __future__ import annotations

from collections.abc import Iterable
from fnmatch import fnmatchcase


def chosen(name: str, patterns: Iterable[str]) -> bool:
    """Whether ``patterns`` choose ``name``: the last pattern that fits decides, ``!`` excludes."""
    verdict = False
    for pattern in patterns:
        if fnmatchcase(name, pattern.removeprefix("!")):
            verdict = not pattern.startswith("!")
    return verdict
