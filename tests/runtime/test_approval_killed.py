"""An agent that asks a person, killed by SIGKILL at every write between asking, answering and going on."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

DRIVER = Path(__file__).parents[1] / "survival_approval.py"
NEVER = 1_000_000


def survived(folder: Path, cases: list[tuple[int, bool]]) -> list[dict[str, Any]]:
    folder.mkdir()
    text = "".join(json.dumps(case) + "\n" for case in cases)
    done = subprocess.run([sys.executable, str(DRIVER), str(folder)], input=text, text=True, capture_output=True)
    assert done.returncode == 0 and not done.stderr, done.stderr[-3000:]
    outcomes = [json.loads(line) for line in (folder / "results").read_text().splitlines()]
    assert len(outcomes) == len(cases)
    return outcomes


def judge(outcome: dict[str, Any]) -> str:
    """Every promise about one case. Returns what became of the first process."""
    first, *others = outcome["lives"]
    killed = os.WIFSIGNALED(first) and os.WTERMSIG(first) == 9
    assert all(status == 0 for status in others), "only the first process was to die"
    end = outcome["left"]
    if end["run"] is None:
        assert killed and not outcome["files"]
        return "nothing"
    assert (end["status"], end["tasks"]) == ("COMPLETED", dict.fromkeys(["write", "publish", "keep"], "SUCCEEDED"))
    assert outcome["files"]["secret.txt"] == "42"
    assert set(outcome["files"]["effects"].split()) == {"published"}
    asked, answered = end["asked"], end["answered"]
    assert len(asked) == 2 and asked.keys() == answered.keys(), "one question before the start, one about the call"
    assert all(len(at) == 1 for at in (*asked.values(), *answered.values())), "each is asked once, and answered once"
    (start, call), (agreed, allowed) = sorted(asked.values()), sorted(answered.values())
    assert start < agreed < call < allowed
    assert agreed[0] < min(end["began"]), "nothing was done before the first answer"
    assert allowed[0] < min(end["called"]), "the call was not made before the second"
    return "killed" if killed else "lived"


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_killed_at_any_write_each_question_is_asked_once_and_its_answer_counts(tmp_path: Path) -> None:
    (whole,) = survived(tmp_path / "whole", [(NEVER, False)])
    assert judge(whole) == "lived" and len(whole["lives"]) == 1
    writes = whole["result"]["writes"]
    cases = [(at, before) for at in range(1, writes + 1) for before in (True, False)]
    ends = Counter(judge(outcome) for outcome in survived(tmp_path / "killed", cases))
    assert ends["nothing"] <= 8 and ends["lived"] <= 12 < writes, ends
    assert ends.total() == len(cases)
