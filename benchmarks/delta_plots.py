"""Pictures of deltas, drawn with matplotlib, as SVG texts: ratio over density, and swarms over their size."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from importlib import util
from itertools import cycle

Curve = Sequence[tuple[float, float]]
"""Points (x, y)."""

MISSING = "matplotlib is not installed (the bench extra has it): no pictures were drawn"
FLOOR_COLOUR = "#222222"
COLOURS = {
    "ours": "#0b5fc0",
    "PULSE, flat": "#d1495b",
    "PULSE patch 3, exponent classes": "#e08a00",
    "z4ai": "#2e8b57",
    "XOR planes + zstd 3": "#7b4fb5",
    "ordered difference, classes + raw bits": "#d16ba5",
    "XOR + zipnn": "#00a0a0",
    "xdelta3": "#8c6239",
    "zstd 3, full copy": "#8a949e",
}
"""Of the codecs that are drawn; the others differ little from one of these."""

_OTHERS = ("#0b5fc0", "#d1495b", "#2e8b57", "#e08a00", "#7b4fb5", "#8c6239")
_WIDTHS = {"ours": 2.6, "floor": 1.6}


def can_draw() -> bool:
    """Whether matplotlib is there."""
    return util.find_spec("matplotlib") is not None


def ratio_over_density(title: str, curves: Mapping[str, Curve]) -> str:
    """Compression ratio over the share of numbers that changed, both logarithmic; the curve ``floor`` is a limit."""
    return _draw(title, curves, "share of the numbers that changed", "raw bytes over coded bytes", percent=True)


def growth(rows: Sequence[Mapping[str, float]]) -> dict[str, str]:
    """How a network's figures grow with its ``nodes``, a picture of rounds and one of everything else that is told."""
    pictures = {
        "rounds": ("links between the source and a chunk's last stop", ("rounds", "rounds, mean")),
        "copies": (
            "copies of the delta, and time over the ideal",
            ("source copies", "copies per node", "most copies of a peer", "last peer over ideal"),
        ),
    }
    return {name: over_nodes(unit, _curves(rows, figures)) for name, (unit, figures) in pictures.items()}


def _curves(rows: Sequence[Mapping[str, float]], figures: Sequence[str]) -> dict[str, Curve]:
    return {name: [(row["nodes"], row[name]) for row in rows] for name in figures if rows and name in rows[0]}


def over_nodes(unit: str, curves: Mapping[str, Curve]) -> str:
    """How something grows with the number of nodes, which is drawn logarithmically."""
    return _draw("one delta to every node", curves, "nodes", unit, percent=False)


def _draw(title: str, curves: Mapping[str, Curve], across: str, upward: str, *, percent: bool) -> str:
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "aios-node", "font.size": 10}):
        figure = Figure(figsize=(8.8, 4.8), layout="constrained", facecolor="white")
        axes = figure.add_subplot(facecolor="white")
        others = cycle(_OTHERS)
        for name, curve in curves.items():
            points = [(x, y) for x, y in curve if x > 0 and y > 0]
            limit = name == "floor"
            axes.plot(
                [x for x, _ in points],
                [y for _, y in points],
                label=name,
                color=FLOOR_COLOUR if limit else COLOURS.get(name) or next(others),
                linestyle="--" if limit else "-",
                linewidth=_WIDTHS.get(name, 1.2),
                marker=None if limit else "o",
                markersize=4 if name == "ours" else 2.5,
                zorder=3 if name in _WIDTHS else 2,
            )
        axes.set(title=title, xlabel=across, ylabel=upward, xscale="log")
        if percent:
            axes.set_yscale("log")
        else:
            axes.set_ylim(bottom=0)
            axes.set_xticks(sorted({x for curve in curves.values() for x, _ in curve}))
        axes.xaxis.set_major_formatter(_percent if percent else _plain)
        axes.yaxis.set_major_formatter(_plain)
        axes.xaxis.set_minor_formatter(_nothing)
        axes.grid(which="major", color="#dddddd", linewidth=0.8)
        axes.grid(which="minor", color="#f0f0f0", linewidth=0.5)
        axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False, fontsize=9)
        text = io.StringIO()
        figure.savefig(text, format="svg", metadata={"Date": None})
    return text.getvalue()


def _percent(value: float, _place: float) -> str:
    return f"{100 * value:g} %"


def _nothing(_value: float, _place: float) -> str:
    return ""


def _plain(value: float, _place: float) -> str:
    return f"{value:g}"
