"""An agent that asks a person, killed by SIGKILL at every write between asking, answering and going on."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from harness import survived

DRIVER = Path(__file__).parents[1] / "survival_approval.py"
NEVER = 1_000_000


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
    (whole,) = survived(DRIVER, tmp_path / "whole", [(NEVER, False)])
    assert judge(whole) == "lived" and len(whole["lives"]) == 1
    writes = whole["result"]["writes"]
    cases = [(at, before) for at in range(1, writes + 1) for before in (True, False)]
    ends = Counter(judge(outcome) for outcome in survived(DRIVER, tmp_path / "killed", cases))
    assert ends["nothing"] <= 8 and ends["lived"] <= 12 < writes, ends
    assert ends.total() == len(cases)
