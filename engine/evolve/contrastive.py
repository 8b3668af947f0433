"""Losses that pull questions to their documents and hold a network near what it was.

Pure functions of vectors. Unit vectors throughout: an inner product is a cosine.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812 (torch's own convention)


def info_nce(
    questions: torch.Tensor,
    documents: torch.Tensor,
    answers: torch.Tensor,
    excluded: torch.Tensor,
    temperature: float,
) -> torch.Tensor:
    """InfoNCE (van den Oord et al. 2018): the right document against all others, a scalar.

    ``questions`` [b, d], ``documents`` [n, d], ``answers`` int64 [b] (row of the right document),
    ``excluded`` bool [b, n] (documents that are no fair negatives for a question).
    """
    logits = (questions @ documents.T / temperature).masked_fill(excluded, -torch.inf)
    return F.cross_entropy(logits, answers)


def symmetric_info_nce(
    questions: torch.Tensor, documents: torch.Tensor, excluded: torch.Tensor, temperature: float
) -> torch.Tensor:
    """InfoNCE with in-batch negatives, both ways: [b, d] and [b, d], row i belongs to row i."""
    own = torch.arange(len(questions), device=questions.device)
    there = info_nce(questions, documents, own, excluded, temperature)
    back = info_nce(documents, questions, own, excluded.T, temperature)
    return (there + back) / 2


def drift(new: torch.Tensor, old: torch.Tensor) -> torch.Tensor:
    """Mean cosine distance [0, 2] of vectors [b, d] from those that the unchanged network gave."""
    return (1 - (new * old).sum(-1)).mean()
