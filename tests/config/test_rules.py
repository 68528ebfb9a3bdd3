"""Rules of one spec that its shape cannot say."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from toka.config.diagnostics import Finding

HEAD = "metadata: {name: one}\nspec: {name: One}\n"
Findings = Callable[[str], list[Finding]]


def said(found: list[Finding]) -> list[tuple[str, str, int, int]]:
    return [(f.code, f.severity, f.line, f.column) for f in found]


def test_two_tasks_of_one_id(findings: Findings) -> None:
    found = findings(HEAD + "tasks:\n- {id: a, run: x}\n- {id: a, run: y}\n")
    assert said(found) == [("TK2007", "error", 5, 8)]


def test_an_id_that_repeats_an_automatic_one(findings: Findings) -> None:
    found = findings(HEAD + "tasks:\n- {id: task-2, run: x}\n- {run: y}\n")
    assert said(found) == [("TK2007", "error", 5, 3)]
    found = findings(HEAD + "tasks:\n  default: [{id: g-1, run: x}]\n  conditional: {g: [{run: y}]}\n")
    assert [f.code for f in found] == ["TK2007"]


def test_a_task_that_waits_for_none(findings: Findings) -> None:
    (found,) = findings(HEAD + "tasks:\n- {id: build, run: x}\n- {run: y, depends_on: [bulid]}\n")
    assert said([found]) == [("TK3004", "error", 5, 25)]
    assert found.help == 'did you mean "build"?'


def test_tasks_that_wait_for_each_other(findings: Findings) -> None:
    (found,) = findings(
        HEAD + "tasks:\n- {id: a, run: x, depends_on: c}\n- {id: b, run: x, depends_on: a}\n"
        "- {id: c, run: x, depends_on: b}\n"
    )
    assert said([found]) == [("TK3005", "error", 4, 31)]
    assert found.message == "circular tasks: a -> c -> b -> a"


def test_a_task_that_waits_for_itself(findings: Findings) -> None:
    (found,) = findings(HEAD + "tasks: [{id: a, run: x, depends_on: a}]\n")
    assert found.message == "circular tasks: a -> a"


def test_waiting_for_a_conditional_task_is_a_warning_outside_its_group(findings: Findings) -> None:
    groups = "  conditional: {g: [{id: b, run: y}, {run: z, depends_on: b}]}\n"
    found = findings(HEAD + "tasks:\n  default: [{run: x, depends_on: b}]\n" + groups)
    assert said(found) == [("TK3007", "warning", 4, 34)]


def test_a_task_that_may_outlast_its_agent(findings: Findings) -> None:
    text = HEAD + "tasks: [{run: x, timeout: 2h}]\nsecurity: {resource_limits: {timeout: 1h}}\n"
    (found,) = findings(text)
    assert said([found]) == [("TK5002", "warning", 3, 27)]
    assert found.message == "the task may take 2h, its agent 1h"
    assert findings(text.replace("1h", "3h")) == []


@pytest.mark.parametrize("tasks", ["", "tasks: []\n", "tasks: {}\n", "tasks: {conditional: {g: [x]}}\n", "tasks:\n"])
def test_an_agent_needs_a_task(tasks: str, findings: Findings) -> None:
    assert [f.code for f in findings(HEAD + tasks)] == ["TK2009"]


def test_a_task_says_what_to_do(findings: Findings) -> None:
    (found,) = findings(HEAD + "tasks:\n- {priority: low}\n")
    assert said([found]) == [("TK2001", "error", 4, 3)]


def test_no_sandbox_is_noticed(findings: Findings) -> None:
    found = findings(HEAD + "tasks: [x]\nsecurity: {sandbox: false}\n")
    assert said(found) == [("TK4005", "warning", 4, 21)]


@pytest.mark.parametrize(
    ("argument", "item"),
    [("paths", "/etc"), ("paths", "../x"), ("hosts", "10.0.0.1"), ("programs", "/bin/sh"), ("ports", "http")],
)
def test_malformed_arguments_are_errors_even_of_unknown_names(argument: str, item: str, findings: Findings) -> None:
    for name in ("telepathy", "filesystem-read"):
        request = f"security: {{capabilities_required: [{name}: {{{argument}: [ok, {item}]}}]}}"
        codes = [f.code for f in findings(HEAD + "tasks: [x]\n" + request)]
        assert "TK4003" in codes


@pytest.mark.parametrize(
    ("reporting", "place"),
    [("{frequency: dayly}", (4, 24)), ("{metrics: [{name: a, type: guage}]}", (4, 39))],
)
def test_words_without_an_effect_are_warnings(reporting: str, place: tuple[int, int], findings: Findings) -> None:
    (found,) = findings(HEAD + f"tasks: [x]\nreporting: {reporting}\n")
    assert said([found]) == [("TK2004", "warning", *place)]
    assert found.help is not None


@pytest.mark.parametrize("model", ["''", "' auto'", '"a\\nb"'])
def test_a_model_name_is_one_word(model: str, findings: Findings) -> None:
    assert [f.code for f in findings(HEAD + f"tasks: [x]\nmodel: {model}\n")] == ["TK6001"]


@pytest.mark.parametrize("model", ["auto", "openai:gpt-4.1", "scripted:my script.yaml", "server:org/model@q4"])
def test_model_names(model: str, findings: Findings) -> None:
    assert findings(HEAD + f"tasks: [x]\nmodel: {model}\n") == []


def test_texts_and_lists_are_bounded(findings: Findings) -> None:
    long = findings(HEAD + f"tasks: [{'x' * 20_001}]\n")
    assert (long[0].code, long[0].message) == ("TK2006", "tasks.default[0].description has more than 20000 characters")
    many = findings(HEAD + f"tasks: [{'x, ' * 1_001}]\n")
    assert (many[0].code, many[0].message) == ("TK2006", "tasks.default has more than 1000 entries")
    empty = findings(HEAD + "tasks: ['']\n")
    assert (empty[0].code, empty[0].message) == ("TK2006", "tasks.default[0].description must not be empty")
