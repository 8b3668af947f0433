"""What ``model validate`` prints and writes."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from aios_node.engine.errors import BadConfig
from aios_node.node.cli.output import human_bytes, print_table, short


def check_report(path: Path | None) -> None:
    """Refuse a report that could not be written, before any work starts. Raises BadConfig."""
    if path is None:
        return
    if path.suffix.lower() not in {".html", ".htm"}:
        raise BadConfig(f"--report {path}: reports are HTML pages, so name a file that ends in .html")
    if path.is_dir() or not path.absolute().parent.is_dir():
        raise BadConfig(f"--report {path}: name a file in a folder that exists")


def write_report(path: Path, result: Mapping[str, Any]) -> None:
    """Write the page. Raises StorageFull or StorageError."""
    from aios_node.node.files import write_atomic
    from aios_node.node.report.page import report_page

    write_atomic(path, report_page(result).encode())


def show_failures(result: Mapping[str, Any]) -> None:
    """A line on stderr for every limit that is broken."""
    for sentence in result["failures"]:
        print(f"aios-node: {result['model']}: {sentence}", file=sys.stderr)


def show_validation(result: Mapping[str, Any]) -> None:
    """The result for people."""
    print(f"{result['model']} {short(result['version'])}: all {result['tensors']} tensors have the promised hash")
    if "reference" not in result:
        return
    weights, size, full = result["weights"], result["bytes"], result["reference_bytes"]
    print(
        f"weights against {result['reference']} {short(result['reference_version'])}: relative error "
        f"{weights['relative_error']:.4f}, cosine {weights['cosine']:.5f}, {weights['bits']:.2f} bits per value; "
        f"{human_bytes(size)} of {human_bytes(full)} ({size / max(full, 1):.1%})"
    )
    if result["embedding"]:
        _show_answers(result)
    rows = [
        (t["name"], t["quant_type"], f"{t['relative_error']:.4f}", f"{t['cosine']:.5f}")
        for t in result["worst"]
        if t["relative_error"] > 0
    ]
    columns = ["farthest tensors", "precision", "relative error", "cosine"]
    print_table("", columns, rows, empty="every tensor has exactly the reference's values")


def _show_answers(result: Mapping[str, Any]) -> None:
    e = result["embedding"]
    print(
        f"embeddings of {e['texts']} texts ({e['source']}): cosine mean {e['mean']:.4f}, p5 {e['p5']:.4f}, "
        f"p1 {e['p1']:.4f}, min {e['min']:.4f}" + _ranking(e)
    )
    rows = [(each["name"], f"{each['relative_error']:.4f}", f"{each['cosine']:.5f}") for each in result["layers"]]
    print()
    print_table("", ["after layer", "relative error", "cosine"], rows, empty="")
    print()


def _ranking(e: Mapping[str, Any]) -> str:
    if e["spearman"] is None:
        return ""
    return f"; ranking of pairs {e['spearman']:.4f} (Spearman), {e['overlap']:.1%} of the 10 nearest neighbours kept"
