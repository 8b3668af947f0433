"""What the documents say is there: links lead somewhere, Python blocks compile, make targets exist.

Generic on purpose: a new page, block or target is covered by being there.
"""

from __future__ import annotations

import ast
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
_PLACES = [ROOT, ROOT / "docs", ROOT / "benchmarks", ROOT / "examples", ROOT / "cluster-configs"]
_FENCE = re.compile(
    r"^(?P<ticks>`{3,})(?P<language>[\w-]*)[^\n]*\n(?P<code>.*?)^(?P=ticks)\s*$",
    re.MULTILINE | re.DOTALL,
)
_LINK = re.compile(r"(?<!\!)\[[^\]]*\]\((?P<target>[^)\s]+)[^)]*\)|!\[[^\]]*\]\((?P<image>[^)\s]+)[^)]*\)")


def documents() -> list[Path]:
    """Every Markdown page of the project: top level, and everything under the places that hold pages."""
    top = list(ROOT.glob("*.md"))
    below = [page for place in _PLACES[1:] for page in place.rglob("*.md")]
    return sorted({*top, *below})


def blocks(page: Path, language: str) -> Iterator[tuple[int, str]]:
    """(line, code) of the page's fenced blocks in a language."""
    text = page.read_text(encoding="utf-8")
    for found in _FENCE.finditer(text):
        if found["language"] == language:
            yield text.count("\n", 0, found.start()) + 2, found["code"]


def prose(page: Path) -> str:
    """The page without fenced blocks and inline code."""
    return re.sub(r"`[^`\n]*`", "", _FENCE.sub("", page.read_text(encoding="utf-8")))


def anchors(page: Path) -> set[str]:
    """The anchors that GitHub, GitLab and Forgejo give to a page's headings."""
    found: set[str] = set()
    for heading in re.findall(r"^#{1,6}\s+(.+?)\s*#*$", _FENCE.sub("", page.read_text(encoding="utf-8")), re.MULTILINE):
        plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).replace("`", "")
        slug = re.sub(r"[^\w\- ]", "", plain.lower()).replace(" ", "-")
        found.add(slug if slug not in found else f"{slug}-1")
    return found


def names(page: Path) -> str:
    return str(page.relative_to(ROOT))


def make_targets() -> list[str]:
    """The targets that `make help` shows."""
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    return re.findall(r"^([a-z]+):.*##", makefile, re.MULTILINE)


@pytest.mark.parametrize("page", documents(), ids=names)
def test_relative_links_lead_somewhere(page: Path) -> None:
    for found in _LINK.finditer(prose(page)):
        link = found["target"] or found["image"]
        if re.match(r"[a-z]+:", link):
            continue
        target, _, anchor = unquote(link).partition("#")
        path = (page.parent / target).resolve() if target else page
        assert path.is_relative_to(ROOT), f"{link} leads out of the project"
        assert path.exists(), f"{link} does not exist"
        if anchor and path.suffix == ".md":
            assert anchor in anchors(path), f"{link}: no such heading"


@pytest.mark.parametrize("page", documents(), ids=names)
def test_python_blocks_compile(page: Path) -> None:
    for line, code in blocks(page, "python"):
        compile(code, f"{names(page)}:{line}", "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT | ast.PyCF_ONLY_AST)


@pytest.mark.parametrize("page", documents(), ids=names)
def test_mentioned_make_targets_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    mentioned = re.findall(r"^\s*(?:\$ )?make ((?:[a-z]+ ?)+)", text, re.MULTILINE)
    mentioned += re.findall(r"`make ((?:[a-z]+ ?)+)", text)
    assert {target for words in mentioned for target in words.split()} <= set(make_targets())


def test_every_make_target_is_explained() -> None:
    text = "".join((ROOT / page).read_text(encoding="utf-8") for page in ("README.md", "CONTRIBUTING.md"))
    assert [target for target in make_targets() if f"make {target}" not in text] == []


def test_make_help_shows_every_target() -> None:
    shown = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert [target for target in make_targets() if f"  {target} " not in shown] == []


def test_readme_links_every_page_of_docs() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert [names(page) for page in (ROOT / "docs").glob("*.md") if f"]({names(page)}" not in readme] == []


def test_decisions_are_numbered_and_listed() -> None:
    folder = ROOT / "docs" / "decisions"
    records = sorted(page.name for page in folder.glob("*.md") if page.name != "README.md")
    assert [name[:4] for name in records] == [f"{number:04}" for number in range(1, len(records) + 1)]
    index = (folder / "README.md").read_text(encoding="utf-8")
    assert [name for name in records if f"]({name})" not in index] == []


def test_changelog_names_the_version() -> None:
    import aios_node

    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert re.search(rf"^## \[{re.escape(aios_node.__version__)}\]", changelog, re.MULTILINE)
