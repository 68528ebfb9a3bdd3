from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from llm.conftest import FakeClock, ask
from toka.core.ids import AgentName, TaskId
from toka.core.message import Message, Usage
from toka.errors import ConfigError, ModelError, UsageError
from toka.llm import scripted
from toka.llm.failure import failure_of
from toka.llm.model import ModelRequest
from toka.llm.script_file import MAX_BYTES, read_script
from toka.llm.scripted import ScriptedModel

SCRIPT = """
script: 1
agents:
  fixer:
    fix-sum:
      - calls: [{read_file: {path: src/sum.py}}]
      - say: "Trying."
        calls: [{edit_file: {path: src/sum.py, old: "-", new: "+"}}, {run_command: {}}]
      - report: {status: succeeded, summary: "done"}
    "*":
      - say: any task of fixer
  "*":
    common:
      - say: common
        repeat: true
    "*":
      - say: anything
default:
  - say: never reached
"""


def written(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def at(agent: str, task: str, call: int = 1, attempt: int = 1) -> ModelRequest:
    return ask(agent=AgentName(agent), task=TaskId(task), call=call, attempt=attempt)


async def said(model: ScriptedModel, agent: str, task: str, call: int = 1) -> str:
    return (await model.request(at(agent, task, call))).message.text


@pytest.fixture
def model(tmp_path: Path) -> ScriptedModel:
    return ScriptedModel.from_file(written(tmp_path / "s.yaml", SCRIPT))


async def test_replies_follow_the_number_of_the_call(model: ScriptedModel) -> None:
    first = (await model.request(at("fixer", "fix-sum", 1))).message
    second = (await model.request(at("fixer", "fix-sum", 2))).message
    third = (await model.request(at("fixer", "fix-sum", 3))).message
    assert [(c.name, json.loads(c.arguments)) for c in first.calls] == [("read_file", {"path": "src/sum.py"})]
    assert second.text == "Trying."
    assert [c.name for c in second.calls] == ["edit_file", "run_command"]
    assert third.calls[0].name == "report"
    assert json.loads(third.calls[0].arguments) == {"status": "succeeded", "summary": "done"}


async def test_the_same_question_has_the_same_answer(model: ScriptedModel, tmp_path: Path) -> None:
    again = ScriptedModel.from_file(tmp_path / "s.yaml")
    for call in (2, 1, 2):
        assert await model.request(at("fixer", "fix-sum", call)) == await again.request(at("fixer", "fix-sum", call))


async def test_the_nearest_match_counts(model: ScriptedModel) -> None:
    assert await said(model, "fixer", "other") == "any task of fixer"
    assert await said(model, "stranger", "common", 9) == "common"
    assert await said(model, "stranger", "other") == "anything"


async def test_an_instance_has_its_own_replies_or_those_of_its_agent() -> None:
    model = ScriptedModel({"agents": {
        "fix": {"one": [{"say": "of all"}], "*": [{"say": "any of all"}]},
        "fix[2]": {"one": [{"say": "of the second"}]},
        "*": {"*": [{"say": "anybody"}]},
    }})  # fmt: skip
    assert await said(model, "fix[1]", "one") == "of all"
    assert await said(model, "fix[2]", "one") == "of the second"
    assert await said(model, "fix[2]", "two") == "any of all"
    assert await said(model, "fixes[2]", "one") == "anybody"


async def test_default_when_nothing_matches() -> None:
    model = ScriptedModel({"agents": {"a": {"t": [{"say": "x"}]}}, "default": [{"say": "else"}]})
    assert await said(model, "a", "u") == "else"


async def test_running_out_names_everything(model: ScriptedModel, tmp_path: Path) -> None:
    with pytest.raises(ModelError) as caught:
        await model.request(at("fixer", "fix-sum", 4))
    for part in ("'fixer'", "'fix-sum'", "call 4", str(tmp_path / "s.yaml"), "3 replies"):
        assert part in str(caught.value)
    assert (caught.value.kind, caught.value.retryable) == ("script", False)


async def test_nothing_scripted() -> None:
    with pytest.raises(ModelError, match="no default"):
        await ScriptedModel({"agents": {}}).request(at("a", "t"))


async def test_errors_usage_and_delay(clock: FakeClock) -> None:
    entry = {"error": "malformed", "usage": {"input": 7, "output": 3, "cache_read": 2}, "delay": "50ms"}
    with pytest.raises(ModelError) as caught:
        await ScriptedModel({"default": [entry]}, clock=clock).request(at("a", "t"))
    failure = failure_of(caught.value)
    assert failure is not None
    assert (failure.kind, failure.usage) == ("malformed", Usage(7, 3, 2, 0, calls=1))
    assert clock.slept == [0.05]


async def test_an_error_for_the_first_attempts_only() -> None:
    model = ScriptedModel({"default": [{"error": "unavailable", "times": 2, "say": "back"}]})
    for attempt in (1, 2):
        with pytest.raises(Exception, match="as scripted"):
            await model.request(at("a", "t", attempt=attempt))
    assert (await model.request(at("a", "t", attempt=3))).message.text == "back"


async def test_usage_grows_with_the_text() -> None:
    model = ScriptedModel({"default": [{"say": "x" * 400, "repeat": True}]})
    short = await model.request(ask(Message("user", "a" * 40), tools=()))
    long = await model.request(ask(Message("user", "a" * 4000), tools=()))
    assert (short.usage.input_tokens, short.usage.output_tokens) == (10, 100)
    assert long.usage.input_tokens == 1000


async def test_a_function_may_answer_text_message_or_reply() -> None:
    def answer(request: ModelRequest) -> Any:
        return {
            1: "text",
            2: Message("assistant", text="message"),
            3: scripted.ScriptedReply(say="reply", finish="length"),
        }[request.call]

    model = ScriptedModel(answer)
    replies = [await model.request(at("a", "t", n)) for n in (1, 2, 3)]
    assert [r.message.text for r in replies] == ["text", "message", "reply"]
    assert replies[2].finish == "length"


MISTAKES = [
    ("script: 2\ndefault: []", "script: version 2 is not known"),
    ("scripts: 1\ndefault: []", "unknown key 'scripts'; known: script, agents, default"),
    ("[]", "expected a mapping, found a list"),
    ("script: 1", "neither `agents` nor `default`"),
    ("agents: {a: {t: {say: x}}}", "agents.a.t: expected a list, found a mapping"),
    ("agents: {a: {t: [x]}}", "agents.a.t[1]: expected a mapping, found text"),
    ("agents: {no: {t: []}}", "the key False is true or false; put it in quotes"),
    ("default: [{sya: x}]", "default[1]: unknown key 'sya'"),
    ("default: [{}]", "needs one of say, calls"),
    ("default: [{error: tired}]", "unknown error 'tired'; known: unavailable, refused, timeout"),
    ("default: [{say: x, times: 2}]", "`times` is a whole number above zero beside `error`"),
    ("default: [{say: x, repeat: true}, {say: y}]", "default[1]: `repeat: true` belongs to the last"),
    ("default: [{say: 7}]", "`say` is text, found a number"),
    ("default: [{say: x, finish: soon}]", "unknown finish 'soon'"),
    ("default: [{calls: [{a: {}, b: {}}]}]", "a call is a mapping with one key"),
    ("default: [{calls: [{a: [1]}]}]", "default[1].calls.a: expected a mapping, found a list"),
    ("default: [{calls: [{a: {d: 2025-01-01}}]}]", "put dates in quotes"),
    ("default: [{raw_calls: [{name: a}]}]", 'a raw call is {name: text, arguments: "text"}'),
    ("default: [{say: x, usage: {input: -1}}]", "tokens are whole numbers"),
    ("default: [{say: x, cost: a lot}]", "`cost` is a number of US dollars"),
    ("default: [{say: x, delay: 5}]", "`delay`"),
    ("default: [{say: x, say: y}]", "duplicate key 'say'"),
    ("default: &a [{say: x}]\nagents: {b: {c: *a}}", "line 2: anchors and aliases"),
    ("[" * 100_000, "nested deeper than 64"),
    ("default: [", "line 2, column 1"),
    ("default: \x00", "not readable as YAML"),
]


@pytest.mark.parametrize(("text", "expected"), MISTAKES)
def test_mistakes_are_shown_with_file_and_place(text: str, expected: str, tmp_path: Path) -> None:
    path = written(tmp_path / "s.yaml", text)
    with pytest.raises(ConfigError) as caught:
        read_script(path)
    shown = "\n".join([str(caught.value), *(f.text for f in caught.value.findings)])
    assert expected in shown
    assert str(path) in shown
    assert caught.value.findings


def test_all_mistakes_are_shown(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="and 2 more") as caught:
        read_script(written(tmp_path / "s.yaml", "default: [{sya: x}, {say: y, delay: 5}]"))
    assert len(caught.value.findings) == 3


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="No such file"):
        read_script(tmp_path / "none.yaml")
    with pytest.raises(UsageError, match="larger than 4 MB"):
        read_script(written(tmp_path / "big.yaml", " " * (MAX_BYTES + 1)))
    (tmp_path / "latin").write_bytes(b"default: [{say: \xff}]")
    with pytest.raises(ConfigError):
        read_script(tmp_path / "latin")


async def test_json_will_do(tmp_path: Path) -> None:
    path = written(tmp_path / "s.json", json.dumps({"script": 1, "default": [{"say": "json"}]}))
    assert await said(ScriptedModel.from_file(path), "a", "t") == "json"


async def test_the_example_of_the_documentation_works(tmp_path: Path) -> None:
    doc = scripted.__doc__ or ""
    example = doc.split("```yaml")[1].split("```")[0]
    model = ScriptedModel.from_file(written(tmp_path / "s.yaml", example), clock=FakeClock())
    assert (await model.request(at("fixer", "fix-sum", 3))).message.calls[0].name == "report"
    cut = await model.request(at("fixer", "repair-1", 1))
    assert (cut.message.calls[0].arguments, cut.finish, cut.cost_usd) == ("{not json", "length", 0.02)
    assert await said(model, "fixer", "repair-1", 99) == "Again."
    assert (await model.request(at("else", "where", 5))).message.calls[0].name == "report"
