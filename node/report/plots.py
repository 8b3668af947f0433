"""Plots: bars by name, a histogram, and size against quality. Numbers in, SVG out."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from aios_node.node.report.svg import element, escape, figure, label, shortened

WIDTH = 760.0
_CHARACTER = 6.6
"""About the width of a character at 12 pixels."""

_ROW, _BAR = 22.0, 14.0
_MOST_CHARACTERS = 46


def bars(rows: Sequence[tuple[str, float]], title: str, *, digits: int = 4, alone: bool = False) -> str:
    """Horizontal bars from zero, one per (name, value), values beside them; negative values count as zero."""
    names = [shortened(name, _MOST_CHARACTERS) for name, _ in rows]
    left = 16 + _CHARACTER * max(map(len, names), default=0)
    room = WIDTH - left - 80
    largest = max((value for _, value in rows), default=0.0) or 1.0
    content = element("line", x1=left, x2=left, y1=0, y2=_ROW * len(rows), class_="line")
    for number, (shown, (name, value)) in enumerate(zip(names, rows, strict=True)):
        middle = _ROW * (number + 0.5)
        length = max(0.0, room * value / largest)
        content += label(shown, left - 8, middle + 4, anchor="end", full=name if shown != name else "")
        content += element("rect", x=left, y=middle - _BAR / 2, width=length, height=_BAR, rx=2, class_="main")
        content += label(f"{value:.{digits}f}", left + length + 6, middle + 4, kind="faint")
    return figure(WIDTH, _ROW * len(rows) + 4, content, title, alone=alone)


def histogram(counts: Sequence[int], edges: Sequence[float], title: str, *, alone: bool = False) -> str:
    """Columns for ``counts`` between ``edges`` (one more than counts), with the edges' values below."""
    height, base = 200.0, 170.0
    left, right = 44.0, WIDTH - 28
    step = (right - left) / max(len(counts), 1)
    largest = max(counts, default=0) or 1
    content = element("line", x1=left, x2=right, y1=base, y2=base, class_="line")
    content += label(f"{largest}", left - 6, base - 140, anchor="end", kind="faint")
    for number, count in enumerate(counts):
        tall = 145 * count / largest
        hover = element("title", escape(f"{edges[number]:.4f} to {edges[number + 1]:.4f}: {count}"))
        x = left + number * step + 1
        content += element("rect", hover, x=x, y=base - tall, width=max(step - 2, 1), height=tall, class_="main")
    every = max(1, len(counts) // 5)
    for number in range(0, len(edges), every):
        content += label(f"{edges[number]:.4f}", left + number * step, base + 18, anchor="middle", kind="faint")
    return figure(WIDTH, height, content, title, alone=alone)


@dataclass(frozen=True)
class Point:
    """A model of ``megabytes`` whose answers have a mean ``cosine`` to the reference's; ``marked`` stands out."""

    name: str
    megabytes: float
    cosine: float
    marked: bool = False


_LEFT, _RIGHT, _TOP, _BOTTOM, _TALL = 64.0, WIDTH - 24, 20.0, 422.0, 470.0
_MOST_NINES = 5.0
_COSINES = (0.0, 0.5, 0.8, 0.9, 0.95, 0.98, 0.99, 0.999, 0.9999)
_SIZES = tuple(base * 10**power for power in range(-3, 7) for base in (1, 2, 5))


def size_against_quality(points: Sequence[Point], title: str, *, alone: bool = False) -> str:
    """Points over megabytes (logarithmic), their distance 1 - cosine logarithmic too, the best ones at the top."""
    axes = _Axes.around(points)
    content = axes.grid()
    taken: list[_Box] = [_Box(axes.x(p.megabytes) - 5, axes.y(p.cosine) - 5, 10, 10) for p in points]
    for point in sorted(points, key=lambda p: (-p.cosine, p.megabytes)):
        x, y = axes.x(point.megabytes), axes.y(point.cosine)
        hover = element("title", escape(f"{point.name}: {point.megabytes:.2f} MB, cosine {point.cosine:.5f}"))
        kind = "mark" if point.marked else "main"
        content += element("circle", hover, cx=x, cy=y, r=5.5 if point.marked else 4.5, class_=kind)
        shown = shortened(point.name, 36)
        box = _free(shown, x, y, taken)
        taken.append(box)
        content += label(shown, box.x, box.y + 11, kind=kind if point.marked else "")
    return figure(WIDTH, _TALL, content, title, alone=alone)


@dataclass(frozen=True)
class _Box:
    x: float
    y: float
    width: float
    height: float

    def meets(self, other: _Box) -> bool:
        return (
            self.x < other.x + other.width
            and other.x < self.x + self.width
            and self.y < other.y + other.height
            and other.y < self.y + self.height
        )


def _free(text: str, x: float, y: float, taken: Sequence[_Box]) -> _Box:
    """Where a point's name covers nothing: beside it, above or below, or to its right if there is no such place."""
    width, height = _CHARACTER * len(text), 14.0
    places = [
        _Box(min(max(left, _LEFT + 3), WIDTH - width), y - height / 2 + shift, width, height)
        for shift in (0, -12, 12, -20, 20, -30, 30, -42, 42)
        for left in (x + 9, x - width - 9)
    ]
    return next((box for box in places if not any(box.meets(each) for each in taken)), places[0])


@dataclass(frozen=True)
class _Axes:
    """From megabytes and cosines to places in the picture."""

    smallest: float
    largest: float
    least: float
    most: float

    @classmethod
    def around(cls, points: Sequence[Point]) -> _Axes:
        sizes = [max(point.megabytes, 1e-3) for point in points] or [1.0]
        nines = [_nines(point.cosine) for point in points] or [0.0]
        low, high = min(nines), max(nines)
        return cls(math.log10(min(sizes)) - 0.08, math.log10(max(sizes)) + 0.25, max(low - 0.2, 0), high + 0.2)

    def x(self, megabytes: float) -> float:
        share = (math.log10(max(megabytes, 1e-3)) - self.smallest) / (self.largest - self.smallest)
        return _LEFT + (_RIGHT - _LEFT) * share

    def y(self, cosine: float) -> float:
        share = (_nines(cosine) - self.least) / (self.most - self.least)
        return _BOTTOM - (_BOTTOM - _TOP) * share

    def grid(self) -> str:
        return "".join([*self._across(), *self._upwards()]) + label(
            "size in MB", (_LEFT + _RIGHT) / 2, _TALL - 8, anchor="middle", kind="faint"
        ) + label("mean cosine", 4, 12, kind="faint")  # fmt: skip

    def _across(self) -> Iterator[str]:
        for cosine in _COSINES:
            if self.least <= _nines(cosine) <= self.most:
                y = self.y(cosine)
                yield element("line", x1=_LEFT, x2=_RIGHT, y1=y, y2=y, class_="line")
                yield label(f"{cosine:g}", _LEFT - 8, y + 4, anchor="end", kind="faint")

    def _upwards(self) -> Iterator[str]:
        for size in _SIZES:
            if self.smallest <= math.log10(size) <= self.largest:
                x = self.x(size)
                yield element("line", x1=x, x2=x, y1=_TOP, y2=_BOTTOM, class_="line")
                yield label(f"{size:g}", x, _BOTTOM + 18, anchor="middle", kind="faint")


def _nines(cosine: float) -> float:
    """0.9 -> 1, 0.99 -> 2; at most _MOST_NINES."""
    return -math.log10(min(1.0, max(1 - cosine, 10**-_MOST_NINES)))
