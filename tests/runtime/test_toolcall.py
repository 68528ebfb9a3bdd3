"""What becomes of a model's tool call: the decision that is recorded, and the answer that the model gets."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar

import pytest

from harness import Team, agent, call, succeed
from toka.core.capability import Capability
from toka.core.effect import Effect
from toka.core.message import Message
from toka.errors import SandboxError
from toka.events.event import Event, StepDenied, StepDone, StepIntent
from toka.tools.tool import Arguments, ToolContext, ToolResult

STEP = "task-1/1/1/tool/0"


class Lever:
    """A tool that needs no grant unless told to, and does what a test says."""

    name = "pull"
    description = "Pulls a lever."
    effect = Effect.PURE
    parameters: ClassVar[dict[str, Any]] = {
        "type": "object",
        "properties": {"times": {"type": "integer", "minimum": 1}},
        "required": ["times"],
        "additionalProperties": False,
    }

    def __init__(self) -> None:
        self.pulled: list[Arguments] = []
        self.by: list[str] = []
        self.needed: tuple[Capability, ...] = ()
        self.does: ToolResult | Exception = ToolResult("it moved", data={"moved": True})

    def needs(self, args: Arguments) -> tuple[Capability, ...]:
        return self.needed

    async def call(self, args: Arguments, ctx: ToolContext) -> ToolResult:
        self.pulled.append(args)
        self.by.append(ctx.agent)
        if isinstance(self.does, Exception):
            raise self.does
        return self.does


@pytest.fixture
def lever() -> Lever:
    return Lever()


async def decided(team: Team, lever: Lever, reply: dict[str, Any], **spec: Any) -> tuple[list[Event], Message]:
    """What the journal says of the first call of a task, in order, and the message that answered it."""
    team.script = {"default": [reply, succeed()]}
    team.tools = (lever,)
    team.__post_init__()
    result = await team.run(agent(**spec))
    assert result.exit_code == 0, "whatever a call came to, the next turn goes on"
    (answer,) = [m for m in team.model.requests[1].messages if m.role == "tool"]
    assert (answer.call_id, answer.name) == ("call-1-1", team.model.requests[1].messages[2].calls[0].name)
    return [r.event for r in team.records if getattr(r.event, "step", "") == STEP], answer


def raw(name: str, arguments: str) -> dict[str, Any]:
    return {"raw_calls": [{"name": name, "arguments": arguments}]}


async def test_an_allowed_call_is_recorded_with_its_rule_before_it_is_run(fast: Team, lever: Lever) -> None:
    lever.needed = (Capability("filesystem-read", paths=("docs",)),)
    events, answer = await decided(fast, lever, call("pull", times=2), grant=[{"filesystem-read": {"paths": ["docs"]}}])
    intent, done = events
    assert isinstance(intent, StepIntent) and isinstance(done, StepDone)
    assert (intent.what, intent.effect, intent.arguments) == ("pull", "pure", {"times": 2})
    assert intent.rule == "filesystem-read: docs"
    assert (done.failed, done.result["data"]) == (False, {"moved": True})
    assert not answer.failed and "it moved" in answer.text and lever.pulled == [{"times": 2}]
    assert lever.by == ["one"], "a tool knows whose name to sign with"


async def test_an_unknown_tool_is_recorded_as_invalid_and_answered_with_the_known_ones(
    fast: Team, lever: Lever
) -> None:
    (event,), answer = await decided(fast, lever, call("push", times=1))
    assert event == StepDone(STEP, {"text": answer.text, "invalid": "no tool 'push'"}, failed=True)
    assert answer.failed and answer.text == "There is no tool named 'push'. Nothing was run. Your tools: pull, report."


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        ("{times: 1}", "pull: the arguments are not valid JSON"),
        ("", "pull: the arguments are not valid JSON"),
        ('{"times": 1, "times": 2}', "a key is given twice"),
        ("[1]", "pull: the arguments must be one JSON object, not list"),
        ('"1"', "pull: the arguments must be one JSON object, not str"),
        ("{}", 'pull: "times" is a required property'),
        ('{"times": "1"}', 'pull: times: "1" is not of type "integer"'),
        ('{"times": 0}', "pull: times: 0 is less than the minimum of 1"),
        ('{"times": 1, "hard": true}', "pull: Additional properties are not allowed ('hard' was unexpected)"),
    ],
)
async def test_malformed_arguments_are_recorded_as_invalid_and_nothing_is_run(
    fast: Team, lever: Lever, arguments: str, why: str
) -> None:
    (event,), answer = await decided(fast, lever, raw("pull", arguments))
    assert isinstance(event, StepDone) and event.failed
    assert why in event.result["invalid"] and event.result["text"] == answer.text
    assert answer.failed and why in answer.text and "Nothing was run." in answer.text
    assert lever.pulled == []


async def test_a_path_outside_is_recorded_as_denied(fast: Team, lever: Lever) -> None:
    (event,), answer = await decided(fast, lever, call("read_file", path="../x"), grant=["filesystem-read"])
    assert isinstance(event, StepDenied) and "../x" in event.reason and event.arguments == {"path": "../x"}
    assert answer.failed and "../x" in answer.text


@pytest.mark.parametrize(
    ("grant", "rule", "reason"),
    [
        (
            [], "no filesystem-write",
            "this agent has no filesystem-write; its spec would have to ask for filesystem-write: src",
        ),
        (
            [{"filesystem-write": {"paths": ["docs"]}}], "filesystem-write: docs",
            "src is outside the granted filesystem-write: docs",
        ),
    ],
)  # fmt: skip
async def test_a_denied_call_is_recorded_with_its_rule_and_arguments_and_not_run(
    fast: Team, lever: Lever, grant: list[Any], rule: str, reason: str
) -> None:
    lever.needed = (Capability("filesystem-write", paths=("src",)),)
    events, answer = await decided(fast, lever, call("pull", times=1), grant=grant)
    patch = "- filesystem-write: {paths: [src]}"
    expected = StepDenied(STEP, "pull", rule, reason, {"times": 1}, "one.yaml:1", patch)
    assert events == [expected], "a denial has no intent and no end"
    assert answer.failed and f"denied: {reason}" in answer.text and lever.pulled == []


async def test_a_tool_that_was_not_granted_is_denied_and_not_said_to_be_unknown(fast: Team, lever: Lever) -> None:
    (event,), _ = await decided(fast, lever, call("write_file", path="a", content="x"))
    assert isinstance(event, StepDenied) and (event.what, event.rule) == ("write_file", "no filesystem-write")
    assert not list(fast.work.iterdir())


@pytest.mark.parametrize(
    ("does", "text"),
    [
        (ToolResult("it is stuck", failed=True), "it is stuck"),
        (SandboxError("the zygote died"), "the sandbox failed: the zygote died"),
        (KeyError("handle"), "KeyError: 'handle'"),
        (OSError("no lever"), "OSError: no lever"),
    ],
)
async def test_a_call_that_fails_is_an_answer(
    fast: Team, lever: Lever, does: ToolResult | Exception, text: str
) -> None:
    lever.does = does
    (intent, done), answer = await decided(fast, lever, call("pull", times=1))
    assert isinstance(intent, StepIntent) and isinstance(done, StepDone) and done.failed
    assert "invalid" not in done.result, "it was run: no call to learn from"
    assert answer.failed and text in answer.text


@pytest.fixture(autouse=True)
def one_decision_each(fast: Team) -> Iterator[None]:
    """No step has more than one beginning and one end, whatever was decided."""
    yield
    ends = [e.step for e in (*fast.events(StepDone), *fast.events(StepDenied))]
    assert len(set(ends)) == len(ends)
    begun = [e.step for e in fast.events(StepIntent)]
    assert len(set(begun)) == len(begun)


@pytest.mark.parametrize(
    ("path", "rule", "patch"),
    [
        (".vscode/tasks.json", "protected: .vscode", "- filesystem-write: {paths: [.vscode]}"),
        (".git/hooks/pre-commit", "protected: .git", "- git-access"),
        ("toka.toml", "protected: toka.toml", ""),
    ],
)
async def test_writing_what_is_protected_is_denied_before_it_is_tried(
    team: Team, lever: Lever, path: str, rule: str, patch: str
) -> None:
    (team.work / ".git").mkdir()
    events, answer = await decided(team, lever, call("write_file", path=path, content="x"), grant=["filesystem-write"])
    (denied,) = events
    assert isinstance(denied, StepDenied)
    assert (denied.rule, denied.patch) == (rule, patch)
    assert denied.place.startswith("one.yaml")
    assert "is protected" in answer.text
    assert not (team.work / path).exists()


async def test_the_patch_of_such_a_denial_lets_it_happen(team: Team, lever: Lever) -> None:
    grant = ["filesystem-write", {"filesystem-write": {"paths": [".vscode"]}}]
    events, _ = await decided(team, lever, call("write_file", path=".vscode/tasks.json", content="x"), grant=grant)
    assert isinstance(events[-1], StepDone)
    assert (team.work / ".vscode/tasks.json").read_text() == "x"
