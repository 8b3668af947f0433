"""Configuration: precedence, messages, presets."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aios_node.engine.errors import BadConfig
from aios_node.node.config import load_config
from aios_node.node.setup import PRESETS, init_node, preset_text


def write(folder: Path, text: str) -> Path:
    file = folder / "node.yaml"
    file.write_text(text, encoding="utf-8")
    return file


def test_an_empty_file_is_a_working_node(tmp_path: Path) -> None:
    config = load_config(write(tmp_path, ""), environ={})
    assert config.loopback
    assert not config.tls
    assert config.data_dir == tmp_path / "data"


def test_command_line_over_environment_over_file_over_defaults(tmp_path: Path) -> None:
    file = write(tmp_path, "listen: {port: 1, peer_port: 1}\nsync: {interval_s: 1}")
    environ = {"AIOS_LISTEN__PORT": "2", "AIOS_LISTEN__PEER_PORT": "2", "AIOS_UNRELATED": "x", "PATH": "/bin"}
    config = load_config(file, overrides={"listen.port": 3}, environ=environ)
    assert (config.listen.port, config.listen.peer_port, config.sync.interval_s) == (3, 2, 1)
    assert config.sync.backoff_max_s == 300


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("listen: {prot: 3}", "unknown key 'listen.prot': did you mean 'port'?"),
        ("lisen: {}", "unknown key 'lisen': did you mean 'listen'?"),
        ("listen: {port: 99999}", "listen.port: 99999 is not allowed"),
        ("listen: {port: http}", "listen.port: 'http' is not allowed"),
        ("listen: 3", "listen: 3 is not allowed"),
        ("- 3", "must be a mapping of sections"),
        ("x: [", "is not valid YAML"),
        ("base: /", "unknown key 'base'"),
        ("peers: [{uri: 'grpc+tls://h:3'}]", "peers.0.fingerprint"),
        ("peers: [{fingerprint: ab}]", "peers.0.uri is missing"),
        ("peers: [{uri: 'http://h:3'}]", "peers.0.uri: 'http://h:3' is not allowed"),
        ("peers: [{uri: 'grpc://h:3'}, {uri: 'grpc://h:3'}]", "grpc://h:3 is listed twice"),
        ("security: {peer_rights: ['memory/*:fly']}", "security.peer_rights.0"),
        ("limits: {memory_mb: 1}", "limits.memory_mb: 1 is not allowed"),
    ],
)
def test_a_wrong_configuration_is_told_in_one_line(tmp_path: Path, text: str, told: str) -> None:
    with pytest.raises(BadConfig) as caught:
        load_config(write(tmp_path, text), environ={})
    assert told in caught.value.message
    assert str(tmp_path / "node.yaml") in caught.value.message
    assert "\n" not in caught.value.message


@pytest.mark.parametrize("name", ["missing.yaml", "."])
def test_a_file_that_cannot_be_read(tmp_path: Path, name: str) -> None:
    with pytest.raises(BadConfig, match=r"node\.yaml|init"):
        load_config(tmp_path / name, environ={})


def test_a_wrong_environment_variable_is_named() -> None:
    with pytest.raises(BadConfig, match=r"listen\.port"):
        load_config(environ={"AIOS_LISTEN__PORT": "many"})
    with pytest.raises(BadConfig, match="AIOS_LISTEN__PORT is not a YAML value"):
        load_config(environ={"AIOS_LISTEN__PORT": "["})


KEYS = st.sampled_from(["listen", "port", "peers", "uri", "models", "x"])
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3),
)


@given(JSON)
def test_whatever_the_file_holds_only_bad_config_is_raised(tmp_path: Path, value: object) -> None:
    file = write(tmp_path, json.dumps(value))
    with contextlib.suppress(BadConfig):
        load_config(file, environ={})


@pytest.mark.parametrize("preset", PRESETS)
def test_presets_are_valid_and_commented(tmp_path: Path, preset: str) -> None:
    made = init_node(tmp_path / preset, preset=preset, peers=[f"grpc+tls://10.0.0.1:8816#{'ab' * 32}"])
    config = load_config(made.config_file, environ={})
    assert config.peers[0].fingerprint == "ab" * 32
    assert config.node.name == preset
    assert "# " in preset_text(preset)
    assert len(made.node_id) == 64


def test_presets_fit_their_machines() -> None:
    limits = {}
    for preset in PRESETS:
        import yaml

        limits[preset] = yaml.safe_load(preset_text(preset))["limits"]["memory_mb"]
    assert limits["edge"] < 2048 < limits["local"] < 8192 < limits["cloud"] < 32768


def test_init_overwrites_nothing_and_leaves_nothing_after_an_error(tmp_path: Path) -> None:
    init_node(tmp_path / "node")
    before = {path: path.read_bytes() for path in (tmp_path / "node").rglob("*") if path.is_file()}
    with pytest.raises(BadConfig, match="exists"):
        init_node(tmp_path / "node")
    assert {path: path.read_bytes() for path in before} == before
    with pytest.raises(BadConfig, match=r"listen\.port"):
        init_node(tmp_path / "bad", port=99999)
    assert not (tmp_path / "bad").exists()
    with pytest.raises(BadConfig, match="preset"):
        init_node(tmp_path / "bad", preset="huge")


def test_private_files_are_private(tmp_path: Path) -> None:
    init_node(tmp_path / "node")
    modes = {path.name: path.stat().st_mode & 0o777 for path in (tmp_path / "node" / "keys").iterdir()}
    assert modes["identity.key"] == modes["node.key"] == 0o600


def test_off_loopback_tls_is_on_by_itself(tmp_path: Path) -> None:
    config = load_config(write(tmp_path, "listen: {host: 0.0.0.0}"), environ={})
    assert config.tls
