"""The small files of a merged version: three-way, whole files. Knows hashes, not contents."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from aios_node.delta.names import short
from aios_node.engine.errors import BadRequest

Hashes = Mapping[str, str]


def merge_files(base: Hashes, heads: Mapping[str, Hashes], *, majority: bool = False) -> dict[str, str | None]:
    """For each file of the result the head to take it from, None for the base.

    ``base`` and ``heads`` (by id) map file names to hashes. What only some heads changed, all in the same way, is
    taken over, also where they removed it. Raises BadRequest where two heads changed a file differently. With
    ``majority`` a change counts only if more than half of all heads made it: faulty ones must not name the tokenizer.
    """
    found: dict[str, str | None] = {}
    for name in sorted({*base, *(name for files in heads.values() for name in files)}):
        held = Counter(files.get(name) for files in heads.values())
        kept = {value for value, count in held.items() if not majority or 2 * count > len(heads)}
        changed = {
            head: files.get(name) for head, files in sorted(heads.items()) if files.get(name) in kept - {base.get(name)}
        }
        if len(set(changed.values())) > 1:
            who = ", ".join(short(head) for head in changed)
            raise BadRequest(f"{who} changed the file {name} in different ways: activate one of them")
        taken = next(iter(changed), None)
        if (base if taken is None else heads[taken]).get(name) is not None:
            found[name] = taken
    return found
