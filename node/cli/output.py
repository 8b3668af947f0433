"""What commands print: JSON on request, otherwise tables for people; progress only on a terminal."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

Progress = Callable[[float, str], None]


def print_json(value: Any) -> None:
    """One JSON document on stdout."""
    print(json.dumps(value, indent=2, ensure_ascii=False, default=str))


def print_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[Any]], *, empty: str) -> None:
    """A table for people, or the sentence ``empty``."""
    if not rows:
        print(empty)
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column, overflow="fold", justify="right" if column in _RIGHT else "left")
    for row in rows:
        table.add_row(*(Text(str(cell)) for cell in row))
    console = Console(width=None if sys.stdout.isatty() else 160, highlight=False)
    if title:
        console.print(Text(title, style="bold underline"))
    console.print(table)


_RIGHT = {"bytes", "rows", "score", "size", "ratio", "seconds", "versions", "requests"}


@contextmanager
def progress_bar(quiet: bool) -> Iterator[Progress]:
    """A progress bar on a terminal's stderr; nothing in a pipe or with ``--json``."""
    if quiet or not sys.stderr.isatty():
        yield lambda _fraction, _text: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("working", total=1.0)
        yield lambda fraction, text: bar.update(task, completed=fraction, description=text or "working")


def human_bytes(count: int | float) -> str:
    """``4.2 MB`` (powers of 1000)."""
    size = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"


def short(version: str | None) -> str:
    """A version as people see it: 12 characters."""
    return version[:12] if version else "-"


def pick(result: Mapping[str, Any], *keys: str) -> list[Any]:
    """The values of some keys, ``-`` where there is none."""
    return [result.get(key) if result.get(key) is not None else "-" for key in keys]
