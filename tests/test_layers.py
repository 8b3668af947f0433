"""The import contracts of pyproject.toml hold: node -> flight -> delta | memory -> engine."""

from __future__ import annotations

import os
import tomllib
from pathlib import Path

import pytest
from importlinter import cli

ROOT = Path(__file__).resolve().parent.parent


def contracts() -> list[str]:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    return [contract["name"] for contract in settings["tool"]["importlinter"]["contracts"]]


def test_every_contract_is_kept(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    status = cli.lint_imports(config_filename="pyproject.toml", no_cache=True)
    said = capsys.readouterr().out
    assert status == 0, said
    assert f"{len(contracts())} kept, 0 broken" in said


def test_a_broken_contract_would_be_seen(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Turn the layers upside down: the linter has to object, or the test above proves nothing."""
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    upright = 'layers = ["node", "flight", "delta | memory", "engine"]'
    assert upright in text
    upside_down = tmp_path / "pyproject.toml"
    upside_down.write_text(text.replace(upright, 'layers = ["engine", "delta | memory", "flight", "node"]'), "utf-8")
    monkeypatch.chdir(ROOT)
    status = cli.lint_imports(config_filename=os.fspath(upside_down), no_cache=True)
    assert status != 0
    assert "BROKEN" in capsys.readouterr().out
