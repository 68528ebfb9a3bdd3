"""The self-test finds each layer that is missing, and what holds where the kernel is old."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from sandbox.conftest import Start, names
from sandbox.test_confinement import said
from toka.core.capability import Capability
from toka.core.clock import SystemClock
from toka.errors import SandboxError
from toka.sandbox import mounts, profile, selftest, spawn
from toka.sandbox.cgroup_find import Hierarchies
from toka.sandbox.host import Sandbox
from toka.sandbox.keeper import Surroundings
from toka.sandbox.landlock import READ, Ruleset, abi
from toka.sandbox.policy import SandboxPolicy
from toka.sandbox.selftest import LAYERS, self_test

NETWORK = (Capability("network-access", hosts=("api.example.org",), ports=("443",)),)
MIB = 1 << 20
Break = Callable[..., None]
Edit = Callable[[list[str]], list[str]]
Options = Callable[[Edit], None]
Change = tuple[Edit, str]


@pytest.fixture
def broken(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[Break]:
    """Changes the code that runs inside, in a copy: file, old text, new text."""
    folder = tmp_path_factory.mktemp("code")
    for name in mounts.INSIDE:
        shutil.copy(Path(mounts.__file__).parent / name, folder)
    monkeypatch.setattr(mounts, "__file__", str(folder / "mounts.py"))

    def change(name: str, old: str, new: str) -> None:
        text = (folder / name).read_text()
        assert text.count(old) == 1, old
        (folder / name).write_text(text.replace(old, new))

    yield change


@pytest.fixture
def options(monkeypatch: pytest.MonkeyPatch) -> Options:
    """Changes what bwrap is told."""

    def change(edit: Edit) -> None:
        real = spawn.lay_out

        def changed(*args: Any, **more: Any) -> Any:
            layout = real(*args, **more)
            object.__setattr__(layout, "argv", tuple(edit(list(layout.argv))))
            return layout

        monkeypatch.setattr(spawn, "lay_out", changed)

    return change


async def objections(sandbox: Sandbox) -> str:
    """What the self-test has to say against a sandbox."""
    with pytest.raises(SandboxError, match="does not hold") as caught:
        await self_test(sandbox, SystemClock())
    return str(caught.value)


@pytest.mark.parametrize(
    "policy",
    [
        {},
        {"reads": (), "writes": ()},
        {"reads": (), "writes": (".",), "git": True},
        {"programs": ("ls", "python3")},
        {"programs": ()},
        {"network": NETWORK},
        {
            "memory_bytes": 256 * MIB,
            "cpu_cores": 1.0,
            "disk_bytes": 100 * MIB,
            "network": NETWORK,
            "network_bps": 10**6,
        },
    ],
    ids=["usual", "nothing", "all of it", "programs", "no programs", "network", "limits"],
)
async def test_a_sandbox_of_this_machine_passes(start: Start, policy: dict[str, Any]) -> None:
    sandbox = await start(**policy)
    passed = await self_test(sandbox, SystemClock())
    assert passed.layers == LAYERS
    assert passed.landlock == abi()
    assert passed.uid == sandbox.host_uid() != 0
    assert 0 < passed.wall_s < 20
    record = json.loads(json.dumps(passed.to_json()))
    assert {name for name, _, _ in record["limits"]} >= {"processes"} | (
        {"memory", "cpu", "disk", "network"} if "memory_bytes" in policy else set()
    )


@pytest.mark.parametrize(
    ("change", "found"),
    [
        (("kernel.py", "    prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL)\n", "    return\n"), "capabilities"),
        (("zygote.py", "    empty_bounding_set()\n", ""), "capabilities"),
        (
            ("roles.py", '    mount("proc", "/proc", "proc", MS_RDONLY | MS_NOSUID | MS_NODEV | MS_NOEXEC)\n', ""),
            "processes",
        ),
        (("roles.py", '    seccomp(bytes.fromhex(profile["seccomp"]))\n', ""), "system calls"),
        (("roles.py", '"/proc", "proc", MS_RDONLY', '"/proc", "tmpfs", MS_RDONLY'), "did not come to its end"),
    ],
    ids=["capabilities", "bounding set", "processes of others", "no filter", "no /proc"],
)
async def test_a_layer_that_is_missing_inside_is_found(
    start: Start, broken: Break, change: tuple[str, str, str], found: str
) -> None:
    broken(*change)
    sandbox = await start()
    if found.startswith("did not"):
        with pytest.raises(SandboxError, match=found):
            await self_test(sandbox, SystemClock())
    else:
        assert found in await objections(sandbox)


async def test_a_filter_that_lets_everything_through_is_found(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    allow = profile.compile_filter(os.uname().machine, profile.Syscalls())[-8:]
    monkeypatch.setattr(profile, "compile_filter", lambda machine, calls: allow)
    said_ = await objections(await start())
    for layer in ("namespaces: unshare", "tracing", "sockets: unix", "internet sockets", "terminal"):
        assert layer in said_


@pytest.mark.parametrize(
    "mount",
    [("--ro-bind", "/usr", "/var"), ("--ro-bind", "/usr", "/home"), ("--tmpfs", "/run"), ("--tmpfs", "/root")],
    ids=lambda mount: mount[-1],
)
async def test_a_folder_too_many_is_found(start: Start, options: Options, mount: tuple[str, ...]) -> None:
    options(lambda argv: [*argv[:-4], *mount, *argv[-4:]])  # before the root is made read-only
    assert f"read {mount[-1]}: it can be read" in await objections(await start())


async def test_a_network_of_the_machine_is_found(start: Start, options: Options) -> None:
    """Nothing is sent: the interfaces alone show it."""
    options(lambda argv: [a for a in argv if a != "--unshare-net"])
    if others := [name for name in names("/sys/class/net") if name != "lo"]:
        assert f"the interface {others[0]} can be seen" in await objections(await start())


@pytest.fixture
def old_landlock(broken: Break, monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """A kernel whose Landlock has that version; 0: none."""

    def set_version(version: int) -> None:
        monkeypatch.setattr(profile, "abi", lambda: version)
        monkeypatch.setattr(selftest, "abi", lambda: version)
        if not version:
            broken("kernel.py", '    if not ruleset["handled"]:\n', "    if True:\n")

    return set_version


@pytest.mark.parametrize("version", range(abi()))
async def test_an_older_landlock_opens_nothing_and_is_told(
    start: Start, workspace: Path, old_landlock: Callable[[int], None], version: int
) -> None:
    """GHSA-72w7-mf9g-733p: on a kernel without the newest Landlock the sandbox was open. Here the mounts hold alone."""
    old_landlock(version)
    (workspace / "src/tool").write_text("#!/bin/sh\necho ran\n")
    (workspace / "src/tool").chmod(0o755)
    sandbox = await start(programs=("sh",), network=NETWORK)
    assert (await self_test(sandbox, SystemClock())).landlock == version
    text = await said(
        sandbox,
        "for path in /x /usr/x /etc/x docs/a.txt docs/x x /dev/x /proc/self/comm /toka/x; do\n"
        "  (echo x > $path) 2>/dev/null && echo wrote $path\ndone\n"
        "cat private/key /etc/shadow /root/.profile 2>/dev/null\n"
        "src/tool; cp src/tool /tmp/t; /tmp/t; /usr/bin/id; echo over",
    )
    assert [line for line in text.splitlines() if not line.startswith("/bin/sh:")] == ["over"]
    assert names(workspace / "docs") == ["a.txt"]
    assert (workspace / "docs/a.txt").read_text() == "alpha\n"


@pytest.mark.parametrize(
    "change",
    [
        (lambda argv: argv[:-4], "write /"),
        (lambda argv: ["--bind" if a == "--ro-bind" else a for a in argv], "write /workspace/docs"),
    ],
    ids=["the root", "the workspace"],
)
@pytest.mark.parametrize("landlock", [True, False])
async def test_landlock_holds_what_the_mounts_let_go_and_without_it_that_is_found(
    start: Start, broken: Break, options: Options, old_landlock: Callable[[int], None], change: Change, landlock: bool
) -> None:
    edit, found = change
    broken("zygote.py", '    check_mounts(config["mounts"])\n', "")
    options(edit)
    if not landlock:
        old_landlock(0)
    sandbox = await start()
    if landlock and abi():
        await self_test(sandbox, SystemClock())
    else:
        assert found in await objections(sandbox)


def test_a_kernel_without_landlock_is_not_asked_for_it() -> None:
    """It would answer that there is no such call, and every command would be refused."""
    assert Ruleset((("/usr", READ),)).to_json(0)["handled"] == 0


async def test_root_outside_is_found(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    sandbox = await start()
    monkeypatch.setattr(sandbox, "host_uid", lambda: 0)
    assert "user: it is root outside" in await objections(sandbox)


async def test_a_sandbox_that_dies_in_its_self_test_has_not_passed(start: Start, broken: Break) -> None:
    broken("roles.py", "    from toka.sandbox.probe import probe  #", "    os.kill(os.getpid(), 9)  #")
    with pytest.raises(SandboxError, match="did not come to its end"):
        await self_test(await start(), SystemClock())


async def test_limits_are_recorded_as_they_are_held(workspace: Path) -> None:
    """Without control groups nothing but what the kernel holds by itself is called strict."""
    around = Surroundings(SystemClock(), hierarchies=Hierarchies.find(mountinfo="", own=""))
    policy = SandboxPolicy(writes=("src",), memory_bytes=256 * MIB, cpu_cores=0.5, disk_bytes=10 * MIB)
    sandbox = await Sandbox.start(workspace, policy, around)
    try:
        passed = await self_test(sandbox, SystemClock())
    finally:
        await sandbox.close()
    assert {name: strict for name, _, strict in passed.limits} == {
        "memory": False, "cpu": False, "processes": True, "disk": False,
    }  # fmt: skip
    assert any("no cgroup for memory" in note for note in sandbox.notes)
