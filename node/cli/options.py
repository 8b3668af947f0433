"""Options that many commands share, and the way from them to the node."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from aios_node.node.cli.output import print_json, progress_bar

Config = Annotated[
    Path | None,
    typer.Option("-c", "--config", help="The node's configuration (default: ./node.yaml).", show_default=False),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]

DEFAULT_CONFIG = Path("node.yaml")


def config_path(config: Path | None) -> Path:
    """The file that ``-c`` names, or ``./node.yaml``."""
    return config or DEFAULT_CONFIG


def ask(config: Path | None, op: str, args: Mapping[str, Any], *, quiet: bool) -> dict[str, Any]:
    """Run an operation on the node: over Flight when it runs, otherwise on its folder directly."""
    from aios_node.node.reach import reach

    with reach(config_path(config)) as node, progress_bar(quiet) as progress:
        return node.call(op, {key: value for key, value in args.items() if value is not None}, progress)


def answered(config: Path | None, op: str, args: Mapping[str, Any], as_json: bool) -> dict[str, Any] | None:
    """Run an operation; with ``--json`` print its result and return None."""
    result = ask(config, op, args, quiet=as_json)
    if as_json:
        print_json(result)
        return None
    return result
