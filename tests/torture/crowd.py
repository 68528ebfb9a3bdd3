"""A crowd of agents that do a bit of everything, each of whose effects leaves a line in a ledger of the workspace.

A line is `KEY AGENT WHAT`: the idempotency key that Toka handed to the command. No line is written by Toka itself.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

LEDGER = "ledger"


def note(what: str) -> str:
    """A command that leaves a line and takes a moment."""
    return f'echo "$TOKA_IDEMPOTENCY_KEY $TOKA_AGENT {what}" >> {LEDGER}; sleep 0.05'


def write(folder: Path, kinds: int) -> list[str]:
    """Writes specs and script of `kinds` agents of each of three kinds; returns their names."""
    specs, work = folder / "specs", folder / "work"
    specs.mkdir(parents=True)
    work.mkdir()
    (work / LEDGER).touch()
    agents: dict[str, Any] = {}
    names: list[str] = []
    for number in range(kinds):
        for kind in (clerk, writer, reader):
            name, spec, script = kind(number)
            (work / f"{name}.txt").write_text("40\n")
            (specs / f"{name}.yaml").write_text(json.dumps(spec))
            agents[name] = script
            names.append(name)
    (folder / "script.yaml").write_text(json.dumps({"script": 1, "agents": agents}))
    return names


def clerk(number: int) -> tuple[str, dict[str, Any], dict[str, Any]]:
    """Commands of every effect, no model."""
    name = f"clerk-{number}"
    tasks = [
        {"id": "look", "run": f"cat {name}.txt", "effect": "pure"},
        {"id": "stamp", "run": note("stamp"), "effect": "idempotent"},
        {"id": "send", "run": note("send"), "effect": "once"},
        {"id": "file", "run": note("file"), "effect": "idempotent"},
    ]
    return name, spec(name, tasks, [{"filesystem-write": {"paths": [LEDGER]}}, "filesystem-read"]), {}


def writer(number: int) -> tuple[str, dict[str, Any], dict[str, Any]]:
    """A model with tools of every effect, and a check that fails once."""
    name = f"writer-{number}"
    grants = ["filesystem-write", {"command-execution": {}}]
    text = spec(name, [{"id": "mend", "description": "Make it 42."}], grants)
    text["objectives"] = [{"description": "it is 42", "check": f'test "$(cat {name}.txt)" = 42'}]
    edit = {"edit_file": {"path": f"{name}.txt", "old": "40", "new": "41"}}
    script = {
        "mend": [
            {"calls": [{"read_file": {"path": f"{name}.txt"}}, edit], "delay": "30ms"},
            {"calls": [{"run_command": {"command": f'echo "$TOKA_IDEMPOTENCY_KEY {name} post" >> {LEDGER}'}}]},
            {"calls": [{"write_file": {"path": f"{name}.note", "content": "was 40\n"}}], "delay": "30ms"},
            {"report": {"status": "succeeded", "summary": "mended"}},
        ],
        "repair-1": [
            {"calls": [{"edit_file": {"path": f"{name}.txt", "old": "41", "new": "42"}}]},
            {"report": {"status": "succeeded", "summary": "mended"}},
        ],
    }
    return name, text, script


def reader(number: int) -> tuple[str, dict[str, Any], dict[str, Any]]:
    """Model calls, one after the other, and reading."""
    name = f"reader-{number}"
    tasks = [{"id": f"read-{n}", "description": "Read."} for n in range(2)]
    call = {"calls": [{"read_file": {"path": f"{name}.txt"}}], "delay": "40ms"}
    script = {t["id"]: [call, call, call, {"report": {"status": "succeeded", "summary": "read"}}] for t in tasks}
    return name, spec(name, tasks, ["filesystem-read"]), script


def spec(name: str, tasks: list[dict[str, Any]], grants: list[Any]) -> dict[str, Any]:
    return {
        "metadata": {"name": name},
        "spec": {"name": name},
        "tasks": tasks,
        "security": {"capabilities_required": grants},
    }


ONCE = ("send", "post")
"""What may happen once only."""
EFFECTS = {"clerk": ("stamp", "send", "file"), "writer": ("post",), "reader": ()}
"""What each agent of a kind leaves in the ledger."""
