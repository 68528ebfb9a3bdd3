"""Random teams: agents, what they wait for, their tasks and objectives, and the settings they are executed with."""

from __future__ import annotations

import json
import random
from typing import Any

from toka.config.agent import AgentConfig
from toka.config.settings import ExecutionConfig

EFFECTS = ("pure", "idempotent", "once", None)


def execution(rng: random.Random) -> dict[str, Any]:
    """Fields of ExecutionConfig. Times are short, so that little virtual time passes without an event."""
    made = {
        "max_concurrent_agents": rng.choice((1, 2, 2, 3, 4)),
        "max_concurrent_tasks": rng.choice((1, 1, 1, 2, 3)),
        "task_retries": rng.choice((0, 1, 2)),
        "task_timeout_s": rng.choice((None, 60.0, 300.0)),
        "workstream_timeout_s": rng.choice((None, None, 120.0, 900.0)),
        "run_timeout_s": rng.choice((None,) * 9 + (300.0,)),
        "restart": rng.choice(("on_failure", "on_failure", "on_failure", "never", "always")),
        "run_restarts": rng.choice((10, 10, 3)),
        "pause_timeout_s": rng.choice((1.0, 30.0)),
        "model_timeout_s": rng.choice((10.0, 30.0)),
        "command_timeout_s": rng.choice((5.0, 30.0)),
        "repair_rounds": rng.choice((0, 1, 2)),
        "grace_s": rng.choice((0.5, 3.0, 10.0)),
        "approval_timeout_s": rng.choice((None, 40.0, 4000.0)),
        "retry_base_s": 0.5,
        "retry_cap_s": 5.0,
        "max_turns": rng.choice((4, 8, 14)),
        "max_output_tokens": 2000,
        "max_restarts": rng.choice((1, 3, 5)),
    }
    assert made.keys() <= ExecutionConfig.__dataclass_fields__.keys()
    return made


def team(rng: random.Random) -> list[AgentConfig]:
    """The agents of one run."""
    count = min(12, 1 + int(rng.expovariate(1 / 4)))
    return [_agent(rng, number) for number in range(count)]


def _agent(rng: random.Random, number: int) -> AgentConfig:
    earlier = [f"a{n}" for n in range(number)]
    rng.shuffle(earlier)
    cut = min(len(earlier), rng.choice((0, 0, 1, 1, 2)))
    required, optional = earlier[:cut], earlier[cut : cut + rng.choice((0, 0, 0, 1))]
    spec: dict[str, Any] = {
        "metadata": {"name": f"a{number}"},
        "spec": {"name": f"A{number}", "domain": "testing", "priority": rng.choice(("low", "medium", "high"))},
        "tasks": {"default": _tasks(rng)},
        "dependencies": {"required": {n: {} for n in required}, "optional": {n: {} for n in optional}},
        "security": {"capabilities_required": [], "resource_limits": _limits(rng)},
        "objectives": [_objective(rng, n) for n in range(rng.choice((0, 0, 1, 2)))],
    }
    if rng.random() < 0.12:
        spec["flow"] = {"for_each": [f"e{n}" for n in range(rng.randint(1, 4))], "max_parallel": rng.randint(1, 3)}
    elif rng.random() < 0.08:
        spec["flow"] = {"approve": {"question": "May it start?"}}
    return AgentConfig.parse(json.dumps(spec), f"a{number}.yaml")


def _limits(rng: random.Random) -> dict[str, Any]:
    limits: dict[str, Any] = {}
    if rng.random() < 0.2:
        limits["max_model_calls"] = rng.randint(2, 9)
    if rng.random() < 0.1:
        limits["max_tool_calls"] = rng.randint(1, 12)
    if rng.random() < 0.1:
        limits["max_tokens"] = rng.randint(8_000, 90_000)
    if rng.random() < 0.1:
        limits["timeout"] = f"{rng.randint(20, 400)}s"
    return limits


def _tasks(rng: random.Random) -> list[dict[str, Any]]:
    out: list[dict[str, Any]] = []
    for number in range(rng.choice((1, 1, 2, 2, 3, 4))):
        task: dict[str, Any] = {"id": f"t{number}", "description": "Do it."}
        if rng.random() < 0.35:
            task["run"] = f"act {number}"
            effect = rng.choice(EFFECTS)
            if effect is not None:
                task["effect"] = effect
        if rng.random() < 0.3:
            task["retries"] = rng.randint(0, 3)
        if rng.random() < 0.2:
            task["timeout"] = f"{rng.randint(5, 120)}s"
        if number and rng.random() < 0.4:
            task["depends_on"] = [f"t{rng.randrange(number)}"]
        out.append(task)
    return out


def _objective(rng: random.Random, number: int) -> dict[str, Any]:
    objective: dict[str, Any] = {"description": f"Objective {number} is met."}
    if rng.random() < 0.8:
        objective["check"] = f"check {number}"
    return objective
