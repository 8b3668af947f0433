"""Texts of several kinds for measuring quality, none of which calibration can have seen.

Calibration uses the documentation of Python's standard library. Here are sentences, questions, prose and quotes
out of four Debian packages of public texts, and code documentation out of installed Python packages. The Debian
packages are downloaded with ``apt-get download`` (which needs no rights) to ``.cache/corpus`` and must have the
hashes below; on a system without apt, put the same files there by hand. Without them, only code documentation
is left, and the result says so. No text is kept with the project: results name files and hashes.
"""

from __future__ import annotations

import ast
import gzip
import hashlib
import html
import io
import re
import shutil
import subprocess
import tarfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from importlib import metadata, util
from pathlib import Path

from aios_node.engine.calibration.sets import place, texts_sha256

ROOT = Path(__file__).resolve().parent.parent
CACHE = ROOT / ".cache" / "corpus"
PER_KIND = 400
SEED = 0

_SENTENCE_END = re.compile(r"(?<=[.!?])\s+(?=[A-Z\"'(])")
_EMPTY_LINE = re.compile(r"\n\s*\n")
_PARAGRAPH = re.compile(r"<p>(.*?)(?=<p>|</p>)", re.DOTALL | re.IGNORECASE)
_TAG = re.compile(r"<[^>]+>")
_QUOTED = re.compile(r'"([^"]+)"')


@dataclass(frozen=True)
class Package:
    """A Debian package as it is pinned here."""

    name: str
    version: str
    sha256: str

    @property
    def file(self) -> Path:
        """Where it is kept, under the name that apt gives it."""
        return CACHE / f"{self.name}_{self.version.replace(':', '%3a')}_all.deb"


FORTUNES = Package("fortunes", "1:1.99.1-7.3", "41d0551dc0ff52f875a2ecef7c39da2f672ab468c37e170119f7e0245a9d63c5")
WORDNET = Package("wordnet-base", "1:3.0-37", "61060d960f9ada8fa120872312eccd3ecebfbab8c4579e4f5a74e1cf67620752")
JARGON = Package("jargon-text", "4.4.7-4.1", "17d05997e30eb3d5d6713929b8e2f81b63a5f50073858ad2a06701c71f54dcdb")
ESSAYS = Package("anarchism", "15.3-3", "cf21c10948b00e923c62eb31c39a3390413fa26c5ee0e3b925feb0ec7fe42948")
PACKAGES = (FORTUNES, WORDNET, JARGON, ESSAYS)
DOCUMENTED = ("numpy", "pyarrow", "sqlglot")


@dataclass(frozen=True)
class Corpus:
    """Texts by kind, what they were made of, and what is missing and why (a sentence, or nothing)."""

    kinds: dict[str, tuple[str, ...]]
    sources: dict[str, str]
    missing: str

    @property
    def texts(self) -> list[str]:
        """All texts, kind after kind."""
        return [text for texts in self.kinds.values() for text in texts]

    def to_json(self) -> dict[str, object]:
        """What a result records: counts, sources and a hash, but no text."""
        return {
            "count": {kind: len(texts) for kind, texts in self.kinds.items()},
            "sources": self.sources,
            "sha256": texts_sha256(self.texts),
            **({"missing": self.missing} if self.missing else {}),
        }


def corpus() -> Corpus:
    """PER_KIND texts of every kind that this machine can have, the same on every machine that has the same sources."""
    kinds = {"code": list(code_documentation())}
    sources = {name: metadata.version(name) for name in DOCUMENTED}
    missing = ""
    try:
        files = {package.name: contents(package) for package in PACKAGES}
    except Missing as reason:
        missing = f"only code documentation was measured: {reason}"
    else:
        kinds |= _public_texts(files)
        sources |= {package.name: f"{package.version} sha256 {package.sha256}" for package in PACKAGES}
    return Corpus({kind: sample(texts) for kind, texts in sorted(kinds.items())}, sources, missing)


def sample(texts: Iterable[str]) -> tuple[str, ...]:
    """PER_KIND different texts, chosen by hash: what is chosen does not depend on the order they come in."""
    return tuple(sorted(set(texts), key=lambda text: place(text, SEED))[:PER_KIND])


def _public_texts(files: dict[str, dict[str, bytes]]) -> dict[str, list[str]]:
    quotes, prose = list(_quotes(files["fortunes"])), [*_essays(files["anarchism"]), *_jargon(files["jargon-text"])]
    return {
        "quotes": quotes,
        "prose": prose,
        "sentences": list(_examples(files["wordnet-base"])),
        "questions": list(_questions([*quotes, *prose])),
    }


def _quotes(files: dict[str, bytes]) -> Iterator[str]:
    for name, data in files.items():
        if name.startswith("usr/share/games/fortunes/") and not Path(name).suffix:
            for quote in data.decode("utf-8", "replace").split("\n%\n"):
                yield from _of_length(quote, 8, 120)


def _essays(files: dict[str, bytes]) -> Iterator[str]:
    for name, data in files.items():
        if re.search(r"/html/sec[^/]*\.html$", name):
            for paragraph in _PARAGRAPH.findall(data.decode("utf-8", "replace")):
                yield from _of_length(html.unescape(_TAG.sub(" ", paragraph)), 20, 160)


def _jargon(files: dict[str, bytes]) -> Iterator[str]:
    text = gzip.decompress(files["usr/share/doc/jargon-text/jargon.txt.gz"]).decode("utf-8", "replace")
    for paragraph in _EMPTY_LINE.split(text):
        yield from _of_length(paragraph, 20, 160)


def _examples(files: dict[str, bytes]) -> Iterator[str]:
    """The example sentences in WordNet's glosses."""
    for name, data in files.items():
        if re.search(r"/data\.(adj|adv|noun|verb)$", name):
            for line in data.decode("utf-8", "replace").splitlines():
                gloss = line.partition("|")[2]
                for sentence in _QUOTED.findall(gloss):
                    yield from _of_length(sentence, 5, 60)


def _questions(texts: Iterable[str]) -> Iterator[str]:
    for text in texts:
        for sentence in _SENTENCE_END.split(text):
            plain = sentence.strip("\"' ")
            if plain.endswith("?"):
                yield from _of_length(plain, 4, 30)


def code_documentation() -> Iterator[str]:
    """Paragraphs out of the docstrings of the documented packages; their source is read, not imported."""
    for package in DOCUMENTED:
        for path in sorted(package_folder(package).rglob("*.py")):
            for text in _docstrings(path):
                for paragraph in _EMPTY_LINE.split(text):
                    if sum(map(str.isalpha, paragraph)) > 0.6 * len(" ".join(paragraph.split())):
                        yield from _of_length(paragraph, 8, 160)


def package_folder(name: str) -> Path:
    """The folder of an installed package, which is not imported for that."""
    found = util.find_spec(name)
    if found is None or found.origin is None:
        raise ImportError(f"{name} is not installed")
    return Path(found.origin).parent


def _docstrings(path: Path) -> Iterator[str]:
    try:
        tree = ast.parse(path.read_text(encoding="utf-8"))
    except (SyntaxError, UnicodeDecodeError):
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield ast.get_docstring(node) or ""


def _of_length(text: str, least: int, most: int) -> Iterator[str]:
    words = text.split()
    if least <= len(words) <= most:
        yield " ".join(words)


class Missing(Exception):
    """A package is not here and cannot be had; the message says what to do."""


def contents(package: Package) -> dict[str, bytes]:
    """The files of a Debian package by path, downloaded first where it is not here yet."""
    data = _download(package).read_bytes()
    if (found := hashlib.sha256(data).hexdigest()) != package.sha256:
        raise Missing(f"{package.file} has the hash {found} instead of {package.sha256}: delete it and try again")
    with tarfile.open(fileobj=io.BytesIO(_member(data, "data.tar.xz")), mode="r:xz") as archive:
        found_files = (
            (entry.name.removeprefix("./"), archive.extractfile(entry)) for entry in archive if entry.isfile()
        )
        return {name: file.read() for name, file in found_files if file is not None}


def _download(package: Package) -> Path:
    if package.file.is_file():
        return package.file
    advice = f"put {package.file.name} into {CACHE} (snapshot.debian.org keeps every version)"
    if shutil.which("apt-get") is None:
        raise Missing(f"there is no apt-get here; {advice}")
    CACHE.mkdir(parents=True, exist_ok=True)
    command = ["apt-get", "download", f"{package.name}={package.version}"]
    done = subprocess.run(command, cwd=CACHE, capture_output=True, text=True, check=False)
    if done.returncode or not package.file.is_file():
        reason = " ".join(done.stderr.split()) or "it gave another file"
        raise Missing(f"`{' '.join(command)}` failed ({reason}); try `apt-get update`, or {advice}")
    return package.file


def _member(data: bytes, wanted: str) -> bytes:
    """One member of an ar archive: a magic line, then a header of 60 bytes before each member, padded to even."""
    start, header = 8, 60
    while start + header <= len(data):
        name = data[start : start + 16].decode("ascii").strip().rstrip("/")
        size = int(data[start + 48 : start + 58])
        start += header
        if name == wanted:
            return data[start : start + size]
        start += size + size % 2
    raise Missing(f"a Debian package without {wanted} cannot be read")
