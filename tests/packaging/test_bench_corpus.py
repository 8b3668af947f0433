"""The benchmark's texts: pinned, the same every time, and honest about what is missing."""

from __future__ import annotations

import hashlib
import importlib.util
import io
import sys
import tarfile
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent


@pytest.fixture(scope="module")
def corpus() -> ModuleType:
    """The module benchmarks/corpus.py."""
    spec = importlib.util.spec_from_file_location("bench_corpus", ROOT / "benchmarks" / "corpus.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["bench_corpus"] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def cache(corpus: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder for packages, on a system without apt."""
    monkeypatch.setattr(corpus, "CACHE", tmp_path)
    monkeypatch.setattr(corpus.shutil, "which", lambda _name: None)
    return tmp_path


def member(name: str, data: bytes) -> bytes:
    """A member of an ar archive."""
    return f"{name:<16}{0:<12}{0:<6}{0:<6}{'100644':<8}{len(data):<10}`\n".encode() + data + b"\n" * (len(data) % 2)


def package(files: dict[str, bytes]) -> bytes:
    """A Debian package with these files."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:xz") as archive:
        for name, data in files.items():
            entry = tarfile.TarInfo(f"./{name}")
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
    content = packed.getvalue()
    return (
        b"!<arch>\n" + member("debian-binary", b"2.0") + member("control.tar.xz", b"") + member("data.tar.xz", content)
    )


def test_files_come_out_of_a_package_with_the_right_hash_only(corpus: ModuleType, cache: Path) -> None:
    data = package({"usr/share/games/fortunes/a": b"one\n%\ntwo", "usr/share/b": b""})
    wanted = corpus.Package("texts", "1:2", hashlib.sha256(data).hexdigest())
    wanted.file.write_bytes(data)
    assert wanted.file.parent == cache
    assert corpus.contents(wanted) == {"usr/share/games/fortunes/a": b"one\n%\ntwo", "usr/share/b": b""}
    wanted.file.write_bytes(data + b"\n")
    with pytest.raises(corpus.Missing, match="has the hash"):
        corpus.contents(wanted)


def test_without_packages_code_documentation_is_left_and_it_is_said(
    corpus: ModuleType, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(corpus, "DOCUMENTED", ("pyarrow",))
    found = corpus.corpus()
    assert list(found.kinds) == ["code"]
    assert len(found.texts) == corpus.PER_KIND
    told = found.to_json()
    assert "only code documentation was measured" in str(told["missing"])
    assert str(cache) in str(told["missing"])
    assert list(told["sources"]) == ["pyarrow"]


def test_a_sample_does_not_depend_on_the_order(corpus: ModuleType) -> None:
    texts = [f"text {number}" for number in range(2000)]
    chosen = corpus.sample(texts)
    assert len(set(chosen)) == corpus.PER_KIND
    assert chosen == corpus.sample([*reversed(texts), *texts])
