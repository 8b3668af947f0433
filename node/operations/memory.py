"""Operations on memory tables."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import pyarrow as pa
from pydantic import ConfigDict

from aios_node.engine.errors import BadRequest
from aios_node.node.operations.registry import Args, Progress, operation

if TYPE_CHECKING:
    from aios_node.node.core import NodeCore


class AddArgs(Args):
    """One memory; at least one of text, image and audio (paths on the node's machine)."""

    table: str | None = None
    text: str | None = None
    image: Path | None = None
    audio: Path | None = None
    id: str | None = None
    namespace: str | None = None
    source: str | None = None
    tags: list[str] | None = None
    importance: float | None = None
    metadata: dict[str, Any] | None = None


class SearchArgs(Args):
    """A text and how to look for it."""

    text: str
    table: str | None = None
    k: int = 10
    filter: str | None = None
    namespace: str | None = None
    scope: Literal["local", "network"] = "local"


class TableArgs(Args):
    """A table; none: all, or the default one."""

    table: str | None = None


class FileArgs(Args):
    """A file on the node's machine."""

    path: Path
    table: str | None = None


class GetArgs(Args):
    """Ids of memories."""

    table: str
    ids: list[str]


class UpdateArgs(Args):
    """An id and the columns to change."""

    model_config = ConfigDict(extra="allow", frozen=True)

    table: str
    id: str


class DeleteArgs(Args):
    """Ids, or a filter."""

    table: str
    ids: list[str] | None = None
    filter: str | None = None


@operation("memory_add", "{table?, text|image|audio, ...} -> {id, table}", "admin", "node/memory")
def memory_add(core: NodeCore, args: AddArgs, _progress: Progress) -> dict[str, Any]:
    """Remember one thing; durable on return."""
    table = args.table or core.config.memory.default_table
    given = args.model_dump(exclude={"table"}, exclude_none=True)
    if not {"text", "image", "audio"} & set(given):
        raise BadRequest("nothing to remember: give a text, an image or a sound")
    return {"id": core.memory.add(table, **given), "table": table}


@operation(
    "memory_search",
    "{text, table?, k?, filter?, namespace?, scope?} -> {hits, complete, missing}",
    "admin",
    "node/memory",
)
def memory_search(core: NodeCore, args: SearchArgs, _progress: Progress) -> dict[str, Any]:
    """Find memories by meaning, best first."""
    from aios_node.flight.ports import SearchRequest

    request = SearchRequest(
        args.table or core.config.memory.default_table,
        text=args.text,
        k=args.k,
        filter=args.filter,
        namespace=args.namespace,
        scope=args.scope,
    )
    found = core.search.search([request])[0]
    return {"hits": _rows(found.hits), "complete": found.complete, "missing": list(found.missing)}


@operation("memory_stats", "{table?} -> {tables}", "admin", "node/memory")
def memory_stats(core: NodeCore, args: TableArgs, _progress: Progress) -> dict[str, Any]:
    """Rows, bytes, dimension and embedding space."""
    names = [args.table] if args.table else core.memory.tables()
    return {"tables": [core.memory_stats(name) for name in names]}


@operation("memory_export", "{path, table?} -> {rows, path}", "admin", "node/memory", long=True)
def memory_export(core: NodeCore, args: FileArgs, _progress: Progress) -> dict[str, Any]:
    """Write a table to a Parquet, Arrow or JSONL file."""
    table = args.table or core.config.memory.default_table
    return {"table": table, "path": str(args.path), "rows": core.memory.export(table, args.path)}


@operation("memory_import", "{path, table?} -> {rows, path}", "admin", "node/memory", long=True)
def memory_import(core: NodeCore, args: FileArgs, _progress: Progress) -> dict[str, Any]:
    """Read memories from a Parquet, Arrow or JSONL file."""
    table = args.table or core.config.memory.default_table
    return {"table": table, "path": str(args.path), "rows": core.memory.import_file(args.path, table)}


@operation("memory_get", "{table, ids} -> {rows}", "read", "memory/{table}")
def memory_get(core: NodeCore, args: GetArgs, _progress: Progress) -> dict[str, Any]:
    """Memories by id; unknown ids are left out."""
    return {"rows": _rows(core.memory.get(args.ids, table=args.table))}


@operation("memory_update", "{table, id, ...} -> {id, version}", "write", "memory/{table}")
def memory_update(core: NodeCore, args: UpdateArgs, _progress: Progress) -> dict[str, Any]:
    """Change columns of one memory; durable on return."""
    version = core.memory.update(args.id, table=args.table, **(args.model_extra or {}))
    return {"id": args.id, "version": version}


@operation("memory_delete", "{table, ids | filter} -> {rows, version}", "write", "memory/{table}")
def memory_delete(core: NodeCore, args: DeleteArgs, _progress: Progress) -> dict[str, Any]:
    """Forget memories; durable on return."""
    rows = core.memory.delete(args.ids, filter=args.filter, table=args.table)
    return {"rows": rows, "version": core.memory.version(args.table)}


def _rows(table: pa.Table) -> list[dict[str, Any]]:
    """Rows as JSON: times as ISO text, payload bytes left out (fetch them with do_get)."""
    columns = [name for name in table.column_names if name not in {"payload", "embedding", "joint_embedding"}]
    rows: list[dict[str, Any]] = table.select(columns).to_pylist()
    for row in rows:
        if row.get("created_at") is not None:
            row["created_at"] = row["created_at"].isoformat()
    return rows
