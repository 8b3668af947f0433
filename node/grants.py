"""Rights as people write them: ``memory/notes:read``, ``weights/*:write``, ``*:admin``.

A grant is a resource pattern and a right. ``admin`` includes ``write`` and ``read``; ``write`` does
not include ``read``, so that a sensor may append to a table that it cannot read.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase

RIGHTS = ("read", "write", "admin")
KINDS = ("weights", "memory", "encode", "node")


@dataclass(frozen=True)
class Grant:
    """One right on the resources that a pattern names."""

    pattern: str
    right: str

    def covers(self, right: str, resource: str) -> bool:
        """Whether this grant allows ``right`` on ``resource`` (``memory/notes``)."""
        return self.right in {right, "admin"} and fnmatchcase(resource, self.pattern)

    def __str__(self) -> str:
        return f"{self.pattern}:{self.right}"


def parse_grant(text: str) -> Grant:
    """Read ``memory/notes:read``. Raises ValueError that says what is allowed."""
    pattern, colon, right = text.rpartition(":")
    kind = pattern.split("/", 1)[0]
    if not colon or right not in RIGHTS or not pattern:
        raise ValueError(f"{text!r} is not RESOURCE:RIGHT with a right of {', '.join(RIGHTS)}")
    if pattern != "*" and kind not in KINDS:
        raise ValueError(f"{text!r} names no resource: use {', '.join(k + '/NAME' for k in KINDS)} or *")
    return Grant(pattern, right)


def allowed(grants: Iterable[Grant], right: str, resource: str) -> bool:
    """Whether any grant covers ``right`` on ``resource``."""
    return any(grant.covers(right, resource) for grant in grants)
