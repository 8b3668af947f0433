"""The built distribution holds what the repository holds, under aios_node.* and nowhere else."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
ROOMS = ("delta", "engine", "flight", "memory", "node")
_NOT_SOURCE = shutil.ignore_patterns(".*", "__pycache__", "*.egg-info", "build", "dist", "demo-run", "tests")

# All tests of this file share one build, so one xdist worker runs them.
pytestmark = pytest.mark.xdist_group("wheel")


@dataclass(frozen=True)
class Built:
    wheel: Path
    sdist: Path
    target: Path  # the wheel, installed without its dependencies


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    """Build an sdist from a copy of the tree, the wheel from that sdist, and install it apart."""
    place = tmp_path_factory.mktemp("dist")
    shutil.copytree(ROOT, place / "tree", symlinks=True, ignore=_NOT_SOURCE)
    _python("-m", "build", "--no-isolation", "--outdir", str(place), str(place / "tree"))
    (wheel,) = place.glob("*.whl")
    (sdist,) = place.glob("*.tar.gz")
    target = place / "target"
    _python("-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--target", str(target), str(wheel))
    return Built(wheel, sdist, target)


def _python(*arguments: str, cwd: Path | None = None, path: Path | None = None) -> str:
    environment = {key: value for key, value in os.environ.items() if not key.startswith("COVERAGE")}
    if path is not None:
        environment["PYTHONPATH"] = str(path)
    done = subprocess.run(
        [sys.executable, *arguments], cwd=cwd, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def expected_files() -> set[str]:
    """What has to be in the wheel, as the tree stands."""
    modules = {f"aios_node/{path.relative_to(ROOT)}" for room in ROOMS for path in (ROOT / room).rglob("*.py")}
    presets = {f"aios_node/node/presets/{path.name}" for path in (ROOT / "cluster-configs").glob("*.yaml")}
    return modules | presets | {"aios_node/__init__.py", "aios_node/py.typed"}


def test_wheel_holds_every_module_and_preset_and_nothing_else(built: Built) -> None:
    with zipfile.ZipFile(built.wheel) as archive:
        inside = {name for name in archive.namelist() if not name.split("/")[0].endswith(".dist-info")}
    assert expected_files() - inside == set()
    assert {name for name in inside - expected_files() if not name.startswith("aios_node/")} == set()
    assert {name for name in inside - expected_files() if name.endswith(".py")} == set()


def test_presets_are_there_at_all() -> None:
    names = {path.stem for path in (ROOT / "cluster-configs").glob("*.yaml")}
    assert names, "cluster-configs holds no presets: the wheel tests would prove nothing about them"


def test_wheel_holds_contents_not_links(built: Built) -> None:
    with zipfile.ZipFile(built.wheel) as archive:
        for name in expected_files():
            room_path = name.removeprefix("aios_node/").replace("node/presets/", "cluster-configs/")
            source = ROOT / room_path if not room_path.startswith(("__init__", "py.typed")) else ROOT / "src" / name
            assert archive.read(name) == source.read_bytes(), name


def test_sdist_holds_every_module_and_what_a_build_needs(built: Built) -> None:
    with tarfile.open(built.sdist) as archive:
        files = {member.name.split("/", 1)[1] for member in archive.getmembers() if member.isfile()}
    assert {f"src/{name}" for name in expected_files()} - files == set()
    assert {"pyproject.toml", "README.md", "LICENSE"} - files == set()


def test_installed_wheel_adds_one_name_only(built: Built) -> None:
    names = {path.name for path in built.target.iterdir() if not path.name.endswith(".dist-info")}
    assert names == {"aios_node", "bin"}
    assert (built.target / "bin" / "aios-node").is_file()


def test_installed_rooms_come_from_the_wheel(built: Built, tmp_path: Path) -> None:
    code = "\n".join(f"import aios_node.{room}; print(aios_node.{room}.__file__)" for room in ROOMS)
    files = _python("-c", code, cwd=tmp_path, path=built.target).split()
    assert [Path(file).is_relative_to(built.target) for file in files] == [True] * len(ROOMS)


def test_every_installed_module_imports(built: Built, tmp_path: Path) -> None:
    """Also finds modules that need something which only the checkout has."""
    modules = sorted(
        name.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
        for name in expected_files()
        if name.endswith(".py") and not name.endswith("__main__.py")
    )
    code = f"import importlib\nfor name in {modules!r}: importlib.import_module(name)"
    _python("-W", "error::SyntaxWarning", "-c", code, cwd=tmp_path, path=built.target)


def test_console_script_and_version(built: Built, tmp_path: Path) -> None:
    code = (
        "from importlib.metadata import distribution\n"
        "import aios_node\n"
        "dist = distribution('aios-node')\n"
        "(script,) = dist.entry_points.select(group='console_scripts')\n"
        "assert dist.version == aios_node.__version__\n"
        "assert callable(script.load())\n"
        "print(script.name, script.value)"
    )
    assert _python("-c", code, cwd=tmp_path, path=built.target).split() == ["aios-node", "aios_node.node.cli:main"]


def test_license_travels_with_the_wheel(built: Built) -> None:
    with zipfile.ZipFile(built.wheel) as archive:
        (name,) = [name for name in archive.namelist() if name.endswith(".dist-info/licenses/LICENSE")]
        assert archive.read(name) == (ROOT / "LICENSE").read_bytes()
