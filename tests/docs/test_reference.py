"""The reference pages say what the program has, all of it and nothing else.

Commands, options, configuration, actions, errors, metrics, the tree in the README and the picture of the data path.
"""

from __future__ import annotations

import importlib
import json
import pkgutil
import re
import shlex
import subprocess
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

import aios_node
from aios_node.engine.errors import AiosError
from aios_node.flight.actions import STANDARD
from aios_node.flight.errors import to_flight
from aios_node.node.cli.app import app
from aios_node.node.config.model import NodeConfig, PeerEntry, Section
from aios_node.node.metrics import Metrics
from aios_node.node.operations import OPERATIONS

ROOT = Path(__file__).resolve().parent.parent.parent
DOCS = ROOT / "docs"
PAGES = sorted([*ROOT.glob("*.md"), *DOCS.glob("*.md")])
Row = list[str]


def read(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


def section(text: str, heading: str) -> str:
    """From a heading to the next one of the same or a higher level."""
    level = heading.split(" ", 1)[0]
    found = re.search(rf"^{re.escape(heading)}\n(.*?)(?=^#{{1,{len(level)}}} |\Z)", text, re.MULTILINE | re.DOTALL)
    assert found, f"there is no heading {heading!r}"
    return found[1]


def rows(text: str) -> Iterator[Row]:
    """The cells of every table row whose first cell begins with code."""
    for line in text.splitlines():
        if line.startswith("| `"):
            yield [cell.strip().replace(r"\|", "|") for cell in re.split(r"(?<!\\)\|", line)[1:-1]]


def plain(cell: str) -> str:
    return cell.replace("`", "")


def differences(documented: set[str], existing: set[str], page: str, what: str) -> str:
    """What to do about two sets that should be one; empty when they are."""
    missing = [f"{page}: the {what} {name} is not documented" for name in sorted(existing - documented)]
    return "\n".join(missing + [f"{page}: the {what} {name} does not exist" for name in sorted(documented - existing)])


# ---- commands


@cache
def commands() -> dict[str, dict[str, Any]]:
    """Command path -> option -> parameter, as the command line itself has them."""
    found: dict[str, dict[str, Any]] = {}

    def walk(command: Any, path: str) -> None:
        below = getattr(command, "commands", None)
        for name, child in (below or {}).items():
            walk(child, f"{path} {name}".strip())
        if below is None:
            options = [p for p in command.params if p.param_type_name == "option"]
            found[path] = {name: p for p in options for name in (*p.opts, *p.secondary_opts)}

    walk(typer.main.get_command(app), "")
    return found


def documented_commands() -> dict[str, str]:
    headings = re.findall(r"^## ([a-z].*)$", read("docs/cli.md"), re.MULTILINE)
    return {name: section(read("docs/cli.md"), f"## {name}") for name in headings}


def test_every_command_is_documented() -> None:
    problem = differences(set(documented_commands()), set(commands()), "docs/cli.md", "command")
    assert not problem, problem


@pytest.mark.parametrize("command", sorted(commands()))
def test_options_of_a_command(command: str) -> None:
    text = documented_commands()[command]
    documented = {option for row in rows(text) for option in re.findall(r"`(--?[a-z][\w-]*)`", row[0])}
    page = f"docs/cli.md, {command}"
    problem = differences(documented, set(commands()[command]) - {"--help", "-h"}, page, "option")
    assert not problem, problem
    assert re.search(rf"^aios-node {command}\b", text, re.MULTILINE), f"{page}: an example is missing"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_in_examples_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for block in re.findall(r"^```bash\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
        for line in re.findall(r"^aios-node .*$", block, re.MULTILINE):
            words = shlex.split(line, comments=True)[1:]
            path = next((p for p in (" ".join(words[:2]), words[0]) if p in commands()), None)
            assert path is not None, f"{page.name}: there is no command {line!r}"
            used = {word for word in words if re.match(r"--?[a-z]", word)}
            unknown = used - set(commands()[path])
            assert not unknown, f"{page.name}: {path} has no {', '.join(unknown)} (in {line!r})"


# ---- configuration


def shown(value: Any) -> str:
    """A default as the page shows it."""
    if value is None:
        return "absent"
    if isinstance(value, bool | tuple):
        return json.dumps(value)
    return str(value)


def test_every_key_of_the_configuration() -> None:
    sections: Mapping[str, type[Section]] = {
        name: PeerEntry if name == "peers" else field.annotation  # type: ignore[dict-item]
        for name, field in NodeConfig.model_fields.items()
        if name != "base"
    }
    existing = {
        f"{name}.{key}": "required" if field.is_required() else shown(field.get_default())
        for name, model in sections.items()
        for key, field in model.model_fields.items()
    }
    text = read("docs/configuration.md").split("\n## Presets\n")[0]
    documented = {plain(row[0]): plain(row[2]) for row in rows(text)}
    problem = differences(set(documented), set(existing), "docs/configuration.md", "key")
    assert not problem, problem
    wrong = {key: value for key, value in documented.items() if value != existing[key]}
    assert not wrong, f"docs/configuration.md: wrong defaults {wrong}; they are { {k: existing[k] for k in wrong} }"


def test_presets() -> None:
    names = ("edge", "local", "cloud")
    existing: dict[str, dict[str, str]] = {}
    for name in names:
        for part, keys in yaml.safe_load(read(f"cluster-configs/{name}.yaml")).items():
            for key, value in keys.items():
                existing.setdefault(f"{part}.{key}", {})[name] = json.dumps(value)
    text = section(read("docs/configuration.md"), "## Presets")
    documented = {
        plain(row[0]): {name: plain(cell) for name, cell in zip(names, row[1:], strict=True) if cell}
        for row in rows(text)
    }
    assert documented == existing, "docs/configuration.md, Presets: not what cluster-configs says"


# ---- actions, errors, metrics


def test_every_action() -> None:
    table = {plain(row[0]).removesuffix(" *"): row for row in rows(section(read("docs/protocol.md"), "## Actions"))}
    problem = differences(set(table), set(OPERATIONS), "docs/protocol.md", "action")
    assert not problem, problem
    assert {action.name for action in STANDARD} <= set(table)


@pytest.mark.parametrize("name", sorted(OPERATIONS))
def test_an_action(name: str) -> None:
    operation = OPERATIONS[name]
    cells = next(r for r in rows(section(read("docs/protocol.md"), "## Actions")) if f"`{name}`" in r[0])
    page = f"docs/protocol.md, {name}"
    documented = set(re.findall(r"`(\w+\??)`", cells[1]))
    fields = {key + ("" if field.is_required() else "?") for key, field in operation.args.model_fields.items()}
    problem = differences(documented, fields, page, "argument")
    assert not problem, problem
    action = operation.action
    right = "-" if action.right is None else f"`{action.right}` on `{action.resource}`"
    assert cells[3] == right, f"{page}: the right is {right}"
    assert ("*" in cells[0]) == operation.long, f"{page}: a star marks actions that report progress"


def error_classes() -> dict[str, type[AiosError]]:
    """Every code and the class that defines it, wherever in the project it stands."""
    for module in pkgutil.walk_packages(aios_node.__path__, "aios_node."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)

    def tree(root: type[AiosError]) -> Iterator[type[AiosError]]:
        yield root
        for child in root.__subclasses__():
            yield from tree(child)

    found: dict[str, type[AiosError]] = {}
    for error in tree(AiosError):
        if error.__module__.startswith("aios_node."):
            found.setdefault(error.code, error)
    return found


def test_every_error_code() -> None:
    errors = error_classes()
    helped = set(re.findall(r"^### `(\w+)`$", read("docs/troubleshooting.md"), re.MULTILINE))
    problem = differences(helped, set(errors), "docs/troubleshooting.md", "error code")
    assert not problem, problem
    table = {plain(row[0]): row for row in rows(section(read("docs/protocol.md"), "## Errors"))}
    problem = differences(set(table), set(errors), "docs/protocol.md", "error code")
    assert not problem, problem
    for code, error in errors.items():
        flight = type(to_flight(error("x"), "test")).__name__.removeprefix("Flight").removesuffix("Error").lower()
        assert table[code][1] in {flight, ""}, f"docs/protocol.md: {code} is the Flight error {flight}"
        assert table[code][2] == ("yes" if error.retryable else "no"), f"docs/protocol.md: retryable of {code}"


def test_every_metric() -> None:
    lines = re.findall(r"^# TYPE (\w+) ", Metrics().text(), re.MULTILINE)
    existing = {name for name in lines if not name.endswith("_created")}
    documented = {plain(row[0]) for row in rows(section(read("docs/protocol.md"), "## Health and metrics"))}
    problem = differences(documented, existing, "docs/protocol.md", "metric")
    assert not problem, problem


# ---- the tree and the picture


def test_readme_names_every_folder() -> None:
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    folders = {path.split("/", 1)[0] for path in listed if "/" in path}
    missing = [folder for folder in sorted(folders) if f"[{folder}/]({folder})" not in read("README.md")]
    assert not missing, f"README.md: give each folder a line: {', '.join(missing)}"


def test_the_picture_names_files_that_exist_and_are_explained() -> None:
    picture = read("docs/images/data-path.svg")
    pairs = re.findall(r'class="number"[^>]*>(\d+)</text>\s*<text class="file"[^>]*>([^<]+)</text>', picture)
    assert len(pairs) == picture.count('class="number"') == picture.count('class="file"'), "a label lacks its number"
    gone = [file for _, file in pairs if not (ROOT / file).is_file()]
    assert not gone, f"docs/images/data-path.svg names files that do not exist: {', '.join(gone)}"
    explained = re.findall(r"^\*\*(\d+)\. \[([\w/.]+)\]\(\.\./\2\)\*\*", read("docs/data-path.md"), re.MULTILINE)
    assert set(explained) == set(pairs), "docs/data-path.md explains other arrows than the picture shows"
