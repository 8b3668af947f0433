"""A received row of weights as a tensor. The layout is the engine's; this only picks the row apart."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from aios_node.engine.errors import Corrupt
from aios_node.engine.weights.layout import PAYLOADS, SCHEMA_V1, RowHeader

if TYPE_CHECKING:
    from aios_node.engine.quant.blocks import Tensor


def tensor_of(batch: Any, row: int) -> tuple[str, Tensor]:
    """Name and tensor of one row of a batch of weights; views of the batch where alignment allows.

    Raises ``Corrupt``, ``BadWeights`` or ``TooLarge`` when the row contradicts itself.
    """
    if missing := set(SCHEMA_V1.names) - set(batch.schema.names):
        raise Corrupt(f"these rows hold no weights: the column {min(missing)!r} is missing")
    small = {name: batch.column(name)[row].as_py() for name in batch.schema.names if name not in PAYLOADS}
    header = RowHeader.parse(small)
    return header.name, header.assemble({name: _bytes(batch, name, row) for name in header.payload_sizes})


def _bytes(batch: Any, name: str, row: int) -> Any:
    value = batch.column(name)[row] if name in batch.schema.names else None
    if value is None or not value.is_valid or not _is_binary(value.type):
        raise Corrupt(f"a row of weights has no bytes in its column {name!r}")
    return np.frombuffer(value.as_buffer(), dtype=np.uint8)


def _is_binary(kind: Any) -> bool:
    return bool(pa.types.is_large_binary(kind) or pa.types.is_binary(kind))
