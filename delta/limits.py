"""How much a delta, a package or a peer may ask for. Everything is checked before anything is allocated."""

from __future__ import annotations

from dataclasses import dataclass

from aios_node.engine.errors import TooLarge

KIB = 1024
MIB = 1024 * KIB
GIB = 1024 * MIB

LEAST_BLOCK = 64
MOST_BLOCK = 16 * MIB


@dataclass(frozen=True)
class Limits:
    """Upper bounds in bytes and counts; the defaults suit a node that serves models of a few gigabytes."""

    header_bytes: int = 32 * MIB  # manifest or header, decompressed
    tensors: int = 100_000
    tensor_bytes: int = 8 * GIB
    total_bytes: int = 64 * GIB  # all tensors of one version
    files_bytes: int = 256 * MIB  # all small files of one version, decompressed
    package_bytes: int = 64 * GIB


DEFAULT_LIMITS = Limits()


def check_size(what: str, size: int, most: int) -> int:
    """Return the size, or raise TooLarge naming what is too large."""
    if size > most:
        raise TooLarge(f"{what} is {size} bytes, at most {most} are allowed")
    return size
