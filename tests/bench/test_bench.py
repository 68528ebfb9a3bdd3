"""The bench works: every way ends its tasks, every line of the table is there. Its figures are not judged here."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "bench" / "bench_toka.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=110)


@pytest.mark.slow
def test_a_tiny_run_measures_everything_and_leaves_nothing_behind(tmp_path: Path) -> None:
    figures, work = tmp_path / "figures.json", tmp_path / "work"
    done = run("--tiny", "--only", "cpu", "--only", "journal", "--json", str(figures), "--directory", str(work))
    assert done.returncode == 0, done.stderr
    found = json.loads(figures.read_text())
    assert found["problems"] == []
    rows = {row["id"]: row for row in found["rows"]}
    assert set(rows) == {"cpu50", "cpu500", "journal", "append_p95", "resume", "parked"}
    assert all(rows[name]["toka"] > 0 for name in ("append_p95", "resume", "parked"))
    for name in ("cpu50", "cpu500"):
        row = rows[name]
        assert row["toka"] > 0 and set(row["beside"]) == {"sdk", "direct"}
        assert row["met"] is (row["ratios"][0] <= row["bar"])
    assert rows["journal"]["toka"] > 0
    assert list(work.iterdir()) == []
    for row in rows.values():
        assert row["title"] in done.stdout


@pytest.mark.slow
def test_memory_is_read_while_all_agents_wait(tmp_path: Path) -> None:
    figures = tmp_path / "figures.json"
    done = run("--tiny", "--only", "memory", "--json", str(figures), "--directory", str(tmp_path))
    assert done.returncode == 0, done.stderr
    found = json.loads(figures.read_text())
    assert found["problems"] == []
    (row,) = found["rows"]
    assert {"sdk"} == set(row["beside"])


@pytest.mark.slow
def test_checkpoints_are_measured(tmp_path: Path) -> None:
    figures = tmp_path / "figures.json"
    done = run("--tiny", "--only", "checkpoint", "--json", str(figures), "--directory", str(tmp_path))
    assert done.returncode == 0, done.stderr
    found = json.loads(figures.read_text())
    assert found["problems"] == []
    assert len(found["rows"]) == 6
    assert all(row["toka"] > 0 for row in found["rows"])


def test_an_unknown_group_is_refused() -> None:
    done = run("--only", "everything")
    assert done.returncode == 2 and "everything" in done.stderr
