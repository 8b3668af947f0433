"""``aios-node peers``: the nodes this one stays in step with."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from aios_node.node.cli.options import Config, Json, answered
from aios_node.node.cli.output import print_table, short

app = typer.Typer(help="Peers to stay in step with.", no_args_is_help=True)
Uri = Annotated[
    str,
    typer.Argument(
        help="grpc+tls://HOST:PORT of the peer's peer port (grpc:// without TLS), or key:NODE_ID if it only dials."
    ),
]


@app.command(name="list")
def list_peers(config: Config = None, as_json: Json = False) -> None:
    """All peers and what was last heard of them."""
    result = answered(config, "peers_list", {}, as_json)
    if result is not None:
        rows = [
            (p["uri"], p["name"] or "-", short(p["node_id"]), p["state"], p["last_error"] or "")
            for p in result["peers"]
        ]
        print_table(
            "", ["uri", "name", "node id", "state", "last error"], rows,
            empty="no peers yet: aios-node peers add URI --fingerprint NODE_ID",
        )  # fmt: skip


@app.command()
def add(
    uri: Uri,
    fingerprint: Annotated[
        str | None, typer.Option(help="Node id of the peer (`aios-node status` there shows it).")
    ] = None,
    cert: Annotated[
        Path | None, typer.Option(help="The peer's keys/node.crt, where it cannot be fetched from the peer.")
    ] = None,
    config: Config = None,
    as_json: Json = False,
) -> None:
    """Trust a peer and stay in step with it. A running node does so at once."""
    args = {"uri": uri, "fingerprint": fingerprint, "certificate": str(cert.absolute()) if cert else None}
    if answered(config, "peers_add", args, as_json):
        print(f"added {uri}")


@app.command()
def discover(
    wait: Annotated[
        float, typer.Option(min=0, max=60, help="Seconds to listen, where the node does not listen anyway.")
    ] = 3.0,
    config: Config = None,
    as_json: Json = False,
) -> None:
    """Nodes that announce themselves on the local network. None of them becomes a peer by that."""
    result = answered(config, "peers_discover", {"wait_s": wait}, as_json)
    if result is not None:
        rows = [(node["uris"][0], node["name"] or "-", node["node_id"], _standing(node)) for node in result["nodes"]]
        print_table(
            "", ["uri", "name", "node id", ""], rows,
            empty="nobody announces itself here: discovery.mdns must be on at the other nodes",
        )  # fmt: skip


def _standing(node: dict[str, Any]) -> str:
    if node["self"]:
        return "this node"
    return "peer" if node["peer"] else "stranger"


@app.command()
def remove(uri: Uri, config: Config = None, as_json: Json = False) -> None:
    """Stop syncing with a peer that was added by `peers add`."""
    if answered(config, "peers_remove", {"uri": uri}, as_json):
        print(f"removed {uri}")
