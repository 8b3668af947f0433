"""Rows that clients put into memory tables: gathered whole, within limits, before anything is written."""

from __future__ import annotations

import json
from typing import Any

import pyarrow as pa
import pyarrow.flight as fl

from aios_node.engine.errors import BadRequest, TransferAborted
from aios_node.flight.batches import read_batches, read_schema
from aios_node.flight.calls import Call
from aios_node.flight.errors import clip
from aios_node.flight.limits import Limits, require_size
from aios_node.memory import rows
from aios_node.memory.schema import Limits as RowLimits


def read_rows(context: Any, reader: Any, call: Call, limits: Limits) -> Any:
    """All rows of a put as one Table, not empty.

    A killed client looks like an ordinary end, except that its call counts as cancelled: ``TransferAborted``.
    Raises ``BadRequest`` for columns that no table has or types that do not fit, before any row is read,
    and ``TooLarge`` as soon as rows or bytes exceed the limits.
    """
    schema = read_schema(reader, call)
    check_columns(schema)
    batches, count, size = [], 0, 0
    for batch in read_batches(reader, call, limits):
        count += batch.num_rows
        size += batch.nbytes
        require_size(count, limits.put_rows, "this put (rows)")
        require_size(size, limits.put_bytes, "this put (bytes)")
        batches.append(batch)
    if context.is_cancelled():
        raise TransferAborted("the client vanished in the middle of its put; nothing was written")
    if not count:
        raise BadRequest("this put holds no rows")
    return pa.Table.from_batches(batches, schema)


def answer(writer: Any, call: Call, result: dict[str, int]) -> None:
    """Tell the client that its rows are durable. A client that is gone does not undo them."""
    try:
        with call.waiting():
            writer.write(json.dumps(result).encode())
    except (fl.FlightError, pa.ArrowException, OSError):
        return


def check_columns(schema: Any) -> None:
    """Raise ``BadRequest`` unless memory tables have these columns, of types that fit.

    The memory room's own check of rows, given none: what it says about columns, it says before any row is read.
    """
    try:
        empty = schema.empty_table()
    except (pa.ArrowException, NotImplementedError) as error:
        raise BadRequest(f"a column has a type that memory tables do not know: {clip(str(error), 200)}") from None
    rows.read_rows(empty, RowLimits())
