"""FedProx (Li et al. 2020): local training that does not run away from where it began.

The term ``mu / 2 * |w - w_0|^2`` is added to the loss, over all weights that are trained. For adapters w - w_0 is
what merging them will add, ``scale * up @ down``; its square needs no matrix of that size.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch


def low_rank_square(up: torch.Tensor, down: torch.Tensor, scale: float) -> torch.Tensor:
    """``|scale * up @ down|^2`` (Frobenius), a scalar, of up [out, r] and down [r, in]: by two matrices [r, r]."""
    return scale**2 * ((up.T @ up) * (down @ down.T)).sum()


def proximal_term(squares: Iterable[torch.Tensor], mu: float) -> torch.Tensor:
    """``mu / 2`` times the sum of these squared distances from the start, a scalar."""
    return mu / 2 * torch.stack(list(squares)).sum()
