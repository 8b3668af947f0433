"""``aios-node memory``: add, search, and move memories."""

from __future__ import annotations

import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from aios_node.engine.errors import BadRequest
from aios_node.node.cli.options import Config, Json, answered
from aios_node.node.cli.output import human_bytes, print_table

app = typer.Typer(help="Memory tables: add, search, export, import.", no_args_is_help=True)
Table = Annotated[str | None, typer.Option("--table", "-t", help="Memory table (default: memory.default_table).")]


class Scope(StrEnum):
    """How far a search reaches."""

    local = "local"
    network = "network"


@app.command()
def add(
    text: Annotated[str | None, typer.Argument(help="The text; `-` reads it from stdin.")] = None,
    image: Annotated[Path | None, typer.Option(help="An image file to remember.")] = None,
    audio: Annotated[Path | None, typer.Option(help="A sound file to remember.")] = None,
    table: Table = None,
    tag: Annotated[list[str] | None, typer.Option(help="A tag. Repeatable.")] = None,
    namespace: Annotated[str | None, typer.Option(help="Namespace.")] = None,
    source: Annotated[str | None, typer.Option(help="Where it comes from.")] = None,
    config: Config = None,
    as_json: Json = False,
) -> None:
    """Remember one thing. Returns when it is durable."""
    args = {
        "table": table,
        "text": sys.stdin.read() if text == "-" else text,
        "image": _file(image),
        "audio": _file(audio),
        "tags": tag,
        "namespace": namespace,
        "source": source,
    }
    result = answered(config, "memory_add", args, as_json)
    if result:
        print(result["id"])


@app.command()
def search(
    query: Annotated[str, typer.Argument(help="What to look for.")],
    table: Table = None,
    k: Annotated[int, typer.Option("-k", min=1, help="Number of hits.")] = 5,
    where: Annotated[str | None, typer.Option("--filter", help="SQL condition, e.g. \"source LIKE 'json%'\".")] = None,
    scope: Annotated[Scope, typer.Option(help="This node, or its peers as well.")] = Scope.local,
    namespace: Annotated[str | None, typer.Option(help="Only this namespace.")] = None,
    config: Config = None,
    as_json: Json = False,
) -> None:
    """Find memories by meaning, best first."""
    args = {"table": table, "text": query, "k": k, "filter": where, "scope": scope.value, "namespace": namespace}
    result = answered(config, "memory_search", args, as_json)
    if result is None:
        return
    rows = [(f"{hit['score']:.3f}", hit["node"] or "-", _one_line(hit["text"])) for hit in result["hits"]]
    print_table("", ["score", "node", "text"], rows, empty="nothing found")
    if not result["complete"]:
        print(f"incomplete: no answer from {', '.join(result['missing'])}", file=sys.stderr)


@app.command()
def stats(
    table: Annotated[str | None, typer.Option("--table", "-t", help="Only this table.")] = None,
    config: Config = None,
    as_json: Json = False,
) -> None:
    """Rows, size and embedding space of the tables."""
    result = answered(config, "memory_stats", {"table": table}, as_json)
    if result is not None:
        rows = [
            (t["table"], t["rows"], human_bytes(t["bytes"]), t["dimension"] or "-", t["space"] or "-")
            for t in result["tables"]
        ]
        print_table("", ["table", "rows", "size", "dimension", "space"], rows, empty="no tables yet")


@app.command()
def export(
    dest: Annotated[Path, typer.Argument(help="File to write: .parquet, .arrow or .jsonl.")],
    table: Table = None,
    config: Config = None,
    as_json: Json = False,
) -> None:
    """Write a whole table to a file."""
    result = answered(config, "memory_export", {"table": table, "path": str(dest.absolute())}, as_json)
    if result:
        print(f"wrote {result['rows']} memories to {dest}")


@app.command(name="import")
def import_memories(
    src: Annotated[Path, typer.Argument(help="File to read: .parquet, .arrow or .jsonl.")],
    table: Table = None,
    config: Config = None,
    as_json: Json = False,
) -> None:
    """Read memories from a file; the same id replaces a row."""
    result = answered(config, "memory_import", {"table": table, "path": str(src.absolute())}, as_json)
    if result:
        print(f"read {result['rows']} memories from {src}")


def _file(path: Path | None) -> str | None:
    if path is not None and not path.is_file():
        raise BadRequest(f"{path} is not a file")
    return str(path.absolute()) if path else None


def _one_line(text: str | None, width: int = 110) -> str:
    line = " ".join((text or "").split())
    return line if len(line) <= width else line[: width - 3] + "..."
