"""PyTorch checkpoints: ``.bin``, ``.pt``, ``.pth`` and ``.ckpt`` files, read without running what they say.

``torch.load(weights_only=True)`` builds tensors and plain containers only. The archive's sizes are checked
first, because a compressed record could grow without bound.
"""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from aios_node.engine.errors import BadWeights, Corrupt, NotFound
from aios_node.engine.weights.convert.source import ModelSource, check_weights
from aios_node.engine.weights.names import check_tensor_name
from aios_node.engine.weights.shard import naming

if TYPE_CHECKING:
    import torch

_NESTS = ("state_dict", "model_state_dict", "module", "model")
"""Where training programs keep the tensors among other things."""


def import_file(path: Path) -> ModelSource:
    """Import the tensors of a checkpoint. Raises NotFound, Corrupt, BadWeights."""
    if not path.is_file():
        raise NotFound(f"{path} does not exist or is no file")
    with naming(path):
        weights = _tensors(_load(path))
        check_weights(weights)
    return ModelSource(weights, {}, "weights")


def _load(path: Path) -> Any:
    import torch

    zipped = zipfile.is_zipfile(path)
    try:
        if zipped:
            _check_archive(path)
        return torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
    except Corrupt:
        raise
    except Exception as error:  # whatever torch's readers raise for a damaged file; they list no types
        reason = (str(error) or type(error).__name__).splitlines()[0][:200]
        raise Corrupt(f"not a checkpoint that can be read safely: {reason}") from None


def _check_archive(path: Path) -> None:
    with zipfile.ZipFile(path) as archive:
        for record in archive.infolist():
            if record.compress_type != zipfile.ZIP_STORED:
                raise Corrupt("a record of the archive is compressed, which PyTorch never does")


def _tensors(loaded: Any) -> dict[str, NDArray[Any]]:
    """The state dict in a checkpoint, as arrays."""
    import torch

    for nest in _NESTS:
        if isinstance(loaded, Mapping) and isinstance(loaded.get(nest), Mapping):
            loaded = loaded[nest]
            break
    if not isinstance(loaded, Mapping):
        raise BadWeights("the checkpoint holds no mapping of tensors")
    found = {name: value for name, value in loaded.items() if isinstance(value, torch.Tensor)}
    return {check_tensor_name(name): _array(name, tensor) for name, tensor in found.items()}


def _array(name: str, tensor: torch.Tensor) -> NDArray[Any]:
    import torch

    if tensor.layout != torch.strided or tensor.is_quantized or tensor.is_complex():
        raise BadWeights(f"tensor {name!r} is sparse, complex or quantised by torch, which is not supported")
    needed = tensor.numel() * tensor.element_size()
    # An expanded view can claim terabytes over a few bytes.
    if needed > tensor.untyped_storage().nbytes():
        raise BadWeights(f"tensor {name!r} claims {needed} bytes; its storage holds fewer")
    dense = tensor.detach().contiguous()
    if dense.dtype == torch.bfloat16:
        return dense.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    if dense.dtype in (torch.float8_e4m3fn, torch.float8_e5m2):
        kind = ml_dtypes.float8_e4m3fn if dense.dtype == torch.float8_e4m3fn else ml_dtypes.float8_e5m2
        return dense.view(torch.uint8).numpy().view(kind)
    array: NDArray[Any] = np.asarray(dense.numpy())
    return array
