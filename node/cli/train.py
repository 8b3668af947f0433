"""``aios-node train``: let a model learn from what this node has seen."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from aios_node.node.cli.lossy import Lossy, Share, loss_line, lossy_args
from aios_node.node.cli.options import Config, Json, answered
from aios_node.node.cli.output import short

app = typer.Typer(help="Learn from local data.", no_args_is_help=True)


@app.callback()
def _group() -> None:
    """Keep `train encoder` a command of its own, beside those that follow."""


@app.command()
def encoder(
    model: Annotated[str, typer.Argument(help="Encoder to adapt.")],
    table: Annotated[str | None, typer.Option("--table", "-t", help="Memory table to learn from.")] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Optimiser steps.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of everything random.")] = 0,
    prox_mu: Annotated[float, typer.Option(min=0, help="FedProx: hold weights near the present ones this hard.")] = 0.0,
    noise: Annotated[
        float | None, typer.Option("--noise-multiplier", min=0, help="Noise for privacy, in clip norms; 0: none.")
    ] = None,
    epsilon: Annotated[float | None, typer.Option(min=0, help="As much noise as this epsilon needs.")] = None,
    clip_norm: Annotated[float | None, typer.Option(min=0, help="L2 norm that the update is shortened to.")] = None,
    lossy: Lossy = None,
    share: Share = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Measure, but publish nothing.")] = False,
    config: Config = None,
    as_json: Json = False,
) -> None:
    """Adapt an encoder to a memory table (LoRA, contrastive); publish it only if held-out retrieval gets better."""
    args = {"model": model, "table": table, "steps": steps, "seed": seed, "publish": not dry_run, "prox_mu": prox_mu}
    args |= {"noise_multiplier": noise, "epsilon": epsilon, "clip_norm": clip_norm, **lossy_args(lossy, share)}
    result = answered(config, "train_encoder", args, as_json)
    if result is None:
        return
    before, after = result["before"], result["after"]
    print(f"held-out questions: {result['questions']}   recall@1 {before['recall_at_1']:.3f} -> "
          f"{after['recall_at_1']:.3f}   MRR {before['mrr']:.3f} -> {after['mrr']:.3f}")  # fmt: skip
    if "privacy" in result:
        print(_privacy(result["privacy"]))
    if "lossy" in result:
        exact = result["lossy"]["exact"]
        print(f"{loss_line(result['lossy'])}; exactly recall@1 {exact['recall_at_1']:.3f}, MRR {exact['mrr']:.3f}")
    if result["published"]:
        print(f"published {model} {short(result['version'])} in {result['seconds']:.0f} s")
    else:
        print(f"not published: {result['reason']}")


@app.command()
def together(
    model: Annotated[str, typer.Argument(help="Encoder to adapt.")],
    threshold: Annotated[int | None, typer.Option(min=2, help="Members that must stay to the end.")] = None,
    honest: Annotated[int | None, typer.Option(min=1, help="Members whose noise is counted on.")] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Optimiser steps of every member.")] = None,
    noise: Annotated[
        float | None, typer.Option("--noise-multiplier", min=0, help="Noise in the sum, in clip norms; 0: none.")
    ] = None,
    clip_norm: Annotated[float | None, typer.Option(min=0, help="L2 norm that each update is shortened to.")] = None,
    config: Config = None,
    as_json: Json = False,
) -> None:
    """Let this node and its peers train, each on its own texts; publish the mean. Nobody sees a single update."""
    args: dict[str, Any] = {"model": model, "threshold": threshold, "honest": honest, "steps": steps}
    args |= {"noise_multiplier": noise, "clip_norm": clip_norm}
    result = answered(config, "train_together", args, as_json)
    if result is None:
        return
    print(f"published {model} {short(result['version'])}: the mean of {len(result['contributors'])} "
          f"of {len(result['members'])} members")  # fmt: skip
    epsilon = result["privacy"]["epsilon"]
    print("without noise" if epsilon is None else f"epsilon {epsilon:.4g} at delta {result['privacy']['delta']:g}")


def _privacy(told: dict[str, Any]) -> str:
    length = f"the update was {told['update_norm']:.4g} long"
    price = f"epsilon {told['epsilon']:.4g} at delta {told['delta']:g}"
    return (
        f"noise {told['noise_multiplier']:.4g} x clip norm {told['clip_norm']:.4g} ({length}): {price}, "
        f"{told['epsilon_table']:.4g} with all publications from this table"
    )
