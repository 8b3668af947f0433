"""Which names of models and versions are allowed, wherever they come from. Names are never used as paths."""

from __future__ import annotations

import re

from aios_node.engine.errors import BadRequest

_MODEL = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}")
_VERSION = re.compile(r"[0-9a-f]{64}")
_PREFIX = re.compile(r"[0-9a-f]{4,64}")

SHOWN = 12


def check_model(name: object) -> str:
    """Return the name, or raise BadRequest: 1 to 96 of ``A-Za-z0-9._-``, not beginning with a sign."""
    if isinstance(name, str) and _MODEL.fullmatch(name):
        return name
    raise BadRequest(
        f"not a model name: {_quoted(name)}: use up to 96 letters, digits, '.', '_' and '-', "
        f"and begin with a letter or digit"
    )


def check_version(version: object) -> str:
    """Return the version id, or raise BadRequest: 64 lower-case hexadecimal digits."""
    if isinstance(version, str) and _VERSION.fullmatch(version):
        return version
    raise BadRequest(f"not a version id: {_quoted(version)}: it has 64 hexadecimal digits")


def is_prefix(text: object) -> bool:
    """Whether a text may abbreviate a version id: 4 to 64 lower-case hexadecimal digits."""
    return isinstance(text, str) and _PREFIX.fullmatch(text) is not None


def short(version: str) -> str:
    """A version id as people see it."""
    return version[:SHOWN]


def _quoted(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 120 else text[:117] + "..."
