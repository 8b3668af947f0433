"""The commands at the top level: init, run, demo, status, sync, encode."""

from __future__ import annotations

import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from aios_node.node.cli.options import Config, Json, answered, config_path
from aios_node.node.cli.output import human_bytes, pick, print_json, print_table, short


class Preset(StrEnum):
    """Starting points in cluster-configs/."""

    edge = "edge"
    local = "local"
    cloud = "cloud"


class Tls(StrEnum):
    """When clients and peers meet TLS."""

    auto = "auto"
    on = "on"
    off = "off"


def register(app: typer.Typer) -> None:
    """Add the commands in the order in which a newcomer meets them."""
    for command in (init, run, demo, status, sync, encode):
        app.command()(command)


def init(
    folder: Annotated[Path, typer.Argument(help="Folder of the new node.")],
    preset: Annotated[Preset, typer.Option(help="Size of the machine.")] = Preset.local,
    name: Annotated[str | None, typer.Option(help="Name of the node (default: the folder's).")] = None,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port for clients; 0 takes a free one.")] = 0,
    peer_port: Annotated[int, typer.Option(help="Port for peers under TLS; 0 takes a free one.")] = 0,
    peer: Annotated[list[str] | None, typer.Option(help="URI or URI#NODE_ID of a peer. Repeatable.")] = None,
    tls: Annotated[Tls, typer.Option(help="auto: plain on loopback, TLS on any other address.")] = Tls.auto,
    as_json: Json = False,
) -> None:
    """Make a node: a commented node.yaml, an identity and its folders."""
    from aios_node.node.setup import init_node

    made = init_node(
        folder,
        preset=preset.value,
        name=name,
        host=host,
        port=port,
        peer_port=peer_port,
        peers=peer or (),
        tls=tls.value,
    )
    if as_json:
        print_json({"config": str(made.config_file), "node_id": made.node_id, "name": made.config.node.name})
        return
    print(f"{made.config_file}\nnode id {made.node_id}")
    print(f"next: aios-node run -c {made.config_file}", file=sys.stderr)


def run(
    config: Config = None,
    port: Annotated[int | None, typer.Option(help="Port for clients; 0 takes a free one.")] = None,
    insecure: Annotated[
        bool, typer.Option("--insecure", help="Serve plain and open even on an address that is not loopback.")
    ] = False,
) -> None:
    """Start the node and serve until it is told to stop (Ctrl-C or SIGTERM)."""
    from aios_node.node.config import load_config
    from aios_node.node.service import serve

    overrides: dict[str, Any] = {} if port is None else {"listen.port": port}
    if insecure:
        overrides["security.insecure"] = True
    raise typer.Exit(serve(load_config(config_path(config), overrides=overrides)))


def demo(
    keep: Annotated[Path | None, typer.Option(help="Keep the three nodes' folders here.")] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Training steps (default: as measured best).")] = None,
    as_json: Json = False,
) -> None:
    """Three real nodes on this machine: sync, search, learn, hand the delta on. Takes a few minutes."""
    from aios_node.node.demo.main import run_demo

    raise typer.Exit(run_demo(keep=keep, steps=steps, as_json=as_json))


def status(config: Config = None, as_json: Json = False) -> None:
    """What this node holds and whom it knows."""
    result = answered(config, "status", {}, as_json)
    if result is None:
        return
    where = result["address"] or "not running"
    print(f"{result['node']}  {where}\nnode id {result['node_id']}")
    if result["peer_address"]:
        print(f"peers meet it at {result['peer_address']}")
    models = [(*pick(m, "name"), short(m["active"]), m["quant"], human_bytes(m["bytes"])) for m in result["models"]]
    print_table("\nmodels", ["name", "active", "precision", "size"], models, empty="\nno models")
    tables = [(t["table"], t["rows"], t["space"] or "-") for t in result["tables"]]
    print_table("\ntables", ["table", "rows", "space"], tables, empty="\nno memory tables")
    peers = [(p["uri"], p["name"] or "-", p["state"]) for p in result["peers"]]
    print_table("\npeers", ["uri", "name", "state"], peers, empty="\nno peers")


def sync(
    peer: Annotated[str | None, typer.Option(help="Only this peer (URI or name).")] = None,
    model: Annotated[str | None, typer.Option(help="Only this model.")] = None,
    config: Config = None,
    as_json: Json = False,
) -> None:
    """Exchange news with the peers now."""
    result = answered(config, "sync", {"peer": peer, "model": model}, as_json)
    if result is None:
        return
    rows = [
        (
            r["peer"], r["model"], r["direction"], r["mode"] or "-", human_bytes(r["bytes"]),
            human_bytes(r["full_bytes"]), "yes" if r["hash_ok"] else r.get("error") or "no",
        )
        for r in result["results"]
    ]  # fmt: skip
    print_table("", ["peer", "model", "direction", "mode", "bytes", "full", "hash equal"], rows, empty="nothing new")
    for failed in result["failed"]:
        print(f"{failed['peer']}: {failed['error']}", file=sys.stderr)
    if result["failed"]:
        raise typer.Exit(1)


def encode(
    texts: Annotated[list[str] | None, typer.Argument(help="Texts; without any, one per line of stdin.")] = None,
    model: Annotated[str | None, typer.Option(help="Encoder (default: the node's).")] = None,
    config: Config = None,
    as_json: Json = False,
) -> None:
    """Turn texts into vectors of unit length."""
    lines = texts or [line.rstrip("\n") for line in sys.stdin]
    result = answered(config, "encode", {"texts": lines, "model": model}, as_json)
    if result is not None:
        for vector in result["embeddings"]:
            print(" ".join(f"{value:.6f}" for value in vector))
