"""Lists of floats from outside as one checked float32 matrix, and back.

Knows Arrow's list layouts and little-endian float32 bytes; nothing about tables or search.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import types

from aios_node.engine.errors import BadRequest, Corrupt, TooLarge

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass(frozen=True, eq=False)
class Vectors:
    """The vectors of some of a batch's rows.

    ``values`` float32 [m, d], C order; ``rows`` int64 [m], ascending: the row of the batch that each
    belongs to.
    """

    values: NDArray[np.float32]
    rows: NDArray[np.int64]

    @classmethod
    def none(cls) -> Vectors:
        """No row has a vector."""
        return cls(np.empty((0, 0), np.float32), np.empty(0, np.int64))

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def dimension(self) -> int | None:
        """Length of the vectors, None when there are none."""
        return int(self.values.shape[1]) if len(self) else None

    def merged(self, other: Vectors) -> Vectors:
        """Both together, in row order; they hold vectors of different rows and one dimension."""
        if not len(self) or not len(other):
            return self if len(self) else other
        rows = np.concatenate([self.rows, other.rows])
        order = np.argsort(rows)
        return Vectors(np.concatenate([self.values, other.values])[order], rows[order])


def read_vectors(column: pa.ChunkedArray, name: str, *, limit: int) -> Vectors:
    """The vectors of a list or fixed-size list column of float16, float32 or float64; nulls have none.

    Raises ``BadRequest`` naming column and row for other types, mixed lengths, null elements, NaN, Inf
    (also after rounding to float32) and zero vectors; ``TooLarge`` beyond ``limit`` elements.
    """
    if types.is_null(column.type):
        return Vectors.none()
    if not _is_vector_type(column.type):
        raise BadRequest(f"column {name}: a list or fixed-size list of float is needed, not {column.type}")
    valid = np.flatnonzero(column.is_valid().to_numpy())
    if not len(valid):
        return Vectors.none()
    present = column.drop_null()
    dimension = _one_length(present, valid, name, limit)
    flat = pa.chunked_array([chunk.flatten() for chunk in present.chunks], present.type.value_type)
    if flat.null_count:
        row = int(np.flatnonzero(flat.is_null().to_numpy())[0]) // dimension
        raise BadRequest(f"column {name}, row {valid[row]}: a null inside the vector")
    with np.errstate(over="ignore"):  # what overflows becomes Inf and is refused below
        values = flat.to_numpy().reshape(-1, dimension).astype(np.float32)
    return Vectors(check_vectors(values, valid, name), valid)


def check_vectors(values: NDArray[np.float32], rows: NDArray[np.int64], name: str) -> NDArray[np.float32]:
    """Return ``values`` float32 [m, d] unless a row holds NaN, Inf or only zeros (``BadRequest``)."""
    finite = np.isfinite(values).all(axis=1)
    if not finite.all():
        raise BadRequest(f"column {name}, row {rows[np.argmin(finite)]}: NaN or infinite values")
    nonzero = values.any(axis=1)
    if not nonzero.all():
        raise BadRequest(f"column {name}, row {rows[np.argmin(nonzero)]}: a zero vector has no direction")
    return values


def one_vector(vector: Sequence[float] | NDArray[np.floating], name: str) -> NDArray[np.float32]:
    """A single vector from a caller as float32 [d]; raises ``BadRequest`` as ``read_vectors`` does."""
    try:
        with np.errstate(over="ignore"):
            values = np.asarray(vector, dtype=np.float32)
    except (TypeError, ValueError) as error:
        raise BadRequest(f"{name}: a flat list of numbers is needed") from error
    if values.ndim != 1 or not len(values):
        raise BadRequest(f"{name}: a flat list of numbers is needed, not shape {values.shape}")
    if not np.isfinite(values).all():
        raise BadRequest(f"{name}: NaN or infinite values")
    if not values.any():
        raise BadRequest(f"{name}: a zero vector has no direction")
    return values


def from_blobs(blobs: Sequence[bytes], dimension: int) -> NDArray[np.float32]:
    """Stored vectors as float32 [n, dimension]; raises ``Corrupt`` when one has another length."""
    if any(len(blob) != 4 * dimension for blob in blobs):
        raise Corrupt(f"a stored vector is not {dimension} float32 values long; restore the table from an export")
    return np.frombuffer(b"".join(blobs), dtype="<f4").reshape(-1, dimension)


def list_array(blobs: Sequence[bytes | None]) -> pa.Array:
    """Stored vectors (None: null) as an Arrow list<float32> array."""
    lengths = np.fromiter((len(blob) // 4 if blob else 0 for blob in blobs), np.int32, len(blobs))
    offsets = np.zeros(len(blobs) + 1, np.int32)
    np.cumsum(lengths, out=offsets[1:])
    values = np.frombuffer(b"".join(blob for blob in blobs if blob), dtype="<f4")
    mask = pa.array([blob is None for blob in blobs], pa.bool_())
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(values), mask=mask)


def _is_vector_type(kind: pa.DataType) -> bool:
    is_list = types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind)
    return bool(is_list and types.is_floating(kind.value_type))


def _one_length(lists: pa.ChunkedArray, rows: NDArray[np.int64], name: str, limit: int) -> int:
    """The length that all lists share."""
    lengths = pc.call_function("list_value_length", [lists]).to_numpy()
    first = int(lengths[0])
    if first > limit:
        raise TooLarge(f"column {name}, row {rows[0]}: {first} values, at most {limit} are allowed")
    if first == 0:
        raise BadRequest(f"column {name}, row {rows[0]}: an empty vector")
    other = lengths != first
    if other.any():
        row = int(np.argmax(other))
        raise BadRequest(
            f"column {name}, row {rows[row]}: {lengths[row]} values where row {rows[0]} has {first}; "
            "all vectors of a table have one dimension"
        )
    return first
