"""Fixtures that every room's tests share."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

ROOT = Path(__file__).resolve().parent.parent

# What is measured once per machine is kept in this folder, not in the home of whoever runs the tests.
os.environ["XDG_CACHE_HOME"] = str(ROOT / ".cache" / "tests")

settings.register_profile(
    "aios",
    deadline=None,
    max_examples=50,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
settings.load_profile("aios")


@pytest.fixture(scope="session")
def minilm_folder() -> Path:
    """The public files of all-MiniLM-L6-v2 as a Hugging Face folder, put there by ``make setup``."""
    folder = ROOT / ".cache" / "minilm"
    if not (folder / "model.safetensors").is_file():
        pytest.fail(f"{folder} holds no model: run `make setup` first")
    return folder
