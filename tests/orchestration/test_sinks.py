from __future__ import annotations

import json
from pathlib import Path

import pytest

from harness import Team, agent

REPORTING = {
    "frequency": "on-milestone",
    "channels": ["team"],
    "metrics": [{"name": "defects", "description": "Defects found", "unit": "count"}],
}


def lines(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.slow
async def test_a_channel_with_a_file_gets_each_digest_as_a_line(team: Team) -> None:
    path = team.folder / "team.jsonl"
    (team.folder / "toka.toml").write_text(f'[channels.team]\nfile = "{path}"\n')
    team.script = {
        "default": [{"report": {"status": "succeeded", "summary": "found two", "metrics": {"defects": 2, "other": 1}}}]
    }
    team.__post_init__()
    result = await team.run(agent("one", reporting=REPORTING))
    told = lines(path)
    assert [t["cause"] for t in told] == ["on-milestone", "end"]
    assert {(t["run_id"], t["channel"], t["agent"]) for t in told} == {(result.run, "team", "one")}
    assert told[-1]["metrics"] == {"defects": 2.0}, "only what was declared"
    assert told[-1]["state"] == "COMPLETED"
    assert told[-1]["tasks"] == {"done": 1, "total": 1}


@pytest.mark.slow
async def test_a_file_that_cannot_be_written_costs_its_lines_and_nothing_else(team: Team) -> None:
    (team.folder / "toka.toml").write_text(f'[channels.team]\nfile = "{team.folder}/nowhere/team.jsonl"\n')
    result = await team.run(agent("one", reporting=REPORTING))
    assert result.status == "COMPLETED"


async def test_declared_metrics_are_told_to_the_model(team: Team) -> None:
    await team.run(agent("one", reporting=REPORTING))
    system = team.model.requests[0].messages[0].text
    assert "defects: Defects found (count)" in system
