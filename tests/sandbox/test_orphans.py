"""What is left of a runtime that was killed, by real processes; and that nothing else is touched."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from harness import pass_time
from sandbox.conftest import living, names
from sandbox.test_freeze import KINDS, marker, workspace  # noqa: F401 - fixtures
from sandbox.test_limits import NO_CGROUPS
from toka.core.clock import SystemClock
from toka.errors import SandboxError
from toka.sandbox import shield
from toka.sandbox.cgroup_find import Hierarchies
from toka.sandbox.host import Sandbox
from toka.sandbox.keeper import Surroundings, machine
from toka.sandbox.orphans import FOLDER, ROOM_S, Ledger, NoRoom, Note, end_orphans, with_room
from toka.sandbox.policy import SandboxPolicy
from toka.sandbox.shield import Order, Shield
from toka.sandbox.standstill import stop
from toka.sandbox.usage import read_stat
from toka.testing import ManualClock

RUNTIME = """
import asyncio, sys
from pathlib import Path
from toka.core.clock import SystemClock
from toka.sandbox.cgroup_find import Hierarchies
from toka.sandbox.host import Sandbox, shell
from toka.sandbox.keeper import Surroundings
from toka.sandbox.orphans import Ledger
from toka.sandbox.policy import SandboxPolicy
from toka.sandbox.reduced import ReducedSandbox

level, holder, workspace, state, command, how = sys.argv[1:]
unwanted = {"v1": " - cgroup2 ", "v2": " - cgroup ", "signals": "cgroup"}[holder]
lines = [line for line in open("/proc/self/mountinfo") if unwanted not in line]

async def main():
    found = Hierarchies.find(mountinfo="".join(lines))
    around = Surroundings(SystemClock(), hierarchies=found, ledger=Ledger(Path(state)))
    policy = SandboxPolicy(writes=("src",), programs=None)
    if level == "full":
        sandbox = await Sandbox.start(Path(workspace), policy, around)
    else:
        sandbox = await ReducedSandbox.open(Path(workspace), policy, around, level)
    running = asyncio.create_task(sandbox.run(shell(command), timeout_s=100))
    while not (Path(workspace) / "src/on").exists():
        await asyncio.sleep(0.01)
    if how == "frozen":
        await sandbox.freeze()
    print(sandbox._zygote.pid, sandbox._zygote.inner, flush=True)
    await running

asyncio.run(main())
"""
TREE = "trap '' TERM HUP; (setsid sh -c 'trap \"\" HUP; sleep {0}; true' &) ; nohup sleep {0} & touch src/on; sleep {0}"


@pytest.fixture
def state(tmp_path: Path) -> Path:
    return tmp_path / "state"


@contextmanager
def runtime(*arguments: str) -> Iterator[tuple[subprocess.Popen[bytes], list[int]]]:
    """A process with a sandbox in which a tree runs; the process, and what must not outlive it."""
    paths = {**os.environ, "PYTHONPATH": ":".join(sys.path)}
    with subprocess.Popen([sys.executable, "-c", RUNTIME, *arguments], stdout=subprocess.PIPE, env=paths) as process:
        assert process.stdout is not None
        yield process, [int(pid) for pid in process.stdout.readline().split()]
        process.kill()


def alive(pid: int) -> bool:
    found = read_stat(pid)
    return found is not None and not found.ended


def until(ready: Callable[[], Any], what: str) -> None:
    end = time.monotonic() + 10
    while not ready():
        assert time.monotonic() < end, f"never happened: {what}"
        time.sleep(0.01)


@pytest.fixture
def decoy(marker: str) -> Iterator[int]:  # noqa: F811
    """A process that looks like one of a sandbox, and is none."""
    with subprocess.Popen(["sleep", f"{marker}"], start_new_session=True) as process:
        yield process.pid
        assert process.poll() is None, "it was touched"
        found = read_stat(process.pid)
        assert found is not None and found.state != "T"
        process.kill()


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS, ids="-".join)
@pytest.mark.parametrize("how", ["running", "frozen", "stopped"])
def test_nothing_of_a_killed_runtime_lives_after_the_next_start(
    kind: tuple[str, str],
    how: str,
    workspace: Path,  # noqa: F811
    state: Path,
    marker: str,  # noqa: F811
    decoy: int,
) -> None:
    """The tree ignores signals, left its session and its parents, and is frozen, stopped one by one, or neither."""
    with runtime(*kind, str(workspace), str(state), TREE.format(marker), how) as (process, pids):
        if how == "stopped":
            assert stop(pids[1])
        assert len(living(marker)) > 3
        end_orphans(NO_CGROUPS, Ledger(state))
        assert len(living(marker)) > 3, "its owner lives"
        process.kill()
        process.wait()
        end_orphans(NO_CGROUPS, Ledger(state))
        until(lambda: living(marker) == [decoy], "the end of the tree")
        until(lambda: not any(map(alive, pids)), "the end of the sandbox")
        assert names(state / FOLDER) == []


if FROZEN := [kind for kind in KINDS if kind[1] != "signals"]:

    @pytest.mark.slow
    @pytest.mark.parametrize("kind", FROZEN, ids="-".join)
    def test_cgroups_are_found_without_any_note(
        kind: tuple[str, str],
        workspace: Path,
        state: Path,
        marker: str,
        decoy: int,
    ) -> None:
        with runtime(*kind, str(workspace), str(state), TREE.format(marker), "frozen") as (process, pids):
            process.kill()
            process.wait()
            end_orphans(machine(), None)
            until(lambda: living(marker) == [decoy], "the end of the tree")
            until(lambda: not any(map(alive, pids)), "the end of the sandbox")


@pytest.mark.slow
async def test_a_sandbox_is_noted_while_it_lives(workspace: Path, state: Path) -> None:  # noqa: F811
    seen: list[Any] = []
    around = Surroundings(SystemClock(), hierarchies=NO_CGROUPS, ledger=Ledger(state))
    sandbox = Sandbox(workspace, SandboxPolicy(writes=("src",), programs=None), around)
    join = sandbox.keeper.join
    sandbox.keeper.join = lambda pid: (join(pid), seen.append(pid), seen.append(names(state / FOLDER)))  # type: ignore[method-assign]
    await sandbox.run(["true"], timeout_s=10)
    (file,) = (state / FOLDER).iterdir()
    assert seen == [sandbox.processes()[0], [file.name]], "noted when it was joined, before anything ran in it"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert json.loads(file.read_text())["root"][0] == seen[0]
    os.kill(seen[0], signal.SIGKILL)
    while (await sandbox.run(["true"], timeout_s=10)).ended == "lost":
        pass
    assert json.loads(file.read_text())["root"][0] == sandbox.processes()[0] != seen[0]
    await sandbox.close()
    assert names(state / FOLDER) == []


@pytest.mark.slow
async def test_what_cannot_be_noted_does_not_start(workspace: Path, state: Path) -> None:  # noqa: F811
    state.touch()
    around = Surroundings(SystemClock(), hierarchies=NO_CGROUPS, ledger=Ledger(state))
    with pytest.raises(SandboxError, match="cannot be noted"):
        await Sandbox.start(workspace, SandboxPolicy(), around)


@pytest.mark.slow
async def test_a_full_disk_is_waited_for(
    workspace: Path,  # noqa: F811
    state: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As often as it is full, nothing is left of the attempt, and nothing of an agent ran."""
    notes: list[int] = []
    write = Note.write

    def full_twice(note: Note, root: int, *rest: Any) -> None:
        notes.append(root)
        if len(notes) < 3:
            raise NoRoom("the sandbox cannot be noted: No space left on device")
        write(note, root, *rest)

    monkeypatch.setattr(Note, "write", full_twice)
    around = Surroundings(SystemClock(), hierarchies=NO_CGROUPS, ledger=Ledger(state))
    sandbox = await Sandbox.start(workspace, SandboxPolicy(), around)
    assert (await sandbox.run(["true"], timeout_s=10)).ended == "exited"
    assert len(set(notes)) == len(notes) and sandbox.processes()[0] == notes[-1]
    assert not [pid for pid in notes[:2] if read_stat(pid)]
    await sandbox.close()


async def test_a_disk_that_stays_full_is_told(tmp_path: Path) -> None:
    clock = ManualClock()
    starts: list[float] = []

    async def start() -> None:
        starts.append(clock.monotonic())
        raise NoRoom("full")

    waiting = asyncio.create_task(with_room(start, clock))
    await pass_time(clock, waiting.done)
    with pytest.raises(NoRoom):
        await waiting
    assert starts[-1] >= ROOM_S and len(starts) > 30


@pytest.mark.slow
@pytest.mark.skipif(os.getuid() != 0 or not shutil.which("unshare"), reason="only root can mount a disk")
def test_a_full_disk_is_told_from_others_and_no_half_note_stays(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from toka.sandbox.orphans import Ledger, NoRoom\n"
        "state = Path(sys.argv[1])\n"
        "try: (state / 'filler').write_bytes(bytes(1 << 20))\n"
        "except OSError: pass\n"
        "try: Ledger(state).open().write(1, 'name', ())\n"
        "except NoRoom as e: print(e, '|', [f for d in state.glob('sandboxes') for f in d.iterdir()])\n"
    )
    mount = 'mount -t tmpfs -o size=256k tmpfs "$0" && exec "$@"'
    command = ["unshare", "-m", "sh", "-c", mount, str(tmp_path), sys.executable, "-c", code, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert "No space left on device | []" in done.stdout, done.stderr


@pytest.fixture
def note(state: Path, decoy: int) -> Callable[..., Path]:
    """Writes a note of a dead runtime about the decoy."""
    dead = subprocess.Popen(["true"])
    began = read_stat(dead.pid)
    dead.wait()
    assert began is not None

    def write(name: str = "", **changes: Any) -> Path:
        (state / FOLDER).mkdir(parents=True, exist_ok=True)
        mine = Ledger(state).open().file.name.split("-")
        file = state / FOLDER / (name or f"{mine[0]}-{dead.pid}-{began.started}-0.json")
        found = read_stat(decoy)
        assert found is not None
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        said = {"boot": boot, "root": [decoy, found.started], "cgroup": "", "directories": []}
        file.write_text(json.dumps({**said, **changes}))
        return file

    return write


@pytest.mark.parametrize("changes", [{"boot": "another"}, {"root": "x"}, {"root": [1]}, {"root": [None, 7]}])
def test_a_note_of_another_boot_or_without_sense_is_cleared_away(
    note: Callable[..., Path], state: Path, changes: dict[str, Any]
) -> None:
    file = note(**changes)
    end_orphans(NO_CGROUPS, Ledger(state))
    assert not file.exists()


def test_a_number_that_was_given_to_another_process_means_nobody(
    note: Callable[..., Path], state: Path, decoy: int
) -> None:
    found = read_stat(decoy)
    assert found is not None
    file = note(root=[decoy, found.started - 1])
    end_orphans(NO_CGROUPS, Ledger(state))
    assert not file.exists()


def test_half_a_note_is_cleared_away(note: Callable[..., Path], state: Path) -> None:
    file = note()
    file.write_text(file.read_text()[:20])
    end_orphans(NO_CGROUPS, Ledger(state))
    assert not file.exists()


def test_what_is_not_for_certain_left_by_a_dead_runtime_stays(note: Callable[..., Path], state: Path) -> None:
    """Of this process, of one in another pid namespace, of another user, and files that are no notes."""
    mine = Ledger(state).open().file.name
    kept = [note(mine), note(f"n1-{'-'.join(mine.split('-')[1:])}"), note("n1-2-3.json"), note("notes.txt")]
    if os.geteuid() == 0:
        kept.append(note())
        os.chown(kept[-1], 12345, -1)
    end_orphans(NO_CGROUPS, Ledger(state))
    assert all(file.exists() for file in kept)


def test_a_cgroup_with_a_name_that_is_not_ours_is_left_alone(note: Callable[..., Path], state: Path) -> None:
    """A note names directories; only one whose name says that a dead runtime of ours made it is touched."""
    folder = state / "toka-x"
    folder.mkdir(parents=True)
    (folder / "cgroup.procs").write_text("")
    (folder / "cgroup.kill").write_text("")
    note(root=[1 << 22, 1], cgroup="toka-x", directories=[str(folder)])
    end_orphans(NO_CGROUPS, Ledger(state))
    assert (folder / "cgroup.kill").read_text() == ""


def test_no_notes_are_no_error(state: Path) -> None:
    end_orphans(Hierarchies(), Ledger(state))
    end_orphans(Hierarchies(), None)
    assert not state.exists()


async def test_no_sandbox_starts_before_the_orphans_are_ended(
    workspace: Path,  # noqa: F811
    state: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    order: list[str] = []

    def slow(*_: Any) -> None:
        time.sleep(0.05)
        order.append("swept")

    async def start(*_: Any) -> Any:
        order.append("started")
        raise SandboxError("enough")

    monkeypatch.setattr(shield, "end_orphans", slow)
    monkeypatch.setattr(shield.Sandbox, "start", start)
    made = Shield(SystemClock(), ledger=Ledger(state))
    for _ in range(2):
        with pytest.raises(SandboxError, match="enough"):
            await made.start(Order(workspace, SandboxPolicy()))
    await asyncio.gather(made.sweep(), made.sweep())
    assert order == ["swept", "started", "started"]
