"""`toka learn`: what a real run used, as the least set that would have allowed it."""

from __future__ import annotations

import json
import shutil
import sqlite3
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from cli.records import Toka, write_run
from toka.cli.learn import lesson_lines
from toka.cli.render_change import change_lines
from toka.core.capability import Capability
from toka.core.ids import RunId
from toka.events.event import NetworkAttempted, RunCreated, RunStateChanged, StepDenied, StepDone, StepIntent
from toka.events.record import Record
from toka.orchestration.learn import ATTEMPTS, Lesson, Refusal, grouped, lessons_of
from toka.runtime.payload import cut
from toka.tools.files import ListDir
from toka.tools.tool import Tool

needs_bwrap = pytest.mark.skipif(not shutil.which("bwrap"), reason="no bwrap: agents cannot run here")
RUN = "20261101-101010-abcdef"
SPEC: dict[str, Any] = {
    "metadata": {"name": "one"},
    "spec": {"name": "One"},
    "tasks": [{"description": "work"}],
}
WIDE: list[Any] = [
    "filesystem-write",
    {"command-execution": {"programs": ["ls", "cat", "git"]}},
    "git-access",
    {"network-access": {"hosts": ["*.example.org"]}},
]
SCRIPT = """
script: 1
default:
  - calls:
      - {read_file: {path: docs/a.txt}}
      - {read_file: {path: docs/b.txt}}
      - {read_file: {path: docs/nothing-here.txt}}
      - {list_dir: {path: docs}}
      - {read_file: {path: notes.md}}
      - {write_file: {path: out/one.txt, content: hi}}
      - {write_file: {path: top.txt, content: BIG}}
      - {run_command: {command: "ls docs"}}
  - report: {status: succeeded, summary: done}
"""


@pytest.fixture
def place(tmp_path: Path) -> Path:
    (tmp_path / "ws/docs").mkdir(parents=True)
    (tmp_path / "ws/out").mkdir()
    (tmp_path / "ws/.git").mkdir()
    for name in ("docs/a.txt", "docs/b.txt", "notes.md"):
        (tmp_path / "ws" / name).write_text("x" * 100_000)
    (tmp_path / "s.yaml").write_text(SCRIPT.replace("BIG", "y" * 100_000))
    return tmp_path


def run(toka: Toka, place: Path, grant: list[Any]) -> dict[str, Any]:
    """Runs the script under a grant; returns what was done, as `toka show --json` has it."""
    (place / "one.yaml").write_text(json.dumps({**SPEC, "security": {"capabilities_required": grant}}))
    done = toka("run", "one.yaml", "--workspace", "ws", "--state", "state", "--model", "scripted:s.yaml")
    assert done.code == 0, done.out + done.err
    return toka("show", "@last", "--json", "--state", "state").json["agents"]["one"]


@needs_bwrap
def test_what_a_run_used_is_enough_and_nothing_of_it_can_be_left_out(toka: Toka, place: Path) -> None:
    run(toka, place, WIDE)
    text = toka("learn", "@last", "--state", "state").out
    proposed = yaml.safe_load(text)["one"]["capabilities_required"]
    assert proposed == [
        {"command-execution": {"programs": ["ls"]}},
        {"filesystem-read": {"paths": ["docs", "notes.md"]}},
        {"filesystem-write": {"paths": ["out/one.txt", "top.txt"]}},
    ]
    assert (
        toka("learn", "@last", "--state", "state", "--json").json["agents"]["one"]["capabilities_required"] == proposed
    )
    assert run(toka, place, proposed)["denials"] == [], "the same acts pass under the proposal"
    again = yaml.safe_load(toka("learn", "@last", "--state", "state").out)
    assert again["one"]["capabilities_required"] == proposed, "and it is its own least set"
    for number, asked in enumerate(proposed):
        ((name, arguments),) = asked.items()
        ((argument, items),) = arguments.items()
        for item in items:
            left = [i for i in items if i != item]
            less = [*proposed[:number], *([{name: {argument: left}}] if left else []), *proposed[number + 1 :]]
            assert run(toka, place, less)["denials"], f"{name} without {item} refuses something"


@needs_bwrap
def test_what_it_cannot_know_and_what_was_refused_stands_in_comments(toka: Toka, place: Path) -> None:
    run(
        toka,
        place,
        ["filesystem-read", {"filesystem-write": {"paths": ["out"]}}, {"command-execution": {"programs": ["ls"]}}],
    )
    text = toka("learn", "@last", "--state", "state").out
    assert (
        "# asked for and refused:\n"
        "  #   write_file: filesystem-write: out; it would need: filesystem-write: {paths: [top.txt]}\n" in text
    )
    assert "#   which files 1 command touched by themselves: they need their paths, too" in text
    assert "filesystem-write: {paths: [out/one.txt]}" in text
    shown = toka("learn", "@last", "--state", "state", "--json").json
    assert shown["type"] == "lessons"
    assert shown["agents"]["one"]["refused"] == [
        {
            "what": "write_file",
            "rule": "filesystem-write: out",
            "patch": "- filesystem-write: {paths: [top.txt]}",
            "count": 1,
        }
    ]
    assert shown["agents"]["one"]["unused"] == []


@needs_bwrap
def test_what_was_granted_and_not_used_is_told(toka: Toka, place: Path) -> None:
    (place / "s.yaml").write_text("script: 1\ndefault: [{report: {status: succeeded, summary: done}}]\n")
    run(toka, place, WIDE)
    lines = toka("learn", "@last", "one", "--state", "state").lines
    assert lines[1] == "one: {}  # it called no tool and ran no command"
    assert yaml.safe_load("\n".join(lines)) == {"one": {}}


def test_a_run_is_named_as_everywhere(toka: Toka, tmp_path: Path) -> None:
    done = toka("learn", "@last", "--state", tmp_path)
    assert (done.code, "no runs are recorded" in done.err) == (9, True)
    begun = [RunCreated(["one", "two"], "0" * 64, "/w"), RunStateChanged("RUNNING")]
    write_run(tmp_path, RUN, [("", begun)])
    for name in ("@last", RUN, "abc"):
        assert toka("learn", name, "--state", tmp_path).code == 0
    done = toka("learn", "20200101-000000-nobody", "--state", tmp_path)
    assert (done.code, done.out) == (9, "")
    assert toka("learn", "@last", "nobody", "--state", tmp_path).code == 9


def test_a_run_without_acts_teaches_nothing_and_says_so(toka: Toka, tmp_path: Path) -> None:
    write_run(tmp_path, RUN, [("", [RunCreated(["one", "two"], "0" * 64, "/w"), RunStateChanged("RUNNING")])])
    done = toka("learn", "@last", "--state", tmp_path)
    assert done.code == 0
    loaded = yaml.safe_load(done.out)
    assert loaded == {"one": {}, "two": {}}
    assert toka("learn", "@last", "two", "--state", tmp_path).code == 0


@needs_bwrap
def test_a_large_result_that_is_gone_counts_as_used(toka: Toka, place: Path) -> None:
    """What cannot be looked up may have been needed: the set is never too small for want of a blob."""
    run(toka, place, WIDE)
    whole = toka("learn", "@last", "--state", "state").out
    with sqlite3.connect(place / "state/journal.db") as db:
        assert db.execute("SELECT count(*) FROM blobs").fetchone()[0] > 1, "results were large enough"
        db.execute("DELETE FROM blobs")
    db.close()
    assert toka("learn", "@last", "--state", "state").out == whole


def test_a_record_that_is_none_is_refused(toka: Toka, tmp_path: Path) -> None:
    begun = [RunCreated(["one"], "0" * 64, "/w"), RunStateChanged("RUNNING")]
    write_run(tmp_path, RUN, [("", begun), ("one", [intent(0, "read_file", path="a")])])
    with sqlite3.connect(tmp_path / "journal.db") as db:
        db.execute("UPDATE events SET body='{' WHERE kind='step_intent'")
    db.close()
    done = toka("learn", "@last", "--state", tmp_path)
    assert (done.code, done.out) == (70, "")


# ---- single lessons


def learnt(*events: Any, tools: Sequence[Tool] = ()) -> Lesson:
    records = [Record(n, RunId(RUN), "one", n, 1, 0.0, event) for n, event in enumerate(events, 1)]
    return lessons_of(records, lambda _: None, tools)["one"]


def intent(number: int, tool: str, **arguments: Any) -> StepIntent:
    return StepIntent(f"t/1/1/tool/{number}", "k", "pure", tool, arguments=arguments)


def test_a_line_for_a_shell_needs_any_program() -> None:
    lesson = learnt(intent(0, "run_command", command="ls | wc -l"))
    assert [c.text for c in lesson.capabilities] == ["command-execution"]
    assert any("which programs 1 line for a shell started, such as `ls | wc -l`" in text for text in lesson.unseen)


def test_hosts_are_taken_from_what_was_reached() -> None:
    lesson = learnt(
        NetworkAttempted(
            "api.example.org", 443, allowed=True, reason="network-access: *.example.org", address="192.0.2.1"
        ),
        NetworkAttempted("api.example.org", 8443, allowed=True, reason="r", address="192.0.2.1"),
        NetworkAttempted("gone.example.org", 443, allowed=True, reason="gone.example.org has no address"),
        NetworkAttempted("evil.example.net", 443, allowed=False, reason="not granted"),
    )
    assert [c.to_json() for c in lesson.capabilities] == [
        {"name": "network-access", "hosts": ["api.example.org"], "ports": ["443"]},
        {"name": "network-access", "hosts": ["api.example.org"], "ports": ["8443"]},
    ]
    assert lesson.refused == (Refusal("evil.example.net:443", "not granted", ""),)
    assert lesson.unreached == ("gone.example.org:443: gone.example.org has no address",)
    many = [NetworkAttempted(f"h{n}.example.org", 443, allowed=True, reason="r") for n in range(ATTEMPTS)]
    assert f"hosts after the first {ATTEMPTS} attempts" in learnt(*many).unseen


def test_refusals_of_one_kind_are_counted() -> None:
    denied = StepDenied(
        "t/1/1/tool/0", "write_file", "no filesystem-write", "no", None, "a.yaml:3", "- filesystem-write"
    )
    assert learnt(denied, denied).refused == (Refusal("write_file", "no filesystem-write", "- filesystem-write", 2),)


def test_a_call_that_failed_for_want_of_the_file_needs_nothing() -> None:
    failed = StepDone("t/1/1/tool/0", {"text": "there is no a", "data": {"error": "absent"}}, failed=True)
    assert learnt(intent(0, "read_file", path="a"), failed) == Lesson()
    assert learnt(intent(0, "read_file", path="a")).calls == 1, "without an end it may have happened"


def test_large_arguments_are_learnt_from_as_far_as_they_are_recorded() -> None:
    """Their record is the beginning of their text: what is not whole is not guessed."""
    late = json.dumps({"content": "y" * 9_000, "path": "docs/a"})
    assert learnt(intent(0, "write_file", **cut(json.loads(late)))).unseen == ("what the tool write_file needs",)
    early = {"path": 'docs/"\u00e4\\', "content": "y" * 9_000}
    assert learnt(intent(0, "write_file", **cut(early))).capabilities == (
        Capability("filesystem-write", paths=('docs/"\u00e4\\',)),
    )
    long = learnt(intent(0, "run_command", **cut({"command": "ls " + "x" * 9_000 + "| sh"})))
    assert long.capabilities == ()
    assert long.unseen == ("what the tool run_command needs",)


def test_a_tool_that_nobody_knows_is_said_to_be_unknown() -> None:
    lesson = learnt(intent(0, "frobnicate", a=1), intent(1, "read_file", wrong=1))
    assert lesson.unseen == ("what the tool frobnicate needs", "what the tool read_file needs")


@pytest.mark.parametrize(
    ("paths", "found"),
    [
        (["a"], ("a",)),
        (["a", "b"], ("a", "b")),
        (["d/a", "d/b"], ("d",)),
        (["d/a", "d/b", "d"], ("d",)),
        (["d/e/a", "d/e/b", "d/c"], ("d/c", "d/e")),
        (["."], (".",)),
    ],
)
def test_files_of_one_folder_become_the_folder(paths: list[str], found: tuple[str, ...]) -> None:
    assert grouped(paths) == found


@pytest.mark.parametrize("name", ["no", "a b", "x: y", "#c", "1", "null", "- a", "\u00e4", "\x1b[2J", "a'b\"c", ""])
def test_whatever_is_printed_is_yaml_and_harmless(name: str) -> None:
    """Names and paths come from a record, so from a model."""
    capability = Capability("filesystem-read", paths=(name or ".",))
    lesson = Lesson((capability,), 1, (name,), (Refusal(name, name, f"- {name}"),), (name,))
    text = "\n".join(lesson_lines(RunId(RUN), {name: lesson}))
    assert yaml.safe_load(text) == {name: {"capabilities_required": [{"filesystem-read": {"paths": [name or "."]}}]}}
    assert "\x1b" not in text


def test_a_request_that_nobody_answered_needs_nothing() -> None:
    asked = intent(0, "http_request", url="https://gone.example.org/")
    silent = StepDone("t/1/1/tool/0", {"text": "no reply: gone.example.org has no address"}, failed=True)
    assert learnt(asked, silent).capabilities == ()
    answered = StepDone("t/1/1/tool/0", {"text": "HTTP 404", "data": {"status": 404}}, failed=True)
    assert [c.name for c in learnt(asked, answered).capabilities] == ["network-access"]


def test_a_host_that_was_not_reached_is_not_shown_as_reached() -> None:
    gone = NetworkAttempted("gone.example.org", 443, allowed=True, reason="gone.example.org has no address")
    assert change_lines(gone) == ["not reached gone.example.org:443: gone.example.org has no address"]
    there = NetworkAttempted("a.example.org", 443, allowed=True, reason="network-access", address="192.0.2.1")
    assert change_lines(there) == ["reached a.example.org:443: network-access"]


def test_a_tool_of_others_is_learnt_from_where_it_is_known() -> None:
    class Fetch(ListDir):
        name = "fetch"

        def needs(self, args: dict[str, Any]) -> tuple[Capability, ...]:
            return (Capability("network-access", hosts=(args["path"],)),)

    call = intent(0, "fetch", path="api.example.org")
    assert learnt(call).unseen == ("what the tool fetch needs",)
    lesson = learnt(call, tools=[Fetch()])
    assert [c.text for c in lesson.capabilities] == ["network-access: api.example.org"]
    assert lesson.unseen == ()
