"""Jobs on version folders: what a package may carry, and what is done about what it may not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from aios_node.delta.codec.codecs import CODECS
from aios_node.engine.errors import BadWeights, NoBase
from aios_node.engine.weights.folder import write_folder
from aios_node.node import jobs


def quiet(_fraction: float, _text: str) -> None:
    pass


def package(base: Path | None, target: Path, out: Path) -> Path:
    jobs.build_package(jobs.PackageJob(base, target, b"{}", tuple(CODECS), out), quiet)
    return out


def version(path: Path, *values: float) -> Path:
    write_folder(path, {"w": np.array(values, np.float32)}, {"config.json": b"{}"})
    return path


def test_a_package_becomes_the_version_it_was_made_from(tmp_path: Path) -> None:
    old, new = version(tmp_path / "old", 1, 2, 3), version(tmp_path / "new", 1, 2, 4)
    out = package(old, new, tmp_path / "p")
    assert jobs.apply_package(jobs.ApplyJob(out, old, tmp_path / "made"), quiet) == b"{}"
    assert (tmp_path / "made" / "manifest.json").read_bytes() == (new / "manifest.json").read_bytes()


@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
def test_nan_and_inf_are_refused_whoever_sends_them(tmp_path: Path, poison: float) -> None:
    out = package(None, version(tmp_path / "bad", 1, poison), tmp_path / "p")
    with pytest.raises(BadWeights, match="'w'"):
        jobs.apply_package(jobs.ApplyJob(out, None, tmp_path / "made"), quiet)


def test_a_delta_without_its_base_is_told(tmp_path: Path) -> None:
    random = np.random.default_rng(0).normal(size=50_000)
    old, new = version(tmp_path / "old", *random), version(tmp_path / "new", *random[:-1], 0.5)
    out = package(old, new, tmp_path / "p")
    with pytest.raises(NoBase):
        jobs.apply_package(jobs.ApplyJob(out, None, tmp_path / "made"), quiet)
