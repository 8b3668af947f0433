"""Which kind of memory a file's first bytes announce. Knows magic numbers, decodes nothing."""

from __future__ import annotations

_IMAGE = (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"GIF87a", b"GIF89a", b"BM", b"II*\0", b"MM\0*")
_AUDIO = (b"fLaC", b"OggS", b"ID3", b"\xff\xfb", b"\xff\xf3", b"\xff\xf2", b"FORM")
_RIFF = {b"WAVE": "audio", b"WEBP": "image"}


def modality(payload: bytes) -> str | None:
    """``image`` or ``audio`` by the magic number, None when it is neither."""
    if payload[:4] == b"RIFF":
        return _RIFF.get(payload[8:12])
    if payload.startswith(_IMAGE):
        return "image"
    return "audio" if payload.startswith(_AUDIO) else None
