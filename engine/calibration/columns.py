"""Which member of a record is the text: the one that was asked for, or one with a name that texts usually have."""

from __future__ import annotations

from collections.abc import Collection

from aios_node.engine.errors import BadRequest

TEXT_NAMES = (
    "text",
    "sentence",
    "content",
    "texts",
    "sentences",
    "sentence1",
    "question",
    "query",
    "document",
    "passage",
    "paragraph",
    "prompt",
    "body",
    "title",
)
"""Names that hold texts in common data sets, the likeliest first."""

_SHOWN = 12


def text_column(where: str, existing: Collection[str], column: str | None) -> str:
    """The name to read, of those that exist and hold text.

    A single one needs no known name. Raises BadRequest that names those that exist.
    """
    if column is not None and column in existing:
        return column
    if column is None:
        if len(existing) == 1:
            return next(iter(existing))
        for name in TEXT_NAMES:
            if name in existing:
                return name
    names = ", ".join(repr(name[:60]) for name in sorted(existing)[:_SHOWN]) or "none"
    asked = "no column has a name that texts usually have" if column is None else f"there is no text {column[:60]!r}"
    raise BadRequest(f"{where}: {asked}; columns with text: {names}; name one of them with `column`")
