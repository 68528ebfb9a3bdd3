"""Commands that a person or a model runs: what is kept of their output, whoever asks for it."""

from __future__ import annotations

import json
from typing import Any

import pytest

from harness import Team, agent, call, succeed
from toka.events.event import SandboxReady, StepDone
from toka.runtime.command import KEPT_CHARACTERS, SHOWN_CHARACTERS, described, verdict
from toka.sandbox.command import CommandResult

LOUD = "seq 1 600000"
"""Writes almost 4 MiB."""
WRITTEN = "".join(f"{n}\n" for n in range(1, 600_001))
MIB = 1024**2


async def ends(team: Team, **spec: Any) -> dict[str, Any]:
    """The results of the commands that an agent ran, by kind of step: run, check, tool."""
    async with team.open() as runtime:
        session = await team.start(runtime, agent(**spec))
        assert (await session.run()).exit_code == 0
        recorder = session.context.recorder
        return {
            e.step.split("/")[3]: json.loads(recorder.blob(e.result["blob"])) if "blob" in e.result else e.result
            for e in team.events(StepDone)
            if "/model/" not in e.step
        }


@pytest.mark.parametrize(
    ("setting", "spec", "kept"),
    [(4096, None, 4096), (3 * MIB, "1MB", MIB), (50_000, "2MB", 50_000), (3 * MIB, None, 3 * MIB)],
)
async def test_the_smaller_of_the_agents_and_the_settings_bound_holds_for_every_command(
    fast: Team, setting: int, spec: str | None, kept: int
) -> None:
    fast.execution = {"output_bytes": setting}
    fast.script = {"default": [call("run_command", command=LOUD), succeed()]}
    fast.__post_init__()
    found = await ends(
        fast,
        tasks=[{"run": LOUD}, "Run it."],
        objectives=[{"description": "loud", "check": LOUD}],
        limits={"max_output": spec} if spec else {},
        grant=["command-execution"],
    )
    assert found.keys() == {"run", "tool", "check"}
    for end in (found["run"], found["check"]):
        assert end["output"] == WRITTEN[:kept][-KEPT_CHARACTERS:]
        assert len(end["output"]) + end["dropped"] == len(WRITTEN)
    told = found["tool"]["text"]
    assert f"{WRITTEN[kept - 100 : kept]}\n[... {len(WRITTEN) - kept} more bytes of output were not kept]" in told
    assert [e.policy["output_bytes"] for e in fast.events(SandboxReady)] == [kept], "the record says what is in force"


def ended(**more: Any) -> CommandResult:
    fields: dict[str, Any] = {"exit_code": 0, "output": b"", "dropped": 0, "ended": "exited", "wall_s": 1.0,
                              "cpu_s": 0.5, "max_rss_bytes": 7}  # fmt: skip
    return CommandResult(**(fields | more))


def test_the_record_keeps_the_end_of_a_long_output_and_counts_what_it_leaves_out() -> None:
    value = described(ended(output=b"a" * 10 + b"b" * KEPT_CHARACTERS, dropped=5))
    assert (value["output"], value["dropped"]) == ("b" * KEPT_CHARACTERS, 15)


@pytest.mark.parametrize(
    ("how", "text"),
    [
        ({"exit_code": 3}, "`make` exited with 3"),
        ({"exit_code": None, "ended": "timeout"}, "`make` was killed after 2.5 s"),
        ({"exit_code": None, "ended": "flood"}, "`make` was killed: it wrote more than 64 MiB"),
        ({"exit_code": None, "ended": "lost"}, "`make` was lost with its sandbox (lost)"),
    ],
)
def test_an_end_is_told_in_one_line(how: dict[str, Any], text: str) -> None:
    assert verdict(described(ended(**how)), " make\n", 2.5) == text


def test_a_long_command_line_is_shown_cut() -> None:
    told = verdict(described(ended()), "echo " + "x" * 1000, None)
    assert told == f"`echo {'x' * (SHOWN_CHARACTERS - 6)}…` exited with 0"
