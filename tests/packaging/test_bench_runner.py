"""The benchmark runner: finds, runs apart, records, and says when one failed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
RUNNER = ROOT / "benchmarks" / "run.py"

GOOD = '''"""How fast nothing is done."""

def run():
    return {"rate": {"value": 2.5, "unit": "GB/s", "target": ">= 2"}, "sizes": {"small": 1, "all": [1, 2]}}
'''
TABLE = '''"""One with a table and a plot."""

import os

def run():
    named = {"models": os.path.basename(os.environ["AIOS_BENCH_MODELS"])}
    return {
        "best": 1,
        "all of them": {"columns": ["name", "size"], "rows": [["a|b", 2.0], ["c", 3]]},
        "plots": {"size": "<svg/>"},
        **named,
    }
'''
BAD = '"""One that fails."""\n\ndef run():\n    raise ValueError("broken on purpose")\n'


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "bench_good.py").write_text(GOOD, encoding="utf-8")
    (tmp_path / "bench_bad.py").write_text(BAD, encoding="utf-8")
    return tmp_path


def bench(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(RUNNER), "--from", str(folder), "--results", str(folder / "results"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_list_shows_titles_without_running(folder: Path) -> None:
    done = bench(folder, "--list")
    assert done.returncode == 0
    assert "How fast nothing is done" in done.stdout
    assert not (folder / "results").exists()


def test_results_hold_figures_date_and_machine_class_but_no_host_name(folder: Path) -> None:
    done = bench(folder, "good")
    assert done.returncode == 0, done.stderr
    result = json.loads((folder / "results" / "good.json").read_text(encoding="utf-8"))
    assert result["figures"]["rate"] == {"value": 2.5, "unit": "GB/s", "target": ">= 2"}
    assert set(result) == {"benchmark", "title", "date", "machine", "figures"}
    assert set(result["machine"]) == {
        *("cores", "memory_gib", "cpu", "architecture", "system", "python", "torch", "pyarrow", "numpy"),
    }
    page = (folder / "results" / "README.md").read_text(encoding="utf-8")
    assert "| rate | 2.5 GB/s | >= 2 |" in page
    assert "| sizes.small | 1 |  |" in page
    assert "sizes.all" not in page


def test_tables_and_plots_have_a_place_of_their_own(folder: Path) -> None:
    (folder / "bench_two_words.py").write_text(TABLE, encoding="utf-8")
    for _ in range(2):
        done = bench(folder, "two-words", "--models", str(folder / "ready"))
        assert done.returncode == 0, done.stderr
    results = folder / "results"
    assert (results / "two_words-size.svg").read_text(encoding="utf-8") == "<svg/>\n"
    figures = json.loads((results / "two_words.json").read_text(encoding="utf-8"))["figures"]
    assert figures == {"best": 1, "all of them": {"columns": ["name", "size"], "rows": [["a|b", 2.0], ["c", 3]]},
                       "models": "ready"}  # fmt: skip
    page = (results / "README.md").read_text(encoding="utf-8")
    assert "### all of them\n\n| name | size |\n|---|---|\n| a\\|b | 2 |\n| c | 3 |\n" in page
    assert "![two_words-size](two_words-size.svg)" in page
    assert "all of them." not in page


def test_a_failing_benchmark_is_told_and_the_others_still_run(folder: Path) -> None:
    done = bench(folder)
    assert done.returncode == 1
    assert "broken on purpose" in done.stderr
    assert (folder / "results" / "good.json").is_file()
    assert not (folder / "results" / "bad.json").exists()


def test_an_unknown_name_is_answered_with_what_exists(folder: Path) -> None:
    done = bench(folder, "nothing")
    assert done.returncode == 2
    assert "there are: bad, good" in done.stderr


def test_the_projects_own_benchmarks_have_titles() -> None:
    done = subprocess.run([sys.executable, str(RUNNER), "--list"], capture_output=True, text=True, check=True)
    names = [path.stem.removeprefix("bench_") for path in (ROOT / "benchmarks").glob("bench_*.py")]
    assert [line.split(maxsplit=1)[0] for line in done.stdout.splitlines() if line] == sorted(names)
    assert all(len(line.split(maxsplit=1)) == 2 for line in done.stdout.splitlines() if line)
