"""What commands may import, and how long they may take."""

from __future__ import annotations

import resource
import secrets
import subprocess
import sys
from pathlib import Path

import pytest

from cli.records import COMMAND, Recorded, write_run
from toka.core.ids import new_run_id
from toka.events.event import (
    AgentStateChanged,
    Event,
    ExecutorAttached,
    RunCreated,
    RunStateChanged,
    StepDone,
    StepIntent,
)

HEAVY = {"pydantic_ai", "openai", "anthropic", "aiohttp", "httpx2", "fastapi", "uvicorn", "rich", "genai_prices"}
REPORT = """
import sys
from toka.cli.main import main
try:
    main(sys.argv[1:])
except SystemExit as e:
    code = e.code
print("MODULES", *sorted(n for n in sys.modules if "." not in n or n.startswith("toka.")), file=sys.stderr)
sys.exit(code)
"""
NAMED = "metadata: {name: a}\nspec: {name: A}\ntasks: [Do it]\nmodel: openai:x\n"
NO_LLM = ["ps", "show @last", "logs @last", "events @last", "audit verify @last", "audit heads @last", "validate SPEC",
          "plan SPEC", "config show", "schema", "explain TK2004", "completion zsh", "version", "--help"]  # fmt: skip
LIGHT = [*NO_LLM, "validate NAMED", "plan NAMED", "models --model scripted:none", "doctor"]


def modules_of(command: str, recorded: Recorded) -> set[str]:
    spec = recorded.state / "spec.yaml"
    spec.write_text("metadata: {name: a}\nspec: {name: A}\ntasks: [Do it]\n")
    named = recorded.state / "named.yaml"
    named.write_text(NAMED)
    arguments = [{"SPEC": str(spec), "NAMED": str(named)}.get(word, word) for word in command.split()]
    environment = {"HOME": str(recorded.state), "TOKA_STATE": str(recorded.state), "PATH": "/usr/bin:/bin",
                   "OPENAI_API_KEY": "k"}  # fmt: skip
    done = subprocess.run([sys.executable, "-c", REPORT, *arguments], capture_output=True, text=True, env=environment)
    assert done.returncode in (0, 4), done.stderr
    return set(done.stderr.rpartition("MODULES ")[2].split())


@pytest.mark.slow
@pytest.mark.parametrize("command", LIGHT)
def test_no_command_that_looks_imports_what_is_heavy(command: str, recorded: Recorded) -> None:
    modules = modules_of(command, recorded)
    assert not modules & HEAVY
    assert "toka.app" not in modules
    if command in NO_LLM:
        assert not {m for m in modules if m.startswith("toka.llm")}


def cpu_of(*arguments: str) -> float:
    """Seconds of processor time of one command."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([*COMMAND, *arguments], check=True, capture_output=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


@pytest.mark.slow
def test_help_is_quick() -> None:
    assert min(cpu_of("--help") for _ in range(3)) < 0.15


@pytest.mark.slow
def test_ps_is_quick(recorded: Recorded) -> None:
    assert min(cpu_of("ps", "--state", str(recorded.state)) for _ in range(3)) < 0.3


@pytest.mark.slow
def test_ps_is_quick_with_a_hundred_runs_of_a_thousand_events(tmp_path: Path) -> None:
    begun = [RunCreated(["a", "b"], "0" * 64, "/w"), ExecutorAttached("h", 1, 1), RunStateChanged("RUNNING")]
    steps: list[Event] = []
    for turn in range(250):
        step = f"task-1/1/{turn}/model/0"
        steps.append(
            StepIntent(step, "k" * 32, "idempotent", "openai:x", messages=[{"role": "user", "text": "x" * 300}])
        )
        steps.append(StepDone(step, {"role": "assistant", "text": "y" * 500}, [1000, 10, 0, 0, 1], 0.01, "x", 1.0))
    agent = [AgentStateChanged("STARTING"), AgentStateChanged("RUNNING"), *steps, AgentStateChanged("COMPLETED")]
    for i in range(100):
        run = new_run_id(1_795_000_000 + i, secrets.randbelow)
        write_run(tmp_path, run, [("", begun), ("a", agent), ("b", agent), ("", [RunStateChanged("COMPLETED")])])
    assert min(cpu_of("ps", "--all", "--state", str(tmp_path)) for _ in range(3)) < 0.6
