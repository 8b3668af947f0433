"""``aios-node model``: bring models in, look at them, make them smaller, take them out."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from aios_node.node.cli.lossy import Lossy, Share, loss_line, lossy_args
from aios_node.node.cli.options import Config, Json, answered, ask
from aios_node.node.cli.output import human_bytes, print_json, print_table, short

app = typer.Typer(help="Models: import, quantise, inspect, activate, export.", no_args_is_help=True)
Name = Annotated[str, typer.Argument(help="Name of a stored model.")]
Version = Annotated[str | None, typer.Argument(help="Version id or unique prefix (default: the active one).")]


class Quant(StrEnum):
    """Precisions that can be asked for."""

    none = "none"
    fp16 = "fp16"
    int8 = "int8"
    int4 = "int4"
    int2 = "int2"


class LowBits(StrEnum):
    """Precisions that quantising gives."""

    int8 = "int8"
    int4 = "int4"
    int2 = "int2"


class Method(StrEnum):
    """Ways to find codes."""

    ptq = "ptq"
    gptq = "gptq"
    tuned = "tuned"


class ExportFormat(StrEnum):
    """What ``model export`` writes."""

    safetensors = "safetensors"
    parquet = "parquet"


@app.command(name="import")
def import_model(
    src: Annotated[Path, typer.Argument(help="Hugging Face folder, safetensors/.bin/.ckpt file, or Parquet folder.")],
    name: Annotated[str, typer.Option(help="Name to store it under.")],
    format_: Annotated[str, typer.Option("--format", help="auto, hf, safetensors, pytorch or parquet.")] = "auto",
    quant: Annotated[Quant, typer.Option(help="Store it in this precision.")] = Quant.none,
    lossy: Lossy = None,
    share: Share = None,
    config: Config = None,
    as_json: Json = False,
) -> None:
    """Read a model from files and make it the active version of NAME."""
    args = {"src": str(src.absolute()), "name": name, "format": format_, "quant": quant.value}
    result = answered(config, "model_import", args | lossy_args(lossy, share), as_json)
    if result:
        print(_stored(result))
        if "lossy" in result:
            print(loss_line(result["lossy"]))


@app.command(name="list")
def list_models(config: Config = None, as_json: Json = False) -> None:
    """All models with their active versions."""
    result = answered(config, "model_list", {}, as_json)
    if result is not None:
        rows = [
            (m["name"], short(m["active"]), m["quant"], human_bytes(m["bytes"]), m["versions"], _origin(m))
            for m in result["models"]
        ]
        print_table(
            "", ["name", "active", "precision", "size", "versions", "derived from"], rows,
            empty="no models yet: aios-node model import SRC --name NAME",
        )  # fmt: skip


@app.command()
def show(name: Name, version: Version = None, config: Config = None, as_json: Json = False) -> None:
    """Versions of a model and the tensors of one of them."""
    result = answered(config, "model_show", {"model": name, "version": version}, as_json)
    if result is None:
        return
    print(f"{name} {result['version']}")
    print(f"parents: {', '.join(short(p) for p in result['parents']) or 'none'}   tensors: {len(result['tensors'])}")
    tensors = [
        (t["name"], "x".join(map(str, t["shape"])) or "scalar", t["dtype"], t["quant"], human_bytes(t["bytes"]))
        for t in result["tensors"]
    ]
    print_table("", ["tensor", "shape", "dtype", "precision", "size"], tensors, empty="no tensors")
    _print_versions(result["versions"], result["archived"])


@app.command()
def quantize(
    src: Annotated[str, typer.Argument(help="A stored model's name, or files as for `model import`.")],
    name: Annotated[str, typer.Option(help="Name of the result.")],
    quant: Annotated[LowBits | None, typer.Option(help="Bits per weight.")] = None,
    group: Annotated[int | None, typer.Option(help="Group size; 0: one scale per channel.")] = None,
    method: Annotated[
        Method | None,
        typer.Option(help="ptq: plain rounding, seconds. gptq: with calibration texts, a minute. tuned: longer, best."),
    ] = None,
    calib: Annotated[
        Path | None, typer.Option(help="Calibration texts: JSONL, Parquet, plain text, or a saved dataset's folder.")
    ] = None,
    target_mb: Annotated[
        float | None, typer.Option(help="Share bits out so that all tensors take at most this many megabytes.")
    ] = None,
    target_bpw: Annotated[float | None, typer.Option(help="The same in bits per weight.")] = None,
    recipe: Annotated[Path | None, typer.Option(help="YAML recipe instead of these options.")] = None,
    output: Annotated[Path | None, typer.Option(help="Also write the result to this folder.")] = None,
    config: Config = None,
    as_json: Json = False,
) -> None:
    """Make a smaller model from another one. Interrupted work goes on where it was when it is asked for again."""
    path = Path(src)
    args: dict[str, Any] = {
        "src": str(path.absolute()) if path.exists() else src,
        "name": name,
        "quant": quant.value if quant else None,
        "group": group,
        "method": method.value if method else None,
        "calib": str(calib.absolute()) if calib else None,
        "target_mb": target_mb,
        "target_bpw": target_bpw,
        "recipe": str(recipe.absolute()) if recipe else None,
        "output": str(output.absolute()) if output else None,
    }
    result = answered(config, "model_quantize", args, as_json)
    if result:
        print(_stored(result))
        _show_quantized(result)


@app.command()
def validate(
    name: Name,
    reference: Annotated[
        str | None, typer.Option(help="Model to compare with (default: the one it was derived from).")
    ] = None,
    texts: Annotated[
        Path | None, typer.Option(help="Texts to compare answers on: JSONL, Parquet or plain text.")
    ] = None,
    min_cosine: Annotated[
        float | None, typer.Option(min=-1, max=1, help="Fail where the mean cosine of the embeddings is lower.")
    ] = None,
    max_relative_error: Annotated[
        float | None, typer.Option(min=0, help="Fail where a layer's relative error is higher.")
    ] = None,
    report: Annotated[Path | None, typer.Option(help="Write a report with plots to this .html file.")] = None,
    config: Config = None,
    as_json: Json = False,
) -> None:
    """Check every hash, and compare weights, layers and embeddings with the reference."""
    from aios_node.node.cli.validation import check_report, show_failures, show_validation, write_report

    check_report(report)
    args = {
        "model": name,
        "reference": reference,
        "texts": str(texts.absolute()) if texts else None,
        "min_cosine": min_cosine,
        "max_relative_error": max_relative_error,
        "precisions": True if report else None,
    }
    result = ask(config, "model_validate", args, quiet=as_json)
    if report:
        write_report(report, result)
    if as_json:
        print_json(result)
    else:
        show_validation(result)
        if report:
            print(f"wrote {report}")
    if not result["passed"]:
        show_failures(result)
        raise typer.Exit(1)


@app.command()
def modes(config: Config = None, as_json: Json = False) -> None:
    """In which arithmetic models run on this machine, and what that is chosen by."""
    result = answered(config, "model_modes", {}, as_json)
    if result is None:
        return
    machine, table = result["machine"], result["microseconds"]
    features = ", ".join(machine["features"]) or "no features known"
    print(f"{machine['processor']} ({features}), {machine['threads']} threads")
    names = list(dict.fromkeys(mode for row in table.values() for mode in row))
    rows = [(count, *(f"{row[mode]:.1f}" if mode in row else "-" for mode in names)) for count, row in table.items()]
    print_table("", ["rows", *(f"{mode}, us" for mode in names)], rows, empty="nothing was measured")
    print(f"\nquantised models run in {result['quantised']} (engine.mode: {result['configured']})")
    print(f"from {result['file']}: edit it, or delete it to measure anew")
    print(f"to overrule it: engine.mode in node.yaml, or {result['variable']}")
    open_models = [(model["name"], model["mode"]) for model in result["models"] if model["mode"]]
    print_table("\nopen models", ["name", "mode"], open_models, empty="\nno model is open")


@app.command()
def export(
    name: Name,
    dest: Annotated[Path, typer.Argument(help="Folder to write; must not exist or be empty.")],
    version: Annotated[str | None, typer.Option(help="Version (default: the active one).")] = None,
    format_: Annotated[ExportFormat, typer.Option("--format", help="File format.")] = ExportFormat.safetensors,
    config: Config = None,
    as_json: Json = False,
) -> None:
    """Write a model with its tokenizer and config to a folder."""
    args = {"model": name, "version": version, "dest": str(dest.absolute()), "format": format_.value}
    result = answered(config, "model_export", args, as_json)
    if result:
        print(f"wrote {', '.join(result['files'])} to {dest} ({human_bytes(result['bytes'])})")


@app.command()
def activate(
    name: Name,
    version: Annotated[str, typer.Argument(help="Version id or unique prefix.")],
    config: Config = None,
    as_json: Json = False,
) -> None:
    """Serve another version from now on."""
    result = answered(config, "activate", {"model": name, "version": version}, as_json)
    if result:
        print(f"{name}: {short(result['active'])} is active, before {short(result['previous'])}")


@app.command()
def rollback(name: Name, config: Config = None, as_json: Json = False) -> None:
    """Go back to the version that was active before."""
    result = answered(config, "rollback", {"model": name}, as_json)
    if result:
        print(f"{name}: {short(result['active'])} is active again, before {short(result['previous'])}")


@app.command()
def diff(
    name: Name,
    old: Annotated[str, typer.Argument(help="Version id or prefix.")],
    new: Annotated[str | None, typer.Argument(help="Version id or prefix (default: the active one).")] = None,
    config: Config = None,
    as_json: Json = False,
) -> None:
    """What changed between two versions, and what that costs on the wire."""
    result = answered(config, "model_diff", {"model": name, "old": old, "new": new}, as_json)
    if result is None:
        return
    rows = [(t["name"], t["mode"], f"{t['changed']:.2%}", f"{t['relative_change']:.2e}") for t in result["tensors"]]
    print_table("", ["tensor", "mode", "values changed", "relative change"], rows, empty="nothing changed")
    print(
        f"delta {human_bytes(result['delta_bytes'])} of {human_bytes(result['full_bytes'])} full: "
        f"{result['ratio']:.1f}x smaller, {result['changed_ratio']:.1f}x over the changed tensors alone"
    )


@app.command()
def merge(
    name: Name,
    strategy: Annotated[
        str | None, typer.Option(help="How (default: models.merge_strategy, else fedavg); see docs/merging.md.")
    ] = None,
    option: Annotated[
        list[str] | None, typer.Option("--option", "-o", help="KEY=VALUE of the strategy; may be given several times.")
    ] = None,
    head: Annotated[
        list[str] | None,
        typer.Option("--head", help="Version to merge (default: all heads); may be given several times."),
    ] = None,
    config: Config = None,
    as_json: Json = False,
) -> None:
    """Merge versions that diverged into one that descends from all of them, and serve it."""
    args = {"model": name, "strategy": strategy, "options": _options(option or []), "heads": head or []}
    result = answered(config, "model_merge", args, as_json)
    if result:
        heads = ", ".join(short(version) for version in result["heads"])
        how = result["recipe"]["strategy"]
        print(f"{name} {short(result['version'])}: {how} of {heads} since {short(result['base'])}")
        for version in result["recipe"]["left_out"]:
            print(f"left out: {short(version)} holds NaN or Inf, or tensors that do not fit")


def _options(given: list[str]) -> dict[str, Any]:
    """``KEY=VALUE`` as options: whole numbers and numbers as such, anything else as a word."""
    found: dict[str, Any] = {}
    for text in given:
        key, sign, value = text.partition("=")
        if not sign:
            raise typer.BadParameter(f"{text!r} is not KEY=VALUE")
        found[key] = _number(value)
    return found


def _number(text: str) -> int | float | str:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def _stored(result: dict[str, Any]) -> str:
    return f"{result['model']} {short(result['version'])}: {result['tensors']} tensors, {human_bytes(result['bytes'])}"


def _origin(model: dict[str, Any]) -> str:
    source = model.get("derived_from")
    return f"{source['model']} {short(source['version'])}" if source else "-"


def _print_versions(versions: list[dict[str, Any]], archived: list[dict[str, Any]]) -> None:
    rows = [
        ("* " if v["active"] else "  ") + short(v["id"]) + "  " + ", ".join(short(p) for p in v["parents"])
        for v in versions
    ]
    print("\nversions (active *, then parents):")
    print("\n".join(rows))
    if archived:
        print("\narchived (`model activate` rebuilds them; size as a backward delta):")
        print("\n".join(f"  {short(v['id'])}  {human_bytes(v['bytes'])}" for v in archived))


def _show_quantized(result: dict[str, Any]) -> None:
    """What was gained, and what it cost."""
    before, after = result["source_bytes"], result["bytes"]
    ratio = (
        f"{before / max(after, 1):.1f}x smaller, {human_bytes(before - after)} ({1 - after / max(before, 1):.1%}) saved"
    )
    print(f"{human_bytes(before)} -> {human_bytes(after)}: {ratio}")
    if quality := result["quality"]:
        print(
            f"cosine to the source's vectors on {quality['texts']} texts: mean {quality['mean']:.4f}, "
            f"1st percentile {quality['p1']:.4f}, least {quality['min']:.4f}"
        )
    for warning in result["warnings"]:
        typer.echo(f"warning: {warning}", err=True)
