"""Zstandard (RFC 8878) for bytes from strangers: every frame declares its size, and the size is checked first."""

from __future__ import annotations

import zstandard

from aios_node.engine.errors import Corrupt


def compress(data: bytes | memoryview, level: int, dictionary: bytes = b"") -> bytes:
    """One Zstandard frame that declares its content size."""
    shared = zstandard.ZstdCompressionDict(dictionary, zstandard.DICT_TYPE_RAWCONTENT) if dictionary else None
    return zstandard.ZstdCompressor(level=level, dict_data=shared, write_content_size=True).compress(data)


def decompress(data: bytes, *, most: int, exactly: int | None = None, dictionary: bytes = b"") -> bytes:
    """The content of one Zstandard frame whose declared size is checked before anything is allocated.

    Raises Corrupt when the frame is damaged, does not declare its size, declares more than ``most`` or not
    ``exactly`` so many bytes, or is followed by others.
    """
    try:
        declared = zstandard.get_frame_parameters(data).content_size
        if declared > most or (exactly is not None and declared != exactly):
            bound = f"exactly {exactly}" if exactly is not None else f"at most {most}"
            raise Corrupt(f"compressed data declares {declared} bytes where {bound} are allowed")
        shared = zstandard.ZstdCompressionDict(dictionary, zstandard.DICT_TYPE_RAWCONTENT) if dictionary else None
        content = zstandard.ZstdDecompressor(dict_data=shared).decompress(
            data, max_output_size=declared, allow_extra_data=False
        )
    except zstandard.ZstdError as error:
        raise Corrupt(f"compressed data is damaged: {error}") from error
    if len(content) != declared:
        raise Corrupt(f"compressed data holds {len(content)} bytes and declares {declared}")
    return content
