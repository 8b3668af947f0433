"""Calibration texts that are on every machine: what the sources of Python's standard library say in prose.

Docstrings, comments, the language reference of ``help()`` and the licence. The sources are read and parsed,
nothing is imported or run. Knows the folder's layout; knows nothing about other packages.
"""

from __future__ import annotations

import ast
import hashlib
import os
import re
import sys
import sysconfig
import warnings
from collections.abc import Iterator
from pathlib import Path

from aios_node.engine.calibration.prose import Prose
from aios_node.engine.calibration.sets import CalibrationSet, checked_limit
from aios_node.engine.errors import NotFound
from aios_node.engine.weights.disk import disk_errors

_LEFT_OUT = frozenset({"site-packages", "dist-packages", "__pycache__", "test", "tests", "idle_test"})
_MAX_SOURCE_BYTES = 4 * 2**20
_MAX_FILES = 10_000
_TOPICS = "pydoc_data/topics.py"
_LICENSE = "LICENSE.txt"
_UNDERLINE = re.compile(r"^(.+)\n[*=~^-]{3,}$", re.MULTILINE)


def standard_library(limit: int | None = None, *, folder: Path | None = None, seed: int = 0) -> CalibrationSet:
    """Texts of the standard library: paragraphs, single sentences and short headings and questions, mixed.

    ``folder``: where the library's sources lie; None: where this Python keeps them. ``limit`` of the texts, or
    all (see sets.MAX_TEXTS). The set's ``files`` name every source with its sha256. Takes some seconds: see
    CalibrationCache. Raises NotFound where Python came without sources.
    """
    if limit is not None:
        checked_limit(limit)
    folder = library_folder() if folder is None else folder
    prose = Prose()
    files = {name: _take(folder, name, prose) for name in source_names(folder)}
    if not files:
        raise NotFound(f"{folder} holds no sources of Python's standard library; give a calibration file instead")
    source = f"standard library of Python {'.'.join(map(str, sys.version_info[:3]))}"
    return CalibrationSet.of(prose.mixed(limit, seed), source, files)


def library_folder() -> Path:
    """Where this Python keeps its standard library."""
    return Path(sysconfig.get_paths()["stdlib"])


def source_names(folder: Path) -> list[str]:
    """The sources that are read, relative to the folder and sorted; those of tests are left out."""
    found = []
    for place, folders, names in os.walk(folder):
        folders[:] = [each for each in folders if each not in _LEFT_OUT]
        found += [(Path(place) / each).relative_to(folder).as_posix() for each in names if each.endswith(".py")]
    licence = [_LICENSE] if (folder / _LICENSE).is_file() else []
    return [*licence, *sorted(found)][:_MAX_FILES]


def sources_stamp(folder: Path) -> str:
    """sha256 (hex) over Python's version and the sources' names, sizes and times: changes when they do."""
    told = hashlib.sha256(f"{sys.version}\n{folder}\n".encode())
    for name in source_names(folder):
        with disk_errors(folder / name, "read"):
            status = (folder / name).stat()
        told.update(f"{name} {status.st_size} {status.st_mtime_ns}\n".encode("utf-8", "replace"))
    return told.hexdigest()


def _take(folder: Path, name: str, prose: Prose) -> str:
    """Add what a file says; returns the sha256 of its content."""
    with disk_errors(folder / name, "read"), (folder / name).open("rb") as file:
        data = file.read(_MAX_SOURCE_BYTES)
    if name == _LICENSE:
        prose.add(data.decode("utf-8", "replace"))
    else:
        for text, title in _said(data, topics=name == _TOPICS):
            prose.add(text)
            prose.add_title(title)
    return hashlib.sha256(data).hexdigest()


def _said(data: bytes, *, topics: bool) -> Iterator[tuple[str, str]]:
    """The prose of a source and what could be its title; nothing for a file that cannot be parsed."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # old sources have escapes that newer Pythons warn about
            tree = ast.parse(data)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return
    if topics:
        yield from _topics(tree)
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            text = ast.get_docstring(node) or ""
            yield text, text.partition("\n\n")[0]
    for block in _comments(data.decode("utf-8", "replace").splitlines(), _string_lines(tree)):
        yield block, ""


def _topics(tree: ast.Module) -> Iterator[tuple[str, str]]:
    """The language reference: one dictionary of texts with underlined headings."""
    for node in tree.body:
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Dict):
            for text in ast.literal_eval(node.value).values():
                headings = _UNDERLINE.findall(text)
                yield _UNDERLINE.sub("", text), headings[0] if headings else ""
                yield from (("", heading) for heading in headings[1:])


def _string_lines(tree: ast.Module) -> set[int]:
    """Lines within strings: a # there is no comment."""
    lines: set[int] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant | ast.JoinedStr):
            lines.update(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    return lines


def _comments(lines: list[str], strings: set[int]) -> Iterator[str]:
    """Blocks of comments; one with an empty comment line is several paragraphs."""
    block: list[str] = []
    for number, line in enumerate([*lines, ""], 1):
        stripped = line.strip()
        if stripped.startswith("#") and number not in strings:
            block.append(stripped.lstrip("#!:").strip())
        elif block:
            yield "\n".join(block)
            block = []
