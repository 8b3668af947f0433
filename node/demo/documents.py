"""Real documents that are on every machine: the docstrings of Python's standard library.

They are read from source with ``ast``; no module is imported.
"""

from __future__ import annotations

import ast
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

MIN_CHARACTERS = 120  # shorter ones say too little to be found by meaning
MAX_SOURCE_BYTES = 400_000
_SKIPPED = {"site-packages", "test", "tests", "idlelib", "lib2to3", "turtledemo", "ensurepip", "__pycache__"}

# Who keeps what in the demo: a topic per node, so that a search over the network has to ask them all.
TOPICS = {
    "workstation": ("asyncio", "concurrent", "threading", "multiprocessing", "unittest", "logging", "subprocess",
                    "queue", "selectors", "sched", "contextlib", "functools", "typing", "dataclasses", "inspect",
                    "ast", "collections", "heapq", "statistics", "random", "fractions", "decimal", "_pydecimal"),
    "edge": ("pathlib", "os", "shutil", "tempfile", "glob", "socket", "ssl", "http", "urllib", "email", "ftplib",
             "smtplib", "imaplib", "poplib", "socketserver", "ipaddress", "telnetlib", "nntplib", "mailbox"),
}  # fmt: skip


MOST_PER_NODE = 350  # the workstation keeps all of its own: it learns from them


@dataclass(frozen=True)
class Document:
    """One documented function or class: ``name`` is dotted, ``text`` its docstring."""

    name: str
    signature: str
    text: str

    @property
    def keeper(self) -> str:
        """The demo node that keeps it."""
        module = self.name.split(".", 1)[0]
        return next((node for node, modules in TOPICS.items() if module in modules), "cloud")


def standard_library(root: Path | None = None) -> list[Document]:
    """All documented public functions and classes, sorted by name (about 2,000, in two seconds)."""
    folder = root or Path(sysconfig.get_paths()["stdlib"])
    found: dict[str, Document] = {}
    for path in sorted([*folder.glob("*.py"), *folder.glob("*/*.py")]):
        if _SKIPPED.isdisjoint(path.relative_to(folder).parts) and path.stat().st_size <= MAX_SOURCE_BYTES:
            found.update((document.name, document) for document in _documents_in(path, folder))
    return [found[name] for name in sorted(found)]


def _documents_in(path: Path, folder: Path) -> Iterator[Document]:
    try:
        tree = ast.parse(path.read_text(encoding="utf-8"))
    except (SyntaxError, UnicodeDecodeError):
        return
    module = ".".join(path.relative_to(folder).with_suffix("").parts).removesuffix(".__init__")
    yield from _documented(tree, module)


def _documented(parent: ast.AST, prefix: str) -> Iterator[Document]:
    for node in ast.iter_child_nodes(parent):
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) or node.name.startswith("_"):
            continue
        name = f"{prefix}.{node.name}"
        text = ast.get_docstring(node)
        if text and len(text) >= MIN_CHARACTERS:
            yield Document(name, _signature(node), text)
        if isinstance(node, ast.ClassDef):
            yield from _documented(node, name)


def _signature(node: ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) -> str:
    return node.name if isinstance(node, ast.ClassDef) else f"{node.name}({ast.unparse(node.args)})"
