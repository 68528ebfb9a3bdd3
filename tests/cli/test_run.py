"""`toka run` and `toka resume`, as a script sees them: the real command, real processes, real signals."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

TOKA = [str(Path(sys.executable).with_name("toka"))]

HELLO = """
metadata: {name: hello}
spec: {name: Hello, domain: testing}
tasks:
  - {id: greet, description: greet, run: "echo hi | tee greeting.txt", effect: idempotent}
security: {capabilities_required: [filesystem-write]}
"""
SLOW = """
metadata: {name: slow}
spec: {name: Slow, domain: testing}
tasks:
  - {id: first, description: first, run: "echo first >> ledger.txt", effect: idempotent}
  - {id: wait, description: wait, run: "echo wait >> ledger.txt; touch started; while [ ! -e go ]; do sleep 0.05; done",
     effect: idempotent}
  - {id: last, description: last, run: "echo last >> ledger.txt", effect: idempotent}
security: {capabilities_required: [filesystem-write]}
"""
THINKER = """
metadata: {name: thinker}
spec: {name: Thinker, domain: testing}
tasks: [{id: think, description: think about it}]
"""


@pytest.fixture
def place(tmp_path: Path) -> Path:
    (tmp_path / "ws").mkdir()
    (tmp_path / "agents").mkdir()
    return tmp_path


def environment(**more: str) -> dict[str, str]:
    kept = {k: v for k, v in os.environ.items() if not k.startswith("TOKA_") and not k.endswith("_API_KEY")}
    return {**kept, "OLLAMA_HOST": "127.0.0.1:9", "NO_COLOR": "1", "CI": "true", **more}


def command(place: Path, *arguments: str) -> list[str]:
    return [*TOKA, *arguments, "--state", str(place / "state")]


def toka(place: Path, *arguments: str, **more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(place, *arguments), cwd=place, env=environment(**more), capture_output=True, text=True, timeout=60
    )


def lines(output: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in output.splitlines()]


def spec(place: Path, text: str, name: str = "one") -> None:
    (place / "agents" / f"{name}.yaml").write_text(text)


def start(place: Path, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        command(place, *arguments),
        cwd=place,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def until(condition: Any, what: str, seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"waited {seconds} s for {what}"
        time.sleep(0.02)


@pytest.mark.slow
def test_json_begins_with_launch_and_ends_with_done(place: Path) -> None:
    spec(place, HELLO)
    result = toka(place, "run", "agents", "--workspace", "ws", "--json")
    out = lines(result.stdout)
    assert result.returncode == 0, result.stderr
    assert out[0]["type"] == "launch"
    assert {o["type"] for o in out[1:-1]} == {"event"}
    assert [o["id"] for o in out[1:-1]] == sorted(o["id"] for o in out[1:-1])
    done = out[-1]
    assert (done["type"], done["run_id"], done["state"]) == ("done", out[0]["run_id"], "COMPLETED")
    agent = done["agents"]["hello"]
    assert agent["state"] == "COMPLETED"
    assert agent["tasks"] == {"greet": "SUCCEEDED"}
    assert agent["objectives"] == []
    assert (agent["tokens"], agent["cost_usd"], agent["error"]) == (0, 0.0, None)
    assert (place / "ws" / "greeting.txt").read_text() == "hi\n"


@pytest.mark.slow
def test_a_failing_command_fails_its_task_agent_and_run(place: Path) -> None:
    spec(place, HELLO.replace("echo hi | tee greeting.txt", "exit 3"))
    result = toka(place, "run", "agents", "--workspace", "ws", "--json")
    done = lines(result.stdout)[-1]
    assert result.returncode == 1
    assert done["state"] == "FAILED"
    assert done["agents"]["hello"]["state"] == "FAILED"
    assert done["agents"]["hello"]["tasks"] == {"greet": "FAILED"}
    assert "exited with 3" in done["agents"]["hello"]["error"]


@pytest.mark.slow
def test_a_killed_run_goes_on_after_its_last_recorded_step(place: Path) -> None:
    spec(place, SLOW)
    process = start(place, "run", "agents", "--workspace", "ws", "--json")
    until((place / "ws" / "started").exists, "the second task")
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    (place / "ws" / "go").touch()
    result = toka(place, "resume", "@last", "--json")
    out = lines(result.stdout)
    assert result.returncode == 0, result.stderr
    assert out[0]["type"] == "launch"
    assert out[-1]["agents"]["slow"]["tasks"] == {"first": "SUCCEEDED", "wait": "SUCCEEDED", "last": "SUCCEEDED"}
    assert (place / "ws" / "ledger.txt").read_text().split() == ["first", "wait", "wait", "last"]


@pytest.mark.slow
def test_a_step_that_must_not_run_twice_waits_for_a_person(place: Path) -> None:
    spec(place, SLOW.replace(",\n     effect: idempotent", ",\n     effect: once"))
    process = start(place, "run", "agents", "--workspace", "ws")
    until((place / "ws" / "started").exists, "the second task")
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    (place / "ws" / "go").touch()
    result = toka(place, "resume", "@last", "--json")
    done = lines(result.stdout)[-1]
    assert result.returncode == 7
    assert done["state"] == "WAITING"
    assert done["agents"]["slow"]["tasks"]["wait"] == "NEEDS_ATTENTION"
    assert (place / "ws" / "ledger.txt").read_text().split() == ["first", "wait"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("answer", "code", "ledger", "state"),
    [
        ("--happened", 0, ["first", "wait", "last"], "SUCCEEDED"),
        ("--not-happened", 0, ["first", "wait", "wait", "last"], "SUCCEEDED"),
        ("--abandon", 1, ["first", "wait"], "FAILED"),
    ],
)
def test_a_person_answers_and_the_run_goes_on(
    place: Path, answer: str, code: int, ledger: list[str], state: str
) -> None:
    spec(place, SLOW.replace(",\n     effect: idempotent", ",\n     effect: once"))
    process = start(place, "run", "agents", "--workspace", "ws")
    until((place / "ws" / "started").exists, "the second task")
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    (place / "ws" / "go").touch()
    assert toka(place, "resume", "@last").returncode == 7
    assert "toka resolve" in toka(place, "show", "@last").stdout
    nobody = toka(place, "resolve", "@last", "last", answer)
    assert nobody.returncode == 9
    assert "slow: wait" in nobody.stderr
    assert toka(place, "resolve", "@last", "wait").returncode == 2
    told = toka(place, "resolve", "@last", "wait", answer, "--reason", "looked at the ledger")
    assert told.returncode == 0, told.stderr
    assert "toka resume" in told.stderr
    result = toka(place, "resume", "@last", "--json")
    assert result.returncode == code, result.stderr
    assert lines(result.stdout)[-1]["agents"]["slow"]["tasks"]["wait"] == state
    assert (place / "ws" / "ledger.txt").read_text().split() == ledger
    again = toka(place, "resolve", "@last", "wait", answer)
    assert (again.returncode, "looked at the ledger" in again.stderr) == (2, True)


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_ends_gracefully_and_the_run_can_be_resumed(place: Path, number: int, code: int) -> None:
    spec(place, SLOW)
    process = start(place, "run", "agents", "--workspace", "ws")
    until((place / "ws" / "started").exists, "the second task")
    process.send_signal(number)
    time.sleep(0.2)
    (place / "ws" / "go").touch()
    _, errors = process.communicate(timeout=20)
    assert process.returncode == code
    assert "toka resume" in errors
    result = toka(place, "resume", "@last", "--json")
    assert result.returncode == 0, result.stderr
    assert (place / "ws" / "ledger.txt").read_text().split() == ["first", "wait", "last"]


@pytest.mark.slow
def test_the_second_signal_ends_at_once_and_leaves_no_process(place: Path) -> None:
    marker = f"sleep 31.{os.getpid()}"
    spec(place, SLOW.replace("while [ ! -e go ]; do sleep 0.05; done", marker))
    process = start(place, "run", "agents", "--workspace", "ws")
    until((place / "ws" / "started").exists, "the second task")
    process.send_signal(signal.SIGINT)
    time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=5)
    assert process.returncode == 130
    until(lambda: not _running(marker), "the command to be gone", 5)


@pytest.mark.slow
@pytest.mark.parametrize("read", [True, False])
def test_after_the_second_signal_the_last_line_is_done_all_the_same(place: Path, read: bool) -> None:
    spec(place, SLOW)
    process = start(place, "run", "agents", "--workspace", "ws", "--json")
    until((place / "ws" / "started").exists, "the second task")
    process.send_signal(signal.SIGINT)
    time.sleep(0.2)
    if not read:
        assert process.stdout is not None
        process.stdout.close()
    process.send_signal(signal.SIGINT)
    if read:
        out, _ = process.communicate(timeout=5)
        done = lines(out)[-1]
        assert (done["type"], done["state"], done["agents"]["slow"]["tasks"]["first"]) == (
            "done",
            "INTERRUPTED",
            "SUCCEEDED",
        )
    assert process.wait(timeout=5) == 130
    assert process.stderr is not None
    process.stderr.close()
    (place / "ws" / "go").touch()
    assert toka(place, "resume", "@last", "-q").returncode == 0


@pytest.mark.slow
def test_a_base_url_that_nobody_would_use_is_a_usage_error(place: Path) -> None:
    spec(place, THINKER)
    arguments = ["run", "agents", "--model", "anthropic:x", "--base-url", "http://127.0.0.1:9"]
    result = toka(place, *arguments, ANTHROPIC_API_KEY="k")
    assert result.returncode == 2
    assert "would be ignored" in result.stderr
    assert not (place / "state").exists()


@pytest.mark.slow
def test_wrong_models_are_told_in_the_same_pass_as_all_else(place: Path) -> None:
    spec(place, THINKER + "model: gpt-4\n")
    spec(place, HELLO + "dependencies: {required: {nobody: {}}}\n", "two")
    result = toka(place, "run", "agents")
    assert result.returncode == 3
    assert "TK6001" in result.stderr and "TK3001" in result.stderr


def _running(marker: str) -> bool:
    found = [p for p in Path("/proc").iterdir() if p.name.isdigit()]
    for entry in found:
        try:
            words = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode("utf-8", "replace").strip()
        except OSError:
            continue
        if words == marker:
            return True
    return False


@pytest.mark.slow
def test_resume_follows_a_run_that_another_process_executes(place: Path) -> None:
    spec(place, SLOW)
    process = start(place, "run", "agents", "--workspace", "ws")
    until((place / "ws" / "started").exists, "the second task")
    follower = start(place, "resume", "@last", "--json")
    assert follower.stdout is not None
    assert json.loads(follower.stdout.readline())["executor"] == process.pid
    (place / "ws" / "go").touch()
    out, _ = follower.communicate(timeout=20)
    process.communicate(timeout=20)
    assert (process.returncode, follower.returncode) == (0, 0)
    assert lines(out)[-1]["state"] == "COMPLETED"
    assert (place / "ws" / "ledger.txt").read_text().split() == ["first", "wait", "last"]


@pytest.mark.slow
def test_resume_of_a_finished_run_tells_its_end_again(place: Path) -> None:
    spec(place, HELLO)
    toka(place, "run", "agents", "--workspace", "ws")
    before = (place / "ws" / "greeting.txt").stat().st_mtime_ns
    result = toka(place, "resume", "@last", "--json")
    assert result.returncode == 0
    assert [line["type"] for line in lines(result.stdout)] == ["launch", "done"]
    assert (place / "ws" / "greeting.txt").stat().st_mtime_ns == before


@pytest.mark.slow
def test_two_runs_share_one_state_directory(place: Path) -> None:
    spec(place, HELLO)
    both = [start(place, "run", "agents", "--workspace", "ws", "--json") for _ in range(2)]
    ends = [lines(p.communicate(timeout=30)[0])[-1] for p in both]
    assert [e["state"] for e in ends] == ["COMPLETED", "COMPLETED"]
    assert ends[0]["run_id"] != ends[1]["run_id"]


@pytest.mark.slow
def test_when_the_reader_goes_away_the_run_stays_resumable(place: Path) -> None:
    spec(place, SLOW)
    process = start(place, "run", "agents", "--workspace", "ws", "--json")
    assert process.stdout is not None
    process.stdout.readline()
    process.stdout.close()
    (place / "ws" / "go").touch()
    assert process.wait(timeout=20) == 141
    if process.stderr:
        process.stderr.close()
    assert toka(place, "resume", "@last", "-q").returncode == 0
    assert (place / "ws" / "ledger.txt").read_text().split() == ["first", "wait", "last"]


@pytest.mark.slow
def test_a_scripted_model_is_called_and_labelled(place: Path) -> None:
    spec(place, THINKER)
    (place / "script.yaml").write_text(
        "script: 1\nagents: {thinker: {think: [{report: {status: succeeded, summary: thought}}]}}\n"
    )
    result = toka(place, "run", "agents", "--model", "scripted:script.yaml")
    assert result.returncode == 0, result.stderr
    assert "SCRIPTED" in result.stderr


@pytest.mark.slow
def test_an_agent_without_a_model_is_skipped_and_the_others_run(place: Path) -> None:
    spec(place, HELLO)
    spec(place, THINKER, "two")
    result = toka(place, "run", "agents", "--workspace", "ws", "--json", OLLAMA_HOST="127.0.0.1:9")
    done = lines(result.stdout)[-1]
    assert result.returncode == 0
    assert done["agents"]["thinker"]["state"] == "SKIPPED"
    assert "no model" in done["agents"]["thinker"]["error"]
    assert done["agents"]["hello"]["state"] == "COMPLETED"


def _closed_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


BAD = [
    pytest.param(["run", "nowhere.yaml"], 3, "no such file", id="missing file"),
    pytest.param(["run", "empty"], 3, "no *.yaml", id="empty directory"),
    pytest.param(["run", "agents", "--workspace", "nowhere"], 2, "not a directory", id="missing workspace"),
    pytest.param(["run", "agents", "--enable", "more"], 2, "no spec has a conditional group", id="unknown group"),
    pytest.param(["run", "agents", "--model", "foo:bar"], 2, "no provider 'foo'", id="unknown provider"),
    pytest.param(["run", "agents", "--model", "scripted:nowhere"], 2, "cannot read the script", id="no script"),
    pytest.param(["run", "agents"], 4, "OPENAI_API_KEY: not set", id="no model at all"),
    pytest.param(["run", "agents", "--model", "server:x", "--base-url", "PORT"], 4, "refused", id="dead server"),
    pytest.param(["run"], 2, "Missing argument", id="no path"),
    pytest.param(["rnu"], 2, "Did you mean run", id="misspelled command"),
    pytest.param(["resume", "nothing"], 9, "no runs", id="unknown run"),
]


@pytest.mark.slow
@pytest.mark.parametrize(("arguments", "code", "text"), BAD)
def test_bad_input_is_told_and_starts_nothing(place: Path, arguments: list[str], code: int, text: str) -> None:
    spec(place, THINKER)
    (place / "empty").mkdir()
    told = [a.replace("PORT", f"http://127.0.0.1:{_closed_port()}/v1") for a in arguments]
    result = (
        toka(place, *told)
        if told[0] in ("run", "resume")
        else subprocess.run([*TOKA, *told], capture_output=True, text=True, env=environment())
    )
    assert result.returncode == code, result.stderr
    assert text in result.stderr
    assert "Traceback" not in result.stderr
    assert result.stdout == ""
    listed = toka(place, "ps", "--json")
    assert listed.stdout.strip() in ("", "[]")


@pytest.mark.slow
def test_an_unwritable_state_directory_is_told(place: Path) -> None:
    spec(place, HELLO)
    (place / "file").touch()
    result = subprocess.run(
        [*TOKA, "run", "agents", "--state", "file/below"], cwd=place, env=environment(), capture_output=True, text=True
    )
    assert result.returncode == 4
    assert "--state" in result.stderr


@pytest.mark.slow
def test_without_bubblewrap_nothing_starts(place: Path) -> None:
    spec(place, HELLO)
    code = (
        "import os\n"
        "from toka.cli.main import main\n"
        "real = os.access\n"
        "os.access = lambda path, mode, **more: 'bwrap' not in str(path) and real(path, mode, **more)\n"
        "main(['run', 'agents', '--workspace', 'ws', '--state', 'state'])\n"
    )
    fake = place / "bin"
    fake.mkdir()
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=place, env=environment(PATH=str(fake)), capture_output=True, text=True
    )
    assert result.returncode == 4, result.stderr
    assert "apt" in result.stderr
    assert not (place / "ws" / "greeting.txt").exists()


SCRIPT = 'script: 1\ndefault: [{report: {status: succeeded, summary: "done"}, repeat: true}]\n'
SCRIPTED = "model: scripted:words.yaml\n"


def scripted_team(place: Path) -> None:
    (place / "agents/thinker.yaml").write_text(THINKER + SCRIPTED + "success_criteria: {a: [one, two]}\n")
    (place / "agents/slow.yaml").write_text(SLOW)
    (place / "words.yaml").write_text(SCRIPT)


def test_a_relative_script_of_a_spec_means_the_same_after_a_resume_from_elsewhere(place: Path) -> None:
    scripted_team(place)
    line = command(place, "run", "agents", "--workspace", "ws", "--json")
    with subprocess.Popen(line, cwd=place, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE) as run:
        wait_for(place / "ws/started")
        run.kill()
    (place / "ws/go").touch()
    (place / "elsewhere").mkdir()
    resumed = subprocess.run(
        command(place, "resume", "@last", "--json"), cwd=place / "elsewhere", env=environment(), capture_output=True,
        text=True, timeout=60,
    )  # fmt: skip
    assert resumed.returncode == 0, resumed.stderr
    assert json.loads(resumed.stdout.splitlines()[-1])["agents"]["thinker"]["state"] == "COMPLETED"
    for view in ("events", "logs", "show"):
        told = toka(place, view, "@last")
        assert "SCRIPTED" in told.stdout + told.stderr, view
    verified = toka(place, "audit", "verify", "@last")
    assert verified.returncode == 0 and "SCRIPTED" in verified.stderr
    plan = toka_plain(place, "plan", "agents", "--json")
    assert json.loads(plan.stdout)["agents"]["thinker"]["objectives"] == {"checked": 0, "total": 2}


def test_specs_stay_protected_after_a_resume_from_elsewhere(place: Path) -> None:
    """Their paths were relative to where the run was started."""
    (place / "ws/specs").mkdir()
    grant = "security: {capabilities_required: [filesystem-write]}\n"
    tail = "sh -c 'while [ ! -e go ]; do sleep 0.05; done; echo x >> specs/slow.yaml && touch changed; true'"
    spec = f"metadata: {{name: slow}}\nspec: {{name: Slow}}\n{grant}tasks:\n"
    spec += "  - {run: touch started, effect: idempotent}\n" + f'  - {{run: "{tail}", effect: idempotent}}\n'
    (place / "ws/specs/slow.yaml").write_text(spec)
    line = command(place, "run", "specs", "--workspace", ".")
    with subprocess.Popen(
        line, cwd=place / "ws", env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as run:
        wait_for(place / "ws/started")
        run.kill()
    (place / "ws/go").touch()
    assert toka(place, "resume", "@last").returncode == 0
    assert (place / "ws/specs/slow.yaml").read_text() == spec
    assert not (place / "ws/changed").exists()


def test_a_run_whose_workspace_is_gone_waits_for_it(place: Path) -> None:
    (place / "agents/slow.yaml").write_text(SLOW)
    line = command(place, "run", "agents", "--workspace", "ws")
    with subprocess.Popen(line, cwd=place, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE) as run:
        wait_for(place / "ws/started")
        run.kill()
    (place / "ws").rename(place / "moved")
    refused = toka(place, "resume", "@last")
    assert refused.returncode == 2 and "is gone" in refused.stderr
    (place / "moved").rename(place / "ws")
    (place / "ws/go").touch()
    assert toka(place, "resume", "@last").returncode == 0


def toka_plain(place: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """A command that knows no state directory."""
    return subprocess.run([*TOKA, *arguments], cwd=place, env=environment(), capture_output=True, text=True, timeout=60)


def wait_for(path: Path) -> None:
    for _ in range(600):
        if path.exists():
            return
        time.sleep(0.05)
    raise AssertionError(f"{path} never came")
