"""How long a team takes beside the least it can take: random graphs of 200 agents, on a clock of their own.

The real schedule says who starts; how long tasks take it does not know, as in a run. The bound is Graham's: no order
can be faster than the longest path, nor than all work divided by the places.
"""

from __future__ import annotations

import heapq
import json
import random
from collections.abc import Mapping

from toka.config.agent import AgentConfig
from toka.core.ids import AgentName
from toka.events.lifecycle import AgentStatus
from toka.events.state import AgentState
from toka.orchestration.dependency import DependencyResolver
from toka.orchestration.schedule import Schedule

AGENTS = 200
WIDTHS = (5, 20, 60, AGENTS)
"""How far back an agent's dependencies may lie."""
PLACES = (2, 4, 8, 16)


def ratios(graphs: int, seed: int = 1) -> list[float]:
    """Makespan over its lower bound, for as many random graphs, in rising order."""
    rng = random.Random(seed)
    return sorted(_ratio(rng) for _ in range(graphs))


def _ratio(rng: random.Random) -> float:
    names = [f"a{n}" for n in range(AGENTS)]
    width, places = rng.choice(WIDTHS), rng.choice(PLACES)
    needs = {
        name: sorted({names[rng.randrange(max(0, n - width), n)] for _ in range(rng.choice((0, 1, 1, 2, 3)))})
        if n
        else []
        for n, name in enumerate(names)
    }
    tasks = {name: rng.randint(1, 8) for name in names}
    seconds = {name: sum(rng.uniform(1, 10) for _ in range(tasks[name])) for name in names}
    specs = [_spec(name, needs[name], tasks[name]) for name in names]
    paths: dict[str, float] = {}
    for name in names:
        paths[name] = seconds[name] + max((paths[on] for on in needs[name]), default=0.0)
    least = max(*paths.values(), sum(seconds.values()) / places)
    return _makespan(specs, seconds, places) / least


def _needs(rng: random.Random, before: list[str]) -> list[str]:
    return sorted({rng.choice(before) for _ in range(rng.choice((0, 1, 1, 2, 3)))}) if before else []


def _spec(name: str, needs: list[str], tasks: int) -> AgentConfig:
    spec = {
        "metadata": {"name": name},
        "spec": {"name": name, "domain": "testing"},
        "tasks": {"default": [{"run": "true"}] * tasks},
        "dependencies": {"required": needs},
    }
    return AgentConfig.parse(json.dumps(spec), f"{name}.yaml")


def _makespan(specs: list[AgentConfig], seconds: Mapping[str, float], places: int) -> float:
    schedule = Schedule(DependencyResolver(specs))
    now, running = 0.0, list[tuple[float, AgentName]]()
    while True:
        while len(running) < places and (name := schedule.next()) is not None:
            heapq.heappush(running, (now + seconds[name], name))
        if not running:
            return now
        now, name = heapq.heappop(running)
        schedule.ended(AgentState(name, AgentStatus.COMPLETED))
