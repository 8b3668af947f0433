"""``encode`` and ``apply``: the difference between two mappings of tensors, exact to the bit.

    magic AIOSDLT1 | section: settings (JSON) | section: target | section: base, if any | body

Target and base are lists of tensors with their hashes, in the form of a manifest, compressed; the base's comes with
the target's as dictionary. Which tensors are equal, coded against the base or coded in full follows from the two
lists (``plan``). Works tensor by tensor and block by block.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Mapping
from typing import Final

from aios_node.delta.checks import base_tensor, bounded, check_base, check_result
from aios_node.delta.codec.body import Change, Coding, Wanted, read_tensors, write_tensors
from aios_node.delta.codec.compression import compress, decompress
from aios_node.delta.codec.parallel import in_order
from aios_node.delta.codec.plan import Step, plan
from aios_node.delta.codec.stream import Reader, Writer, expect_end, read_exactly, read_section, write_section
from aios_node.delta.fields import Fields, parse_object
from aios_node.delta.limits import DEFAULT_LIMITS, Limits
from aios_node.engine.errors import Corrupt, HashMismatch, NoBase
from aios_node.engine.quant.blocks import Tensor
from aios_node.engine.weights.manifest import Manifest, build_manifest
from aios_node.engine.weights.names import canonical_json
from aios_node.engine.weights.prediction import Prediction, predicts, read_prediction

MAGIC: Final = b"AIOSDLT1"
_SETTINGS: Final = 64 * 1024
_LEVEL: Final = 9

Progress = Callable[[int, int], None]
"""Called with (raw bytes done, raw bytes in all)."""


def encode(base: Mapping[str, Tensor] | None, target: Mapping[str, Tensor]) -> bytes:
    """The delta that leads from ``base`` to ``target``; without a base, a compressed full copy.

    Tensors may be added, removed, or change shape, dtype and quantisation. Deterministic: the same input gives the same
    bytes wherever the same Zstandard library is used. Raises BadWeights for tensors that no version may hold.
    """
    out = io.BytesIO()
    encode_to(base, target, out)
    return out.getvalue()


def apply(base: Mapping[str, Tensor] | None, blob: bytes) -> dict[str, Tensor]:
    """The target of a delta. Tensors that did not change are the base's own objects.

    Raises NoBase when ``base`` is not the one that the delta was made from, HashMismatch when a result differs from
    what was encoded, Corrupt and TooLarge (or BadWeights) for damaged or hostile bytes.
    """
    return dict(apply_from(base, io.BytesIO(blob)))


def encode_to(
    base: Mapping[str, Tensor] | None,
    target: Mapping[str, Tensor],
    out: Writer,
    *,
    coding: Coding | None = None,
    progress: Progress | None = None,
) -> None:
    """As ``encode``, into a file. Reads every tensor twice (hash, then code) and holds one tensor at a time."""
    coding = coding or Coding()
    both = [target] if base is None else [target, base]
    new, *olds = in_order(lambda tensors: build_manifest(tensors, {}), both)
    old = olds[0] if olds else None
    _write_header(out, old, new, coding)
    steps = [step for step in plan(old, new) if step.mode != "same"]
    done = new.nbytes - sum(step.entry.nbytes for step in steps)
    changes = (Change(step.entry, target[step.entry.name], *_origin(step, base, target)) for step in steps)
    tell = progress or (lambda _done, _total: None)
    tell(done, new.nbytes)
    for entry, _ in write_tensors(out, changes, coding):
        done += entry.nbytes
        tell(done, new.nbytes)


def apply_from(
    base: Mapping[str, Tensor] | None,
    source: Reader,
    limits: Limits = DEFAULT_LIMITS,
    *,
    progress: Progress | None = None,
) -> Iterator[tuple[str, Tensor]]:
    """As ``apply``, from a file, one tensor at a time in order of their names. Use results only when it ran through."""
    old, new, coding = _read_header(source, limits)
    weights = {} if base is None or old is None else base
    steps = plan(old, new)
    if old is not None:
        _check_unused(old, steps, weights)
    done = 0
    for step, tensor in _tensors(steps, weights, source, coding):
        yield step.entry.name, tensor
        del tensor  # or it would stay until the next one is there
        done += step.entry.nbytes
        if progress is not None:
            progress(done, new.nbytes)
    expect_end(source)


def _tensors(
    steps: tuple[Step, ...], weights: Mapping[str, Tensor], source: Reader, coding: Coding
) -> Iterator[tuple[Step, Tensor]]:
    """All tensors in the order of their steps. What predicts others comes first."""
    beside: dict[str, Tensor] = {}
    first = [step for step in steps if predicts(step.entry.name)]
    for part in (first, steps[len(first) :]):
        coded = (Wanted(step.entry, *_origin(step, weights, beside)) for step in part if step.mode != "same")
        tensors = read_tensors(source, coded, coding)
        for step in part:
            tensor = _checked(step, weights, tensors)
            if part is first:
                beside[step.entry.name] = tensor
            yield step, tensor
            del tensor


def _origin(
    step: Step, base: Mapping[str, Tensor] | None, beside: Mapping[str, Tensor]
) -> tuple[Tensor | None, Prediction | None]:
    """What a tensor may be coded against: its base, and what tensors beside it make of that."""
    if base is None or step.base is None:
        return None, None
    return base_tensor(base, step.base), read_prediction(beside, step.entry.name)


def _checked(step: Step, weights: Mapping[str, Tensor], tensors: Iterator[Tensor]) -> Tensor:
    """The tensor of a step, if it is what was promised; where it is not, a wrong base is to blame first."""
    if step.base is not None and step.mode == "same":
        old = base_tensor(weights, step.base)
        check_base(step.base, old)
        return old
    try:
        tensor = next(tensors)
        check_result(step.entry, tensor)
    except (Corrupt, HashMismatch):
        if step.base is not None:
            check_base(step.base, base_tensor(weights, step.base))
        raise
    return tensor


def _check_unused(old: Manifest, steps: tuple[Step, ...], weights: Mapping[str, Tensor]) -> None:
    """The base must be that very base, also in what the target does not use."""
    strangers = sorted(set(weights) - set(old.entries))
    if strangers:
        raise NoBase(f"the base has a tensor {strangers[0]!r}, which the one the delta was made from had not")
    used = {step.entry.name for step in steps if step.base is not None}
    for entry in old.tensors:
        tensor = base_tensor(weights, entry)
        if entry.name not in used:
            check_base(entry, tensor)


def _write_header(out: Writer, old: Manifest | None, new: Manifest, coding: Coding) -> None:
    settings = {"format": 1, "block": coding.block, "codecs": list(coding.codecs), "based": old is not None}
    target = new.to_bytes()
    out.write(MAGIC)
    write_section(out, canonical_json(settings))
    write_section(out, compress(target, _LEVEL))
    if old is not None:
        write_section(out, compress(old.to_bytes(), _LEVEL, dictionary=target))


def _read_header(source: Reader, limits: Limits) -> tuple[Manifest | None, Manifest, Coding]:
    if read_exactly(source, len(MAGIC)) != MAGIC:
        raise Corrupt("this is not a delta: it does not begin with AIOSDLT1")
    raw = parse_object(read_section(source, "the settings of a delta", _SETTINGS), "settings", Corrupt)
    fields = Fields(raw, "settings", Corrupt)
    if fields.integer("format") != 1:
        raise Corrupt("the delta has another format than 1: update this node")
    coding = Coding(fields.words("codecs", 255), fields.integer("block"))
    based = fields.flag("based")
    fields.close()
    target = decompress(read_section(source, "the list of tensors", limits.header_bytes), most=limits.header_bytes)
    new = bounded(Manifest.from_bytes(target), limits)
    if not based:
        return None, new, coding
    packed = read_section(source, "the base's list of tensors", limits.header_bytes)
    return Manifest.from_bytes(decompress(packed, most=limits.header_bytes, dictionary=target)), new, coding
