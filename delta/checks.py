"""The questions of every apply: is this the right base, is it within bounds, is this the promised result?"""

from __future__ import annotations

from collections.abc import Mapping

from aios_node.delta.codec.plan import same_layout
from aios_node.delta.limits import Limits, check_size
from aios_node.delta.names import short
from aios_node.engine.errors import HashMismatch, NoBase
from aios_node.engine.quant.blocks import Tensor
from aios_node.engine.weights.manifest import Manifest, TensorEntry, tensor_hash
from aios_node.engine.weights.stored import expected_nbytes, quant_of, scale_codec_of


def base_tensor(weights: Mapping[str, Tensor], entry: TensorEntry) -> Tensor:
    """The base's tensor, if it is there and laid out as the entry says; its content is not looked at.

    Raises NoBase.
    """
    tensor = weights.get(entry.name)
    if tensor is None:
        raise NoBase(f"the base lacks tensor {entry.name!r}: this delta was made from another version")
    if not same_layout(entry, _described(entry.name, tensor)):
        raise NoBase(f"tensor {entry.name!r} of the base has another shape or dtype than the delta was made from")
    return tensor


def check_base(entry: TensorEntry, tensor: Tensor) -> None:
    """Raises NoBase unless the tensor is the one that the entry hashes."""
    if tensor_hash(tensor) != entry.sha256:
        raise NoBase(f"tensor {entry.name!r} of the base is not the one that the delta was made from")


def check_result(entry: TensorEntry, tensor: Tensor) -> None:
    """Raises HashMismatch unless the tensor is the one that was promised."""
    found = tensor_hash(tensor)
    if found != entry.sha256:
        raise HashMismatch(
            f"tensor {entry.name!r} came out as {short(found)} instead of {short(entry.sha256)}: nothing was changed"
        )


def bounded(manifest: Manifest, limits: Limits) -> Manifest:
    """The manifest, unless it asks for more than the limits allow: TooLarge."""
    check_size("the number of tensors", len(manifest.tensors), limits.tensors)
    for entry in manifest.tensors:
        check_size(f"tensor {entry.name!r}", entry.nbytes, limits.tensor_bytes)
    check_size("the version", manifest.nbytes, limits.total_bytes)
    return manifest


def _described(name: str, tensor: Tensor) -> TensorEntry:
    quant_type, axis, group_size = quant_of(tensor)
    dtype = str(getattr(tensor.dtype, "name", tensor.dtype))
    layout = (dtype, tuple(tensor.shape), quant_type, axis, group_size)
    codec = scale_codec_of(tensor)
    return TensorEntry(name, *layout, "0" * 64, expected_nbytes(*layout, codec), codec)
