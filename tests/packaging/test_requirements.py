"""The locks belong to pyproject.toml, are complete for every supported Python, and hold nothing private."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from collections.abc import Iterator
from importlib import metadata
from itertools import product
from pathlib import Path

import pytest
from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent.parent
REQUIREMENTS = ROOT / "requirements"
LOCKS = ("runtime.txt", "dev.txt", "torch.txt")
PYTHONS = ("3.11", "3.12", "3.13", "3.14")
MACHINES = ("x86_64", "aarch64")


def project() -> dict[str, list[str]]:
    table = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return {"runtime": table["dependencies"], **table["optional-dependencies"]}


def read(name: str) -> str:
    return (REQUIREMENTS / name).read_text(encoding="utf-8")


def wishes(name: str) -> dict[str, Requirement]:
    """Requirements of a .in file, by canonical name; comments and options left out."""
    lines = (line.split(" #")[0].strip() for line in read(name).splitlines())
    return by_name(line for line in lines if line and not line.startswith(("#", "-")))


def by_name(lines: list[str] | Iterator[str]) -> dict[str, Requirement]:
    return {canonicalize_name(wish.name): wish for wish in map(Requirement, lines)}


def pins(*names: str) -> dict[str, str]:
    """Name -> version of everything that the locks pin."""
    found = re.findall(r"^([A-Za-z0-9][\w.-]*)==([^\s;]+)", "".join(read(name) for name in names), re.MULTILINE)
    return {canonicalize_name(name): version for name, version in found}


def torch_needs() -> dict[str, Requirement]:
    """What torch declares it needs, as far as it is not a GPU library."""
    needed = by_name(line for line in metadata.requires("torch") or [] if "extra ==" not in line)
    return {name: wish for name, wish in needed.items() if not is_gpu(name)}


def is_gpu(name: str) -> bool:
    return name.startswith(("nvidia", "cuda", "triton", "pytorch-triton"))


ROOMS = ("delta", "engine", "flight", "memory", "node", "src/aios_node")


def imported(*folders: str) -> set[str]:
    """The distributions that the modules of some folders import, late imports included."""
    names: set[str] = set()
    for path in (path for folder in folders for path in (ROOT / folder).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                names |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                names.add(node.module.split(".")[0])
    owners = metadata.packages_distributions()
    ours = {"aios_node", *(path.stem for path in (ROOT / "benchmarks").glob("*.py"))}
    foreign = names - set(sys.stdlib_module_names) - ours
    # What is not installed (the benchmarks' rivals seldom are) goes by the name it is imported under.
    return {canonicalize_name(owners.get(name, [name])[0]) for name in foreign}


def test_whatever_the_rooms_import_is_declared() -> None:
    assert imported(*ROOMS) - set(by_name(project()["runtime"])) == set()


def test_whatever_the_benchmarks_import_is_declared() -> None:
    declared = by_name(project()["runtime"] + project()["dev"] + project()["bench"])
    assert imported("benchmarks") - set(declared) == set()


def test_nothing_is_declared_that_nobody_imports() -> None:
    assert set(by_name(project()["runtime"])) - imported(*ROOMS, "benchmarks") == set()


def test_runtime_in_is_the_project_without_torch() -> None:
    declared = by_name(project()["runtime"])
    assert "torch" in declared
    wished = wishes("runtime.in")
    assert {name: str(wish) for name, wish in declared.items() if name != "torch"} == {
        name: str(wish) for name, wish in wished.items() if name in declared
    }
    assert set(wished) - set(declared) == set(torch_needs())


def test_dev_in_is_the_dev_extra_and_the_lock_tool() -> None:
    wished = {name: str(wish) for name, wish in wishes("dev.in").items()}
    assert wished.pop("pip-tools")
    assert wished == {name: str(wish) for name, wish in by_name(project()["dev"]).items()}


@pytest.mark.parametrize("lock", LOCKS)
def test_every_line_is_pinned_and_hashed(lock: str) -> None:
    entries = re.sub(r"\\\n\s*", " ", re.sub(r"^\s*#.*\n", "", read(lock), flags=re.MULTILINE)).splitlines()
    assert entries
    for entry in entries:
        assert re.fullmatch(r"[\w.\[\]-]+==[\w.+!]+(?: ;[^-]*)?(?: +--hash=sha256:[0-9a-f]{64})+", entry.strip()), entry


@pytest.mark.parametrize("lock", [*LOCKS, "runtime.in", "dev.in"])
def test_no_index_and_no_address_is_written_down(lock: str) -> None:
    lines = [line for line in read(lock).splitlines() if not line.startswith("#")]
    assert [
        line for line in lines if re.search(r"://|--(?:extra-)?index-url|--find-links|--trusted-host|@ ", line)
    ] == []


def test_the_locks_agree_where_they_overlap() -> None:
    runtime, dev = pins("runtime.txt"), pins("dev.txt")
    assert {name: dev[name] for name in runtime.keys() & dev.keys()} == {
        name: runtime[name] for name in runtime.keys() & dev.keys()
    }


def test_only_torch_txt_names_torch_and_nothing_names_gpu_libraries() -> None:
    names = pins("runtime.txt", "dev.txt")
    assert "torch" not in names
    assert [name for name in names if is_gpu(name)] == []
    assert list(pins("torch.txt")) == ["torch"]


@pytest.mark.parametrize(("python", "machine"), list(product(PYTHONS, MACHINES)))
def test_the_locks_are_complete(python: str, machine: str) -> None:
    """Whatever a pinned package needs on that Python and machine is pinned too, in a version that suits it."""
    environment = default_environment() | {  # type: ignore[operator]
        "python_version": python,
        "python_full_version": f"{python}.0",
        "platform_machine": machine,
        "extra": "",
    }
    pinned = pins(*LOCKS)
    for name in pinned:
        for line in metadata.requires(name) or []:
            wish = Requirement(line)
            needed = canonicalize_name(wish.name)
            left_out = wish.marker is not None and not wish.marker.evaluate(environment)
            if left_out or (name == "torch" and is_gpu(needed)):  # a GPU build may be installed
                continue
            assert needed in pinned, f"{name} needs {wish}"
            assert wish.specifier.contains(pinned[needed], prereleases=True), f"{name} needs {wish}"


def test_makefile_and_lock_name_the_same_torch() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    version = re.search(r"^TORCH_VERSION\s*:=\s*(\S+)$", makefile, re.MULTILINE)
    assert version is not None
    assert pins("torch.txt")["torch"] == f"{version[1]}+cpu"
    assert by_name(project()["runtime"])["torch"].specifier.contains(version[1])


def test_torch_is_hashed_for_every_python_and_machine() -> None:
    hashes = re.findall(r"--hash=sha256:([0-9a-f]{64})", read("torch.txt"))
    assert len(set(hashes)) == len(PYTHONS) * len(MACHINES)
