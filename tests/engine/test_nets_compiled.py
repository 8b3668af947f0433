"""torch.compile: only when asked, only where it can work, and with the same vectors."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from aios_node.engine.errors import BadConfig
from aios_node.engine.nets.compiled import check_compiler
from aios_node.engine.runtime.engine import ArrowEngine


def test_without_a_compiler_it_says_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(BadConfig, match=r"C\+\+ compiler \(g\+\+ or clang\+\+ or c\+\+\)"):
        check_compiler("float32", on_cpu=True, environment={"PATH": str(tmp_path)})
    with pytest.raises(BadConfig, match=r"C\+\+ compiler \(my-cc\)"):
        check_compiler("float32", on_cpu=True, environment={"PATH": str(tmp_path), "CXX": "my-cc"})
    check_compiler("float32", on_cpu=False, environment={"PATH": str(tmp_path)})
    compiler = tmp_path / "g++"
    compiler.touch(mode=0o755)
    check_compiler("bfloat16", on_cpu=True, environment={"PATH": str(tmp_path)})


@pytest.mark.parametrize("mode", ["int8", "packed"])
def test_low_bit_modes_are_not_compiled(tiny_versions: tuple[Path, Path], mode: str) -> None:
    with pytest.raises(BadConfig, match=f"mode {mode} has its own"):
        ArrowEngine.open(tiny_versions[0], device="cpu", mode=mode, compiled=True)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:`torch.jit")  # torch's compiler uses what torch deprecates
def test_compiled_vectors_are_the_same(tiny_versions: tuple[Path, Path]) -> None:
    if not shutil.which("g++"):  # then the same call is an error, which is what there is to test
        with pytest.raises(BadConfig):
            ArrowEngine.open(tiny_versions[0], device="cpu", compiled=True)
        return
    texts: Any = ["one text of some words", "another text of words"]
    with (
        ArrowEngine.open(tiny_versions[0], device="cpu", compiled=True) as quick,
        ArrowEngine.open(tiny_versions[0], device="cpu") as plain,
    ):
        np.testing.assert_allclose(quick.encode(texts), plain.encode(texts), atol=1e-5)
