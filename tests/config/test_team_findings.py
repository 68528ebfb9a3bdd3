"""Whatever is wrong in a team file is found before anything runs, all in one pass, each with its line."""

from __future__ import annotations

from pathlib import Path

import pytest

from toka.config.agent import AgentConfig
from toka.config.check import check
from toka.config.codes import CODES
from toka.config.diagnostics import Finding, in_order
from toka.config.source import Source

HEAD = "toka: 1\nagents:\n"
FINDINGS: dict[str, tuple[str, list[str]]] = {
    "key": (HEAD + "  a: {run: x, gaol: y}\n", ["3:15 TK2003"]),
    "topkey": ("toka: 1\nagent: {}\nagents: {a: {run: x}}\n", ["2:1 TK2003"]),
    "toplevel agent key": ("toka: 1\ngoal: x\n", ["2:1 TK2003"]),
    "version": ("toka: 2\nagents: {a: {run: x}}\n", ["1:7 TK2021"]),
    "empty": ("toka: 1\n", ["1:1 TK2009"]),
    "noagents": ("toka: 1\nagents: {}\n", ["1:1 TK2009"]),
    "nothing to do": (HEAD + "  a: {check: x}\n", ["3:3 TK2009"]),
    "two": (HEAD + "  a: {run: x, goal: y}\n", ["3:7 TK1006"]),
    "agents list": ("toka: 1\nagents: [a]\n", ["2:9 TK2002"]),
    "agent text": (HEAD + "  a: do it\n", ["3:6 TK2002"]),
    "malformed": (HEAD + "  a: {run: 'echo ${HOME}'}\n", ["3:18 TK2014"]),
    "single": (
        HEAD + "  a: {run: x, outputs: {o: stdout}}\n  b: {needs: a, run: \"echo '${a.o}'\"}\n",
        ["4:29 TK2015"],
    ),
    "unknown agent": (
        HEAD + "  survey: {run: x}\n  b: {needs: survey, run: 'echo ${survye.status}'}\n",
        ["4:33 TK3008"],
    ),
    "unknown output": (
        HEAD + "  a: {run: x, outputs: {found: stdout}}\n  b: {needs: a, run: 'echo ${a.foun}'}\n",
        ["4:28 TK3009"],
    ),
    "no needs": (HEAD + "  a: {run: x, outputs: {o: stdout}}\n  b: {run: 'echo ${a.o}'}\n", ["4:18 TK3010"]),
    "self": (HEAD + "  a: {run: 'echo ${a.status}'}\n", ["3:18 TK3010"]),
    "cycle": (
        HEAD + "  a: {run: 'echo ${b.o}', needs: b, outputs: {o: stdout}}\n"
        "  b: {run: 'echo ${a.o}', needs: a, outputs: {o: stdout}}\n",
        ["3:34 TK3003"],
    ),
    "foreach text": (
        HEAD + "  a: {run: x, outputs: {o: stdout}}\n  b: {needs: a, for_each: '${a.o}', run: 'echo ${item}'}\n",
        ["4:28 TK2016"],
    ),
    "foreach prose": (HEAD + "  a: {for_each: 'all of them', run: 'echo ${item}'}\n", ["3:17 TK2016"]),
    "foreach empty": (HEAD + "  a: {for_each: [], run: 'echo ${item}'}\n", ["3:7 TK2019"]),
    "foreach 10000": (
        HEAD + "  a: {for_each: [" + ", ".join(map(str, range(10_000))) + "], run: 'echo ${item}'}\n",
        ["3:7 TK2019"],
    ),
    "item": (HEAD + "  a: {run: 'echo ${item}'}\n", ["3:18 TK3011"]),
    "max": (HEAD + "  a: {run: x, max_parallel: 3}\n", ["3:29 TK2019"]),
    "max0": (HEAD + "  a: {run: x, for_each: [a], max_parallel: 0}\n", ["3:44 TK5003"]),
    "when int": (HEAD + "  a: {run: x}\n  b: {needs: a, when: '${a.failed}', run: y}\n", ["4:24 TK2016"]),
    "when expr": (HEAD + "  a: {when: '1 == 1', run: y}\n", ["3:13 TK2016"]),
    "when true": (HEAD + "  a: {when: true, run: y}\n", ["3:13 TK2002"]),
    "secret": (HEAD + "  a: {run: 'echo ${secret:x}'}\n", ["3:18 TK4007"]),
    "secret in grant": (HEAD + "  a: {run: x, grants: {network: ['${secret:x}']}}\n", ["3:35 TK4007"]),
    "grant from output": (
        HEAD + "  a: {run: x, outputs: {o: stdout}}\n  b: {needs: a, run: y, grants: {read: ['${a.o}']}}\n",
        ["4:42 TK4006"],
    ),
    "item in grant": (HEAD + "  a: {for_each: [a], run: y, grants: {network: ['${item}']}}\n", ["3:50 TK4006"]),
    "output in limits": (
        HEAD + "  a: {run: x}\n  b: {needs: a, run: y, limits: {cost: '${a.status}'}}\n",
        ["4:41 TK4006"],
    ),
    "output in model": (HEAD + "  a: {run: x}\n  b: {needs: a, goal: y, model: '${a.status}'}\n", ["4:34 TK4006"]),
    "output in description": (
        HEAD + "  a: {run: x}\n  b: {needs: a, run: y, description: '${a.status}'}\n",
        ["4:39 TK2015"],
    ),
    "missing input": (
        "toka: 1\ninputs: {x: {type: integer}}\n"
        "agents: {a: {run: 'echo ${inputs.x}', limits: {tokens: '${inputs.x}'}}}\n",
        ["2:10 TK2017"],
    ),
    "wrong default": (
        "toka: 1\ninputs:\n  x: {type: integer, default: many}\nagents: {a: {run: 'echo ${inputs.x}'}}\n",
        ["3:31 TK2017"],
    ),
    "wrong type": (
        "toka: 1\ninputs:\n  x: {type: int}\nagents: {a: {run: 'echo ${inputs.x}'}}\n",
        ["3:13 TK2004"],
    ),
    "unknown input": (
        "toka: 1\ninputs: {area: a}\nagents: {a: {run: 'echo ${inputs.aera}', grants: {read: ['${inputs.aera}']}}}\n",
        ["3:25 TK2017", "3:59 TK2017"],
    ),
    "name": (HEAD + "  item: {run: x}\n", ["3:3 TK2020"]),
    "dot": (HEAD + "  a.b: {run: x}\n", ["3:3 TK2020"]),
    "bad name": (HEAD + "  a b: {run: x}\n", ["3:3 TK2005"]),
    "output named status": (HEAD + "  a: {run: x, outputs: {status: stdout}}\n", ["3:25 TK2020"]),
    "file w/o path": (HEAD + "  a: {run: x, outputs: {o: {from: file}}}\n", ["3:25 TK2018"]),
    "path w stdout": (HEAD + "  a: {run: x, outputs: {o: {from: stdout, path: x}}}\n", ["3:49 TK2018"]),
    "stdout no cmd": (HEAD + "  a: {goal: x, outputs: {o: stdout}}\n", ["3:26 TK2018"]),
    "report no model": (HEAD + "  a: {run: x, outputs: {o: report}}\n", ["3:25 TK2018"]),
    "no from": (HEAD + "  a: {run: x, outputs: {o: {as: lines}}}\n", ["3:25 TK2001"]),
    "wrong from": (HEAD + "  a: {run: x, outputs: {o: {from: stdot}}}\n", ["3:35 TK2004"]),
    "wrong as": (HEAD + "  a: {run: x, outputs: {o: {from: stdout, as: line}}}\n", ["3:47 TK2004"]),
    "path from item": (
        HEAD + "  a: {run: x, outputs: {l: {from: stdout, as: lines}}}\n"
        "  b: {needs: a, for_each: '${a.l}', run: 'x ${item}', outputs: {o: {from: file, path: '${item}'}}}\n",
        ["4:88 TK4006"],
    ),
    "path leaves": (
        "toka: 1\ninputs: {p: ../x}\nagents: {a: {run: x, outputs: {o: {from: file, path: '${inputs.p}'}}}}\n",
        ["3:54 TK4003"],
    ),
    "limit": (
        HEAD + "  a: {run: x, limits: {max_cost: 3, tme: 3m, memory: 5}}\n",
        ["3:24 TK2003", "3:37 TK2003", "3:54 TK5003"],
    ),
    "grants": (
        HEAD + "  a: {run: x, grants: {raed: [x], write: , git: push, foo: [x], read: ['/etc']}}\n",
        ["3:24 TK2003", "3:42 TK2002", "3:49 TK2004", "3:60 TK2002", "3:72 TK4003"],
    ),
    "grants list": (HEAD + "  a: {run: x, grants: [read]}\n", ["3:23 TK2002"]),
    "needs": (
        HEAD + "  a: {run: x, needs: {b: {verifed: true, optional: perhaps}}}\n  b: {run: x}\n",
        ["3:27 TK2003", "3:52 TK2002"],
    ),
    "needs unknown": (HEAD + "  survey: {run: x}\n  b: {run: x, needs: [survye]}\n", ["4:23 TK3001"]),
    "needs num": (HEAD + "  a: {run: x, needs: [[]]}\n", ["3:23 TK2002"]),
    "both": (
        HEAD + "  a: {run: x, limits: {cost: $1}, security: {resource_limits: {max_cost: $2}}}\n",
        ["3:24 TK1006"],
    ),
    "both2": (HEAD + "  a: {run: x, title: A, spec: {name: B}}\n", ["3:15 TK1006"]),
    "approve": (HEAD + "  a: {run: x, approve: {expires: soon}}\n", ["3:15 TK2001", "3:34 TK5001"]),
    "approve type": (HEAD + "  a: {run: x, approve: [a]}\n", ["3:15 TK2002"]),
    "env": (
        HEAD + "  a: {run: x, env: {'A-B': x, TOKA_X: y, L: [1]}}\n",
        ["3:28 TK2005", "3:39 TK2020", "3:42 TK2002"],
    ),
    "defaults": (
        "toka: 1\ndefaults: {goal: x, limit: {cost: 3}, grants: [x]}\nagents: {a: {run: x}}\n",
        ["2:12 TK2003", "2:21 TK2003", "2:47 TK2002"],
    ),
    "words": (HEAD + "  a: {run: [], check: [[x]]}\n", ["3:12 TK2002", "3:23 TK2002"]),
    "refs false": (HEAD + "  a: {references: false, run: 'echo ${HOME}', env: {A: b}}\n", ["3:47 TK2015"]),
    "refs bad": (HEAD + "  a: {references: no, run: 'echo ${HOME}'}\n", ["3:19 TK2002", "3:34 TK2014"]),
    "tasks": (HEAD + "  a: {tasks: 5}\n", ["3:14 TK2002"]),
    "retries": (HEAD + "  a: {run: x, retries: 1000, timeout: long}\n", ["3:24 TK5003", "3:39 TK5001"]),
    "dup": (HEAD + "  a: {run: x}\n  a: {run: y}\n", ["4:3 TK1006"]),
    "needs_twice": (HEAD + "  a: {run: x, needs: [b, b]}\n  b: {run: x}\n", ["3:26 TK1006"]),
}
"""For each team file what is found: line, column and code. TK4004 is left out."""


def findings(text: str) -> list[Finding]:
    reading = AgentConfig.read([Source("team.yaml", text)])
    specs = (*reading.configs, *reading.drafts)
    found = in_order((*reading.findings, *check(specs, complete=reading.complete)))
    return [f for f in found if f.code != "TK4004"]


@pytest.mark.parametrize("name", FINDINGS)
def test_each_mistake_is_found_where_it_stands(name: str) -> None:
    text, expected = FINDINGS[name]
    found = findings(text)
    assert [f"{f.line}:{f.column} {f.code}" for f in found] == expected
    assert expected
    assert all(f.source == text.splitlines()[f.line - 1][:4000] for f in found)


def test_a_team_that_does_not_say_so_is_told() -> None:
    (found,) = findings("agents: {a: {run: x}}\n")
    assert (found.code, found.line, found.help) == ("TK2021", 1, "begin it with toka: 1")


def test_all_mistakes_of_a_file_are_found_at_once() -> None:
    text = HEAD + (
        "  a: {run: 'echo ${b.x} ${HOME}', gaol: x, limits: {tme: 3m}}\n"
        "  b: {for_each: [], goal: '${item} ${secret:s}', needs: [c], outputs: {o: stdout}}\n"
        "  item: {when: '1 == 1', run: x, timeout: long}\n"
    )
    assert {f"{f.line} {f.code}" for f in findings(text)} == {
        "3 TK2003", "3 TK2014", "3 TK3009", "4 TK2019", "4 TK4007", "4 TK3001", "4 TK2018", "5 TK2020", "5 TK2016",
        "5 TK5001",
    }  # fmt: skip


def test_every_code_of_references_and_teams_has_a_case() -> None:
    found = {entry.split()[1] for _, expected in FINDINGS.values() for entry in expected}
    ours = {code for code in CODES if "TK2014" <= code <= "TK2021" or "TK3008" <= code <= "TK3011"}
    assert ours - found <= {"TK2021"} - found
    assert {"TK4006", "TK4007", "TK2021"} <= found


@pytest.mark.parametrize(
    ("text", "help_"),
    [
        (HEAD + "  a: {run: x, gaol: y}\n", 'did you mean "goal"?'),
        ("toka: 1\ngoal: x\nagents: {a: {run: x}}\n", "it is a key of an agent: put it below agents: NAME:"),
        (HEAD + "  a: {run: 'echo ${HOME}'}\n", "write $NAME, or $${NAME}, for a variable of the shell"),
        (
            HEAD + "  a: {run: 'echo ${area}'}\n",
            "write $NAME, or $${NAME}, for a variable of the shell; an input is ${inputs.area}",
        ),
        (HEAD + "  a: {run: x, outputs: {o: lines}}\n", "write {from: stdout, as: lines}"),
        (HEAD + "  a: {run: x, limits: {timeout: 1m}}\n", 'did you mean "time"?'),
        (HEAD + "  a: {for_each: survey.o, run: x}\n", "write such as ${survey.failing}, or [a, b]"),
        (HEAD + "  a: {run: x, limits: {max_cost: 1}}\n", 'did you mean "cost"?'),
        (HEAD + "  a: {run: x, grants: {raed: [x]}}\n", 'did you mean "read"?'),
        (HEAD + "  a: {run: x}\n  b: {run: 'echo ${a.status}'}\n", "add it to needs: a"),
        (HEAD + "  survey: {run: x}\n  b: {run: x, needs: survye}\n", 'did you mean "survey"?'),
        (HEAD + "  survey: {run: x}\n  b: {run: 'y ${survye.status}', needs: survye}\n", 'did you mean "survey"?'),
        (HEAD + "  survey: {run: x}\n  b: {run: x, needs: {survye: {optional: true}}}\n", 'did you mean "survey"?'),
        (HEAD + "  a: {run: x, outputs: {o: {from: stdout, type: lines}}}\n", 'did you mean "as"?'),
        (HEAD + "  a: {run: x, check: {run: y, expect: 1}}\n", 'did you mean "expect_exit"?'),
        (HEAD + "  a: {run: x, check: {command: y}}\n", 'did you mean "run"?'),
        (HEAD + "  a: {run: x, depends_on: []}\n", 'did you mean "needs"?'),
        (HEAD + "  a: {run: x, grants: {read: yes}}\n",
         "write read: true for everything, read: false for nothing, [yes] for what is called so"),
        (HEAD + "  a: {run: x, grants: {write: all}}\n",
         "write write: true for everything, write: false for nothing, [all] for what is called so"),
        (HEAD + "  a: {run: x, grants: {internet: true}}\n", 'did you mean "network"?'),
        (HEAD + "  a: {run: x, outputs: {o: {from: stdout, as: int}}}\n", 'did you mean "integer"?'),
        ("toka: 1\ninputs: {n: {type: bool}}\nagents: {a: {run: x}}\n", 'did you mean "boolean"?'),
        ("toka: 1\ninputs: {b: boolean}\nagents: {a: {run: 'x ${inputs.b}', when: '${inputs.b}'}}\n",
         "write {type: boolean}, or {default: boolean} where the text itself is meant"),
        (HEAD + "  a: {run: x, env: {API_TOKEN: abc}}\n",
         'write API_TOKEN: "${secret:NAME}", and let your own settings say where it is kept'),
        (HEAD + "  a:\n  run: x\n  grants: {read: [.]}\n", 'indent it, and what belongs to it, below "a"'),
        ("script: 1\nagents: {a: {'*': [{say: x}]}}\n", "give it to toka run: --model scripted:FILE"),
        (HEAD + "  a: {goal: Do this, and that.}\n",
         "inside { } a comma ends a value: put quotes around a text that holds one"),
        (HEAD + "  a: {run: x, env: {A: ${secret:a}}}\n",
         'inside { } and [ ], put quotes around what holds ${...}: "${...}"'),
        ("toka: 1\ninputs: {area: a}\nagents: {a: {run: 'x ${inputs.aera}'}}\n", 'did you mean "area"?'),
        ("toka: 1\ninputs: {area: {type: string}}\nagents: {a: {run: x}}\n",
         "give one: --input area=VALUE, or a default"),
    ],
)  # fmt: skip
def test_what_to_do_is_said(text: str, help_: str) -> None:
    (found,) = findings(text)
    assert found.help == help_


@pytest.mark.parametrize(
    ("agent", "expected"),
    [
        ("{run: x, outputs: {o: {as: integer}}}", ['the output "o" does not say where it comes from']),
        ("{run: x, outputs: {o: integer}}", ['the output "o" does not say where it comes from']),
        ("{run: x, outputs: {o: stdout}, check: {timeout: 1m}}", ["the check has no command"]),
        ("{run: x, outputs: {o: stdout}, approve: true}", ["approve is the question that a person is asked"]),
    ],
)
def test_one_mistake_is_one_finding(agent: str, expected: list[str]) -> None:
    found = findings(HEAD + f"  a: {agent}\n  b: {{run: 'echo ${{a.o}}', needs: a}}\n")
    assert [f.message for f in found] == expected


@pytest.mark.parametrize(
    ("text", "at"),
    [
        ("  a:\n    run: |\n      echo ${b.o}\n      echo '${b.o}'\n    needs: b\n", (6, 13)),
        ("  a:\n    run: |\n      echo $${b.x}\n      echo ${b.x}\n    needs: b\n", (6, 12)),
        ("  a:\n    run: |\n      echo ${b.o} # ${b.o}\n      cat <<E\n      ${b.o}\n      E\n    needs: b\n", (5, 21)),
        ("  a: {goal: 'see ${b.o}, ${b.o} and ${b.x}', needs: b}\n", (3, 37)),
    ],
)
def test_each_place_of_a_reference_is_told_for_itself(text: str, at: tuple[int, int]) -> None:
    found = findings(HEAD + text + "  b: {run: x, outputs: {o: stdout}}\n")
    assert (found[0].line, found[0].column) == at, [f.render() for f in found]


def test_an_input_that_is_wrong_is_told_once(tmp_path: Path) -> None:
    text = "toka: 1\ninputs: {go: {type: boolean}}\nagents: {a: {run: x, when: '${inputs.go}'}}\n"
    reading = AgentConfig.read([Source("team.yaml", text)], {"go": "ja"})
    found = [f for f in (*reading.findings, *check((*reading.configs, *reading.drafts))) if f.code != "TK4004"]
    assert [f.message for f in dict.fromkeys(found)] == ['the input "go" must be true or false, not "ja"']


def test_a_directory_with_a_team_and_what_it_includes_is_read_once(tmp_path: Path) -> None:
    (tmp_path / "a-part.yaml").write_text("toka: 1\ninputs: {area: alone}\nagents: {one: {run: 'ls ${inputs.area}'}}\n")
    (tmp_path / "team.yaml").write_text(
        "toka: 1\ninputs: {area: together}\ninclude: a-part.yaml\n"
        "agents: {two: {run: 'ls ${inputs.area}', needs: one}}\n"
    )
    reading = AgentConfig.read([tmp_path])
    assert [f.code for f in reading.findings] == []
    areas = {str(c.name): c.flow.inputs["area"] for c in reading.configs if c.flow}
    assert areas == {"one": "together", "two": "together"}


def test_a_misspelled_optional_agent_is_more_than_a_note() -> None:
    (found,) = findings(HEAD + "  survey: {run: x}\n  b: {run: x, needs: {survye: {optional: true}}}\n")
    assert (found.code, found.severity) == ("TK3002", "warning")
    (found,) = findings(HEAD + "  b: {run: x, needs: {lint: {optional: true}}}\n")
    assert (found.code, found.severity, found.help) == ("TK3002", "note", None)


def test_a_value_of_the_agent_itself_is_told_as_such() -> None:
    (found,) = findings(HEAD + "  a: {run: 'echo ${a.status}'}\n")
    assert found.message == "${a.status} is a value of this agent itself, which has none before it ends"
    assert found.help is None


def test_a_reference_in_a_block_is_shown_on_its_own_line() -> None:
    text = HEAD + "  a:\n    run: |\n      echo one\n      echo ${nobody.x}\n"
    (found,) = findings(text)
    assert (found.line, found.column, found.length) == (6, 12, len("${nobody.x}"))
    assert found.source == "      echo ${nobody.x}"


def test_places_are_called_as_the_team_file_calls_them() -> None:
    messages = [f.message for f in findings(FINDINGS["wrong as"][0])]
    assert messages == ['unknown value "line" of outputs.o.as']
    messages = [f.message for f in findings(HEAD + "  a: {tasks: [{run: ''}], title: [x]}\n")]
    assert messages == ["tasks[0].run must not be empty", "name must be text, not a list"]


def test_a_spec_with_flow_is_checked_the_same() -> None:
    head = "metadata: {name: b}\nspec: {}\nsecurity: {capabilities_required: [filesystem-read]}\n"
    text = head + (
        "tasks: [{run: \"echo '${a.o}' ${item} ${HOME} ${inputs.x}\"}]\n"
        "objectives: [{description: '${secret:s}', check: 'test ${b.status}'}]\n"
        "flow: {for_each: words, when: [no], max_parallel: 2, outputs: {status: {source: report}}}\n"
    )
    assert {f"{f.line} {f.code}" for f in findings(text)} == {
        "4 TK3008", "4 TK2015", "4 TK2014", "4 TK2017", "5 TK4007", "5 TK3010", "6 TK2016", "6 TK2020", "6 TK2018",
    }  # fmt: skip


def test_without_flow_references_are_text() -> None:
    text = "metadata: {name: b}\nspec: {}\ntasks: [{run: \"echo '${a.o}' ${HOME}\"}]\n"
    assert findings(text) == []
    granted = text + "security: {capabilities_required: [{filesystem-read: {paths: ['${a.o}']}}]}\n"
    assert findings(granted) == []
    assert [f.code for f in findings(granted + "flow: {}\n")] == ["TK2015", "TK3008", "TK2014", "TK4006"]


@pytest.mark.parametrize("optional", [True, False])
def test_a_value_may_come_through_other_agents(optional: bool) -> None:
    edge = "{b: {optional: true}}" if optional else "b"
    text = HEAD + (
        "  a: {run: x, grants: {read: true}, outputs: {o: stdout}}\n"
        "  b: {run: x, grants: {read: true}, needs: a}\n"
        f"  c: {{run: 'echo ${{a.o}}', grants: {{read: true}}, needs: {edge}}}\n"
    )
    assert findings(text) == []


def test_an_output_of_many_instances_is_a_list() -> None:
    text = HEAD + (
        "  a: {for_each: [x, y], run: 'echo ${item}', outputs: {ok: {from: stdout, as: boolean}}}\n"
        "  b: {needs: a, for_each: '${a.ok}', run: 'echo ${item}'}\n"
    )
    assert findings(text) == []
    (found,) = findings(text + "  c: {needs: a, when: '${a.ok}', run: x}\n")
    assert (found.code, found.message) == ("TK2016", "${a.ok} is of type list, and when needs true or false")


def test_names_of_broken_agents_are_known() -> None:
    text = HEAD + "  a: {run: x, timeout: long, outputs: {o: stdout}}\n  b: {needs: a, run: 'echo ${a.o}'}\n"
    assert [f.code for f in findings(text)] == ["TK5001"]
