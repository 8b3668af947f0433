"""Page headers of Parquet column chunks, compared with what the file can hold before Arrow allocates by them.

A page says how many values it holds and how large it is when decompressed; a few bytes can claim gigabytes.
Decodes no values.

Format: https://github.com/apache/parquet-format (PageHeader in parquet.thrift).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from aios_node.engine.errors import Corrupt
from aios_node.engine.weights.thrift import Struct, read_struct, whole

_TYPE, _RAW_SIZE, _STORED_SIZE = 1, 2, 3
# The sub-header that counts the values of each kind of page: data, dictionary, data of version 2.
_COUNTED = {0: 5, 2: 7, 3: 8}
_MAX_HEADER_BYTES = 64 * 1024


@dataclass(frozen=True)
class Page:
    """One page: values it claims to hold, its size decompressed and as stored."""

    values: int
    raw_bytes: int
    stored_bytes: int


def check_pages(data: memoryview, max_values: int, max_raw_bytes: int) -> None:
    """Walk all pages of one column chunk (``data``, nothing else).

    Raises Corrupt unless the pages fill the chunk exactly and claim no more values and no more
    decompressed bytes than they may.
    """
    values = raw = 0
    for page in _walk(data):
        values, raw = values + page.values, raw + page.raw_bytes
        if values > max_values or raw > max_raw_bytes:
            raise Corrupt(f"pages claim {values} values and {raw} bytes; {max_values} and {max_raw_bytes} are possible")


def _walk(data: memoryview) -> Iterator[Page]:
    at = 0
    while at < len(data):
        fields, length = read_struct(data[at : at + _MAX_HEADER_BYTES])
        page = _page(fields)
        at += length + page.stored_bytes
        yield page
    if at != len(data):
        raise Corrupt("the last page of a column reaches beyond its end")


def _page(fields: Struct) -> Page:
    counted = fields.get(_COUNTED.get(whole(fields, _TYPE), -1))
    values = whole(counted, 1) if isinstance(counted, dict) else 0
    return Page(values, whole(fields, _RAW_SIZE), whole(fields, _STORED_SIZE))
