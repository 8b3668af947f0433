"""The report of a validation as one HTML page: what was compared, whether it passed, and where the errors are.

Takes the result of ``model_validate`` as it is; loads nothing and runs nothing. Tables carry every number that a
plot shows.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from aios_node.node.report.plots import Point, bars, histogram, size_against_quality
from aios_node.node.report.svg import STYLE, element, escape

TENSORS_SHOWN = 16

_PAGE_STYLE = """
:root { color-scheme: light dark; --page: #f6f7f9; --card: #fff; --text: #1f2328; --soft: #667085; --edge: #e3e6eb;
  --good: #18794e; --bad: #b42318; }
@media (prefers-color-scheme: dark) { :root { --page: #111418; --card: #1a1e24; --text: #e6e8eb; --soft: #98a2b3;
  --edge: #2b313a; --good: #4cc38a; --bad: #ff8a80; } }
body { margin: 0; background: var(--page); color: var(--text); font: 15px/1.5 system-ui, sans-serif; }
main { max-width: 860px; margin: 0 auto; padding: 32px 20px 64px; }
h1 { font-size: 26px; margin: 0 0 4px; overflow-wrap: anywhere; } h2 { font-size: 18px; margin: 0 0 12px; }
p { margin: 0 0 12px; } .soft { color: var(--soft); font-size: 14px; overflow-wrap: anywhere; }
section { background: var(--card); border: 1px solid var(--edge); border-radius: 10px; padding: 20px 24px;
  margin-top: 20px; }
.verdict { font-weight: 600; } .good { color: var(--good); } .bad { color: var(--bad); }
dl { display: grid; grid-template-columns: repeat(auto-fit, minmax(150px, 1fr)); gap: 16px; margin: 0; }
dt { color: var(--soft); font-size: 13px; } dd { margin: 0; font-size: 21px; font-variant-numeric: tabular-nums; }
svg { width: 100%; height: auto; display: block; }
.wide { overflow-x: auto; } table { border-collapse: collapse; width: 100%; font-size: 13px; }
th, td { text-align: left; padding: 5px 14px 5px 0; border-bottom: 1px solid var(--edge); vertical-align: top;
  overflow-wrap: anywhere; } th { color: var(--soft); font-weight: 500; }
td.number, th.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
summary { cursor: pointer; color: var(--soft); margin-top: 12px; }
"""


def report_page(result: Mapping[str, Any]) -> str:
    """The page for a result that has a reference: a whole HTML document."""
    title = f"{result['model']} against {result['reference']}"
    parts = [_head(result), _figures(result)]
    if result["embedding"]:
        parts += [_layers(result["layers"]), _sizes(result), _cosines(result["embedding"])]
    parts.append(_tensors(result["weights"]["tensors"]))
    head = '<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
    head += element("title", escape(title)) + element("style", STYLE + _PAGE_STYLE)
    body = element("main", "\n".join(parts))
    return f'<!DOCTYPE html>\n<html lang="en"><head>{head}</head>\n<body>{body}</body></html>\n'


def _head(result: Mapping[str, Any]) -> str:
    version, other = result["version"][:12], result["reference_version"][:12]
    compared = f"version {version}, compared with {result['reference']}, version {other}"
    hashes = f"all {result['tensors']} tensors have the promised hash"
    lines = element("h1", escape(result["model"])) + element("p", escape(f"{compared}; {hashes}"), class_="soft")
    return element("header", lines + _verdict(result))


def _verdict(result: Mapping[str, Any]) -> str:
    if result["passed"]:
        return element("p", "All limits are kept.", class_="verdict good") if result["limits"] else ""
    problems = "".join(element("li", escape(each)) for each in result["failures"])
    return element("p", "Limits are broken:", class_="verdict bad") + element("ul", problems)


def _figures(result: Mapping[str, Any]) -> str:
    weights, answers = result["weights"], result["embedding"]
    figures = [
        ("size", f"{result['bytes'] / 1e6:.2f} MB"),
        ("of the reference", f"{result['bytes'] / max(result['reference_bytes'], 1):.1%}"),
        ("bits per value", f"{weights['bits']:.2f}"),
        ("weights, relative error", f"{weights['relative_error']:.4f}"),
    ]
    if answers:
        figures += [("cosine, mean", f"{answers['mean']:.4f}"), ("cosine, 1% below", f"{answers['p1']:.4f}"),
                    ("cosine, least", f"{answers['min']:.4f}"), ("ranking of pairs kept", _share(answers["spearman"])),
                    ("neighbours kept", _share(answers["overlap"]))]  # fmt: skip
    cells = "".join(element("div", element("dt", escape(name)) + element("dd", escape(each))) for name, each in figures)
    return element("section", element("dl", cells))


def _layers(layers: Sequence[Mapping[str, Any]]) -> str:
    plot = bars([(each["name"], each["relative_error"]) for each in layers], "Relative error after every layer")
    rows = [(each["name"], f"{each['relative_error']:.5f}", f"{each['cosine']:.6f}") for each in layers]
    return _section(
        "Error after every layer",
        "Distance of what a layer gives from what it gives in the reference, relative to the latter, over all words "
        "of all texts.",
        plot,
        _details("as a table", _table(("layer", "relative error", "cosine"), rows)),
    )


def _sizes(result: Mapping[str, Any]) -> str:
    known = [each for each in result["precisions"] if "mean" in each]
    points = [
        Point(result["reference"], result["reference_bytes"] / 1e6, 1.0),
        Point(result["model"], result["bytes"] / 1e6, result["embedding"]["mean"], marked=True),
        *(Point(each["name"], each["bytes"] / 1e6, each["mean"]) for each in known),
    ]
    rows = [(p.name, f"{p.megabytes:.2f}", f"{p.cosine:.5f}") for p in sorted(points, key=lambda p: -p.megabytes)]
    odd = [each for each in result["precisions"] if "problem" in each]
    notes = "".join(element("p", escape(f"{each['name']}: {each['problem']}"), class_="soft") for each in odd)
    return _section(
        "Size against quality",
        "All precisions that were made of the same reference. Higher and further to the left is better; both scales "
        "are logarithmic, that of the cosine in its distance from 1.",
        size_against_quality(points, "Size against mean cosine"),
        notes + _details("as a table", _table(("model", "MB", "mean cosine"), rows)),
    )


def _cosines(answers: Mapping[str, Any]) -> str:
    spread = answers["histogram"]
    rows = [(each["text"], f"{each['cosine']:.5f}") for each in answers["farthest"]]
    return _section(
        "Texts",
        f"How many of {answers['texts']} texts ({answers['source']}) have which cosine to the reference's vector.",
        histogram(spread["counts"], spread["edges"], "Texts by cosine"),
        element("p", "Farthest from the reference:", class_="soft") + _table(("text", "cosine"), rows),
    )


def _tensors(tensors: Sequence[Mapping[str, Any]]) -> str:
    changed = [each for each in tensors if each["relative_error"] > 0]
    if not changed:
        return _section("Weights", "Every tensor has exactly the reference's values.", "", "")
    shown = changed[:TENSORS_SHOWN]
    rows = [
        (
            each["name"],
            each["quant_type"],
            f"{each['bits']:.2f}",
            f"{each['relative_error']:.5f}",
            f"{each['cosine']:.6f}",
        )
        for each in tensors
    ]
    return _section(
        "Weights",
        f"Relative error of the {len(shown)} farthest of {len(tensors)} tensors; {len(tensors) - len(changed)} of them "
        "are exact.",
        bars([(each["name"], each["relative_error"]) for each in shown], "Relative error of the farthest tensors"),
        _details("all tensors", _table(("tensor", "precision", "bits", "relative error", "cosine"), rows)),
    )


def _section(title: str, explanation: str, plot: str, rest: str) -> str:
    return element(
        "section", element("h2", escape(title)) + element("p", escape(explanation), class_="soft") + plot + rest
    )


def _details(summary: str, content: str) -> str:
    return element("details", element("summary", escape(summary)) + content)


def _table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    head = "".join(element("th", escape(name), **_kind(name in _NUMBERS)) for name in columns)
    body = "".join(
        element("tr", "".join(
            element("td", escape(cell) or "&#8203;", **_kind(name in _NUMBERS))
            for name, cell in zip(columns, row, strict=True)
        ))
        for row in rows
    )  # fmt: skip
    table = element("table", element("thead", element("tr", head)) + element("tbody", body))
    return element("div", table, class_="wide")


_NUMBERS = {"relative error", "cosine", "MB", "mean cosine", "bits"}


def _kind(number: bool) -> dict[str, str]:
    return {"class": "number"} if number else {}


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"
