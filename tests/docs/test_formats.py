"""docs/formats.md and the messages in docs/protocol.md are exact: columns, examples and hashes."""

from __future__ import annotations

import hashlib
import html
import json
import re
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pyarrow as pa
import pytest

from aios_node.delta.codec.codecs import CODECS
from aios_node.delta.exchange import wire
from aios_node.engine.quant.blocks import QuantizedTensor, pack
from aios_node.engine.quant.recipe import QuantizationConfig
from aios_node.engine.quant.scales import CompactScales
from aios_node.engine.weights.layout import FORMAT_KEY, INDEX_KEY, SCHEMA_V1, SCHEMA_V2, WRITER_KEY
from aios_node.engine.weights.manifest import Manifest, tensor_hash
from aios_node.flight.descriptors import SearchTarget, WeightsTarget, parse_command
from aios_node.flight.limits import Limits
from aios_node.memory.retrieve import HITS
from aios_node.memory.schema import ACCESS_COLUMNS, COLUMNS

DOCS = Path(__file__).resolve().parent.parent.parent / "docs"
FORMATS = (DOCS / "formats.md").read_text(encoding="utf-8")
PROTOCOL = (DOCS / "protocol.md").read_text(encoding="utf-8")
Row = tuple[str, ...]


def table_after(text: str, anchor: str) -> list[Row]:
    """The rows of the first table after a text; their first cells are code."""
    block = text[text.index(anchor) :].split("\n| `", 1)[1].split("\n\n")[0]
    lines = [line for line in ("| `" + block).splitlines() if line.startswith("| ")]
    return [tuple(html.unescape(cell.strip()) for cell in line.split("|")[1:-1]) for line in lines]


def shown(kind: pa.DataType) -> str:
    return f"list<{kind.value_type}>" if pa.types.is_list(kind) else str(kind)


def columns(rows: list[Row]) -> list[tuple[str, str]]:
    return [(row[0].strip("`"), row[1]) for row in rows]


def described(schema: pa.Schema) -> list[tuple[str, str]]:
    return [(field.name, shown(field.type)) for field in schema]


# ---- columns


@pytest.mark.parametrize(
    ("text", "anchor", "schema"),
    [
        (FORMATS, "### Version 2", SCHEMA_V2),
        (FORMATS, "## Memory tables", COLUMNS),
        (PROTOCOL, "| hit column |", HITS),
    ],
    ids=["weights", "memories", "hits"],
)
def test_columns(text: str, anchor: str, schema: pa.Schema) -> None:
    assert columns(table_after(text, anchor)) == described(schema), f"after {anchor!r}: columns or types differ"


@pytest.mark.parametrize(("anchor", "schema"), [("### Version 2", SCHEMA_V2), ("## Memory tables", COLUMNS)])
def test_what_may_be_null(anchor: str, schema: pa.Schema) -> None:
    said = {row[0].strip("`"): row[2] != "no" for row in table_after(FORMATS, anchor)}
    assert said == {field.name: field.nullable for field in schema}


def test_version_1_is_the_beginning_of_version_2() -> None:
    assert "The first five columns." in FORMATS
    assert SCHEMA_V2.names[:5] == SCHEMA_V1.names


def test_metadata_and_columns_that_the_node_keeps() -> None:
    for name in (FORMAT_KEY, WRITER_KEY, INDEX_KEY):
        assert f"| `{name.decode()}` |" in FORMATS
    for name, kind in described(ACCESS_COLUMNS):
        assert re.search(rf"`{name}`\s\({re.escape(kind)}\)", FORMATS), f"formats.md: {name} ({kind}) is missing"


# ---- examples


def test_the_hashes_of_the_examples() -> None:
    plain = np.array([1.0, 2.0], np.float32)
    one = np.ones((1, 1), np.float32)
    packed = QuantizedTensor(pack(np.array([1, 2, 3]), 4), one / 2, one, (3,), "float32", "int4", -1, 0)
    for tensor in (plain, packed):
        assert f"`{tensor_hash(tensor)}`" in FORMATS
    header = b'{"dtype":"float32","group_size":0,"quant_axis":-1,"quant_type":"int4","shape":[3]}\n'
    by_hand = hashlib.sha256(header + bytes.fromhex("2103 0000003f 0000803f")).hexdigest()
    assert by_hand == tensor_hash(packed)


def test_the_example_of_scales_of_4_bits() -> None:
    section = FORMATS[FORMATS.index("#### Scales and zero points of 4 bits") :]
    rows = {row[0]: bytes.fromhex(row[1].strip("`")) for row in plain_table(section, "| what | bytes | means |")}
    steps = np.frombuffer(rows["steps"], "<f2").reshape(1, 1)
    data, scale_codes, zero_codes = (
        np.frombuffer(rows[name], np.uint8) for name in ("data", "scale codes", "zero codes")
    )
    compact = CompactScales(steps, scale_codes, zero_codes, 3)
    tensor = QuantizedTensor.compacted(data, compact, (20,), "float32", "int2", -1, 8)
    assert tensor.scales.tolist() == [[0.5, 1.0, 7.5]]
    assert tensor.zero_points.tolist() == [[0, 1, 2]]
    said = re.search(r"The values are (.*); the tensor has 11 bytes", section)
    assert said is not None
    assert tensor.dequantize().tolist() == [float(number) for number in re.findall(r"-?[\d.]+", said[1])]
    assert tensor.nbytes == 11
    assert f"`{tensor_hash(tensor)}`" in FORMATS


def plain_table(text: str, head: str) -> list[Row]:
    """The rows of the table with this head."""
    lines = text[text.index(head) :].split("\n\n")[0].splitlines()[2:]
    return [tuple(cell.strip() for cell in line.split("|")[1:-1]) for line in lines]


def test_the_members_of_a_recipe() -> None:
    said = {row[0].strip("`"): row[1].strip("`") for row in plain_table(FORMATS, "| key | default | meaning |")}
    assert set(said) == {*QuantizationConfig(method="gptq").to_json(), "scales", "target_bytes", "calibration"}


@pytest.mark.parametrize("method", ["ptq", "gptq", "tuned"])
def test_the_options_of_a_method(method: Any) -> None:
    rows = plain_table(FORMATS, "| option | method | default | meaning |")
    said = {row[0].strip("`"): json.loads(row[2].strip("`")) for row in rows if f"`{method}`" in row[1]}
    assert said == QuantizationConfig(method=method).to_json().get("options", {})


def test_the_manifest_of_the_example() -> None:
    (example,) = re.findall(r"^```json\n(.*)\n```", FORMATS, re.MULTILINE)
    assert f"Its id is `{Manifest.from_bytes(example.encode()).version}`." in FORMATS


def test_the_sync_messages() -> None:
    examples = re.findall(r'^```json\n(.*"sum".*)\n```', PROTOCOL, re.MULTILINE)
    hashes = bytes(32 * 64)  # what the example of SHARE carries
    messages = [wire.decode(example.encode(), hashes if '"share"' in example else b"") for example in examples]
    assert {type(message) for _, message in messages} == set(get_args(wire.Message)), "an example of each message"
    assert [wire.encode(message, number)[0].decode() for number, message in messages] == examples


def test_the_commands() -> None:
    blocks = re.findall(r'^```json\n(\{"v".*?)\n```', PROTOCOL, re.MULTILINE)
    assert [type(parse_command(block.encode(), Limits())) for block in blocks] == [WeightsTarget, SearchTarget]


def test_every_codec() -> None:
    assert {row[0].strip("`") for row in table_after(FORMATS, "| codec | coded bytes |")} == set(CODECS)
