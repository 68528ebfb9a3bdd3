"""Keys stay inside: a model server that says back what it was sent brings them into no record and on no screen."""

from __future__ import annotations

import base64
import http.server
import json
import os
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from cli.records import COMMAND, Toka

KEY = "planted/+key=0123456789abcdef"
"""Of no well-known shape: only who knows it can find it."""
FORMS = [
    form
    for text in (KEY, quote(KEY), quote(KEY, safe=""), base64.b64encode(KEY.encode()).decode().rstrip("="))
    for form in (text, text[:20], text[-20:])
] + [base64.b64encode(f"Bearer {KEY}".encode()).decode()[12:40]]
SPEC = """
metadata: {name: thinker}
spec: {name: Thinker, domain: testing}
tasks: [{id: think, description: think about it, retries: 0}]
"""


def told(key: str) -> dict[str, tuple[int, str, bytes]]:
    """Ways to say a key back: status, content type and body of a reply."""
    encoded = base64.b64encode(f"Bearer {key}".encode()).decode()
    long = "x" * 376 + key + "y" * 400  # a cut after 400 characters would go through the key
    return {
        "message": (401, "application/json", json.dumps({"error": {"message": f"no such key: {key}"}}).encode()),
        "encoded": (400, "application/json", json.dumps({"error": {"message": f"{encoded} {quote(key)}"}}).encode()),
        "text": (403, "text/plain", f"denied for {key}".encode()),
        "cut": (400, "text/plain", long.encode()),
        "reply": (200, "application/json", json.dumps({"choices": key}).encode()),
        "media": (200, f"text/{key}", b"hello"),
        "model": (200, "application/json", json.dumps({"model": key, "choices": [{"index": 0, "finish_reason": "stop",
                  "message": {"role": "assistant", "content": "hm"}}], "id": "a", "created": 1,
                  "object": "chat.completion"}).encode()),
    }  # fmt: skip


@pytest.fixture
def echo() -> Iterator[tuple[str, list[tuple[int, str, bytes]], list[str]]]:
    """A server's address, what it will answer, and the keys it was sent."""
    answers: list[tuple[int, str, bytes]] = []
    sent: list[str] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers.get("content-length", 0)))
            sent.append(self.headers.get("authorization", ""))
            status, media, body = answers[0]
            self.send_response(status)
            self.send_header("Content-Type", media)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as served:
        thread = threading.Thread(target=served.serve_forever, args=(0.01,))
        thread.start()
        yield f"http://127.0.0.1:{served.server_port}/v1", answers, sent
        served.shutdown()
        thread.join()


@pytest.mark.slow
@pytest.mark.parametrize(("how", "where"), [*((how, "environment") for how in told("")), ("message", "settings")])
def test_a_key_that_a_server_says_back_is_recorded_and_shown_nowhere(
    tmp_path: Path, echo: tuple[str, list[tuple[int, str, bytes]], list[str]], how: str, where: str
) -> None:
    url, answers, sent = echo
    answers.append(told(KEY)[how])
    (tmp_path / "spec.yaml").write_text(SPEC)
    environment = {"PATH": "/usr/local/bin:/usr/bin:/bin", "HOME": str(tmp_path), "TOKA_TASK_RETRIES": "0"}
    environment["PYTHONPATH"] = os.environ.get("PYTHONPATH", "")
    if where == "environment":
        environment["TOKA_API_KEY"] = KEY
    else:
        (tmp_path / "keys").mkdir()
        (tmp_path / "keys" / "key").write_text(KEY)
        (tmp_path / ".config" / "toka").mkdir(parents=True)
        file = tmp_path / "keys" / "key"
        (tmp_path / ".config" / "toka" / "config.toml").write_text(f'[keys]\nTOKA_API_KEY = "${{file:{file}}}"\n')
    arguments = ["run", "spec.yaml", "--model", "server:m", "--base-url", url, "--state", "state", "--json"]
    done = subprocess.run([*COMMAND, *arguments], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert sent and set(sent) == {f"Bearer {KEY}"}
    shown = [
        subprocess.run([*COMMAND, *look, "--state", "state"], cwd=tmp_path, env=environment, capture_output=True)
        for look in (["show", "@last"], ["logs", "@last"], ["events", "@last"])
    ]
    assert [s.returncode for s in shown] == [0, 0, 0]
    record = b"".join(p.read_bytes() for p in (tmp_path / "state").rglob("*") if p.is_file())
    everything = (done.stdout + done.stderr).encode() + record + b"".join(s.stdout + s.stderr for s in shown)
    assert b"thinker" in record
    if how != "model":
        assert done.returncode == 1, done.stderr
        assert b"[redacted]" in everything or how == "reply"
    assert [form for form in FORMS if form.encode() in everything] == []


def test_a_defect_does_not_print_the_keys_of_the_environment(
    toka: Toka, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def broken(*_: Any) -> None:
        raise RuntimeError(f"sent {KEY} and sk-proj-abcdefghijkl0123456789")

    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setattr("toka.cli.check.check_specs", broken)
    for debug in ("", "1"):
        monkeypatch.setenv("TOKA_DEBUG", debug)
        done = toka("validate", tmp_path)
        assert done.code == 70
        assert "sent [redacted] and [redacted]" in done.err
        assert KEY not in done.err
        assert ("Traceback" in done.err) == bool(debug)
        assert done.err.endswith("Nothing recorded is lost\n")
