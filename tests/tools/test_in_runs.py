"""Git, HTTP, Python and somebody else's tool in whole runs, with a script in place of the model."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from cli.records import COMMAND
from harness import MODEL, Watched, call, succeed
from harness import agent as spec
from toka import errors as package
from toka.app import Parts, open_runtime, read_settings
from toka.config.settings import Settings
from toka.errors import MissingError, UsageError
from toka.llm.model import ModelRequest
from toka.llm.scripted import Answer, ScriptedModel
from toka.orchestration.engine import OrchestrationEngine
from toka.orchestration.preflight import preflight
from toka.orchestration.request import RunRequest
from toka.orchestration.result import RunResult
from tools.test_git import plain
from tools.test_plugins import COUNTER, install
from tools.web import HOST, Web, certificate, reply

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("bwrap") is None, reason="no bwrap: agents cannot run here"),
]
SECRET = "ghx0123456789abcdefABCDEF"
CONTROL = "the-search-works-0123456789"
SEARCH = f"""
import os
needles = {{"control": {CONTROL[::-1]!r}[::-1].encode(), "secret": {SECRET[::-1]!r}[::-1].encode()}}
found = set()
def look(where, text):
    found.update((what, where) for what, needle in needles.items() if needle in text)
for top in ("/proc", "/workspace", "/tmp", "/etc", "/run", "/var", "/home", "/root", "/toka"):
    for folder, _, names in os.walk(top):
        for name in set(names) - {{"kmsg", "kcore", "kpagecount", "kpageflags", "kpagecgroup"}}:
            try:
                descriptor = os.open(os.path.join(folder, name), os.O_RDONLY | os.O_NONBLOCK)
                look(top, os.read(descriptor, 1 << 20))
                os.close(descriptor)
            except OSError:
                continue
for value in os.environb.values():
    look("environment", value)
print(sorted(found))
"""
"""Looks for the key everywhere inside; the words stand backwards, as the program's text is in /proc as well."""


class Place:
    """A folder with settings, a workspace and a state directory, in which runs happen in this process."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.work = folder / "work"
        self.work.mkdir()
        self.personal = folder / "config/toka/config.toml"
        self.personal.parent.mkdir(parents=True)
        self.environment = {"XDG_CONFIG_HOME": str(folder / "config"), "HOME": str(folder)}
        self.requests: list[ModelRequest] = []

    def settings(self) -> Settings:
        return read_settings({"state": str(self.folder / "state")}, cwd=self.folder, environment=self.environment)

    async def run(
        self, script: Sequence[Mapping[str, Any]], grant: Sequence[Any], tasks: Sequence[Any] = ("Do it.",)
    ) -> RunResult:
        """One agent's run; the script ends with a report of success."""
        answers: Callable[[ModelRequest], Answer] | Mapping[str, Any] = {"default": [*script, succeed()]}
        model = Watched(ScriptedModel(answers, name=MODEL))
        self.requests = model.requests
        async with open_runtime(self.settings(), Parts(models={MODEL: model}), environment=self.environment) as runtime:
            request = RunRequest((spec(tasks=tasks, grant=list(grant)),), self.work, model=MODEL)
            await preflight(runtime, request)
            return await OrchestrationEngine(runtime).run(request)

    @property
    def offered(self) -> list[str]:
        """The tools of the last call."""
        return [tool.name for tool in self.requests[-1].tools]

    @property
    def answers(self) -> list[str]:
        """What tools answered, in order."""
        return [m.text for m in self.requests[-1].messages if m.role == "tool"]

    @property
    def recorded(self) -> bytes:
        """All bytes of the state directory."""
        return b"".join(p.read_bytes() for p in (self.folder / "state").rglob("*") if p.is_file())


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


@pytest.fixture
async def web(tmp_path: Path) -> AsyncIterator[Web]:
    web = Web(certificate(tmp_path / "tls"), [reply(b"hello", content_type="text/plain")])
    await web.start()
    assert web.server is not None
    async with web.server:
        yield web


async def test_git_and_python_in_a_run(place: Place) -> None:
    plain(place.work, "init", "--quiet", "--initial-branch=agents/one")
    (place.work / "a.txt").write_text("one\n")
    plain(place.work, "add", ".")
    plain(place.work, "commit", "--quiet", "--message=first")
    hook = place.work / ".git/hooks/pre-commit"
    hook.write_text("#!/bin/sh\ntouch /workspace/owned\n")
    hook.chmod(0o755)
    result = await place.run(
        [
            call("python", code="open('b.txt', 'w').write('two\\n'); print('written')"),
            call("git", command="status"),
            call("git", command="commit", paths=["b.txt"], message="Add b"),
            call("git", command="log", limit=1),
            call("git", command="commit", paths=["../x"], message="no"),
        ],
        ["filesystem-write", "git-access", "python-execution"],
    )
    assert result.exit_code == 0
    assert {"git", "python"} <= set(place.offered)
    assert "http_request" not in place.offered
    written, status, commit, log, refused = place.answers
    assert "written" in written
    assert "?? b.txt" in status
    assert "Add b" in log
    assert "leaves the workspace" in refused
    assert "b.txt" in commit or "Add b" in commit
    assert plain(place.work, "log", "-1", "--format=%s", "agents/one") == "Add b"
    assert plain(place.work, "show", "--name-only", "--format=", "HEAD") == "b.txt"
    assert not (place.work / "owned").exists(), "no hook runs"


async def test_what_is_not_granted_is_not_offered_and_is_denied(place: Place) -> None:
    calls = [
        call("python", code="print(1)"),
        call("git", command="status"),
        call("http_request", url="https://example.org/"),
    ]
    (place.work / "a.txt").touch()
    result = await place.run(calls, [{"filesystem-read": {"paths": ["a.txt"]}}])
    assert result.exit_code == 0
    assert not {"git", "python", "http_request"} & set(place.offered)
    for answer, missing in zip(place.answers, ("command-execution", "git-access", "network-access"), strict=True):
        assert "denied" in answer
        assert f"no {missing}" in answer


# --- a key of the operator's


def keyed(place: Place, web: Web, monkeypatch: pytest.MonkeyPatch, value: str = "${env:GITHUB_KEY}") -> None:
    """Settings with a key for HOST, and a proxy that finds HOST on this machine."""
    place.personal.write_text(f"[credentials.\"{HOST}\"]\nvalue = '{value}'\nport = {web.port}\n")
    place.environment["GITHUB_KEY"] = SECRET
    web.around(monkeypatch)
    (place.work / "note.txt").write_text(CONTROL)


@pytest.mark.parametrize("kept", ["environment", "file"])
async def test_a_key_of_the_settings_reaches_the_host_and_is_nowhere_inside(
    place: Place, web: Web, monkeypatch: pytest.MonkeyPatch, kept: str
) -> None:
    (place.folder / "key").write_text(f"{SECRET}\n")
    keyed(place, web, monkeypatch, f"${{file:{place.folder}/key}}" if kept == "file" else "${env:GITHUB_KEY}")
    monkeypatch.setenv("GITHUB_KEY", SECRET)  # the process's own environment holds it as well
    web.replies = [reply(f"you are {SECRET}".encode(), content_type="text/plain")]
    result = await place.run(
        [
            call("http_request", url=f"https://{HOST}:{web.port}/user"),
            call("python", code=SEARCH),
            call("run_command", command="env"),
        ],
        [
            "filesystem-read",
            {"network-access": {"hosts": [HOST], "ports": [str(web.port)]}},
            {"command-execution": {"programs": ["env", "python3"]}},
        ],
    )
    assert result.exit_code == 0
    ((head, _),) = web.seen
    assert f"authorization: bearer {SECRET.lower()}" in head.lower()
    replied, search, environment = place.answers
    assert "HTTP 200" in replied
    assert f"you are {'*' * len(SECRET)}" in replied
    assert "[('control', '/workspace')]" in search
    assert "HTTPS_PROXY=" in environment
    everything = json.dumps([[m.text for m in r.messages] for r in place.requests])
    assert CONTROL not in everything
    assert SECRET not in everything + environment
    assert SECRET.encode() not in place.recorded
    assert SECRET not in str(place.settings().shown())
    assert SECRET not in repr(place.settings())


PLAIN = f"""
import os, urllib.request
proxy = urllib.request.ProxyHandler({{"http": os.environ["HTTPS_PROXY"]}})
try:
    print(urllib.request.build_opener(proxy).open("http://{HOST}/user").read())
except Exception as error:
    print(error)
"""


@pytest.mark.parametrize("granted", [True, False])
async def test_a_key_is_only_for_those_who_may_reach_its_host(
    place: Place, web: Web, monkeypatch: pytest.MonkeyPatch, *, granted: bool
) -> None:
    keyed(place, web, monkeypatch)
    host = HOST if granted else "other.example.org"
    await place.run(
        [call("python", code=PLAIN)],
        [{"network-access": {"hosts": [host], "ports": [str(web.port)]}}, "python-execution"],
    )
    (answer,) = place.answers
    assert ("hello" in answer) is granted
    assert len(web.seen) == granted
    assert ("405" in answer) is not granted


async def test_a_key_that_is_not_there_or_cannot_be_one_ends_the_command(
    place: Place, web: Web, monkeypatch: pytest.MonkeyPatch
) -> None:
    keyed(place, web, monkeypatch)
    for value, error, says in (("", MissingError, "GITHUB_KEY} is not set"), ("a\nbcdefghi", UsageError, "printable")):
        place.environment["GITHUB_KEY"] = value
        with pytest.raises(error, match=says) as refused:
            await place.run([], [])
        assert "bcdefghi" not in f"{refused.value} {refused.value.hint}"


async def test_a_key_that_lies_in_the_workspace_all_the_same_is_neither_told_nor_recorded(
    place: Place, web: Web, monkeypatch: pytest.MonkeyPatch
) -> None:
    keyed(place, web, monkeypatch)
    looks_like_one = "ghp_" + "a1" * 15
    (place.work / "copy.txt").write_text(f"the key is {SECRET}, not {looks_like_one}\n")
    task = {"description": "show it", "run": "cat copy.txt"}
    await place.run([call("read_file", path="copy.txt")], ["filesystem-read"], tasks=("Read it.", task))
    (answer,) = place.answers
    assert f"the key is [redacted], not {looks_like_one}" in answer, "files are told as they are but for the key"
    assert b"the key is [redacted]" in place.recorded
    assert SECRET.encode() not in place.recorded


async def test_a_file_with_a_key_lies_outside_the_workspace(
    place: Place, web: Web, monkeypatch: pytest.MonkeyPatch
) -> None:
    (place.work / "key").write_text(SECRET)
    keyed(place, web, monkeypatch, f"${{file:{place.work}/key}}")
    with pytest.raises(UsageError, match="lies inside the workspace") as refused:
        await place.run([], ["filesystem-read"])
    assert SECRET not in str(refused.value)
    assert place.requests == []


# --- the command line


def toka(place: Place, site: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    kept = {k: v for k, v in os.environ.items() if not k.startswith("TOKA_") and not k.endswith("_API_KEY")}
    search = [str(site), str(Path(package.__file__).parents[1])]
    env = {
        **kept,
        **place.environment,
        "NO_COLOR": "1",
        "CI": "true",
        "PYTHONPATH": os.pathsep.join(search),
    }
    return subprocess.run([*COMMAND, *arguments], cwd=place.folder, env=env, capture_output=True, text=True, timeout=60)


SPEC = """
metadata: {name: counter}
spec: {name: Counter, domain: testing}
tasks: [{id: count, description: count the lines}]
security: {capabilities_required: [{filesystem-read: {paths: [src]}}]}
"""
SCRIPT = """
script: 1
agents:
  counter:
    count:
      - calls: [{count_lines: {path: src/a.py}}]
      - calls: [{count_lines: {path: README.md}}]
      - report: {status: succeeded, summary: counted}
"""


def counting(place: Place, points: str = "count_lines = acme_tools.count") -> Path:
    """A workspace with a spec and a script, and a folder with a package of somebody else's."""
    (place.work / "src").mkdir()
    (place.work / "src/a.py").write_text("one\ntwo\n")
    (place.work / "README.md").write_text("not granted\n")
    (place.folder / "counter.yaml").write_text(SPEC)
    (place.folder / "script.yaml").write_text(SCRIPT)
    install(place.folder / "site", points=points, **COUNTER)
    return place.folder / "site"


RUN = ("run", "counter.yaml", "--workspace", "work", "--state", "state", "--model", "scripted:script.yaml", "--json")


def test_toka_run_uses_the_tool_of_an_allowed_package(place: Place) -> None:
    site = counting(place)
    place.personal.write_text('[tools]\nallow = ["acme-tools"]\n')
    done = toka(place, site, *RUN)
    assert done.returncode == 0, done.stderr
    events = [json.loads(line) for line in done.stdout.splitlines()]
    told = json.dumps(events)
    assert "2 lines" in told
    assert "README.md is outside the granted filesystem-read: src" in told
    plan = json.loads(toka(place, site, "plan", "counter.yaml", "--workspace", "work", "--json").stdout)
    assert "count_lines" in plan["agents"]["counter"]["tools"]
    grant = json.loads(
        toka(place, site, "explain", "grant", "counter", "counter.yaml", "--workspace", "work", "--json").stdout
    )
    (row,) = [tool for tool in grant["tools"] if tool["tool"] == "count_lines"]
    assert (row["needs"], row["outcome"], row["rule"]) == (["filesystem-read"], "allowed", "filesystem-read: src")


def test_a_package_that_nobody_allowed_has_no_tool_and_the_plan_says_so(place: Place) -> None:
    site = counting(place)
    done = toka(place, site, *RUN)
    assert "no tool 'count_lines'" in done.stdout
    plan = toka(place, site, "plan", "counter.yaml", "--workspace", "work")
    assert plan.returncode == 0, plan.stderr
    assert "count_lines" not in plan.stdout
    assert "acme-tools 1.0 offers the tool 'count_lines'; it is not loaded: [tools] allow" in plan.stderr
    (place.folder / "toka.toml").write_text('[tools]\nallow = ["acme-tools"]\n')
    refused = toka(place, site, *RUN)
    assert refused.returncode == 3
    assert "tools cannot be set by a toka.toml in the working directory" in refused.stderr


def test_a_tool_with_the_name_of_a_built_in_one_is_refused_before_anything_starts(place: Place) -> None:
    site = counting(place, "read_file = acme_tools.count")
    place.personal.write_text('[tools]\nallow = ["acme-tools"]\n')
    for arguments in (RUN, ("plan", "counter.yaml", "--workspace", "work")):
        done = toka(place, site, *arguments)
        assert done.returncode == 3
        assert "acme-tools 1.0 offers the tool 'read_file', a name that another tool has" in done.stderr
        assert "run-" not in done.stdout
