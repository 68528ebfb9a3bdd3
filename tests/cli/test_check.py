from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest

from cli.records import ONE, THREE, TWO, Toka
from toka.cli.check import check_server
from toka.cli.render_findings import github, sarif
from toka.config.agent import AgentConfig
from toka.config.diagnostics import Finding, Position
from toka.config.settings import load_settings
from toka.errors import UsageError

GOOD = (
    "metadata: {name: good}\nspec: {name: Good}\ntasks: [Do it]\nsecurity: {capabilities_required: [filesystem-read]}\n"
)
BAD = GOOD.replace("good", "bad") + "spec: {name: again}\nreporting: 3\n"
WARNED = GOOD.replace("[filesystem-read]", "[filesystem-read, telepathy]").replace("name: good", "name: warned")


@pytest.fixture
def specs(tmp_path: Path) -> Path:
    folder = tmp_path / "specs"
    folder.mkdir()
    (folder / "good.yaml").write_text(GOOD)
    (folder / "warned.yaml").write_text(WARNED)
    return folder


def test_validate_accepts_warnings(toka: Toka, specs: Path) -> None:
    done = toka("validate", specs)
    assert done.code == 0
    assert done.lines[-1] == "2 specs, 0 errors, 1 warning"
    assert "warning[TK4001]: nobody defines telepathy" in done.out
    assert "4 | security: {capabilities_required: [filesystem-read, telepathy]}" in done.out


def test_strict_refuses_warnings(toka: Toka, specs: Path) -> None:
    assert toka("validate", "--strict", specs).code == 3
    assert toka("validate", "--strict", specs / "good.yaml").code == 0


def test_validate_shows_all_findings_of_all_files_in_one_pass(toka: Toka, specs: Path) -> None:
    (specs / "bad.yaml").write_text(BAD)
    (specs / "worse.yaml").write_text("a: [")
    done = toka("validate", specs)
    assert done.code == 3
    for code in ("TK1006", "TK4001", "TK1001"):
        assert code in done.out
    assert done.lines[-1].startswith("4 specs, ")


@pytest.mark.parametrize("command", ["validate", "plan"])
def test_a_missing_path_and_an_empty_directory_are_findings(toka: Toka, tmp_path: Path, command: str) -> None:
    (tmp_path / "empty").mkdir()
    done = toka(command, "nowhere.yaml", tmp_path / "empty")
    assert done.code == 3
    assert "error[TK1013]" in done.out + done.err
    assert "error[TK1012]" in done.out + done.err
    assert "0 specs, 2 errors" in done.out + done.err


def test_the_json_form_holds_counts_and_findings(toka: Toka, specs: Path) -> None:
    done = toka("validate", "--format", "json", specs)
    assert done.json["specs"] == 2
    assert (done.json["errors"], done.json["warnings"], done.json["notes"]) == (0, 1, 0)
    (finding,) = done.json["findings"]
    assert finding["code"] == "TK4001"
    assert finding["line"] == 4
    assert toka("validate", "--json", specs).out == done.out


def test_the_github_form_is_one_command_for_each_finding(toka: Toka, specs: Path) -> None:
    (specs / "bad.yaml").write_text(BAD)
    done = toka("validate", "--format", "github", specs)
    assert done.code == 3
    assert all(line.startswith(("::error ", "::warning ", "::notice ")) for line in done.lines)
    assert "3 specs" in done.err


def test_github_properties_are_escaped() -> None:
    finding = Finding("TK2004", "100% wrong: a, b\nc", Position("a,b:c.yaml", 3, 4))
    (line,) = github([finding])
    head, _, message = line.removeprefix("::").partition("::")
    assert head == "error file=a%2Cb%3Ac.yaml,line=3,col=4,endColumn=5,title=TK2004 unknown word"
    assert message == "100%25 wrong: a, b␊c"


def test_sarif_names_rules_places_and_levels(toka: Toka, specs: Path) -> None:
    log = toka("validate", "--format", "sarif", specs).json
    assert log["version"] == "2.1.0"
    (run,) = log["runs"]
    (result,) = run["results"]
    assert result["ruleId"] == "TK4001"
    assert result["level"] == "warning"
    region = result["locations"][0]["physicalLocation"]["region"]
    assert region["startLine"] == 4
    assert [r["id"] for r in run["tool"]["driver"]["rules"]] == ["TK4001"]


def test_sarif_of_a_file_without_a_place() -> None:
    log = json.loads(sarif([Finding("TK1013", "gone", Position("a b.yaml"))]))
    location = log["runs"][0]["results"][0]["locations"][0]["physicalLocation"]
    assert location == {"artifactLocation": {"uri": "a%20b.yaml"}}


def test_a_wrong_option_is_a_usage_error(toka: Toka) -> None:
    assert toka("validate").code == 2
    assert toka("validate", "--format", "xml", "x").code == 2


@pytest.fixture
def team_specs(tmp_path: Path) -> Path:
    folder = tmp_path / "team"
    folder.mkdir()
    for name, text in (("one", ONE), ("two", TWO), ("three", THREE)):
        (folder / f"{name}.yaml").write_text(text)
    return folder


def test_a_plan_says_order_grants_limits_and_warnings(toka: Toka, team_specs: Path) -> None:
    done = toka("plan", team_specs)
    assert done.code == 0
    assert done.lines[0] == "3 agents in 3 waves; the longest chain: one -> two -> three"
    text = done.out
    assert "    needs     one" in text
    assert "    grant     filesystem-read\n              filesystem-write\n" in text
    assert "1 of 2 objectives with a check; the others can only be claimed" in text
    assert "    model     needs none" in text
    assert "    model     auto (the default)" in text
    assert "task-1: $ true" in text


def test_the_plan_as_json_has_findings_as_objects(toka: Toka, team_specs: Path) -> None:
    (team_specs / "warned.yaml").write_text(WARNED)
    plan = toka("plan", "--json", team_specs).json
    assert plan["waves"][0] == ["one", "warned"]
    assert plan["critical_path"] == ["one", "two", "three"]
    codes = [f["code"] for f in plan["agents"]["warned"]["findings"]]
    assert codes == ["TK4001"]
    assert plan["warnings"] >= 1
    assert "TK4001" in {f["code"] for f in plan["findings"]}
    assert plan["agents"]["one"]["tasks"][0]["deterministic"] is True


def test_the_plan_as_a_graph(toka: Toka, team_specs: Path) -> None:
    out = toka("plan", "--format", "mermaid", team_specs).lines
    assert out[0] == "flowchart LR"
    assert "  a0 --> a1" in out


def test_there_is_no_plan_for_specs_with_errors(toka: Toka, team_specs: Path) -> None:
    (team_specs / "one.yaml").unlink()
    done = toka("plan", team_specs)
    assert done.code == 3
    assert done.out == ""
    assert "TK3001" in done.err
    assert "there is no plan" in done.err
    plan = toka("plan", "--json", team_specs)
    assert plan.code == 3
    assert plan.json["agents"] == {}
    assert "TK3001" in {f["code"] for f in plan.json["findings"]}


def test_an_unknown_group_is_a_usage_error(toka: Toka, specs: Path) -> None:
    done = toka("plan", "--enable", "nightly", specs)
    assert done.code == 2
    assert "no spec has conditional tasks" in done.err


def test_enabled_groups_are_planned(toka: Toka, tmp_path: Path) -> None:
    spec = tmp_path / "a.yaml"
    spec.write_text(GOOD.replace("tasks: [Do it]", "tasks: {default: [Do it], conditional: {nightly: [More]}}"))
    assert "nightly-1: More" in toka("plan", "--enable", "nightly", spec).out
    assert "nightly-1" not in toka("plan", spec).out
    assert "there are: nightly" in toka("plan", "--enable", "x", spec).err


def test_a_misspelled_setting_is_told(toka: Toka, specs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOKA_MODLE", "auto")
    assert "TOKA_MODEL" in toka("validate", specs).err


def test_a_spec_cannot_drive_the_terminal(toka: Toka, tmp_path: Path) -> None:
    spec = tmp_path / "a.yaml"
    spec.write_text(GOOD.replace("Do it", '"\\x1b[2Jboo\\u202e"').replace("name: Good", 'name: "\\x1b]0;t\\a"'))
    for command in ("validate", "plan"):
        done = toka(command, spec)
        assert "\x1b" not in done.out + done.err
        assert "\u202e" not in done.out + done.err


def named(model: str, name: str = "one") -> str:
    return GOOD.replace("name: good", f"name: {name}") + f"model: {model}\n"


@pytest.mark.parametrize(
    ("model", "said", "hint"),
    [
        ("gpt-4", "does not name its provider", "openai:gpt-4"),
        ("opnai:x", "there is no provider 'opnai'", "openai:x"),
        ("llama3:8b", "there is no provider 'llama3'", "ollama:llama3:8b"),
        ("openai", "lacks a name", "write openai:NAME"),
        ("scripted:nowhere.yaml", "cannot read the script nowhere.yaml", ""),
    ],
)
@pytest.mark.parametrize("command", ["validate", "plan", "run"])
def test_a_model_that_cannot_be_one_is_a_finding_with_its_place(
    toka: Toka, tmp_path: Path, command: str, model: str, said: str, hint: str
) -> None:
    (tmp_path / "a.yaml").write_text(named(model))
    done = toka(command, "a.yaml")
    assert done.code == 3
    text = done.out + done.err
    assert "error[TK6001]: " in text
    assert said in text
    assert "a.yaml:5:8" in text
    assert hint in text


@pytest.mark.parametrize("command", ["validate", "plan"])
def test_models_are_checked_in_the_same_pass_as_all_else(toka: Toka, specs: Path, command: str) -> None:
    (specs / "one.yaml").write_text(named("gpt-4"))
    (specs / "two.yaml").write_text(named("gpt-4", "two") + "dependencies: {required: {nobody: {}}}\n")
    (specs / "three.yaml").write_text(named("opnai:x", "three") + "security: {foo: 1}\n")
    (specs / "four.yaml").write_text(named("' x'", "four"))
    done = toka(command, "--json", specs)
    assert done.code == 3
    found = [(Path(f["file"]).name, f["code"]) for f in done.json["findings"] if f["severity"] == "error"]
    assert found == [
        ("four.yaml", "TK6001"),
        ("one.yaml", "TK6001"),
        ("three.yaml", "TK6001"),
        ("three.yaml", "TK1006"),
        ("two.yaml", "TK6001"),
        ("two.yaml", "TK3001"),
    ]


def test_a_draft_has_its_model_checked_too(toka: Toka, tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(named("opnai:x").replace("security: {", "security: {foo: 1, "))
    found = [f["code"] for f in toka("validate", "--json", "a.yaml").json["findings"]]
    assert found == ["TK2003", "TK6001"]


def test_a_model_is_checked_even_where_no_task_needs_one(toka: Toka, tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(named("gpt-4").replace("[Do it]", "[{description: x, run: 'true'}]"))
    assert toka("validate", "a.yaml").code == 3


def test_keys_and_servers_are_no_matter_of_validation(toka: Toka, tmp_path: Path) -> None:
    for number, model in enumerate(("auto", "openai:x", "anthropic:x", "server:x", "ollama:x", "llama-server:x")):
        (tmp_path / f"{number}.yaml").write_text(named(model, f"a{number}"))
    for command in ("validate", "plan"):
        done = toka(command, *sorted(tmp_path.glob("*.yaml")))
        assert done.code == 0, done.out + done.err


def test_each_mistake_of_a_script_is_shown_once(toka: Toka, tmp_path: Path) -> None:
    (tmp_path / "s.yaml").write_text("script: 1\nagents: {one: {t: [{say: 4}, {say: 3}]}}\n")
    for name in ("one", "two"):
        (tmp_path / f"{name}.yaml").write_text(named("scripted:./s.yaml", name))
    found = toka("validate", "--json", "one.yaml", "two.yaml").json["findings"]
    assert [(f["code"], f["file"]) for f in found] == [("TK6101", "s.yaml")] * 2
    assert len({f["message"] for f in found}) == 2
    assert all("one" in f["message"] and "s.yaml" not in f["message"] for f in found)


@pytest.mark.parametrize("file", ["fifo", "/dev/zero", "folder"])
def test_a_spec_cannot_make_validation_wait_or_read_devices(toka: Toka, tmp_path: Path, file: str) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "folder").mkdir()
    (tmp_path / "a.yaml").write_text(named(f"scripted:{file}"))
    done = toka("validate", "a.yaml")
    assert done.code == 3
    assert "it is no regular file" in done.out


@pytest.mark.parametrize("command", ["validate", "plan"])
def test_the_default_model_is_checked_where_it_is_set(
    toka: Toka, specs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    (tmp_path / "toka.toml").write_text('model = "opnai:x"\n')
    done = toka(command, specs)
    assert done.code == 3
    assert "error[TK2011]: model: model 'opnai:x'" in done.out + done.err
    assert "--> toka.toml" in done.out + done.err
    monkeypatch.setenv("TOKA_MODEL", "gpt-4")
    done = toka(command, specs)
    assert "error[TK2011]: TOKA_MODEL: model 'gpt-4'" in done.out + done.err
    monkeypatch.setenv("TOKA_MODEL", "openai:x")
    assert toka(command, specs).code == 0


@pytest.mark.slow
def test_a_thousand_specs_with_wrong_models_are_checked_in_seconds(toka: Toka, tmp_path: Path) -> None:
    folder = tmp_path / "many"
    folder.mkdir()
    for number in range(1_000):
        (folder / f"{number}.yaml").write_text(named("gpt-4", f"a{number}"))
    began = time.process_time()
    assert toka("validate", "--json", folder).json["errors"] == 1_000
    assert time.process_time() - began < 5


SERVER = "http://127.0.0.1:9/v1"


@pytest.mark.parametrize(
    ("models", "flags", "refused"),
    [
        (["anthropic:x"], {}, True),
        (["anthropic:x", "anthropic:y"], {"model": "ollama:z"}, False),
        (["anthropic:x", "server:x"], {}, False),
        (["anthropic:x", ""], {}, False),
        (["anthropic:x", ""], {"model": "anthropic:z"}, True),
        ([""], {}, False),
    ],
)
def test_a_base_url_that_no_agent_would_use_is_refused(
    tmp_path: Path, models: list[str], flags: dict[str, str], refused: bool
) -> None:
    configs = [
        AgentConfig.parse(GOOD.replace("good", f"a{n}") + (f"model: {model}\n" if model else ""))
        for n, model in enumerate(models)
    ]
    given = load_settings(tmp_path, {}, {"base_url": SERVER, **flags})
    if refused:
        with pytest.raises(UsageError, match="would be ignored"):
            check_server(given, configs, flags.get("model"))
    else:
        check_server(given, configs, flags.get("model"))
    check_server(load_settings(tmp_path, {"TOKA_BASE_URL": SERVER}, flags), configs, flags.get("model"))


def test_agents_that_need_no_model_do_not_care_about_a_base_url(tmp_path: Path) -> None:
    worker = AgentConfig.parse(GOOD.replace("[Do it]", "[{description: x, run: 'true'}]") + "model: anthropic:x\n")
    check_server(load_settings(tmp_path, {}, {"base_url": SERVER}), [worker])
    nightly = GOOD.replace("[Do it]", "{default: [{description: x, run: 'true'}], conditional: {night: [Do it]}}")
    with pytest.raises(UsageError):
        check_server(
            load_settings(tmp_path, {}, {"base_url": SERVER}), [AgentConfig.parse(nightly + "model: anthropic:x\n")]
        )
