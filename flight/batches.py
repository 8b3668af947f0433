"""Record batches on their way in and out: sized for gRPC, checked before anyone trusts them.

A batch from outside may lie about its own offsets; ``validate(full=True)`` finds out before anything reads
it. Outgoing batches are about 1 MiB: faster than smaller ones, and clients in Go and Rust refuse messages
over 4 MiB.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.flight as fl

from aios_node.engine.errors import BadRequest, TransferAborted
from aios_node.flight.errors import clip, guarded
from aios_node.flight.limits import MIB, Limits, require_size

if TYPE_CHECKING:
    from aios_node.flight.calls import Call

BATCH_BYTES = 1 * MIB


def sized(batches: Iterable[Any], target: int = BATCH_BYTES) -> Iterator[Any]:
    """The same rows in batches of about ``target`` bytes (a single row may be larger), without copying."""
    for batch in batches:
        size = batch.nbytes
        if size <= 2 * target or batch.num_rows <= 1:
            yield batch
            continue
        rows = max(1, batch.num_rows * target // size)
        for start in range(0, batch.num_rows, rows):
            yield batch.slice(start, rows)


def empty_batch(schema: Any) -> Any:
    """A batch of this schema without rows."""
    return pa.RecordBatch.from_arrays([pa.array([], type=f.type) for f in schema], schema=schema)


def stream(data: Any, call: Call) -> Any:
    """A Flight stream of a Table (sent by C++ alone) or of a RecordBatchReader (its errors kept tame)."""
    if isinstance(data, pa.Table):
        call.hand_over()
        return fl.RecordBatchStream(pa.Table.from_batches(sized(data.to_batches()), data.schema))
    return fl.GeneratorStream(data.schema, turns(guarded(sized(data), call.method), call))


def stream_with_end(table: Any, end: bytes, call: Call) -> Any:
    """A Flight stream of a small Table whose last message carries ``end`` as its app_metadata."""

    def messages() -> Iterator[Any]:
        batches = [b for b in sized(table.to_batches()) if b.num_rows] or [empty_batch(table.schema)]
        yield from batches[:-1]
        yield batches[-1], end

    return fl.GeneratorStream(table.schema, turns(guarded(messages(), call.method), call))


def turns(items: Iterable[Any], call: Call) -> Iterator[Any]:
    """Tell the call that between items it is the client's turn."""
    for item in items:
        with call.waiting():
            yield item


def read_schema(reader: Any, call: Call) -> Any:
    """The schema that the client begins its stream with. Raises ``BadRequest``."""
    try:
        with call.waiting():
            return reader.schema
    except (fl.FlightError, pa.ArrowException, OSError) as error:
        raise BadRequest(f"the stream holds no Arrow schema: {_short(error)}") from None


def read_batches(reader: Any, call: Call, limits: Limits) -> Iterator[Any]:
    """The client's record batches, each fully validated and within ``limits.batch_bytes``.

    Raises ``BadRequest`` for data that is not valid Arrow, ``TooLarge`` for too much of it. The end of the
    iteration does not prove that the client sent everything: a killed client looks the same.
    """
    while True:
        try:
            with call.waiting():
                chunk = reader.read_chunk()
        except StopIteration:
            return
        except (fl.FlightError, pa.ArrowException, OSError) as error:
            raise BadRequest(f"the stream is not valid Arrow: {_short(error)}") from None
        batch = chunk.data
        if batch is None:
            continue
        check_batch(batch, limits)
        yield batch


def check_batch(batch: Any, limits: Limits) -> None:
    """Raise unless a batch from outside is sound and within ``limits.batch_bytes``."""
    try:
        batch.validate(full=True)
        size = batch.nbytes
    except pa.ArrowException as error:
        raise BadRequest(f"a record batch contradicts itself: {_short(error)}") from None
    require_size(size, limits.batch_bytes, "a record batch (bytes)")


def write_batch(writer: Any, call: Call, batch: Any, meta: bytes | None = None) -> None:
    """Send one batch to the client. Raises ``TransferAborted`` when it is gone."""
    try:
        with call.waiting():
            if meta is None:
                writer.write_batch(batch)
            else:
                writer.write_with_metadata(batch, meta)
    except (fl.FlightError, pa.ArrowException, OSError) as error:
        raise TransferAborted(f"the client ended the stream: {_short(error)}") from None


def _short(error: BaseException) -> str:
    return clip(str(error).split(". Detail: Python exception", 1)[0], 200)
