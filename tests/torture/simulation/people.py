"""Who acts on a world from outside: an operator who starts processes, people at other terminals, and bad luck."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any

from toka.events.lifecycle import RunStatus

if TYPE_CHECKING:
    from torture.simulation.world import Life, World

TROUBLE_S = 240.0
"""Virtual seconds until all becomes calm, at most."""
QUIET_S = 1500.0
"""Virtual seconds without a record after which a run that should go on is stuck; longer than any timer of it."""
LONGEST_S = 20_000.0
"""Virtual seconds of calm within which every run ends."""
MAX_LIVES = 60


class Operator:
    """Starts the run, and starts it again whenever nobody executes it; sometimes also when somebody does."""

    def __init__(self, world: World, birth: Callable[[str], Life]) -> None:
        self._world = world
        self._birth = birth
        self._patience = 0

    async def run(self) -> None:
        """Until the run has ended."""
        world, rng = self._world, self._world.rng
        calm_at = rng.random() * TROUBLE_S
        calm_since = 0.0
        while True:
            now = world.loop.time()
            if not world.calm and (now >= calm_at or len(world.lives) > MAX_LIVES):
                world.calm, calm_since = True, now
                world.note("calm")
            if world.run and world.state.ended and not any(life.executes for life in world.lives):
                world.ended.set()
                return
            self._look(now, calm_since)
            await asyncio.sleep(0.2 + rng.random() * rng.choice((1.0, 5.0)))

    def _look(self, now: float, calm_since: float) -> None:
        world, rng = self._world, self._world.rng
        living = [life for life in world.lives if life.executes]
        awake = [life for life in living if not life.frozen]
        begun = bool(world.run) and world.state.created is not None
        if world.calm:
            answer_all(world)
            if now - calm_since > LONGEST_S or len(living) + len(world.lives) > 4 * MAX_LIVES:
                world.broken("no-deadlock", f"the run did not end within {now - calm_since:.0f} s of calm")
            quiet = now - max(world.changed_at, calm_since)
            if quiet > QUIET_S:
                over = ", and a process lives on after the end of the run" if world.state.ended else ""
                world.broken("no-deadlock", f"nothing was recorded for {quiet:.0f} s, and nothing fails any more{over}")
        if not awake and begun and world.state.status is RunStatus.WAITING:
            self._patience += 1
            if rng.random() < 0.6:
                answer_all(world)
            elif self._patience % 8:
                return
        if not awake and not (world.run and world.state.ended):
            if not begun:
                if not living:  # nobody starts it a second time while the first start may still go on
                    self._birth("start")
            else:
                self._birth("settle" if not world.calm and rng.random() < 0.1 else "resume")
        elif begun and living and not world.state.ended and world.hits(0.02):
            self._birth("resume")  # a second one: it is refused while the first holds the run


def answer_all(world: World) -> None:
    """Lifts all holds and answers all questions, each once."""
    state = world.state
    for agent in state.agents.values():
        if agent.ended:
            continue
        if agent.holds and world.hits_once(f"resume {agent.name} {agent.changed_at} {len(world.lives)}"):
            world.submit("resume", agent.name, "ann")
        for task in agent.tasks.values():
            if task.question and world.hits_once(f"resolve {agent.name} {task.id} {task.question} {len(world.lives)}"):
                answer = world.rng.choice(("happened", "not-happened", "abandon"))
                world.submit("resolve", agent.name, "ann", task=task.id, answer=answer)
        if agent.asking and world.hits_once(f"approve {[a.id for a in agent.asking]} {len(world.lives)}"):
            verb = world.rng.choice(("approve", "approve", "deny"))
            world.submit(verb, agent.name, "ann", approvals=[a.id for a in agent.asking], at=world.clock.now())


async def people(world: World) -> None:
    """Random requests at random moments."""
    rng = world.rng
    every = world.faults.people_every
    while every:
        await asyncio.sleep(rng.expovariate(1 / every))
        if world.calm:
            return
        agents = list(world.state.agents.values())
        if not agents:
            continue
        verb = rng.choice(
            ("pause", "pause", "pause", "resume", "resume", "resume", "answer", "answer", "answer", "retry", "stop")
        )
        if verb == "answer":
            if rng.random() < 0.5:
                answer_all(world)
        elif verb == "stop" and rng.random() < 0.6:
            continue
        else:
            everybody = rng.random() < (0.05 if verb == "stop" else 0.3)
            for _ in range(rng.choice((1, 1, 1, 2))):
                world.submit(verb, "" if everybody else rng.choice(agents).name)


def chaos(world: World) -> list[Coroutine[Any, Any, None]]:
    """What befalls processes."""

    def kill(life: Life) -> None:
        world.kill(life, "by chance")

    def freeze(life: Life) -> None:
        world.freeze(life, world.rng.choice((0.5, 4.0, 14.0, 20.0, 40.0)) * world.rng.random() * 1.5)

    def shut_down(life: Life) -> None:
        if life.session is not None and not life.gone:
            world.note(f"p{life.number} is asked to end")
            life.spawn(life.session.shutdown(world.rng.choice((0.0, 1.0, 10.0))))

    faults = world.faults
    return [
        _befall(world, faults.kill_every, kill),
        _befall(world, faults.freeze_every, freeze),
        _befall(world, faults.shutdown_every, shut_down),
    ]


async def _befall(world: World, every: float, what: Callable[[Life], None]) -> None:
    while every:
        await asyncio.sleep(world.rng.expovariate(1 / every))
        if world.calm:
            return
        living = [life for life in world.lives if life.executes and not life.frozen]
        if living:
            what(world.rng.choice(living))
