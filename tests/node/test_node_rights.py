"""Rights: grants, tokens, peers, and who may do what."""

from __future__ import annotations

from pathlib import Path

import pytest

from aios_node.engine.errors import BadRequest, Corrupt, Unauthenticated, Unauthorized
from aios_node.flight.ports import Principal
from aios_node.node.access import Access
from aios_node.node.config.model import PeerEntry
from aios_node.node.grants import Grant, allowed, parse_grant
from aios_node.node.identity import create_identity
from aios_node.node.patterns import chosen
from aios_node.node.peers import PeerBook
from aios_node.node.tokens import TokenBook


@pytest.mark.parametrize("text", ["", "memory/notes", "memory/notes:fly", ":read", "ships/x:read", "memory/notes:"])
def test_bad_grants(text: str) -> None:
    with pytest.raises(ValueError, match=r"RESOURCE|resource"):
        parse_grant(text)


def test_write_does_not_include_read_but_admin_does() -> None:
    assert not allowed([Grant("memory/a", "write")], "read", "memory/a")
    assert allowed([Grant("memory/a", "admin")], "read", "memory/a")
    assert allowed([Grant("*", "read")], "read", "weights/x")
    assert not allowed([Grant("memory/*", "read")], "read", "weights/x")


def test_patterns_last_match_decides() -> None:
    local = ["*", "!*.int4", "!*.int2"]
    assert chosen("minilm", local)
    assert chosen("minilm.int8", local)
    assert not chosen("minilm.int4", local)
    assert not chosen("minilm", [])
    assert chosen("a.int4", ["*", "!*.int4", "a.*"])


def test_tokens_are_kept_as_hashes_and_revoked_at_once(tmp_path: Path) -> None:
    book = TokenBook(tmp_path / "tokens.json")
    secret = book.create("bob", ["memory/notes:read"])
    assert secret not in (tmp_path / "tokens.json").read_text()
    assert (tmp_path / "tokens.json").stat().st_mode & 0o777 == 0o600
    assert book.find(secret).name == "bob"
    with pytest.raises(BadRequest, match="exists"):
        book.create("bob", ["memory/notes:read"])
    book.revoke("bob")
    with pytest.raises(Unauthenticated):
        book.find(secret)
    with pytest.raises(BadRequest, match="no token named bob"):
        book.revoke("bob")


@pytest.mark.parametrize(("name", "grants"), [("", ["*:read"]), ("a b", ["*:read"]), ("bob", []), ("bob", ["x"])])
def test_bad_tokens(tmp_path: Path, name: str, grants: list[str]) -> None:
    with pytest.raises(BadRequest):
        TokenBook(tmp_path / "tokens.json").create(name, grants)


def access_of(tmp_path: Path, *peers: PeerEntry) -> tuple[Access, TokenBook]:
    tokens = TokenBook(tmp_path / "tokens.json")
    book = PeerBook(tmp_path / "keys", peers, tmp_path)
    return Access(tokens, book, ["weights/*:read"]), tokens


def test_each_kind_of_principal(tmp_path: Path) -> None:
    ours, special, stranger = "ab" * 32, "cd" * 32, "ef" * 32
    access, tokens = access_of(
        tmp_path,
        PeerEntry(uri="grpc+tls://h:1", fingerprint=ours),
        PeerEntry(uri="grpc+tls://h:2", fingerprint=special, rights=("memory/a:read",)),
    )
    owner = access.authenticate_token(access.owner_token)
    access.check(owner, "admin", "node/drain")
    client = access.authenticate_token(tokens.create("bob", ["memory/notes:read"]))
    access.check(client, "read", "memory/notes")
    access.check(client, "read", "node/status")
    with pytest.raises(Unauthorized, match=r"token 'bob' lacks write on memory/notes"):
        access.check(client, "write", "memory/notes")
    access.check(access.peer(ours), "read", "weights/m")
    with pytest.raises(Unauthorized):
        access.check(access.peer(special), "read", "weights/m")
    access.check(access.peer(special), "read", "memory/a")
    with pytest.raises(Unauthenticated, match="peers add"):
        access.peer(stranger)
    anyone = Principal("open", "open")
    access.check(anyone, "write", "memory/x")
    with pytest.raises(Unauthorized):
        access.check(anyone, "admin", "node/drain")
    with pytest.raises(Unauthenticated):
        access.authenticate_token("wrong")


def test_peers_are_kept_found_and_forgotten(tmp_path: Path) -> None:
    identity = create_identity(tmp_path / "other", [])
    book = PeerBook(tmp_path / "keys", [PeerEntry(uri="grpc://h:1")], tmp_path)
    book.add("grpc+tls://h:2", identity.node_id, tmp_path / "other" / "node.crt")
    again = PeerBook(tmp_path / "keys", [PeerEntry(uri="grpc://h:1")], tmp_path)
    assert [peer.uri for peer in again.all()] == ["grpc+tls://h:2", "grpc://h:1"]
    assert again.roots() == {identity.node_id: identity.certificate}
    assert again.find(identity.node_id[:8]).uri == "grpc+tls://h:2"
    with pytest.raises(BadRequest, match="configuration file"):
        again.remove("grpc://h:1")
    again.remove("grpc+tls://h:2")
    assert PeerBook(tmp_path / "keys", [], tmp_path).all() == []
    with pytest.raises(BadRequest, match="fingerprint"):
        again.add("grpc+tls://h:3", None, None)
    with pytest.raises(BadRequest, match="uri"):
        again.add("ftp://h:3", None, None)


def test_a_certificate_that_proves_another_id_is_not_pinned(tmp_path: Path) -> None:
    create_identity(tmp_path / "other", [])
    book = PeerBook(tmp_path / "keys", [], tmp_path)
    with pytest.raises(Unauthenticated, match="check the fingerprint"):
        book.add("grpc+tls://h:2", "ab" * 32, tmp_path / "other" / "node.crt")
    assert book.all() == []


def test_a_damaged_list_of_peers_is_told(tmp_path: Path) -> None:
    (tmp_path / "peers.json").write_text('{"x": 3}')
    with pytest.raises(Corrupt, match=r"peers\.json"):
        PeerBook(tmp_path, [], tmp_path)
