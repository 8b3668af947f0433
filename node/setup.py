"""``aios-node init``: a folder with a commented configuration, an identity and nothing else to do."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from aios_node.engine.errors import BadConfig
from aios_node.node.config import NodeConfig, load_config
from aios_node.node.config.load import check_config
from aios_node.node.config.sources import parse_config
from aios_node.node.files import write_atomic
from aios_node.node.identity import create_identity

PRESETS = ("edge", "local", "cloud")

_HEAD = """\
# Configuration of this AIOS node. Every key, with its default, is described in docs/configuration.md.
# Relative paths count from this file. AIOS_<SECTION>__<KEY> in the environment overrides a value.

node:
  name: {name}
  data_dir: data
  keys_dir: keys

listen:
  host: {host}
  port: {port} # 0 takes a free port; the line `ready ...` names it
{listen}
peers:{peers}

security:
  tls: "{tls}" # auto: plain on loopback, TLS with identities on any other address
"""


@dataclass(frozen=True)
class NewNode:
    """What ``init`` has made."""

    config_file: Path
    node_id: str
    config: NodeConfig


def preset_text(name: str) -> str:
    """The YAML of a preset, comments included. Raises BadConfig for an unknown one."""
    if name not in PRESETS:
        raise BadConfig(f"preset {name!r} is not known: use {', '.join(PRESETS)}")
    return (resources.files("aios_node.node") / "presets" / f"{name}.yaml").read_text(encoding="utf-8")


def init_node(
    folder: Path,
    *,
    preset: str = "local",
    name: str | None = None,
    host: str = "127.0.0.1",
    port: int = 0,
    peer_port: int = 0,
    peers: Sequence[str] = (),
    tls: str = "auto",
) -> NewNode:
    """Write ``folder/node.yaml``, keys and folders. ``peers``: URIs, each optionally ``URI#FINGERPRINT``.

    Raises BadConfig when the folder already holds a node or a value is wrong; nothing is left behind then.
    """
    file = folder / "node.yaml"
    if file.exists():
        raise BadConfig(f"{file} exists: edit it, or name another folder")
    text = _render(name or folder.absolute().name, host, port, peer_port, peers, tls, preset)
    check_config(parse_config(text, "node.yaml"), folder)
    identity = create_identity(folder / "keys", [host])
    (folder / "data").mkdir(exist_ok=True)
    write_atomic(file, text.encode())
    return NewNode(file, identity.node_id, load_config(file, environ={}))


def _render(name: str, host: str, port: int, peer_port: int, peers: Sequence[str], tls: str, preset: str) -> str:
    sections = preset_text(preset)
    kept, listen = _split_listen(sections)
    lines = [f"  peer_port: {peer_port} # where peers meet this node under TLS", *listen]
    head = _HEAD.format(
        name=json.dumps(name),
        host=json.dumps(host),
        port=port,
        listen="\n".join(lines) + "\n",
        peers="".join(_peer_lines(peer) for peer in peers) or " [] # aios-node peers add URI --fingerprint NODE_ID",
        tls=tls,
    )
    return f"{head}\n{kept}"


def _split_listen(preset: str) -> tuple[str, list[str]]:
    """A preset's own ``listen`` lines belong into the one ``listen`` section of the file."""
    before, marker, listen = preset.partition("\nlisten:\n")
    return (before.rstrip() + "\n", listen.rstrip().splitlines()) if marker else (preset, [])


def _peer_lines(peer: str) -> str:
    uri, _, fingerprint = peer.partition("#")
    pinned = f"\n    fingerprint: {json.dumps(fingerprint)}" if fingerprint else ""
    return f"\n  - uri: {json.dumps(uri)}{pinned}"
