"""Runs worlds: builds one from its seed, lets it live, and says what it came to.

    python -m torture.simulation.driver --seed 7 --steps 300000 --minutes 10 --jobs 2
    python -m torture.simulation.driver --seed 7 --world 123 --verbose        # one world again, with its trace

A world is one run of a random team, executed by simulated processes that are killed, frozen and shut down, over a disk
that fails, with people who pause, resume, stop and answer at random moments. After a while all becomes calm: nothing
fails any more, people lift all holds and answer all questions, and then the run must end.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import hashlib
import json
import multiprocessing.connection
import shutil
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import toka.orchestration.engine as engine_module
from toka.app import Parts, open_runtime, read_settings
from toka.config.agent import AgentConfig
from toka.config.settings import ExecutionConfig, Settings
from toka.config.settings_tables import ModelPrice
from toka.core.ids import RunId
from toka.core.limits import Limits
from toka.core.operator import CallRule, OperatorPolicy
from toka.errors import JournalError, RunBusy, TokaError
from toka.journal.journal import Holder
from toka.orchestration.dependency import DependencyResolver
from toka.orchestration.engine import OrchestrationEngine
from toka.orchestration.request import RunRequest
from toka.runtime.effective import bounds
from torture.simulation.bills import PRICE
from torture.simulation.known import is_known
from torture.simulation.loop import Stuck
from torture.simulation.mutations import MUTATIONS, mutate
from torture.simulation.people import Operator, chaos, people
from torture.simulation.ports import MODEL, SimModel, SimSandbox, start_sandbox, tools_of
from torture.simulation.team import execution, team
from torture.simulation.world import Faults, Life, World

MAX_S = 30_000.0
"""Virtual seconds after which a run that has not ended never will."""


@dataclass
class Outcome:
    """What a world came to."""

    seed: str
    steps: int
    records: int
    trace: str
    status: str
    virtual_s: float
    lives: int
    kills: int
    takeovers: int
    rule: str = ""
    text: str = ""
    lines: list[str] = field(default_factory=list[str])


def settings_for(folder: Path) -> Settings:
    """The settings of all worlds, but for how agents are executed."""
    read = read_settings({"model": MODEL}, cwd=folder, environment={"HOME": str(folder)})
    price = ModelPrice(PRICE.input, PRICE.output)
    return replace(read, pricing={MODEL: price}, policy=OperatorPolicy(ask=(CallRule("careful", "*"),)))


def build(seed: str, folder: Path, *, verbose: bool = False) -> tuple[World, list[AgentConfig]]:
    """A world and the team that lives in it."""
    world = World(seed, folder, verbose=verbose)
    rng = world.rng
    quiet = rng.random() < 0.15

    def some(*values: float) -> float:
        return 0.0 if quiet else rng.choice(values)

    world.faults = Faults(
        write_fails=some(0, 0, 0, 0.002, 0.01),
        read_fails=some(0, 0, 0, 0.01),
        slow_commit=some(0, 0, 0.02, 0.1),
        die_at_write=some(0, 0.5, 1.0),
        freeze_at_write=some(0, 0, 0.5, 1.0),
        kill_every=some(0, 10.0, 60.0),
        freeze_every=some(0, 0, 20.0, 60.0),
        shutdown_every=some(0, 0, 30.0),
        people_every=some(0, 5.0, 15.0, 60.0),
        model=some(0, 0.05, 0.2),
        tool=some(0, 0.05, 0.2),
    )
    settings = ExecutionConfig(**execution(rng))
    configs = team(rng)
    world.execution = settings
    world.run_tokens = rng.randint(8_000, 30_000) if rng.random() < 0.15 else None
    rules = world.rules
    rules.limit, rules.tasks, rules.grace = (
        settings.max_concurrent_agents,
        settings.max_concurrent_tasks,
        settings.grace_s,
    )
    graph = DependencyResolver(configs)
    for config in configs:
        edges = graph.before[config.name]
        rules.required[config.name] = tuple(e.on for e in edges if e.required)
        rules.optional[config.name] = tuple(e.on for e in edges if not e.required)
        world.limits[config.name] = bounds(config, settings)
    return world, configs


async def live(world: World, life: Life, configs: list[AgentConfig], base: Settings, how: str) -> None:
    """One process: `start`, `resume` or `settle`, as the command line does it."""
    settings = replace(base, execution=world.execution)
    parts = Parts(
        lambda _, __: world.journal_of(life),  # type: ignore[arg-type, return-value]
        world.clock,
        world.rng.random,
        {MODEL: SimModel(world, life)},
        tools_of(world, life),
    )

    async def sandbox(_: Any) -> Any:
        await start_sandbox(world)
        return SimSandbox(world, life), None

    async with open_runtime(settings, parts, environment={}) as real:
        runtime = replace(
            real,
            state=None,
            start_sandbox=sandbox,
            randbelow=world.rng.randrange,
            run_limits=Limits(tokens=world.run_tokens),
        )
        engine = OrchestrationEngine(runtime)
        run = RunId(world.run)
        if how == "start":
            session = await engine.start(RunRequest(configs, world.folder))
        else:
            only = None if how == "settle" else world.rng.choice(("", "", str(world.rng.choice(configs).name)))
            session = await engine.resume(run, author="bob", agent=only)
        life.session = session
        try:
            if how == "settle":
                await session.settle()
            else:
                result = await session.run()
                world.note(f"p{life.number} ends: {result.status.value}")
        finally:
            life.gone = True
            await session.context.recorder.close()


async def process(world: World, life: Life, configs: list[AgentConfig], base: Settings, how: str) -> None:
    """A process and what is said at its end."""
    world.note(f"p{life.number} is born to {how}, dies at write {life.die_at}")
    try:
        await live(world, life, configs, base, how)
    except RunBusy as e:
        life.over = "busy"
        world.note(f"p{life.number} is refused: {e.message}")
    except (JournalError, TokaError) as e:
        life.over = type(e).__name__
        world.note(f"p{life.number} gives up: {type(e).__name__}: {e.message}")
        if not isinstance(e, JournalError) and (life.session is not None or "has ended" not in e.message):
            world.broken("no-crash", f"process {life.number}: {type(e).__name__}: {e}")
    except Exception as e:  # noqa: BLE001 - whatever it is, no process ends like this
        life.over = type(e).__name__
        world.broken("no-crash", f"process {life.number} ended with {type(e).__name__}: {e}")
    else:
        life.over = "done"
    world.rules.life_over(life)


async def story(world: World, configs: list[AgentConfig], base: Settings) -> None:
    """The world from its beginning to its end."""

    def birth(how: str) -> Life:
        life = world.born()
        life.main = life.spawn(process(world, life, configs, base, how))
        return life

    actors = [
        asyncio.create_task(Operator(world, birth).run()),
        asyncio.create_task(people(world)),
        *(asyncio.create_task(c) for c in chaos(world)),
    ]
    await world.ended.wait()
    for actor in actors:
        actor.cancel()
    if world.failure is None:
        world.rules.world_over()


def one(seed: str, folder: Path, base: Settings, *, verbose: bool = False) -> Outcome:
    """Runs one world."""
    made = engine_module.this_holder
    engine_module.this_holder = lambda: Holder("simulated", "boot", "ns", 1, 1)
    gc.disable()
    world, configs = build(seed, folder, verbose=verbose)
    try:
        try:
            asyncio.set_event_loop(world.loop)
            world.loop.run_until_complete(story(world, configs, base))
        except Stuck:
            world.broken("no-deadlock", "nothing is ready and no timer is set")
        broken = world.failure
        return Outcome(
            seed,
            world.steps,
            sum(map(len, world.records.values())),
            world.hash.hexdigest(),
            world.state.status.value,
            world.loop.time(),
            len(world.lives),
            world.kills,
            world.takeovers,
            broken.rule if broken else "",
            broken.text if broken else "",
            list(world.lines) + waits(world) if broken else [],
        )
    finally:
        engine_module.this_holder = made
        bury(world)
        asyncio.set_event_loop(None)
        gc.enable()


def waits(world: World) -> list[str]:
    """What waits, for a dump."""
    out = [f"state: {world.state.status} {world.state.reason}"]
    for agent in world.state.agents.values():
        tasks = {t.id: t.status.value for t in agent.tasks.values()}
        out.append(
            f"  {agent.name} {agent.status} holds {dict(agent.holds)} stop {agent.stop!r} {tasks} {agent.reason!r}"
        )
    for life in world.lives:
        open_ = [t.get_name() + " " + str(t.get_coro()) for t in life.tasks if not t.done()]
        how = f"{life.over or 'lives'}{' frozen' if life.frozen else ''}"
        out.append(f"  p{life.number} {how} {open_ if life.executes else ''}")
    return out


def bury(world: World) -> None:
    """Lets go of a world. Tasks of its dead are destroyed as they stand, which nobody needs to be told."""
    world.loop.set_exception_handler(lambda *_: None)
    for life in world.lives:
        for task in life.tasks:
            task._log_destroy_pending = False  # type: ignore[attr-defined]
    for task in asyncio.all_tasks(world.loop):
        task._log_destroy_pending = False  # type: ignore[attr-defined]
    with silence():
        world.loop.close()
        for life in world.lives:
            life.tasks.clear()
            life.parked.clear()
            life.commands.clear()
            life.session = life.main = None
        world.rules.forget()
        gc.collect()


@contextmanager
def silence() -> Iterator[None]:
    """Around the destruction of coroutines that stand in the middle of something."""
    hook, sys.unraisablehook = sys.unraisablehook, lambda _: None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        sys.unraisablehook = hook


def worlds(seed: str, steps: int, minutes: float, part: tuple[int, int]) -> Iterator[Outcome]:
    """Outcomes of worlds PART[0], PART[0] + PART[1], ... until there were enough steps, or the time is over."""
    folder = Path(tempfile.mkdtemp(prefix="toka-simulated-"))
    try:
        base = settings_for(folder)
        gc.collect()
        gc.freeze()
        end, number, done = time.monotonic() + minutes * 60, part[0], 0
        while done < steps and time.monotonic() < end:
            outcome = one(f"{seed}:{number}", folder, base)
            done += outcome.steps
            number += part[1]
            yield outcome
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        with silence():
            gc.collect()


def told(outcome: Outcome, seed: str, mutation: str) -> str:
    """Everything about a world that broke a rule."""
    world = outcome.seed.rpartition(":")[2]
    more = f" --mutate {mutation}" if mutation else ""
    lines = "\n".join(f"  {line}" for line in outcome.lines)
    return (
        f"BROKEN {outcome.rule}: {outcome.text}\n"
        f"  seed {outcome.seed}, step {outcome.steps}, record {outcome.records}\n"
        f"{lines}\n  replay: make simulate SEED={seed} ARGS='--world {world}{more} --verbose'"
    )


def _job(args: argparse.Namespace, part: tuple[int, int], pipe: Any) -> None:
    if args.mutate:
        mutate(args.mutate)
    for outcome in worlds(args.seed, args.steps // part[1], args.minutes, part):
        pipe.send(asdict(outcome))
    pipe.send(None)


def _outcomes(args: argparse.Namespace) -> Iterator[Outcome]:
    if args.jobs == 1:
        if args.mutate:
            mutate(args.mutate)
        yield from worlds(args.seed, args.steps, args.minutes, (0, 1))
        return
    context = multiprocessing.get_context("spawn")
    pipes = []
    for number in range(args.jobs):
        ours, theirs = context.Pipe(duplex=False)
        context.Process(target=_job, args=(args, (number, args.jobs), theirs), daemon=True).start()
        theirs.close()
        pipes.append(ours)
    while pipes:
        for pipe in multiprocessing.connection.wait(pipes):
            try:
                found = pipe.recv()  # type: ignore[union-attr]
            except EOFError:
                found = None
            if found is None:
                pipes.remove(pipe)  # type: ignore[arg-type]
            else:
                yield Outcome(**found)


def simulate(args: argparse.Namespace) -> int:
    """Runs worlds and prints a table; 1 when a rule was broken."""
    began, found, broken = time.monotonic(), list[Outcome](), list[Outcome]()
    known = Counter[str]()
    for outcome in _outcomes(args):
        found.append(outcome)
        if is_known(outcome.rule, outcome.text):
            known[outcome.rule] += 1
        elif outcome.rule:
            broken.append(outcome)
            if len({o.rule for o in broken}) <= 20 and [o.rule for o in broken].count(outcome.rule) <= args.show:
                print(told(outcome, args.seed, args.mutate), flush=True)
            if args.stop_at_first:
                break
    spent = time.monotonic() - began
    found.sort(key=lambda o: int(o.seed.rpartition(":")[2]))
    digest = hashlib.sha256("".join(o.trace for o in found).encode()).hexdigest()
    steps = sum(o.steps for o in found)
    ends = Counter(o.status for o in found)
    print(f"seed {args.seed}: {len(found)} worlds, {steps:,} steps, {sum(o.records for o in found):,} records")
    print(f"  {sum(o.lives for o in found):,} processes, {sum(o.kills for o in found):,} killed,", end=" ")
    print(f"{sum(o.takeovers for o in found):,} runs taken over from a frozen one")
    print(f"  ends: {', '.join(f'{n} {s}' for s, n in sorted(ends.items()))}")
    hours = sum(o.virtual_s for o in found) / 3600
    print(f"  {spent:.1f} s, {steps / max(spent, 1e-9):,.0f} steps/s, {hours:,.1f} virtual hours")
    print(f"  broken: {dict(Counter(o.rule for o in broken)) or 'nothing'}{f'; known: {dict(known)}' if known else ''}")
    print(f"  trace {digest}")
    return 1 if broken else 0


def main(argv: list[str] | None = None) -> int:
    """See the module."""
    parser = argparse.ArgumentParser(prog="make simulate", description="Simulates runs from a seed.")
    parser.add_argument("--seed", default="1")
    parser.add_argument("--steps", type=int, default=300_000)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--world", type=int, help="run this one world of the seed")
    parser.add_argument("--mutate", default="", choices=("", *MUTATIONS), help="break the product like this first")
    parser.add_argument("--show", type=int, default=1, help="traces to print for each rule that is broken")
    parser.add_argument("--stop-at-first", action="store_true")
    parser.add_argument("--verbose", action="store_true", help="print the trace")
    parser.add_argument("--json", action="store_true", help="print the outcomes as JSON lines")
    args = parser.parse_args(argv)
    if args.world is None and not args.json:
        return simulate(args)
    if args.world is None:
        for outcome in _outcomes(args):
            print(json.dumps(asdict(outcome)))
            if args.stop_at_first and outcome.rule and not is_known(outcome.rule, outcome.text):
                break
        return 0
    if args.mutate:
        mutate(args.mutate)
    folder = Path(tempfile.mkdtemp(prefix="toka-simulated-"))
    try:
        outcome = one(f"{args.seed}:{args.world}", folder, settings_for(folder), verbose=args.verbose)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        with silence():
            gc.collect()
    print(told(outcome, args.seed, args.mutate) if outcome.rule else f"{outcome.status}, {outcome.steps} steps")
    print(f"trace {outcome.trace}")
    return 1 if outcome.rule else 0


if __name__ == "__main__":
    sys.exit(main())
