"""`toka explain grant` and `toka plan`: the compiled grant they show is the one that a run gets."""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest

from cli.records import Toka
from harness import agent
from toka.core.clock import SystemClock
from toka.core.operator import OperatorPolicy, parse_rule
from toka.orchestration.compiled import BY_ARGUMENT, compile_here, mounts_of
from toka.orchestration.enforce import held, machine
from toka.orchestration.rights import Terms, rights_of
from toka.sandbox.cgroup_find import KINDS, Hierarchies
from toka.sandbox.host import Sandbox
from toka.sandbox.idmap import agent_uid
from toka.sandbox.keeper import Surroundings
from toka.sandbox.landlock import abi
from toka.sandbox.level import Level
from toka.sandbox.policy import PathRule, SandboxPolicy
from toka.sandbox.reduced import ReducedSandbox
from toka.sandbox.seccomp import DENIED

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="agents run on Linux")
needs_bwrap = pytest.mark.skipif(not shutil.which("bwrap"), reason="no bwrap: agents cannot run here")
SPEC = """
metadata: {name: writer}
spec: {name: Writer}
tasks: [work]
security:
  resource_limits: {max_memory: 256MB, max_disk_usage: 1GB}
  capabilities_required:
    - filesystem-write: {paths: [docs, later]}
    - filesystem-read: {paths: [src]}
    - command-execution: {programs: [ls, rm]}
    - network-access: {hosts: ["*.example.org"]}
    - git-access
    - telepathy
"""
SETTINGS = """
[policy]
deny = ["command-execution: rm", "network-access: bad.example.org", "filesystem-write: docs/fixed"]
ask = ["run_command(ls -R*)"]
"""


@pytest.fixture
def place(tmp_path: Path) -> Path:
    for folder in ("ws/docs/fixed", "ws/src", "ws/.git"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "writer.yaml").write_text(SPEC)
    (tmp_path / "toka.toml").write_text(SETTINGS)
    return tmp_path


def shown(toka: Toka, *more: object) -> dict[str, Any]:
    return toka("explain", "grant", "writer", "writer.yaml", "--workspace", "ws", "--json", *more).json


@pytest.mark.usefixtures("place")
def test_every_part_of_the_compiled_grant_is_there(toka: Toka) -> None:
    got = shown(toka)
    assert got["type"] == "grant"
    assert [(a["place"], a["text"]) for a in got["asked"]] == [
        ("writer.yaml:8", "filesystem-write: docs, later"),
        ("writer.yaml:9", "filesystem-read: src"),
        ("writer.yaml:10", "command-execution: ls, rm"),
        ("writer.yaml:11", "network-access: *.example.org"),
        ("writer.yaml:12", "git-access"),
        ("writer.yaml:13", "telepathy"),
    ]
    assert {t["rule"] for t in got["taken_out"]} == {
        "policy: deny command-execution: rm",
        "policy: deny network-access: bad.example.org",
        "policy: deny filesystem-write: docs/fixed",
    }
    tools = {t["tool"]: t for t in got["tools"]}
    assert (tools["write_file"]["outcome"], tools["write_file"]["rule"]) == ("allowed", "filesystem-write: docs, later")
    assert tools["run_command"]["but"] == ["ask run_command(ls -R*)"]
    assert (tools["python"]["outcome"], tools["python"]["rule"]) == ("denied", "policy: deny command-execution: rm")
    mounts = {m["path"]: (m["access"], m["why"]) for m in got["mounts"]}
    assert (
        mounts.items()
        >= {
            "docs": ("write", "granted"),
            "docs/fixed": ("read", "protected"),
            "later": ("write", "missing"),
            "src": ("read", "granted"),
            ".git": ("write", "git-access"),
            ".git/hooks": ("read", "protected"),
            ".git/config": ("read", "protected"),
        }.items()
    )
    assert got["landlock"]["version"] == abi()
    if abi():
        assert "/workspace/docs" in got["landlock"]["rules"]["files"]["read, write"]
    assert got["system_calls"]["refused"] == sum(map(len, got["system_calls"]["groups"].values())) > len(DENIED) // 2
    assert got["system_calls"]["by_argument"] == list(BY_ARGUMENT)
    assert got["egress"] == {
        "proxy": "127.0.0.1:3128",
        "allow": [{"name": "network-access", "hosts": ["*.example.org"], "ports": ["443"]}],
        "refuse": [{"name": "network-access", "hosts": ["bad.example.org"]}],
    }
    assert got["sockets"] == ["inet stream", "inet6 stream"]
    assert got["environment"]["HTTPS_PROXY"] == "http://127.0.0.1:3128"
    assert {e["limit"] for e in got["enforcement"]} == {"memory", "processes", "disk"}


@pytest.mark.usefixtures("place")
def test_as_text_every_part_has_its_title(toka: Toka) -> None:
    done = toka("explain", "grant", "wri", "writer.yaml", "--workspace", "ws")
    assert done.code == 0
    for line in (
        "asked for", "tools", "workspace", "beside it", "programs", "network", "environment", "limits",
        "  writer.yaml:10: command-execution: ls, rm",
        "    -> command-execution: ls",
        "    taken out: command-execution: rm (policy: deny command-execution: rm)",
        "    -> nothing: nobody defines telepathy; it grants nothing",
        "  allow: *.example.org, port 443",
        "  refuse: bad.example.org",
    ):  # fmt: skip
        assert line in done.lines, line
    assert any(line.startswith("system calls refused: ") for line in done.lines)
    assert any(line.startswith("landlock") for line in done.lines)
    assert "warning[TK4001]" in done.lines[-1]


@pytest.mark.usefixtures("place")
def test_the_plan_has_the_same_and_in_short_for_people(toka: Toka) -> None:
    done = toka("plan", "writer.yaml", "--workspace", "ws")
    assert "    mounts    .git (write), docs (write), later (write), src (read); " in done.out
    assert "    network   *.example.org through its proxy" in done.out
    assert " system calls refused; all of it: toka explain grant writer SPEC..." in done.out
    assert "              disk: best effort, counted while commands run" in done.out
    planned = toka("plan", "writer.yaml", "--workspace", "ws", "--json").json["agents"]["writer"]
    got = shown(toka)
    for key in ("mounts", "landlock", "system_calls", "egress", "sockets", "environment", "sandbox", "taken_out"):
        assert planned[key] == got[key], key
    assert planned["tool_table"] == got["tools"]


def test_nothing_is_granted_to_whoever_asks_for_nothing(toka: Toka, place: Path) -> None:
    (place / "writer.yaml").write_text("metadata: {name: writer}\nspec: {name: W}\ntasks: [work]\n")
    got = shown(toka)
    assert {t["outcome"] for t in got["tools"]} == {"denied"}
    assert (got["mounts"], got["egress"]["proxy"], got["sockets"]) == ([], None, [])
    assert "HTTPS_PROXY" not in got["environment"]
    text = toka("explain", "grant", "writer", "writer.yaml", "--workspace", "ws").out
    assert "  none: an empty network namespace, and no socket can be made" in text
    assert "mounts    nothing of the workspace" in toka("plan", "writer.yaml", "--workspace", "ws").out


def test_what_cannot_be_shown_is_refused(toka: Toka, place: Path) -> None:
    assert toka("explain", "grant", "nobody", "writer.yaml", "--workspace", "ws").code == 9
    assert toka("explain", "grant", "writer", "writer.yaml", "--workspace", "nowhere").code == 2
    assert toka("explain", "grant", "writer").code == 2
    done = toka("explain", "grant", "writer", "nowhere.yaml")
    assert (done.code, "TK1013" in done.err) == (3, True)
    (place / "writer.yaml").write_text(SPEC.replace("paths: [src]", "paths: [missing]"))
    done = toka("explain", "grant", "writer", "writer.yaml", "--workspace", "ws")
    assert (done.code, "TK4201" in done.out) == (3, True)


def test_asking_changes_nothing(toka: Toka, place: Path) -> None:
    before = sorted(place.rglob("*"))
    shown(toka)
    toka("plan", "writer.yaml", "--workspace", "ws")
    assert sorted(place.rglob("*")) == before


def test_a_spec_cannot_drive_the_terminal(toka: Toka, place: Path) -> None:
    (place / "writer.yaml").write_text(SPEC.replace("telepathy", '"tele\\epathy\\e[2J"').replace("work]", '"\\e[2J"]'))
    for command in (("explain", "grant", "writer"), ("plan",)):
        done = toka(*command, "writer.yaml", "--workspace", "ws")
        assert "\x1b" not in done.out + done.err


# ---- the same as a real sandbox


@needs_bwrap
@pytest.mark.parametrize(
    "policy",
    [
        SandboxPolicy(writes=(".",), programs=None),
        SandboxPolicy(writes=(".",), programs=None, git=True, hidden=("src",)),
        SandboxPolicy(reads=("src",), writes=("docs", "later"), programs=None, git=True, protected=("docs/fixed",)),
        SandboxPolicy(reads=(".",), programs=None),
        SandboxPolicy(programs=None),
    ],
)
async def test_the_mounts_shown_are_those_of_a_real_sandbox(place: Path, policy: SandboxPolicy) -> None:
    work = place / "ws"
    expected = {m.rule for m in mounts_of(policy, work)}
    sandbox = await Sandbox.start(work, policy, Surroundings(SystemClock()))
    try:
        ended = await sandbox.run(["/bin/cat", "/proc/self/mountinfo"], timeout_s=10, chosen_by="person")
        how = {e.limit: (e.how, e.strict) for e in sandbox.keeper.enforced}
    finally:
        await sandbox.close()
    found: set[PathRule] = set()
    for line in ended.output.decode().splitlines():
        _, _, _, _, at, options, *_ = line.split()
        if at == "/workspace" or at.startswith("/workspace/"):
            path = at.removeprefix("/workspace").lstrip("/") or "."
            hidden = " - tmpfs " in line
            found.add(PathRule(path, "hide" if hidden else "write" if "rw" in options.split(",") else "read"))
    found = {rule for rule in found if rule.path != "." or "." in (*policy.reads, *policy.writes)}
    assert found == expected
    assert {e.limit: (e.how, e.strict) for e in held(policy, machine())} == how


@needs_bwrap
@pytest.mark.parametrize("level", ["full", "reduced", "none"])
@pytest.mark.parametrize("cgroups", [True, False])
async def test_how_limits_are_held_is_foretold(level: Level, cgroups: bool) -> None:
    limits: dict[str, Any] = {"memory_bytes": 1 << 28, "cpu_cores": 0.5, "disk_bytes": 1 << 30, "network_bps": 10**6}
    policy = SandboxPolicy(**limits)
    found = machine() if cgroups else Hierarchies(reasons=dict.fromkeys(KINDS, "there are none"))
    around = Surroundings(SystemClock(), hierarchies=found)
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        if os.getuid() == 0:
            os.chown(folder, agent_uid(), -1)  # there are no mounts that map it at the level reduced
        await _foretold(Path(folder), policy, around, level, found)


async def _foretold(
    workspace: Path, policy: SandboxPolicy, around: Surroundings, level: Level, found: Hierarchies
) -> None:
    sandbox = (
        await Sandbox.start(workspace, policy, around)
        if level == "full"
        else await ReducedSandbox.open(workspace, policy, around, level)
    )
    try:
        assert (await sandbox.run(["true"], timeout_s=20, chosen_by="person")).exit_code == 0
        assert held(policy, found, level) == sandbox.keeper.enforced
    finally:
        await sandbox.close()


def test_programs_that_are_not_installed_are_named(place: Path) -> None:
    config = agent("one", grant=[{"command-execution": {"programs": ["ls", "no-such-program"]}}])
    made = compile_here(rights_of(config, Terms()), place / "ws")
    assert made.absent == ("no-such-program",)
    assert json.loads(json.dumps(made.to_json()))["not_installed"] == ["no-such-program"]


def test_a_rule_against_everything_leaves_nothing(place: Path) -> None:
    rules = tuple(r for text in ("filesystem-write", "filesystem-read", "network-access") for r in parse_rule(text))
    config = agent("one", grant=["filesystem-write", "network-access"])
    made = compile_here(rights_of(config, Terms(policy=OperatorPolicy(deny=rules))), place / "ws")
    assert (made.mounts, made.to_json()["egress"]["allow"]) == ((), [])
