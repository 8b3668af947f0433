"""The import contracts of pyproject.toml hold: node -> flight -> delta | memory -> engine."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CONFIG = ROOT / "pyproject.toml"


def lint(config: Path) -> subprocess.CompletedProcess[str]:
    """Run import-linter in a process that has not imported the project: it must see src/ and nothing else."""
    command = [os.fspath(Path(sys.executable).parent / "lint-imports"), "--no-cache", "--config", os.fspath(config)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def test_every_contract_is_kept() -> None:
    contracts = tomllib.loads(CONFIG.read_text(encoding="utf-8"))["tool"]["importlinter"]["contracts"]
    done = lint(CONFIG)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{len(contracts)} kept, 0 broken" in done.stdout


def test_a_broken_contract_would_be_seen(tmp_path: Path) -> None:
    """Turn the layers upside down: the linter has to object, or the test above proves nothing."""
    text = CONFIG.read_text(encoding="utf-8")
    upright = 'layers = ["node", "flight", "delta | memory", "engine"]'
    assert upright in text
    upside_down = tmp_path / "pyproject.toml"
    upside_down.write_text(text.replace(upright, 'layers = ["engine", "delta | memory", "flight", "node"]'), "utf-8")
    done = lint(upside_down)
    assert done.returncode == 1
    assert "BROKEN" in done.stdout
