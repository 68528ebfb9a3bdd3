"""One line or a few for each change of a run, an agent, a task or an objective. Pure."""

from __future__ import annotations

from typing import Any, Final, cast

from toka.cli.text import Paint, compact, line_of, lines_of, moment, needed, plain, some
from toka.events.event import (
    AgentStateChanged,
    CommandApplied,
    Event,
    ExecutorAttached,
    HoldLifted,
    HoldPlaced,
    NetworkAttempted,
    ObjectiveChanged,
    RunCreated,
    RunStateChanged,
    SandboxReady,
    StepInDoubt,
    StepPutBack,
    StepResolved,
    StepWaits,
    TaskStateChanged,
    Unknown,
)
from toka.events.flow import ApprovalAnswered, ApprovalAsked, InstancesMade, OutputsMade
from toka.events.health import HealthChanged
from toka.events.steps import SETTLED
from toka.events.workspace import BranchReturned, WorkspaceMade

MALFORMED: Final = (ArithmeticError, AttributeError, LookupError, TypeError, ValueError)
"""What showing a record raises whose fields are not of the kind they should be: somebody edited it."""
_STYLES: Final = {
    "SUCCEEDED": "good", "COMPLETED": "good", "verified": "good", "FAILED": "bad", "failed": "bad",
    "NEEDS_ATTENTION": "warn", "WAITING": "warn", "STOPPED": "warn", "AWAITING_APPROVAL": "warn",
}  # fmt: skip


def change_lines(event: Event, paint: Paint = plain) -> list[str]:
    """What an event says to people; nothing for the steps, which a transcript shows."""
    match event:
        case RunCreated():
            model = f", model {line_of(event.model, 120)}" if event.model else ""
            return [f"created: {some(len(event.agents), 'agent')} in {line_of(event.workspace)}{model}"]
        case ExecutorAttached():
            weak = confinement(event.sandbox)
            return [f"executed by process {event.pid} on {line_of(event.host, 60)}" + (f", {weak}" if weak else "")]
        case RunStateChanged() | AgentStateChanged():
            return _told(painted_state(event.state, paint), event.reason)
        case CommandApplied():
            whom = f" {line_of(event.agent, 60)}" if event.agent else ""
            asked = f"{line_of(event.verb, 40)}{whom}, asked by {line_of(event.author or 'somebody', 60)}"
            return _told(asked, event.reason)
        case HoldPlaced():
            return _told(f"held by {line_of(event.hold, 40)}", event.reason)
        case HoldLifted():
            return _told(f"no longer held by {line_of(event.hold, 40)}", event.reason)
        case SandboxReady():
            reads, writes = (_listed(event.policy.get(key)) for key in ("reads", "writes"))
            programs = _listed(event.policy.get("programs"), "any")
            weak = confinement(str(event.test.get("level", "full")))
            word = "NO SANDBOX, asked for" if weak == confinement("none") else weak or "sandbox"
            head = f"{word}: reads {reads}; writes {writes}; programs its tools may run: {programs}"
            return [head, *(f"  {line}" for line in sandbox_lines(event))]
        case NetworkAttempted():
            return network_lines(event, paint)
        case TaskStateChanged():
            return _task(event, paint)
        case StepResolved():
            return [f"answered by {line_of(event.author) or 'somebody'}: {line_of(event.answer)}"]
        case StepInDoubt():
            return [f"{paint('in doubt', 'warn')}: {line_of(event.question)}"]
        case HealthChanged():
            whose = f"{line_of(event.task, 60)} " if event.task else ""
            return _told(f"{whose}{paint(line_of(event.health, 40), 'warn')} ({line_of(event.rung, 40)})", event.seen)
        case StepWaits() | StepPutBack():
            return _workspace_of(event, paint)
        case InstancesMade() | OutputsMade():
            return _left(event)
        case WorkspaceMade() | BranchReturned():
            return workspace_lines(event, paint)
        case ApprovalAsked():
            until = f" (until {moment(event.expires_at)})" if event.expires_at is not None else ""
            whose = f"{line_of(event.task, 60)} " if event.task else ""
            return [f"{whose}{paint('asks', 'warn')}: {line_of(event.question)}{until}"]
        case ApprovalAnswered():
            by = f" by {line_of(event.author, 60)}" if event.author else ""
            return _told(f"{line_of(event.answer, 40)}{by}", event.reason)
        case ObjectiveChanged():
            title = line_of(event.title.strip().partition("\n")[0], 200)
            return [f"objective {event.objective} {painted_state(event.state, paint)}: {title}"]
        case Unknown():
            return [f"{line_of(event.kind, 60)} (of a newer Toka): {compact(event.data)}"]
        case _:
            return []


def confinement(level: str) -> str:
    """How a weaker level than `full` is shown: `NO SANDBOX`, `reduced sandbox`; empty for `full`."""
    known = {"full": "", "none": "NO SANDBOX", "reduced": "reduced sandbox"}
    return known.get(level, f"{line_of(level, 40)} sandbox")


def _left(event: InstancesMade | OutputsMade) -> list[str]:
    if isinstance(event, InstancesMade):
        return [f"is there {some(event.count, 'time')}, once for each element"]
    names = ", ".join(f"{line_of(name, 60)} = {compact(value, 80)}" for name, value in event.values.items())
    return [f"left {names or 'values of more than 16 KB'}"]


def workspace_lines(event: WorkspaceMade | BranchReturned, paint: Paint = plain, path: str = "") -> list[str]:
    """A private workspace, and what became of its branch; `path` is where it is, when that is known."""
    branch = line_of(event.branch, 200)
    if isinstance(event, WorkspaceMade):
        what = f"a worktree on branch {branch} from {line_of(event.base[:12])}" if event.branch else "a copy"
        return [f"works in {what}: {line_of(event.path)}"]
    if event.problem:
        out = _told(f"branch {branch} {paint('not brought back', 'warn')}", event.problem)
        out += [f"  it stays in {line_of(path)}"] if path else []
    elif event.commit:
        out = [f"branch {branch} brought back: {some(event.commits, 'commit')}, now at {line_of(event.commit[:12])}"]
    else:
        on_it = " on it" if event.elsewhere else ""
        out = [f"branch {branch}: nothing was committed{on_it}, nothing comes back"]
    where = line_of(path) if path else "its workspace"
    for ref, count in event.elsewhere.items():
        stay = "stays" if count == 1 else "stay"
        out.append(f"{some(count, 'commit')} on {_ref(ref)} did not come back and {stay} in {where}")
    if event.left:
        were, stay = ("was", "stays") if event.left == 1 else ("were", "stay")
        out.append(f"{some(event.left, 'file')} {were} not committed and {stay} in {where}")
    return out


def not_back(event: BranchReturned) -> str:
    """What of an agent's work did not come back, in a few words; empty when all did that it committed.

    Files that were not committed are what is left of most work; they count where nothing else came.
    """
    out = [line_of(event.problem, 200)] if event.problem else []
    out += [f"{some(count, 'commit')} on {_ref(ref)}" for ref, count in event.elsewhere.items()]
    if event.left and not event.commit and not out:
        out = [f"{some(event.left, 'file')} that {'was' if event.left == 1 else 'were'} not committed"]
    return ", ".join(out)


def _ref(name: str) -> str:
    for folder, word in (("refs/heads/", "branch"), ("refs/tags/", "tag")):
        if name.startswith(folder):
            return f"{word} {line_of(name.removeprefix(folder), 120)}"
    return "a detached HEAD" if name == "HEAD" else line_of(name, 120)


def network_lines(event: NetworkAttempted, paint: Paint = plain) -> list[str]:
    """An attempt to reach the network: what was asked for, what came of it, and what would allow it."""
    where = f"{line_of(event.host, 120)}:{event.port}" if event.port else line_of(event.host, 120) or "the network"
    if event.allowed and event.address:
        return [f"reached {where}: {line_of(event.reason, 200)}"]
    if event.allowed:
        return [f"{paint('not reached', 'warn')} {where}: {line_of(event.reason, 200)}"]
    fix = needed(event.place, event.patch)
    said = f"{paint('refused', 'warn')} {where}: {line_of(event.reason, 200)}"
    return [said, f"  {line_of(fix)}"] if fix else [said]


def sandbox_lines(event: SandboxReady) -> list[str]:
    """What a sandbox was found to be: its self-test, how each limit is held, and what differs from its policy."""
    out: list[str] = []
    test = event.test
    if test:
        landlock = f"Landlock {test['landlock']}" if test.get("landlock") else "no Landlock"
        tested = f"self-test passed as user id {int(test['uid'])}, {line_of(landlock, 40)}"
        level = str(test.get("level", "full"))
        out.append(f"nothing was tested, user id {int(test['uid'])}" if level == "none" else tested)
        by: dict[str, list[str]] = {}
        for limit, how, strict in test.get("limits", ()):
            by.setdefault(line_of(str(how), 120) if strict else "", []).append(
                line_of(str(limit), 40) if strict else f"{line_of(str(limit), 40)} ({line_of(str(how), 120)})"
            )
        held = [f"{', '.join(limits)}: {how}" for how, limits in by.items() if how]
        loose = [f"best effort: {', '.join(by[''])}"] if "" in by else []
        out += [f"limits: {'; '.join(held)}"] if held else []
        out += loose
    return [*out, *(line_of(str(note)) for note in event.notes)]


def painted_state(state: str, paint: Paint) -> str:
    """A status word in its colour, which only repeats what the word says."""
    return paint(line_of(state, 40), _STYLES.get(state, ""))


def _workspace_of(event: StepWaits | StepPutBack, paint: Paint) -> list[str]:
    step = line_of(event.step, 60)
    if isinstance(event, StepWaits):
        whom = f"{line_of(event.agent, 60)}{f' of run {line_of(event.run, 60)}' if event.run else ''}"
        return [f"{step}: waits for its turn to write, after {whom}"]
    if event.problem:
        return _told(f"{step}: {paint('not put back', 'warn')}", event.problem)
    return [f"{step}: back to the state before it: {some(event.changed, 'path')} changed"]


def _task(event: TaskStateChanged, paint: Paint) -> list[str]:
    name = line_of(event.task, 60)
    if event.state == "RUNNING" and event.why in SETTLED:
        return [f"{name}: {painted_state(event.state, paint)}, as a person answered: {event.why}"]
    if event.state == "RUNNING":
        again = f", attempt {event.attempt}" if event.attempt > 1 else ""
        return [paint(f"{name}{again}: {line_of(event.title.strip().partition(chr(10))[0], 200)}", "info")]
    said = event.reason or str((event.report or {}).get("summary", ""))
    return _told(f"{name} {painted_state(event.state, paint)}", said)


def _told(head: str, why: str) -> list[str]:
    """A head with its reason behind it; further lines of the reason below."""
    first, *rest = lines_of(why, 8) or [""]
    return [f"{head}: {first}" if first else head, *(f"  {line}" for line in rest)]


def _listed(items: Any, everything: str = "") -> str:
    """Paths or programs of a recorded policy; None stands for all of them."""
    if items is None and everything:
        return everything
    found = [line_of(str(item), 60) for item in cast("list[Any]", items)] if isinstance(items, list | tuple) else []
    return f"{', '.join(found[:8])} and {len(found) - 8} more" if len(found) > 8 else ", ".join(found) or "nothing"
