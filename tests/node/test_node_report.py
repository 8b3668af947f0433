"""Reports: well-formed, self-contained, escaped, and with every number that was measured."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from typing import Any
from xml.etree import ElementTree as ET

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aios_node.node.report.page import report_page
from aios_node.node.report.plots import Point, bars, histogram, size_against_quality
from aios_node.node.report.svg import element, escape

HOSTILE = "<script>alert(1)</script>\"'&\x00\x1b]]>\ud800 -->"
VOID = {"meta"}


class Page(HTMLParser):
    """Checks that tags are closed in order, and collects text, names of tags and attributes."""

    def __init__(self, source: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: set[str] = set()
        self.attributes: list[tuple[str, str]] = []
        self.text = ""
        self.feed(source)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes += [(name, value or "") for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def tensor(name: str, error: float) -> dict[str, Any]:
    return {"name": name, "quant_type": "int4", "cosine": 0.99, "relative_error": error, "max_error": 1.0, "bits": 4.5}


def result(name: str = "minilm.int4", **changes: Any) -> dict[str, Any]:
    embedding = {
        "texts": 3,
        "mean": 0.9701,
        "p1": 0.9,
        "p5": 0.91,
        "min": 0.8999,
        "spearman": 0.95,
        "overlap": 0.8,
        "source": name,
        "histogram": {"counts": [1, 0, 2], "edges": [0.9, 0.93, 0.96, 0.99]},
        "farthest": [{"text": name, "cosine": 0.8999}],
    }
    return {
        "model": name,
        "version": "a" * 64,
        "reference": name,
        "reference_version": "b" * 64,
        "tensors": 2,
        "bytes": 2_000_000,
        "reference_bytes": 8_000_000,
        "hash_ok": True,
        "passed": True,
        "failures": [],
        "limits": {},
        "weights": {
            "cosine": 0.99,
            "relative_error": 0.0512,
            "bits": 4.5,
            "tensors": [tensor(name, 0.0613), tensor("exact", 0.0)],
        },
        "layers": [{"name": "embeddings", "relative_error": 0.0123, "cosine": 0.999}],
        "embedding": embedding,
        "precisions": [{"name": name, "bytes": 10, "mean": 0.5}, {"name": "odd", "bytes": 1, "problem": name}],
    } | changes


def test_a_page_is_well_formed_and_loads_nothing() -> None:
    source = report_page(result())
    page = Page(source)
    assert source.startswith("<!DOCTYPE html>")
    assert {"html", "head", "title", "body", "svg", "table"} <= page.tags
    assert page.tags.isdisjoint({"script", "link", "img", "iframe", "object", "image", "use"})
    assert [pair for pair in page.attributes if pair[0] in {"src", "href"} or pair[0].startswith("on")] == []
    assert re.findall(r"https?://|url\(|@import", source) == []
    assert "prefers-color-scheme: dark" in source


def test_a_page_tells_the_figures() -> None:
    text = Page(report_page(result())).text
    for figure in ("0.9701", "0.8999", "0.0512", "25.0%", "2.00 MB", "4.50", "0.0123", "0.0613", "a" * 12, "b" * 12):
        assert figure in text
    assert "1 of them are exact" in text
    assert "Limits" not in text


def test_limits_are_judged_where_there_are_any() -> None:
    assert "All limits are kept." in report_page(result(limits={"min_cosine": 0.5}))
    broken = report_page(result(passed=False, failures=["the cosine is <low>"]))
    assert "Limits are broken:" in broken
    assert "the cosine is &lt;low&gt;" in broken


def test_a_model_without_answers_has_a_page_about_weights() -> None:
    text = Page(report_page(result(embedding=None, layers=[], precisions=[]))).text
    assert "Error after every layer" not in text
    assert "Weights" in text


def test_hostile_names_stay_text() -> None:
    source = report_page(result(HOSTILE, passed=False, failures=[HOSTILE]))
    page = Page(source)
    assert "script" not in page.tags
    assert "<script" not in source
    assert "<script>alert(1)</script>" in page.text
    assert "\x00" not in source
    assert source.encode()  # no lone surrogate is left


@given(st.text())
def test_escaped_text_is_the_same_text_in_xml(text: str) -> None:
    found = ET.fromstring(element("p", escape(text) or "-", name=text))
    kept = re.fullmatch(r"[\x20-\x7e\xa0-\ud7ff]*", text)
    if kept:
        assert (found.text, found.get("name")) == (text or "-", text)


@pytest.mark.parametrize(
    "picture",
    [
        bars([(HOSTILE, 1.0), ("a", 0.5), ("b", 0.0), ("c", -1.0)], HOSTILE, alone=True),
        bars([], "nothing", alone=True),
        histogram([0, 3], [0.0, 0.5, 1.0], "h", alone=True),
        size_against_quality([Point(HOSTILE, 0.0, -1.0, marked=True), Point("b", 1e5, 1.0)], "s", alone=True),
        size_against_quality([], "nothing", alone=True),
    ],
)
def test_pictures_alone_are_xml_with_numbers_in_them(picture: str) -> None:
    root = ET.fromstring(picture)
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    assert root[0].tag.endswith("title")
    for found in root.iter():
        for name in ("x", "y", "width", "height", "cx", "cy", "x1", "x2", "y1", "y2"):
            assert found.get(name) is None or abs(float(found.get(name, ""))) < 2000


def test_bars_are_as_long_as_their_values_say() -> None:
    rows = [("a", 2.0), ("b", 1.0), ("c", 0.0)]
    widths = [float(width) for width in re.findall(r'<rect [^>]*width="([^"]+)"', bars(rows, "t"))]
    assert widths[0] == pytest.approx(2 * widths[1], rel=1e-4)
    assert widths[2] == 0


def test_better_is_higher_and_smaller_is_further_left() -> None:
    points = [Point("big", 90, 1.0), Point("middle", 20, 0.97), Point("low", 10, 0.7)]
    picture = size_against_quality(points, "t")
    places = {
        name: (float(x), float(y))
        for x, y, name in re.findall(r'<circle cx="([\d.]+)" cy="([\d.]+)"[^>]*><title>(\w+):', picture)
    }
    assert places["low"][0] < places["middle"][0] < places["big"][0]
    assert places["low"][1] > places["middle"][1] > places["big"][1]


def test_names_in_a_crowd_do_not_cover_each_other() -> None:
    points = [Point(f"model {number}", 10 + number / 10, 0.97 + number / 1000) for number in range(8)]
    picture = size_against_quality(points, "t")
    labels = [(float(x), float(y)) for x, y in re.findall(r'<text x="([\d.]+)" y="([\d.]+)"[^>]*>model', picture)]
    assert len(labels) == 8
    for number, (x, y) in enumerate(labels):
        assert all(abs(x - a) > 45 or abs(y - b) >= 11 for a, b in labels[number + 1 :])
