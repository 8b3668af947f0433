"""What an import brings along, and what may not be imported at all."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
ROOMS = ("delta", "engine", "flight", "memory", "node")

HEAVY = {"torch", "numpy", "pyarrow", "pydantic", "grpc", "cryptography", "sqlglot", "tokenizers"}

# module -> third-party packages that importing it must not bring along
LIGHT = {
    "aios_node": HEAVY,
    "aios_node.engine": {"torch", "grpc", "cryptography"},
    "aios_node.engine.quant": {"torch", "grpc", "cryptography"},
    "aios_node.engine.weights": {"torch", "grpc", "cryptography"},
    "aios_node.delta": {"torch", "grpc", "cryptography"},
    "aios_node.memory": {"torch", "grpc", "cryptography"},
    "aios_node.flight": {"torch"},
    "aios_node.node.cli": {"torch"},
}


def _loaded_after(statement: str) -> set[str]:
    """Top-level names of all modules that a fresh interpreter holds after a statement."""
    code = f"import json, sys\n{statement}\nprint(json.dumps(sorted({{name.split('.')[0] for name in sys.modules}})))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd="/")
    return set(json.loads(done.stdout.splitlines()[-1]))


@pytest.mark.parametrize("module", LIGHT)
def test_import_stays_light(module: str) -> None:
    assert _loaded_after(f"import {module}") & LIGHT[module] == set()


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_refuses_its_bare_name(room: str) -> None:
    """`delta` and `memory` belong to other people's packages; ours is aios_node.delta."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", f"import {room}"], cwd="/", env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert f"import this package as aios_node.{room}" in done.stderr


def test_modules_are_named_by_their_place_in_the_checkout() -> None:
    """Tracebacks and breakpoints say engine/errors.py, not src/aios_node/engine/errors.py."""
    from aios_node.engine import errors

    assert Path(errors.__file__) == ROOT / "engine" / "errors.py"
