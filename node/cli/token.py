"""``aios-node token``: who may call this node, and for what."""

from __future__ import annotations

from typing import Annotated

import typer

from aios_node.node.cli.options import Config, Json, answered
from aios_node.node.cli.output import print_table

app = typer.Typer(help="Tokens for clients.", no_args_is_help=True)


@app.command()
def create(
    name: Annotated[str, typer.Argument(help="Name of the client.")],
    allow: Annotated[
        list[str] | None, typer.Option("--allow", help="RESOURCE:RIGHT, e.g. memory/notes:read. Repeatable.")
    ] = None,
    config: Config = None,
    as_json: Json = False,
) -> None:
    """Make a token. It is shown once and cannot be read again."""
    result = answered(config, "token_create", {"name": name, "allow": allow or []}, as_json)
    if result:
        print(result["token"])


@app.command(name="list")
def list_tokens(config: Config = None, as_json: Json = False) -> None:
    """Names and rights of all tokens."""
    result = answered(config, "token_list", {}, as_json)
    if result is not None:
        rows = [(entry["name"], ", ".join(entry["allow"])) for entry in result["tokens"]]
        print_table("", ["name", "rights"], rows, empty="no tokens yet: aios-node token create NAME --allow ...")


@app.command()
def revoke(
    name: Annotated[str, typer.Argument(help="Name of the client.")], config: Config = None, as_json: Json = False
) -> None:
    """Forget a token; it stops working at once."""
    if answered(config, "token_revoke", {"name": name}, as_json):
        print(f"revoked {name}")
