"""Runs the benchmarks and writes what they found to docs/results: one JSON file each, one table for all.

A benchmark is a file ``benchmarks/bench_<name>.py`` with a function ``run() -> dict``; the first line of
its docstring is its title. Each runs in a process of its own. A figure is a number, a text, or
``{"value": ..., "unit": ..., "target": ...}``; nested dicts are flattened for the table with dots. A dict
``{"columns": [...], "rows": [[...], ...]}`` becomes a table of its own. ``plots``, names and SVG texts, become
files beside the result and pictures in the page.

usage: run.py [--list] [--from DIR] [--results DIR] [--models DIR] [name ...]
"""

from __future__ import annotations

import argparse
import ast
import importlib.util
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).resolve().parent.parent
HERE = ROOT / "benchmarks"
RESULTS = ROOT / "docs" / "results"

_CPU_FAMILIES = ("AMD EPYC", "AMD Ryzen", "Intel Xeon", "Intel Core", "Neoverse", "Cortex", "Apple")


def machine() -> dict[str, str | int]:
    """The class of this machine: enough to compare figures, too little to tell whose it is."""
    versions = {name: metadata.version(name) for name in ("torch", "pyarrow", "numpy")}
    return {
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(psutil.virtual_memory().total / 2**30),
        "cpu": cpu_family(_cpu_model()),
        "architecture": platform.machine(),
        "system": platform.system(),
        "python": platform.python_version(),
        **versions,
    }


def cpu_family(model: str) -> str:
    """``Intel(R) Xeon(R) Platinum 8488C`` -> ``Intel Xeon``; unknown models are not named."""
    plain = re.sub(r"\((R|TM|tm)\)", "", model)
    return next((family for family in _CPU_FAMILIES if family.lower() in plain.lower()), "other")


def _cpu_model() -> str:
    info = Path("/proc/cpuinfo")
    text = info.read_text(encoding="utf-8", errors="replace") if info.is_file() else ""
    found = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    return found.group(1) if found else platform.processor()


def discover(folder: Path) -> dict[str, Path]:
    """Name -> file of every benchmark in a folder, by name."""
    return {path.stem.removeprefix("bench_"): path for path in sorted(folder.glob("bench_*.py"))}


def title(path: Path) -> str:
    """The first line of a benchmark's docstring, read without running it."""
    doc = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
    return doc.splitlines()[0].rstrip(".") if doc else path.stem


def run_apart(path: Path) -> Any:
    """Run one benchmark in a fresh process and return its figures; its own output passes through.

    Raises RuntimeError when it fails or gives no dict.
    """
    with tempfile.TemporaryDirectory() as scratch:
        out = Path(scratch) / "figures.json"
        done = subprocess.run([sys.executable, __file__, "--inside", str(path), str(out)], check=False)
        if done.returncode != 0:
            raise RuntimeError(f"{path.name} ended with exit code {done.returncode}")
        figures = json.loads(out.read_text(encoding="utf-8"))
    if not isinstance(figures, dict):
        raise RuntimeError(f"{path.name}: run() gave {type(figures).__name__}, not a dict")
    return figures


def _inside(path: Path, out: Path) -> None:
    """What the fresh process does: import the file, call ``run`` and write its figures down."""
    sys.path.insert(0, str(path.parent))
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    spec.loader.exec_module(module)
    out.write_text(json.dumps(module.run()), encoding="utf-8")


def record(name: str, path: Path, figures: Mapping[str, Any], results: Path) -> Path:
    """Write one benchmark's result file."""
    results.mkdir(parents=True, exist_ok=True)
    content = {
        "benchmark": name,
        "title": title(path),
        "date": datetime.now(UTC).date().isoformat(),
        "machine": machine(),
        "figures": figures,
    }
    target = results / f"{name}.json"
    target.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return target


def draw(name: str, plots: Mapping[str, str], results: Path) -> None:
    """Write a benchmark's plots as ``<name>-<plot>.svg``, instead of those of its last run."""
    for old in results.glob(f"{name}-*.svg"):
        old.unlink()
    for plot, picture in plots.items():
        (results / f"{name}-{plot}.svg").write_text(picture + "\n", encoding="utf-8")


def rows(figures: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str, str]]:
    """Flatten figures to (name, value with unit, target); lists are data for plots and left out."""
    for key, value in figures.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping) and "value" in value:
            shown = f"{_number(value['value'])} {value.get('unit', '')}".strip()
            yield name, shown, str(value.get("target", ""))
        elif is_table(value):
            continue
        elif isinstance(value, Mapping):
            yield from rows(value, f"{name}.")
        elif not isinstance(value, list):
            yield name, _number(value), ""


def is_table(value: Any) -> bool:
    """Whether a figure is a table of its own."""
    return isinstance(value, Mapping) and {"columns", "rows"} <= set(value)


def tables(figures: Mapping[str, Any]) -> Iterator[str]:
    """The lines of every table of its own, under a heading."""
    for key, value in figures.items():
        if is_table(value):
            yield from ("", f"### {key}", "", _line(value["columns"]), "|---" * len(value["columns"]) + "|")
            yield from map(_line, value["rows"])


def _line(cells: Iterable[Any]) -> str:
    return "| " + " | ".join(_number(cell).replace("|", "\\|") for cell in cells) + " |"


def _number(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def table(results: Path) -> str:
    """The Markdown page over all result files in a folder."""
    lines = ["# Results", "", "Written by `make bench`; the raw figures lie beside this page as JSON."]
    for path in sorted(results.glob("*.json")):
        result = json.loads(path.read_text(encoding="utf-8"))
        host = result["machine"]
        lines += ["", f"## {result['title']}", ""]
        software = f"Python {host['python']}, torch {host['torch']}, pyarrow {host['pyarrow']}"
        hardware = f"{host['cores']} cores ({host['cpu']}, {host['architecture']}), {host['memory_gib']} GiB"
        lines.append(f"{result['date']}, {hardware}, {software}; [{path.name}]({path.name})")
        lines += ["", "| figure | value | target |", "|---|---|---|"]
        lines += [f"| {name} | {value} | {target} |" for name, value, target in rows(result["figures"])]
        lines += tables(result["figures"])
        pictures = sorted(results.glob(f"{path.stem}-*.svg"))
        lines += [line for each in pictures for line in ("", f"![{each.stem}]({each.name})")]
    return "\n".join(lines) + "\n"


def main(arguments: list[str]) -> int:
    """0: all ran; 1: one failed; 2: wrong use."""
    if arguments[:1] == ["--inside"]:
        _inside(Path(arguments[1]), Path(arguments[2]))
        return 0
    parser = argparse.ArgumentParser(prog="run.py", description="Run the benchmarks.")
    parser.add_argument("names", nargs="*", help="which ones; all by default")
    parser.add_argument("--list", action="store_true", help="show what there is and stop")
    parser.add_argument("--from", dest="folder", type=Path, default=HERE, help="where bench_*.py files lie")
    parser.add_argument("--results", type=Path, default=RESULTS, help="where results go")
    parser.add_argument("--models", type=Path, help="ready-made version folders, for benchmarks that measure models")
    chosen = parser.parse_args(arguments)
    if chosen.models:
        os.environ["AIOS_BENCH_MODELS"] = str(chosen.models.absolute())
    chosen.names = [name.replace("-", "_") for name in chosen.names]
    known = discover(chosen.folder)
    if unknown := [name for name in chosen.names if name not in known]:
        parser.error(f"no benchmark named {', '.join(unknown)}; there are: {', '.join(known) or 'none'}")
    if chosen.list:
        print("\n".join(f"{name:20} {title(path)}" for name, path in known.items()))
        return 0
    return _run_all({name: known[name] for name in chosen.names or known}, chosen.results)


def _run_all(benchmarks: Mapping[str, Path], results: Path) -> int:
    """Run them one after the other, keep what worked, print it, and rewrite the table."""
    failed = False
    for name, path in benchmarks.items():
        print(f"== {name}: {title(path)}", flush=True)
        try:
            figures = run_apart(path)
        except RuntimeError as error:
            failed = True
            print(f"failed: {error}", file=sys.stderr)
            continue
        plots = figures.pop("plots", {})
        record(name, path, figures, results)
        draw(name, plots, results)
        for figure, value, target in rows(figures):
            print(f"   {figure:48} {value}" + (f"   (target {target})" if target else ""))
        print("\n".join(tables(figures)))
    if results.is_dir():
        (results / "README.md").write_text(table(results), encoding="utf-8")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
