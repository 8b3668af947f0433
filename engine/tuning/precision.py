"""In which arithmetic training runs here, and by what errors of hidden states are measured."""

from __future__ import annotations

from contextlib import AbstractContextManager

import torch


def fast_dtype() -> AbstractContextManager[object]:
    """A context in which matrix products run in bfloat16, where the processor multiplies it natively.

    Elsewhere emulation would be slower than float32, which is what they run in then.
    """
    native = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()  # noqa: SLF001 (no public way)
    return torch.autocast("cpu", torch.bfloat16, enabled=native)


def relative_error(found: torch.Tensor, wanted: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Squared error of hidden states [b, t, d] over the squares of the wanted ones; mask [b, t] is 1 on real tokens."""
    real = mask.unsqueeze(-1).to(wanted.dtype)
    return ((found - wanted).square() * real).sum() / (wanted.square() * real).sum()
