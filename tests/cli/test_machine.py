from __future__ import annotations

import http.server
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cli.records import Toka
from toka.sandbox import selftest
from toka.sandbox.doctor import Check
from toka.sandbox.reduced import LAYERS as REDUCED_TESTED
from toka.sandbox.selftest import LAYERS as SELF_TESTED


@pytest.fixture
def no_local_servers(monkeypatch: pytest.MonkeyPatch) -> None:
    async def none(base_url: str, key: str | None) -> str:
        return "connection refused"

    monkeypatch.setattr("toka.llm.resolve.list_models", none)


@pytest.fixture
def server() -> Iterator[str]:
    """A model server that lists two models."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = json.dumps({"data": [{"id": "tiny"}, {"id": "small"}]}).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as served:
        thread = threading.Thread(target=served.serve_forever, args=(0.01,))
        thread.start()
        yield f"http://127.0.0.1:{served.server_port}/v1"
        served.shutdown()
        thread.join()


@pytest.mark.usefixtures("no_local_servers")
def test_no_model_says_what_was_tried_and_exits_4(toka: Toka) -> None:
    done = toka("models")
    assert done.code == 4
    assert done.out == ""
    assert "  tried: ANTHROPIC_API_KEY: not set" in done.err
    assert done.err.count("tried: ") == 4
    answer = toka("models", "--json").json
    assert answer["ready"] is False
    assert len(answer["tried"]) == 4


def test_a_key_is_enough_and_is_never_shown(toka: Toka, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ANTHROPIC_API_KEY", "sk-ant-1234567890abcdef")
    done = toka("models")
    assert done.code == 0
    assert done.lines[0].startswith("model   anthropic:")
    assert "1234567890" not in done.out + done.err


def test_a_key_may_come_from_the_settings(toka: Toka, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_KEY", "sk-ant-1234567890abcdef")
    folder = tmp_path / ".config" / "toka"
    folder.mkdir(parents=True)
    (folder / "config.toml").write_text('[keys]\nANTHROPIC_API_KEY = "${env:MY_KEY}"\n')
    assert toka("models").lines[0].startswith("model   anthropic:")
    shown = toka("config", "show").out
    assert "${env:MY_KEY}" in shown
    assert "1234567890" not in shown
    monkeypatch.delenv("MY_KEY")
    done = toka("models")
    assert done.code == 4
    assert "${env:MY_KEY} is not set" in done.err


@pytest.mark.slow
def test_a_server_is_asked_for_its_models(toka: Toka, server: str) -> None:
    assert toka("models", "--base-url", server).lines[0] == "model   server:tiny"
    assert toka("models", "--base-url", server, "--model", "server:small", "--json").json["note"] == ""
    done = toka("models", "--base-url", server, "--model", "server:huge")
    assert done.code == 0
    assert "does not list huge; it lists tiny, small" in done.out


def test_a_script_is_said_to_be_one(toka: Toka, tmp_path: Path) -> None:
    script = tmp_path / "s.yaml"
    script.write_text("script: 1\n")
    assert "SCRIPTED: the file answers, no model" in toka("models", "--model", f"scripted:{script}").out
    assert toka("models", "--model", "scripted:none.yaml").code == 4


def test_a_wrong_model_string_is_a_usage_error(toka: Toka) -> None:
    done = toka("models", "--model", "opnai:x")
    assert done.code == 2
    assert "did you mean" in done.err


@pytest.mark.parametrize("model", ["anthropic:x", "scripted:s.yaml"])
def test_a_base_url_that_would_be_ignored_is_a_usage_error(
    toka: Toka, monkeypatch: pytest.MonkeyPatch, model: str
) -> None:
    monkeypatch.setenv("ANTHROPIC_API_KEY", "k")
    done = toka("models", "--model", model, "--base-url", "http://127.0.0.1:9/v1")
    assert done.code == 2
    assert "--base-url http://127.0.0.1:9/v1 would be ignored" in done.err
    monkeypatch.setenv("TOKA_BASE_URL", "http://127.0.0.1:9/v1")
    assert "ignored" not in toka("models", "--model", model).err, "a default is for whom it serves"


@pytest.mark.slow
def test_a_base_url_is_where_ollama_is_asked(toka: Toka, server: str) -> None:
    assert toka("models", "--model", "ollama:tiny", "--base-url", server).lines[-1].split() == ["server", server]


def checks(*, ok: bool) -> list[Check]:
    fix = "" if ok else "apt-get install bubblewrap"
    return [Check("bwrap", "bwrap 0.6", "bwrap 0.8" if ok else "not installed", ok, "makes mounts", fix)]


LAYERS = [
    "system", "bwrap", "namespaces", "python", "landlock", "seccomp", "user", "id mapping", "cgroup memory",
    "cgroup cpu", "cgroup pids", "self-test", "egress", "state", "git", "model",
]  # fmt: skip


@pytest.mark.slow
@pytest.mark.usefixtures("no_local_servers")
def test_doctor_passes_where_agents_can_run_even_without_a_model(toka: Toka) -> None:
    """With the real sandbox, which tests itself and asks its proxy."""
    done = toka("doctor")
    assert done.code == 0, done.out
    assert "level full: agents can run here" in done.err
    assert "without  model" in done.out
    assert done.lines[0].split() == ["LAYER", "WANTED", "GOT", "WHY"]
    found = toka("doctor", "--json").json
    assert (found["ok"], found["level"], found["asked"]) == (True, "full", "full")
    rows = {row["layer"]: row for row in found["layers"]}
    assert list(rows) == LAYERS
    assert [name for name, row in rows.items() if row["needed"] and not row["ok"]] == []
    assert all(row["why"] and row["wanted"] and bool(row["fix"]) != row["ok"] for row in rows.values())
    assert rows["self-test"]["got"].startswith("passed in ")
    assert rows["self-test"]["got"].endswith(", ".join(SELF_TESTED))
    assert rows["egress"]["got"] == "it answers, and refuses what was not granted"


@pytest.mark.slow
@pytest.mark.usefixtures("no_local_servers")
def test_doctor_tries_the_level_that_is_asked_for(toka: Toka, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOKA_SANDBOX", "reduced")
    found = toka("doctor", "--json").json
    rows = {row["layer"]: row for row in found["layers"]}
    assert (found["ok"], found["asked"]) == (True, "reduced")
    assert rows["self-test"]["got"].endswith(", ".join(REDUCED_TESTED))
    assert not rows["bwrap"]["needed"]
    assert rows["landlock"]["needed"]


@pytest.mark.slow
@pytest.mark.usefixtures("no_local_servers")
def test_doctor_finds_a_hole_in_the_sandbox_and_a_proxy_that_lets_all_pass(
    toka: Toka, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(selftest, "ABSENT", ("/usr",))
    done = toka("doctor")
    assert done.code == 4
    assert "MISSING  self-test" in done.out
    assert "the sandbox does not hold: " in done.out
    assert "missing: self-test, egress" in done.err
    monkeypatch.undo()
    monkeypatch.setattr("toka.sandbox.doctor.ASK_PROXY", "print('HTTP/1.1 200 OK')")
    found = toka("doctor", "--json").json
    rows = {row["layer"]: row for row in found["layers"]}
    assert (found["ok"], rows["egress"]["got"]) == (False, "it says: HTTP/1.1 200 OK")


@pytest.mark.usefixtures("no_local_servers")
def test_doctor_exits_4_and_says_how_to_mend(toka: Toka, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("toka.cli.probes.probe", lambda: checks(ok=False))
    done = toka("doctor")
    assert done.code == 4
    assert "MISSING  bwrap" in done.out
    assert "fix: apt-get install bubblewrap" in done.out
    assert "missing: bwrap" in done.err
    assert toka("doctor", "--json").json["ok"] is False


@pytest.mark.usefixtures("no_local_servers")
def test_doctor_refuses_a_state_directory_on_another_machine(
    toka: Toka, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("toka.journal.place.file_system", lambda _: 0x6969)
    done = toka("doctor", "--json", "--state", tmp_path / "state")
    (layer,) = [f for f in done.json["layers"] if f["layer"] == "state"]
    assert done.code == 4 and layer["ok"] is False and layer["needed"] is True
    assert "lies on NFS, a file system of another machine" in layer["got"]
    assert layer["fix"] == "choose a directory on a disk of this machine: --state DIR or TOKA_STATE"
    (tmp_path / "one.yaml").write_text("metadata: {name: one}\nspec: {name: One}\ntasks: [{run: 'true'}]\n")
    refused = toka("run", tmp_path / "one.yaml", "--state", tmp_path / "state")
    assert refused.code == 4 and "lies on NFS" in refused.err
    assert not (tmp_path / "state").exists()


def test_doctor_finds_a_state_directory_that_cannot_be_used(
    toka: Toka, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("toka.cli.probes.probe", lambda: checks(ok=True))
    (tmp_path / "file").write_text("")
    layers = {f["layer"]: f for f in toka("doctor", "--json", "--state", tmp_path / "file").json["layers"]}
    assert layers["state"]["ok"] is False
    assert "--state DIR" in layers["state"]["fix"]
    new = tmp_path / "a" / "b"
    layers = {f["layer"]: f for f in toka("doctor", "--json", "--state", new).json["layers"]}
    assert layers["state"]["got"] == f"{new}, to be made"
    assert not new.exists()


def test_settings_are_shown_with_their_origins(toka: Toka, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOKA_MODEL", "openai:x")
    monkeypatch.setenv("TOKA_TSK_RETRIES", "1")
    done = toka("config", "show", "--state", "/elsewhere")
    *table, empty, files = done.lines
    assert (empty, files.startswith("Read from toka.toml of this directory, the environment, and ")) == ("", True)
    rows = {line.split()[0]: line.split()[1:] for line in table}
    assert rows["model"] == ["openai:x", "TOKA_MODEL"]
    assert rows["state"] == ["/elsewhere", "flag"]
    assert rows["execution.task_retries"] == ["2", "default"]
    assert "TOKA_TASK_RETRIES" in done.err
    shown = toka("config", "show", "--json").json
    assert {"key": "model", "value": "openai:x", "origin": "TOKA_MODEL"} in shown["settings"]
    assert shown["findings"][0]["code"] == "TK2010"


def test_wrong_settings_are_all_reported(toka: Toka, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOKA_TASK_RETRIES", "many")
    monkeypatch.setenv("TOKA_GRACE", "7 fortnights")
    done = toka("config", "show")
    assert done.code == 3
    assert done.err.count("TK2011") >= 2
