from __future__ import annotations

import http.server
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cli.records import Toka
from toka.sandbox.doctor import Check


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


@pytest.mark.usefixtures("no_local_servers")
def test_doctor_passes_where_agents_can_run_even_without_a_model(toka: Toka, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("toka.cli.probes.probe", lambda: checks(ok=True))
    done = toka("doctor")
    assert done.code == 0
    assert "agents can run here" in done.err
    assert "without  model" in done.out
    assert [layer["layer"] for layer in toka("doctor", "--json").json["layers"]] == ["bwrap", "state", "git", "model"]


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


@pytest.mark.slow
@pytest.mark.usefixtures("no_local_servers")
def test_doctor_for_real(toka: Toka) -> None:
    layers = toka("doctor", "--json").json["layers"]
    assert {"system", "bwrap", "python", "state", "git", "model"} <= {f["layer"] for f in layers}


def test_settings_are_shown_with_their_origins(toka: Toka, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOKA_MODEL", "openai:x")
    monkeypatch.setenv("TOKA_TSK_RETRIES", "1")
    done = toka("config", "show", "--state", "/elsewhere")
    rows = {line.split()[0]: line.split()[1:] for line in done.lines}
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
