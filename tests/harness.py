"""What tests of whole runs share: a team over real parts, with a scripted model, and ways to wait without sleeping."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from toka.app import Parts, open_runtime, read_settings
from toka.config.agent import AgentConfig
from toka.config.secret import Secret
from toka.core.clock import Clock
from toka.events.event import AgentStateChanged, Event, TaskStateChanged
from toka.events.lifecycle import AgentStatus, TaskStatus, Trigger, agent_may, task_may
from toka.events.record import Record
from toka.journal.journal import Journal
from toka.llm.model import ModelReply, ModelRequest
from toka.llm.scripted import Answer, ScriptedModel
from toka.orchestration.engine import OrchestrationEngine
from toka.orchestration.request import RunRequest
from toka.orchestration.result import RunResult
from toka.orchestration.session import RunSession
from toka.runtime.context import Runtime
from toka.runtime.progress import ProgressEvent
from toka.testing import ManualClock, MemoryJournal
from toka.tools.tool import Tool

MODEL = "scripted:test"
BOUND_S = 20.0
"""How long `eventually` waits before it says that something never happened."""

Script = Mapping[str, Any] | Callable[[ModelRequest], Answer]


def agent(name: str = "one", tasks: Sequence[Any] = ("Do it.",), **sections: Any) -> AgentConfig:
    """A spec. Tasks are mappings or plain descriptions; `grant` lists capabilities, `limits` resource limits."""
    entries = [t if isinstance(t, dict) else {"description": t} for t in tasks]
    security = {
        "capabilities_required": sections.pop("grant", []),
        "resource_limits": sections.pop("limits", {}),
    }
    conditional = sections.pop("conditional", {})
    spec: dict[str, Any] = {
        "metadata": {"name": name},
        "spec": {"name": name.title(), "domain": "testing", "priority": sections.pop("priority", "medium")},
        "tasks": {"default": entries, **({"conditional": conditional} if conditional else {})},
        "security": security,
        **sections,
    }
    return AgentConfig.parse(json.dumps(spec), f"{name}.yaml")


def succeed(summary: str = "done", **more: Any) -> dict[str, Any]:
    """A scripted reply that reports success."""
    return {"report": {"status": "succeeded", "summary": summary, **more}}


def fail(summary: str = "it did not work", status: str = "failed") -> dict[str, Any]:
    """A scripted reply that reports failure."""
    return {"report": {"status": status, "summary": summary}}


def call(tool: str, **arguments: Any) -> dict[str, Any]:
    """A scripted reply with one tool call."""
    return {"calls": [{tool: arguments}]}


ALWAYS: Script = {"default": [{**succeed(), "repeat": True}]}
"""A model that reports success at once."""


class Watched:
    """A model that keeps the requests it got."""

    name = MODEL

    def __init__(self, inner: ScriptedModel) -> None:
        self._inner = inner
        self.requests: list[ModelRequest] = []

    async def request(self, request: ModelRequest) -> ModelReply:
        """Notes the request and passes it on."""
        self.requests.append(request)
        return await self._inner.request(request)

    async def aclose(self) -> None:
        """Nothing to release."""


@dataclass
class Team:
    """A runtime for tests. Nothing is shared between two of them but what lies in `folder`.

    Attributes:
        folder: holds the state directory and the workspace `work`.
        script: the model's answers.
        clock: None is the machine's.
        execution: fields of ExecutionConfig.
        journal: makes the journal; None is SQLite in `folder`.
        tools: beyond the built-in ones.
        secrets: what `${secret:NAME}` stands for.
        random: what randomness gives, always; 1.0 makes every wait its longest.
        records, progress: everything published by sessions that `start` or `resume` made.
        used: the progress events that tell what an agent uses of the machine; how many depends on the time it takes.
    """

    folder: Path
    script: Script = field(default_factory=lambda: ALWAYS)
    clock: Clock | None = None
    execution: Mapping[str, Any] = field(default_factory=dict[str, Any])
    journal: Callable[[Path, Clock], Journal] | None = None
    tools: tuple[Tool, ...] = ()
    secrets: Mapping[str, str] = field(default_factory=dict[str, str])
    random: float = 1.0
    records: list[Record] = field(default_factory=list[Record])
    progress: list[ProgressEvent] = field(default_factory=list[ProgressEvent])
    used: list[ProgressEvent] = field(default_factory=list[ProgressEvent])

    def __post_init__(self) -> None:
        """Makes the workspace."""
        self.work = self.folder / "work"
        self.work.mkdir(exist_ok=True)
        self.model = Watched(ScriptedModel(self.script, name=MODEL, clock=self.clock))

    @asynccontextmanager
    async def open(self) -> AsyncIterator[Runtime]:
        """The runtime."""
        flags = {"state": str(self.folder / "state"), "model": MODEL}
        settings = read_settings(flags, cwd=self.folder, environment={})
        named = {name: Secret("env", name.upper()) for name in self.secrets}
        settings = replace(settings, execution=replace(settings.execution, **self.execution), secrets=named)
        environment = {name.upper(): value for name, value in self.secrets.items()}
        parts = Parts(self.journal, self.clock, lambda: self.random, {MODEL: self.model}, self.tools)
        async with open_runtime(settings, parts, environment=environment) as runtime:
            yield runtime

    async def start(self, runtime: Runtime, *configs: AgentConfig, enabled: tuple[str, ...] = ()) -> RunSession:
        """A session that is watched."""
        session = await OrchestrationEngine(runtime).start(RunRequest(configs, self.work, enabled))
        return self.watch(session)

    async def resume(self, runtime: Runtime, run: Any) -> RunSession:
        """The session of an interrupted run, watched."""
        return self.watch(await OrchestrationEngine(runtime).resume(run, author="test"))

    def watch(self, session: RunSession) -> RunSession:
        """Keeps all that a session publishes, and fails at the first illegal change of status."""
        Legality(session)
        session.context.recorder.subscribe(self.records.append)
        session.reporter.subscribe(lambda e: (self.used if e.kind == "usage" else self.progress).append(e))
        return session

    async def run(self, *configs: AgentConfig, enabled: tuple[str, ...] = ()) -> RunResult:
        """One run from its start to its end."""
        async with self.open() as runtime:
            session = await self.start(runtime, *configs, enabled=enabled)
            result = await session.run()
            await session.context.recorder.close()
            return result

    def events(self, kind: type[Any], stream: str | None = None) -> list[Any]:
        """The published events of a kind."""
        return [r.event for r in self.records if isinstance(r.event, kind) and stream in (None, r.stream)]

    def kinds(self, agent: str | None = None) -> list[str]:
        """The kinds of the progress events, in order."""
        return [e.kind for e in self.progress if agent in (None, e.agent)]

    def prompts(self, agent: str, task: str) -> list[str]:
        """The user's messages that opened the calls of a task, one per model call."""
        return [r.messages[1].text for r in self.model.requests if (r.agent, r.task) == (agent, task)]


class Legality:
    """Listens to a session: every change of status must be in the transition tables."""

    def __init__(self, session: RunSession) -> None:
        self._agents = {a.name: a.status for a in session.context.recorder.state.agents.values()}
        self._tasks = {
            (a.name, t.id): t.status for a in session.context.recorder.state.agents.values() for t in a.tasks.values()
        }
        self.broken: list[str] = []
        session.context.recorder.subscribe(self._listen)
        illegal.append(self)

    def _listen(self, record: Record) -> None:
        event: Event = record.event
        if isinstance(event, AgentStateChanged):
            old, new = self._agents.get(record.stream, AgentStatus.CONFIGURED), AgentStatus(event.state)
            if not agent_may(old, new, Trigger(event.by) if event.by else None):
                self.broken.append(f"agent {record.stream}: {old} -> {new} by {event.by}")
            self._agents[record.stream] = new
        elif isinstance(event, TaskStateChanged):
            key = (record.stream, event.task)
            before, after = self._tasks.get(key, TaskStatus.QUEUED), TaskStatus(event.state)
            if not task_may(before, after, Trigger(event.by) if event.by else None):
                self.broken.append(f"task {event.task} of {record.stream}: {before} -> {after} by {event.by}")
            self._tasks[key] = after


def usable(user: dict[str, Any], modules: str) -> bool:
    """Whether another user can run this interpreter with these modules: not when they lie below somebody's closed home.

    Args:
        user: `user`, `group` and what else subprocess takes.
        modules: for an import statement.
    """
    command = [sys.executable, "-c", f"import {modules}"]
    try:
        return subprocess.run(command, **{**user, "capture_output": True}).returncode == 0
    except PermissionError:
        return False


illegal: list[Legality] = []
"""The watchers of the test that runs; `conftest.py` looks at them after each test and empties the list."""


def memory(_: Path, clock: Clock) -> MemoryJournal:
    """For `Team.journal`."""
    return MemoryJournal(clock)


async def eventually(ready: Callable[[], Any], what: str = "") -> Any:
    """Waits, in real time but no longer than it takes, until `ready()` is true; returns what it returned."""
    loop = asyncio.get_running_loop()
    end = loop.time() + BOUND_S
    while not (found := ready()):
        assert loop.time() < end, f"never happened: {what or ready}"
        await asyncio.sleep(0.001)
    return found


async def pass_time(clock: ManualClock, until: Callable[[], Any], step: float = 0.25) -> None:
    """Lets a manual clock run until `until()` is true. What is real in between gets the time that it needs."""
    loop = asyncio.get_running_loop()
    end = loop.time() + BOUND_S
    while not until():
        assert loop.time() < end, f"never happened: {until}"
        await clock.advance(step)
        await asyncio.sleep(0.001)


def said(request: ModelRequest) -> str:
    """All that a model was sent, as one text."""
    return "\n".join(m.text for m in request.messages)


SUBMIT = """
import asyncio, json, sys
from pathlib import Path
from toka.core.clock import SystemClock
from toka.core.ids import RunId
from toka.journal.poke import poke
from toka.journal.sqlite import SqliteJournal
async def main():
    state = Path(sys.argv[1])
    journal = SqliteJournal(state, SystemClock())
    for verb, agent in json.loads(sys.argv[3]):
        await journal.submit(RunId(sys.argv[2]), verb, agent=agent, arguments={}, by=("ada", "why not"))
    await journal.aclose()
    poke(state, RunId(sys.argv[2]))
asyncio.run(main())
"""


async def ask(team: Team, run: str, *requests: tuple[str, str]) -> None:
    """Leaves requests in the journal, as another process does."""
    command = [sys.executable, "-c", SUBMIT, str(team.folder / "state"), run, json.dumps(requests)]
    await asyncio.to_thread(subprocess.run, command, check=True)


def survived(driver: Path, folder: Path, cases: Sequence[Any]) -> list[dict[str, Any]]:
    """What a driver of killed processes says of each case; see `survival.py`."""
    folder.mkdir()
    text = "".join(json.dumps(case) + "\n" for case in cases)
    done = subprocess.run([sys.executable, str(driver), str(folder)], input=text, text=True, capture_output=True)
    assert done.returncode == 0 and not done.stderr, done.stderr[-3000:]
    outcomes = [json.loads(line) for line in (folder / "results").read_text().splitlines()]
    assert len(outcomes) == len(cases)
    return outcomes
