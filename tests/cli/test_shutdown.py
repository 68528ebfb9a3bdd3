"""The end of a run by a signal, with everything in it that does not want to end: real command, real processes."""

from __future__ import annotations

import json
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cli.test_run import TOKA, environment, lines, spec, until
from sandbox.conftest import living
from sandbox.test_reduced import own
from toka.sandbox.standstill import stop

WITHIN_S = 12.0
"""The grace, and what comes after it."""

THINKER = """
metadata: {name: thinker}
spec: {name: Thinker, domain: testing}
tasks: [{id: think, description: think about it}]
"""
STUBBORN = """
metadata: {name: stubborn}
spec: {name: Stubborn, domain: testing}
tasks:
  - id: hold
    description: hold
    effect: idempotent
    run: |
      [ -e go ] && exit 0
      trap '' TERM INT HUP
      (setsid sh -c 'trap "" TERM INT HUP; sleep MARKER; true' &)
      nohup sleep MARKER &
      touch started
      sleep MARKER; sleep MARKER
security: {capabilities_required: [filesystem-write]}
"""
POLITE = """
metadata: {name: polite}
spec: {name: Polite, domain: testing}
tasks:
  - id: hold
    description: hold
    effect: idempotent
    run: |
      [ -e go ] && exit 0
      trap 'echo asked >> left; exit 0' TERM
      touch waiting
      while :; do sleep 0.05; done
security: {capabilities_required: [filesystem-write]}
"""


class Silent:
    """A model server that takes connections and never says a word.

    Attributes:
        asked: set once somebody has sent something.
    """

    def __init__(self) -> None:
        self._server = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._server.getsockname()[1]}/v1"
        self.asked = threading.Event()
        self._taken: list[socket.socket] = []
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            try:
                taken, _ = self._server.accept()
            except OSError:
                return
            self._taken.append(taken)
            threading.Thread(target=self._listen, args=(taken,), daemon=True).start()

    def _listen(self, taken: socket.socket) -> None:
        try:
            if taken.recv(65536):
                self.asked.set()
        except OSError:
            pass

    def close(self) -> None:
        self._server.shutdown(socket.SHUT_RDWR)
        for each in (*self._taken, self._server):
            each.close()


@pytest.fixture
def silent() -> Iterator[Silent]:
    server = Silent()
    yield server
    server.close()


@pytest.fixture
def place(tmp_path: Path) -> Path:
    (tmp_path / "ws").mkdir()
    (tmp_path / "agents").mkdir()
    return tmp_path


def start(place: Path, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*TOKA, *arguments, "--state", str(place / "state"), "--json"],
        cwd=place, env=environment(OPENAI_API_KEY="sk-test"), text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True,
    )  # fmt: skip


def descendants(pid: int) -> set[int]:
    found, todo = set[int](), [pid]
    while todo:
        for file in Path(f"/proc/{todo.pop()}/task").glob("*/children"):
            fresh = {int(word) for word in file.read_text().split()} - found
            found |= fresh
            todo += fresh
    return found


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_whatever_does_not_want_to_end_has_ended_in_time(place: Path, silent: Silent, number: int, code: int) -> None:
    """A model that never answers, a tree that ignores every signal it can, a command that tidies up when asked to."""
    marker = f"983{time.time_ns() % 10**12}"
    for name, text in (("thinker", THINKER), ("stubborn", STUBBORN.replace("MARKER", marker)), ("polite", POLITE)):
        spec(place, text, name)
    ws = place / "ws"
    model = ("--model", "openai:test", "--base-url", silent.url)
    process = start(place, "run", "agents", "--workspace", "ws", *model)
    until(lambda: (ws / "started").exists() and (ws / "waiting").exists(), "the commands")
    until(silent.asked.is_set, "the model call")
    below = descendants(process.pid)
    assert len(below) > 6
    began = time.monotonic()
    process.send_signal(number)
    out, errors = process.communicate(timeout=30)
    took = time.monotonic() - began
    assert (process.returncode, took < WITHIN_S) == (code, True), (took, errors)
    assert living(marker) == []
    assert not [pid for pid in below if Path(f"/proc/{pid}").exists() and not is_zombie(pid)]
    assert (ws / "left").read_text() == "asked\n", "it was asked to end before it was killed"
    assert lines(out)[-1]["state"] == "INTERRUPTED"
    assert not list((place / "state/sandboxes").iterdir())
    (ws / "go").touch()
    run = lines(out)[0]["run_id"]
    again = start(place, "resume", run)
    until(lambda: _tasks(place, run, "SUCCEEDED") >= 2, "the commands again")
    again.send_signal(signal.SIGTERM)
    time.sleep(0.2)
    again.send_signal(signal.SIGTERM)
    began = time.monotonic()
    again.communicate(timeout=10)
    assert (again.returncode, time.monotonic() - began < 2) == (143, True), "the second signal ends it at once"


def is_zombie(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "ZX"
    except OSError:
        return True


def _tasks(place: Path, run: str, state: str) -> int:
    argv = [*TOKA, "show", run, "--json", "--state", str(place / "state")]
    shown = subprocess.run(argv, cwd=place, env=environment(), capture_output=True, text=True, check=True).stdout
    return shown.count(f'"{state}"')


@pytest.fixture
def open_place() -> Iterator[Path]:
    """Where the agent's user can get to it."""
    place = Path(tempfile.mkdtemp(prefix="toka-held-"))
    place.chmod(0o755)
    for name in ("agents", "ws/out"):
        (place / name).mkdir(parents=True)
    own(place / "ws")
    yield place
    shutil.rmtree(place, ignore_errors=True)


@pytest.mark.slow
@pytest.mark.parametrize("level", ["full", "reduced"])
def test_a_run_that_was_killed_while_it_was_held_goes_on_and_nothing_is_left(open_place: Path, level: str) -> None:
    place, marker = open_place, f"982{time.time_ns() % 10**12}"
    text = STUBBORN.replace("MARKER", marker).replace("-e go", "-e out/go").replace("started", "out/started")
    spec(place, text.replace("[filesystem-write]", "[{filesystem-write: {paths: [out]}}]"), "stubborn")
    state = ("--state", str(place / "state"))
    shared: dict[str, Any] = {"cwd": place, "env": environment(TOKA_SANDBOX=level), "text": True}
    argv = [*TOKA, "run", "agents", "--workspace", "ws", *state]
    process = subprocess.Popen(argv, **shared, stderr=subprocess.PIPE, start_new_session=True)
    until((place / "ws/out/started").exists, "the command")
    (note,) = (place / "state/sandboxes").iterdir()
    assert stop(json.loads(note.read_text())["root"][0])
    process.kill()
    process.communicate()
    (place / "ws/out/go").touch()
    done = subprocess.run([*TOKA, "resume", "@last", *state], **shared, capture_output=True, timeout=60)
    assert done.returncode == 0, done.stderr
    until(lambda: not living(marker), "the end of what was left")
    assert not list((place / "state/sandboxes").iterdir())
