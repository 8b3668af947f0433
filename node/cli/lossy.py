"""Options of commands that can make lossy versions, and what they print of them."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Any

import typer

from aios_node.node.cli.output import human_bytes


class LossyMethod(StrEnum):
    """Ways to make updates small."""

    top_k = "top_k"
    int8 = "int8"
    int4 = "int4"
    sign = "sign"


Lossy = Annotated[
    LossyMethod | None,
    typer.Option(help="Publish a lossy version: its update in few bits, what is lost added to the next one."),
]
Share = Annotated[float | None, typer.Option(help="Share of the numbers that `--lossy top_k` keeps.")]


def lossy_args(lossy: LossyMethod | None, share: float | None) -> dict[str, Any]:
    """Both options as arguments of an operation."""
    return {"lossy": lossy.value if lossy else None, "share": share}


def loss_line(lost: dict[str, Any]) -> str:
    """What was lost and saved, in a line."""
    cosine = lost["cosine_mean"]
    vectors = "" if cosine is None else f", vectors {cosine:.6f} like the exact ones (p1 {lost['cosine_p1']:.6f})"
    return (
        f"lossy {lost['method']}: {human_bytes(lost['bytes'])} instead of {human_bytes(lost['exact_bytes'])} exactly; "
        f"{lost['update_error']:.1%} of the update is missing{vectors}"
    )
