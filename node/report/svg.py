"""SVG by hand: escaped text, a few shapes, and colours that suit light and dark pages.

Knows shapes and colours; knows nothing about what a plot shows (see plots).
"""

from __future__ import annotations

import html
import re
from collections.abc import Mapping

_FORBIDDEN = re.compile(r"[^\t\n\r\x20-\x7e\x85\xa0-\ud7ff\ue000-\ufdcf\ufdf0-\ufffd\U00010000-\U0001fffd]")
"""What XML or HTML does not allow as a character."""

STYLE = """
svg { color-scheme: light dark; font: 12px system-ui, sans-serif; --ink: #1f2328; --faint: #667085; --line: #d8dce3;
  --main: #2f6fde; --mark: #c2410c; }
@media (prefers-color-scheme: dark) { svg { --ink: #e6e8eb; --faint: #98a2b3; --line: #343a44; --main: #7aa7ff;
  --mark: #ff9d66; } }
svg text { fill: var(--ink); } svg .faint { fill: var(--faint); } svg .line { stroke: var(--line); fill: none; }
svg .main { fill: var(--main); } svg .mark { fill: var(--mark); } svg .path { stroke: var(--main); fill: none; }
"""

Attribute = str | float


def escape(text: object) -> str:
    """Text for HTML and XML, in content and in quoted attributes; characters that neither allows become U+FFFD."""
    return html.escape(_FORBIDDEN.sub("\ufffd", str(text)), quote=True)


def element(name: str, content: str = "", /, **attributes: Attribute) -> str:
    """An element. ``content`` is markup; attribute values are escaped, ``_`` in their names becomes ``-``."""
    named = "".join(f' {key.strip("_").replace("_", "-")}="{_value(value)}"' for key, value in attributes.items())
    return f"<{name}{named}>{content}</{name}>" if content else f"<{name}{named}/>"


def label(text: object, x: float, y: float, *, anchor: str = "start", kind: str = "", full: str = "") -> str:
    """A line of text whose baseline starts, ends or is centred at (x, y); ``full`` is shown on hovering."""
    hover = element("title", escape(full)) if full else ""
    extra: Mapping[str, Attribute] = {"class": kind} if kind else {}
    return element("text", escape(text) + hover, x=x, y=y, text_anchor=anchor, **extra)


def figure(width: float, height: float, content: str, title: str, *, alone: bool = False) -> str:
    """A whole picture with a title for those who cannot see it; ``alone``: a file of its own, with its style."""
    inner = element("title", escape(title)) + (element("style", STYLE) if alone else "") + content
    space: Mapping[str, Attribute] = {"xmlns": "http://www.w3.org/2000/svg", "width": width, "height": height}
    return element("svg", inner, viewBox=f"0 0 {width:g} {height:g}", role="img", **(space if alone else {}))


def shortened(text: str, most: int) -> str:
    """The text, or its beginning and its end with an ellipsis between them."""
    if len(text) <= most:
        return text
    tail = most // 2
    return f"{text[: most - tail - 1]}…{text[-tail:]}"


def _value(value: Attribute) -> str:
    return escape(value) if isinstance(value, str) else f"{value:.6g}"
