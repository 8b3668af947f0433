"""Bearer tokens for clients. Only hashes are kept; a token is shown once, when it is made."""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aios_node.engine.errors import BadRequest, Unauthenticated
from aios_node.node.files import read_json, write_json
from aios_node.node.grants import Grant, parse_grant

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")


@dataclass(frozen=True)
class Token:
    """A client's name and rights."""

    name: str
    grants: tuple[Grant, ...]


class TokenBook:
    """The tokens of one node, in ``tokens.json`` (mode 0600)."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def create(self, name: str, grants: Iterable[str]) -> str:
        """Make a token; returns its secret text. Raises BadRequest for a bad name or grant."""
        if not _NAME.fullmatch(name):
            raise BadRequest(f"token name {name!r}: use letters, digits, '.', '_' and '-'")
        parsed = self._parse(grants)
        if not parsed:
            raise BadRequest("a token without rights is useless: add --allow RESOURCE:RIGHT, e.g. memory/notes:read")
        book = self._load()
        if name in book:
            raise BadRequest(f"a token named {name} exists: revoke it first with `aios-node token revoke {name}`")
        secret = "aios_" + secrets.token_urlsafe(32)
        book[name] = {"sha256": _digest(secret), "allow": [str(grant) for grant in parsed]}
        self._save(book)
        return secret

    def revoke(self, name: str) -> None:
        """Forget a token. Raises BadRequest when there is none of this name."""
        book = self._load()
        if book.pop(name, None) is None:
            raise BadRequest(f"there is no token named {name}; there are: {', '.join(sorted(book)) or 'none'}")
        self._save(book)

    def names(self) -> dict[str, list[str]]:
        """Each token's grants as text."""
        return {name: list(entry["allow"]) for name, entry in sorted(self._load().items())}

    def find(self, secret: str) -> Token:
        """The token whose secret this is. Raises Unauthenticated."""
        digest = _digest(secret)
        for name, entry in self._load().items():
            if hmac.compare_digest(digest, entry["sha256"]):
                return Token(name, tuple(parse_grant(text) for text in entry["allow"]))
        raise Unauthenticated("unknown token: ask the node's owner for one (`aios-node token create`)")

    def _parse(self, grants: Iterable[str]) -> list[Grant]:
        try:
            return [parse_grant(text) for text in grants]
        except ValueError as error:
            raise BadRequest(str(error)) from None

    def _load(self) -> dict[str, dict[str, Any]]:
        book = read_json(self._path, {})
        return book if isinstance(book, dict) else {}

    def _save(self, book: dict[str, dict[str, Any]]) -> None:
        write_json(self._path, book, mode=0o600)


def _digest(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()
