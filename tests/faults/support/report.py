"""What the fault suites counted: one JSON file per campaign, and one Markdown table over all of them.

Run as a program: ``report.py FOLDER OUT`` reads the campaigns in FOLDER and writes ``OUT/faults.json`` and
``OUT/faults.md``.
"""

from __future__ import annotations

import json
import os
import platform
import sys
from collections import Counter
from pathlib import Path
from typing import Any


def asked_for(name: str, default: int) -> int:
    """How much a suite is to do: an environment variable, or everything."""
    return int(os.environ.get(name) or default)


def keep(name: str, values: dict[str, Any]) -> None:
    """Write down what one campaign counted, where somebody wants it."""
    folder = os.environ.get("FAULTS_REPORT")
    print(f"{name}: {json.dumps(values)}")
    if folder:
        Path(folder).mkdir(parents=True, exist_ok=True)
        (Path(folder) / f"{name}.json").write_text(json.dumps(values, indent=2) + "\n")


def added(parts: list[dict[str, Any]]) -> dict[str, Any]:
    """Numbers and counters of several campaigns, added up; their seeds as a list."""
    total: dict[str, Any] = {"seeds": sorted({part["seed"] for part in parts})}
    for part in parts:
        for name, value in part.items():
            if isinstance(value, dict):
                total[name] = dict(sorted((Counter(total.get(name, {})) + Counter(value)).items()))
            elif name != "seed":
                total[name] = round(total.get(name, 0) + value, 1)
    return total


def table(title: str, total: dict[str, Any]) -> str:
    """One suite as Markdown: plain figures first, then every counter."""
    seeds = total["seeds"]
    lines = [
        f"## {title}",
        "",
        f"Campaigns begin at the seeds {', '.join(map(str, seeds))}. Seconds are those of all campaigns together.",
        "",
        "| figure | value |",
        "|---|---|",
    ]
    lines += [
        f"| {name.replace('_', ' ')} | {value} |" for name, value in total.items() if not isinstance(value, dict | list)
    ]
    for name, counts in total.items():
        if isinstance(counts, dict) and counts:
            lines += ["", f"| {name.replace('_', ' ')} | times |", "|---|---|"]
            lines += [f"| {key} | {count} |" for key, count in counts.items()]
    return "\n".join(lines) + "\n"


TITLES = {"kills": "Kill -9 in every phase", "messages": "Faults on messages between nodes"}


def main(folder: Path, out: Path) -> None:
    suites = {}
    out.mkdir(parents=True, exist_ok=True)
    for kind in TITLES:
        parts = [json.loads(path.read_text()) for path in sorted(folder.glob(f"{kind}-*.json"))]
        if parts:
            suites[kind] = added(parts)
    machine = f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}"
    (out / "faults.json").write_text(json.dumps({"machine": machine, **suites}, indent=2) + "\n")
    text = [f"# What the fault suites found\n\nWritten by `make faults REPORT=1`. {machine}.\n"]
    text += [table(TITLES[kind], total) for kind, total in suites.items()]
    (out / "faults.md").write_text("\n".join(text))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
