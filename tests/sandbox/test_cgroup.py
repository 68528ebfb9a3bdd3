from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from errno import EBUSY, EINVAL, ENOENT, EPERM
from pathlib import Path
from typing import Any

import pytest

from harness import usable
from toka.errors import SandboxError
from toka.sandbox import cgroup
from toka.sandbox.cgroup import Cgroup, CgroupLimits, Setting, orphans, settings_of
from toka.sandbox.cgroup_files import Files
from toka.sandbox.cgroup_find import (
    KINDS,
    LEAF,
    Hierarchies,
    Kind,
    Place,
    owned_name,
    owner_is_gone,
    parse_mounts,
    parse_own,
)
from toka.sandbox.usage import Usage, read_stat

MIB = 1024 * 1024
PAGE = os.sysconf("SC_PAGE_SIZE")
LIMITS = CgroupLimits(64 * MIB, 0.5, 20)
NOWHERE = 2**22 + 1
"""More than any pid can be."""

# --- a fake kernel: plain files, and what cgroup v2 does when they are written ---------------------------------------

V2_FILES = {
    "cgroup.procs": "",
    "cgroup.controllers": "",
    "cgroup.subtree_control": "",
    "cgroup.events": "populated 0\nfrozen 0\n",
    "cgroup.freeze": "0\n",
    "cgroup.kill": "",
    "cpu.stat": "usage_usec 0\nnr_throttled 0\nthrottled_usec 0\n",
}
V2_CONTROLLED = {
    "memory": {"memory.max": "max", "memory.swap.max": "max", "memory.current": "0", "memory.events": "oom_kill 0"},
    "cpu": {"cpu.max": "max 100000"},
    "pids": {"pids.max": "max", "pids.current": "0"},
    "io": {"io.stat": ""},
}
V1_FILES = {
    "memory": {
        "memory.limit_in_bytes": "9223372036854771712",
        "memory.memsw.limit_in_bytes": "9223372036854771712",
        "memory.swappiness": "60",
        "memory.usage_in_bytes": "5",
        "memory.max_usage_in_bytes": "6",
        "memory.oom_control": "oom_kill_disable 0\nunder_oom 0\noom_kill 2\n",
    },
    "cpu": {
        "cpu.cfs_quota_us": "-1",
        "cpu.cfs_period_us": "100000",
        "cpu.stat": "nr_periods 1\nnr_throttled 1\nthrottled_time 2500000000\n",
    },
    "pids": {"pids.max": "max", "pids.current": "3"},
    "freezer": {"freezer.state": "THAWED"},
    "cpuacct": {"cpuacct.usage": "1500000000"},
    "blkio": {"blkio.throttle.io_service_bytes": "8:0 Read 10\n8:0 Write 20\nTotal 30\n"},
}


class FakeKernel(Files):
    """Cgroup trees of plain files. `log` is what was asked; `deaf` files take no change, those that `refuses` raise."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.log: list[str] = []
        self.deaf: set[str] = set()
        self.refuses: dict[str, int] = {}
        self.absent: set[str] = set()
        self.read_only: set[str] = set()

    def lay(self, path: Path, files: dict[str, str]) -> None:
        path.mkdir(parents=True, exist_ok=True)
        for name, text in files.items():
            if name not in self.absent:
                (path / name).write_text(text)

    def make(self, path: Path) -> None:
        if self.refuses.get(path.name):
            raise OSError(self.refuses[path.name], os.strerror(self.refuses[path.name]))
        path.mkdir()
        self.log.append(f"mkdir {path.relative_to(self.root)}")
        v1 = path.relative_to(self.root).parts[0]
        if v1 in V1_FILES:
            self.lay(path, {"cgroup.procs": "", **V1_FILES[v1]})
            return
        controllers = self.read(path.parent / "cgroup.subtree_control")
        self.lay(path, {**V2_FILES, "cgroup.type": "domain\n", "cgroup.controllers": controllers})
        for name in controllers.split():
            self.lay(path, V2_CONTROLLED[name])

    def remove(self, path: Path) -> None:
        if self.read(path / "cgroup.procs"):
            raise OSError(EBUSY, os.strerror(EBUSY))
        shutil.rmtree(path)
        self.log.append(f"rmdir {path.relative_to(self.root)}")

    def write(self, path: Path, text: str) -> None:
        self.log.append(f"{path.relative_to(self.root)} = {text}")
        if not path.exists():
            raise OSError(ENOENT, os.strerror(ENOENT))
        problem = self.refuses.get(path.name) or self.refuses.get(text)
        if path.name == "cgroup.subtree_control" and (path.parent / "cgroup.type").exists():
            problem = problem or (EBUSY if self.read(path.parent / "cgroup.procs") else 0)
        if problem:
            raise OSError(problem, os.strerror(problem))
        if path.name in self.deaf:
            return
        match path.name:
            case "cgroup.subtree_control":
                path.write_text(f"{path.read_text()} {text[1:]}".strip())
            case "cgroup.procs":
                self._move(path, text)
            case "cgroup.freeze":
                path.write_text(text)
                if "cgroup.events" not in self.deaf:
                    (path.parent / "cgroup.events").write_text(f"populated 0\nfrozen {text}\n")
            case _:
                path.write_text(text + "\n")

    def _move(self, target: Path, pid: str) -> None:
        top = self.root / target.relative_to(self.root).parts[0]
        for procs in top.rglob("cgroup.procs"):
            left = [other for other in procs.read_text().split() if other != pid]
            procs.write_text("".join(f"{other}\n" for other in left))
        target.write_text(f"{target.read_text()}{pid}\n")

    def writable(self, path: Path) -> bool:
        return str(path.relative_to(self.root)) not in self.read_only


def v2_mountinfo(root: str = "/") -> str:
    return f"41 31 0:38 {root} /v2 rw,relatime - cgroup2 cgroup2 rw\n"


def v1_mountinfo(*controllers: str) -> str:
    return "".join(f"3{i} 31 0:2{i} / /{c} rw - cgroup cgroup rw,{c}\n" for i, c in enumerate(controllers))


@pytest.fixture
def kernel(tmp_path: Path) -> FakeKernel:
    """A v2 tree with `svc` delegated to us, this process inside it."""
    fake = FakeKernel(tmp_path)
    fake.lay(tmp_path / "v2", {"cgroup.procs": "1\n", "cgroup.subtree_control": "memory cpu pids io"})
    fake.make(tmp_path / "v2/svc")
    (tmp_path / "v2/svc/cgroup.procs").write_text(f"{os.getpid()}\n")
    fake.log.clear()
    return fake


def on_v2(kernel: FakeKernel, own: str = "/svc") -> Hierarchies:
    return Hierarchies.find(mountinfo=v2_mountinfo(), own=f"0::{own}\n", root=kernel.root, files=kernel)


def on_v1(root: Path, kernel: FakeKernel | None = None) -> tuple[Hierarchies, FakeKernel]:
    kernel = kernel or FakeKernel(root)
    for controller in V1_FILES:
        kernel.lay(root / controller / "me", {"cgroup.procs": f"{os.getpid()}\n"})
    own = "".join(f"{i}:{c}:/me\n" for i, c in enumerate(V1_FILES, 1))
    return Hierarchies.find(mountinfo=v1_mountinfo(*V1_FILES), own=own, root=root, files=kernel), kernel


# --- finding ---------------------------------------------------------------------------------------------------------


def test_mounts_and_our_own_cgroups_are_read() -> None:
    text = (
        "9 1 0:1 /a\\040b /c\\134d rw shared:1 - cgroup cgroup rw,cpu,cpuacct\n8 1 0:1 / / rw - ext4 /dev/x rw\nnoise\n"
    )
    (mount,) = parse_mounts(text + v2_mountinfo()[:0])
    assert (str(mount.root), str(mount.point), mount.generation) == ("/a b", "/c\\d", 1)
    assert mount.controllers == {"rw", "cpu", "cpuacct"}
    own = parse_own("3:cpu,cpuacct:/x\n2:name=systemd:/s:t\n0::/y\n")
    assert {name: str(path) for name, path in own.items()} == {
        "cpu": "/x",
        "cpuacct": "/x",
        "name=systemd": "/s:t",
        "": "/y",
    }


def test_v1_is_nested_below_our_own_cgroup(tmp_path: Path) -> None:
    found, _ = on_v1(tmp_path)
    assert found.places["memory"] == [Place(1, tmp_path / "memory/me")]
    assert found.places["freeze"] == [Place(1, tmp_path / "freezer/me")]
    assert found.places["io"] == [Place(1, tmp_path / "blkio/me")]
    assert [found.why_not(kind) for kind in KINDS if kind != "kill"] == [""] * 6
    assert "cgroup v1 has no kill" in found.why_not("kill")


def test_a_container_that_mounts_its_own_part_is_understood(kernel: FakeKernel) -> None:
    find = Hierarchies.find
    inside = find(mountinfo=v2_mountinfo("/docker/x"), own="0::/docker/x/svc\n", root=kernel.root, files=kernel)
    assert inside.places["memory"] == [Place(2, kernel.root / "v2/svc")]
    for own in ("/docker/xy/svc", "/../svc"):
        outside = find(mountinfo=v2_mountinfo("/docker/x"), own=f"0::{own}\n", root=kernel.root, files=kernel)
        assert not outside.places
        assert f"our cgroup v2 {own} lies outside of what /v2 shows" in outside.why_not("memory")
    above = find(mountinfo=v2_mountinfo(), own="0::/../v2/svc\n", root=kernel.root, files=kernel)
    assert not above.places, "it leads to a directory, but not through the mount"
    both = v2_mountinfo("/other") + v2_mountinfo("/docker/x")
    assert find(mountinfo=both, own="0::/docker/x/svc\n", root=kernel.root, files=kernel).places


def test_without_any_hierarchy_everything_says_why_and_nothing_is_claimed(tmp_path: Path) -> None:
    found = Hierarchies.find(mountinfo="", own="", root=tmp_path)
    assert all(found.why_not(kind) for kind in KINDS)
    group = Cgroup.make(found, "toka-x", LIMITS)
    assert (dict(group.enforced), group.directories, group.usage(), group.pids()) == ({}, (), Usage(), set())
    assert set(group.missing) == {"memory", "cpu", "pids"}
    assert "no cgroup v1 hierarchy carries memory" in group.missing["memory"]
    group.add(os.getpid())
    group.thaw()
    group.end()
    group.remove()
    with pytest.raises(SandboxError, match="cannot be frozen"):
        group.freeze()
    assert orphans(found, "toka-") == []


@pytest.mark.parametrize(("own", "says"), [("garbage\n", "cannot be read"), ("0::/gone (deleted)\n", "does not exist")])
def test_an_own_cgroup_that_cannot_be_known_is_no_place(kernel: FakeKernel, own: str, says: str) -> None:
    found = Hierarchies.find(mountinfo=v2_mountinfo(), own=own, root=kernel.root, files=kernel)
    assert not found.places
    assert all(says in found.why_not(kind) for kind in KINDS)


@pytest.mark.parametrize("file", ["", "/cgroup.procs", "/cgroup.subtree_control"])
def test_a_tree_that_is_not_delegated_is_left_alone(kernel: FakeKernel, file: str) -> None:
    kernel.read_only.add(f"v2/svc{file}")
    found = on_v2(kernel)
    assert f"{kernel.root}/v2/svc{file} is not writable for uid" in found.why_not("memory")
    assert ("Delegate=yes" in found.why_not("memory")) == bool(file)
    assert Cgroup.make(found, "toka-x", LIMITS).enforced == {}
    assert not any(LEAF in line or "subtree" in line for line in kernel.log)


def test_a_controller_that_we_were_not_given_is_named(kernel: FakeKernel) -> None:
    (kernel.root / "v2/svc/cgroup.controllers").write_text("memory pids")
    found = on_v2(kernel)
    assert found.why_not("cpu").startswith(f"cgroup v2 at {kernel.root}/v2/svc does not have the cpu controller")
    group = Cgroup.make(found, "toka-x", LIMITS)
    assert group.enforced == {"memory": "cgroup v2", "pids": "cgroup v2"}
    assert group.missing == {"cpu": found.why_not("cpu")}


# --- v2: what is written ---------------------------------------------------------------------------------------------


def test_v2_is_written_in_this_order(kernel: FakeKernel) -> None:
    group = Cgroup.make(on_v2(kernel), "toka-x", LIMITS)
    assert kernel.log == [
        f"mkdir v2/svc/{LEAF}",
        f"v2/svc/{LEAF}/cgroup.procs = {os.getpid()}",
        "v2/svc/cgroup.subtree_control = +memory",
        "v2/svc/cgroup.subtree_control = +cpu",
        "v2/svc/cgroup.subtree_control = +pids",
        "v2/svc/cgroup.subtree_control = +io",
        "mkdir v2/svc/toka-x",
        f"v2/svc/toka-x/memory.max = {64 * MIB}",
        "v2/svc/toka-x/memory.swap.max = 0",
        "v2/svc/toka-x/cpu.max = 50000 100000",
        "v2/svc/toka-x/pids.max = 20",
    ]
    assert group.enforced == dict.fromkeys(("memory", "cpu", "pids"), "cgroup v2")
    assert group.missing == {}
    assert group.notes == (
        f"this process moved into {kernel.root}/v2/svc/{LEAF}: cgroup v2 wants the cgroup around the agents' empty",
    )


def test_the_second_cgroup_moves_nobody(kernel: FakeKernel) -> None:
    found = on_v2(kernel)
    Cgroup.make(found, "toka-x", LIMITS)
    kernel.log.clear()
    assert Cgroup.make(found, "toka-y", CgroupLimits(processes=5)).notes == ()
    assert kernel.log == ["mkdir v2/svc/toka-y", "v2/svc/toka-y/pids.max = 5"]
    again = on_v2(kernel, f"/svc/{LEAF}")
    assert again.places["memory"] == [Place(2, kernel.root / "v2/svc")], "a later process starts in the leaf"


def test_a_process_that_is_out_of_the_way_is_not_moved(kernel: FakeKernel) -> None:
    (kernel.root / "v2/svc/cgroup.procs").write_text("")
    assert len(Cgroup.make(on_v2(kernel, f"/svc/{LEAF}"), "toka-x", LIMITS).enforced) == 3
    assert not any(LEAF in line for line in kernel.log)


def test_the_root_cgroup_may_hold_processes(kernel: FakeKernel) -> None:
    (kernel.root / "v2/svc/cgroup.type").unlink()
    group = Cgroup.make(on_v2(kernel), "toka-x", LIMITS)
    assert len(group.enforced) == 3
    assert not any(LEAF in line for line in kernel.log)


def test_processes_of_others_are_never_moved(kernel: FakeKernel) -> None:
    (kernel.root / "v2/svc/cgroup.procs").write_text(f"{os.getpid()}\n77\n")
    found = on_v2(kernel)
    assert "other processes are in" in found.why_not("memory") and "(pid 77)" in found.why_not("memory")
    group = Cgroup.make(found, "toka-x", LIMITS)
    assert (group.enforced, len(group.missing)) == ({}, 3)
    assert kernel.log == ["mkdir v2/svc/toka-x"], "killing and freezing need no controller"


def test_a_controller_that_the_kernel_refuses_costs_only_itself(kernel: FakeKernel) -> None:
    kernel.refuses["+cpu"] = EINVAL
    group = Cgroup.make(on_v2(kernel), "toka-x", LIMITS)
    assert set(group.enforced) == {"memory", "pids"}
    assert group.missing == {"cpu": f"{kernel.root}/v2/svc/toka-x/cpu.max does not exist"}
    assert "does not take +cpu: Invalid argument" in group.notes[1]


@pytest.mark.parametrize(
    ("file", "kind"),
    [("memory.max", "memory"), ("memory.swap.max", "memory"), ("cpu.max", "cpu"), ("pids.max", "pids")],
)
@pytest.mark.parametrize("how", ["deaf", "refuses"])
def test_what_is_not_read_back_is_not_enforced(kernel: FakeKernel, file: str, kind: Kind, how: str) -> None:
    if how == "deaf":
        kernel.deaf.add(file)
    else:
        kernel.refuses[file] = EPERM
    group = Cgroup.make(on_v2(kernel), "toka-x", LIMITS)
    assert set(group.enforced) == {"memory", "cpu", "pids"} - {kind}
    assert f"/{file} {'holds' if how == 'deaf' else 'does not take'} " in group.missing[kind]


def test_swap_that_is_not_counted_is_noted(kernel: FakeKernel, tmp_path: Path) -> None:
    kernel.absent = {"memory.swap.max", "memory.memsw.limit_in_bytes"}
    group = Cgroup.make(on_v2(kernel), "toka-x", CgroupLimits(64 * MIB))
    assert group.enforced == {"memory": "cgroup v2"}
    assert group.notes[1].endswith("memory.swap.max does not exist: the kernel does not count swap")
    found, _ = on_v1(tmp_path, kernel)
    assert "memsw.limit_in_bytes does not exist" in Cgroup.make(found, "toka-x", CgroupLimits(64 * MIB)).notes[0]


def test_memory_may_be_rounded_down_to_a_page_and_no_other_way() -> None:
    asked = Setting("memory.max", str(10 * PAGE + 5), PAGE - 1)
    assert asked.taken(f"{10 * PAGE}\n")
    assert not any(asked.taken(text) for text in (str(11 * PAGE), str(9 * PAGE), "max", "", "-1"))
    assert not Setting("pids.max", "10").taken("9")


@pytest.mark.parametrize(
    ("cores", "text"), [(0.5, "50000 100000"), (3, "300000 100000"), (0.002, "2000 1000000"), (0.0001, "1000 1000000")]
)
def test_cores_become_a_quota_that_the_kernel_takes(cores: float, text: str) -> None:
    assert settings_of(CgroupLimits(cpu_cores=cores))["cpu"][2][0].text == text


@pytest.mark.parametrize("name", ["", "../x", "a/b", "memory.max", "Toka", "-x", "x" * 300, "a\n"])
def test_a_name_is_one_harmless_word(kernel: FakeKernel, name: str) -> None:
    with pytest.raises(ValueError, match="not a name"):
        Cgroup.make(on_v2(kernel), name, LIMITS)
    assert kernel.log == []


def test_an_empty_cgroup_of_that_name_is_replaced_and_one_in_use_is_not_touched(kernel: FakeKernel) -> None:
    found = on_v2(kernel)
    first = Cgroup.make(found, "toka-x", LIMITS)
    assert len(Cgroup.make(found, "toka-x", LIMITS).enforced) == 3
    (first.directories[0] / "cgroup.procs").write_text("77\n")
    kernel.log.clear()
    third = Cgroup.make(found, "toka-x", LIMITS)
    assert (third.enforced, third.directories, kernel.log) == ({}, (), [])
    assert "toka-x cannot be made: Device or resource busy" in third.missing["memory"]


# --- v1: what is written ---------------------------------------------------------------------------------------------


def test_v1_is_written_in_this_order(tmp_path: Path) -> None:
    found, kernel = on_v1(tmp_path)
    group = Cgroup.make(found, "toka-x", LIMITS)
    written = [line for line in kernel.log if not line.startswith("mkdir")]
    assert written == [
        f"memory/me/toka-x/memory.limit_in_bytes = {64 * MIB}",
        f"memory/me/toka-x/memory.memsw.limit_in_bytes = {64 * MIB}",
        "memory/me/toka-x/memory.swappiness = 0",
        "cpu/me/toka-x/cpu.cfs_period_us = 100000",
        "cpu/me/toka-x/cpu.cfs_quota_us = 50000",
        "pids/me/toka-x/pids.max = 20",
    ]
    assert group.enforced == dict.fromkeys(("memory", "cpu", "pids"), "cgroup v1")
    assert group.usage() == Usage(5, 6, 1.5, 2.5, 3, 2), "bytes of storage are not taken from a v1"
    group.remove()
    assert group.usage() == Usage()
    group.remove()


def test_on_a_mixed_machine_each_kind_comes_from_where_it_is(kernel: FakeKernel, tmp_path: Path) -> None:
    (kernel.root / "v2/svc/cgroup.controllers").write_text("")
    on_v1(tmp_path, kernel)
    own = "0::/svc\n" + "".join(f"{i}:{c}:/me\n" for i, c in enumerate(V1_FILES, 1))
    mountinfo = v1_mountinfo(*V1_FILES) + v2_mountinfo()
    found = Hierarchies.find(mountinfo=mountinfo, own=own, root=tmp_path, files=kernel)
    group = Cgroup.make(found, "toka-x", LIMITS)
    assert group.enforced == dict.fromkeys(("memory", "cpu", "pids"), "cgroup v1")
    made = {str(d.relative_to(tmp_path)) for d in group.directories}
    assert made == {"v2/svc/toka-x", *(f"{c}/me/toka-x" for c in ("memory", "cpu", "pids", "blkio"))}
    assert not any(LEAF in line for line in kernel.log), "nothing to gain from moving"


# --- in use, on the fake ---------------------------------------------------------------------------------------------


def test_v2_usage_is_read(kernel: FakeKernel) -> None:
    group = Cgroup.make(on_v2(kernel), "toka-x", CgroupLimits())
    (directory,) = group.directories
    kernel.lay(
        directory,
        {
            "memory.current": "7\n",
            "memory.peak": "9\n",
            "memory.events": "low 0\noom 5\noom_kill 2\noom_group_kill 0\n",
            "cpu.stat": "usage_usec 2500000\nthrottled_usec 500000\n",
            "pids.current": "4\n",
            "pids.events": "max 3\n",
            "io.stat": "8:0 rbytes=1 wbytes=2 rios=1\n",
        },
    )
    assert group.usage() == Usage(7, 9, 2.5, 0.5, 4, 2, 1, 2, 3)
    (directory / "memory.peak").unlink()
    (directory / "cpu.stat").write_text("usage_usec 1\n")
    assert (group.usage().memory_peak_bytes, group.usage().throttled_s) == (None, None)


def test_a_process_that_did_not_arrive_is_an_error(kernel: FakeKernel) -> None:
    group = Cgroup.make(on_v2(kernel), "toka-x", LIMITS)
    kernel.deaf.add("cgroup.procs")
    with pytest.raises(SandboxError, match=r"is not in .* after it was put there"):
        group.add(NOWHERE)
    kernel.refuses["cgroup.procs"] = EPERM
    with pytest.raises(SandboxError, match=r"could not be put into .*: Operation not permitted"):
        group.add(NOWHERE)


def test_a_child_that_stayed_outside_is_an_error(kernel: FakeKernel) -> None:
    group = Cgroup.make(on_v2(kernel), "toka-x", LIMITS)
    code = "import os, sys\nif not os.fork(): sys.stdin.read(); os._exit(0)\nprint('up', flush=True); sys.stdin.read()"
    with running(code) as process:
        child = int(Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text())
        with pytest.raises(SandboxError, match=rf"\[{child}\] stayed outside"):
            group.add(process.pid)
        group.add(child)
        group.add(process.pid)
        assert group.pids() == {child, process.pid}


def test_a_child_that_is_only_half_inside_is_an_error(tmp_path: Path) -> None:
    found, _ = on_v1(tmp_path)
    group = Cgroup.make(found, "toka-x", LIMITS)
    code = "import os, sys\nif not os.fork(): sys.stdin.read(); os._exit(0)\nprint('up', flush=True); sys.stdin.read()"
    with running(code) as process:
        child = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text()
        (group.directories[0] / "cgroup.procs").write_text(child)
        with pytest.raises(SandboxError, match="stayed outside"):
            group.add(process.pid)


def test_freezing_is_bounded_and_undone_when_it_fails(kernel: FakeKernel, monkeypatch: pytest.MonkeyPatch) -> None:
    group = Cgroup.make(on_v2(kernel), "toka-x", LIMITS)
    group.freeze()
    assert "v2/svc/toka-x/cgroup.freeze = 1" in kernel.log
    group.thaw()
    kernel.deaf.add("cgroup.events")
    monkeypatch.setattr(cgroup, "FREEZE_S", 0.02)
    with pytest.raises(SandboxError, match="did not stand still"):
        group.freeze()
    assert (group.directories[0] / "cgroup.freeze").read_text() == "0"


def test_toka_never_kills_itself(kernel: FakeKernel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cgroup.signal, "pidfd_send_signal", lambda fd, number: None)
    monkeypatch.setattr(cgroup, "KILL_S", 0.02)
    group = Cgroup.make(on_v2(kernel), "toka-x", LIMITS)
    group.add(os.getpid())
    with pytest.raises(SandboxError, match="holds Toka itself"):
        group.kill()
    assert not any("cgroup.kill" in line for line in kernel.log)


def test_v1_is_held_still_while_it_is_signalled_and_thawed_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found, kernel = on_v1(tmp_path)
    group = Cgroup.make(found, "toka-x", LIMITS)

    def send(fd: int, number: int) -> None:
        kernel.log.append(f"signal {number}")
        for directory in group.directories:
            (directory / "cgroup.procs").write_text("")

    monkeypatch.setattr(cgroup.signal, "pidfd_send_signal", send)
    with running("import sys; print('up', flush=True); sys.stdin.read()") as process:
        group.add(process.pid)
        kernel.log.clear()
        group.kill()
    state = "freezer/me/toka-x/freezer.state"
    assert kernel.log == [f"{state} = FROZEN", "signal 9", f"{state} = THAWED", f"{state} = THAWED"]


def test_processes_that_we_cannot_see_are_not_signalled_and_not_forgotten(
    kernel: FakeKernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    group = Cgroup.make(on_v2(kernel), "toka-x", LIMITS)
    (group.directories[0] / "cgroup.procs").write_text("0\n")
    monkeypatch.setattr(cgroup, "KILL_S", 0.02)
    with pytest.raises(SandboxError, match=r"processes \[0\] of cgroup toka-x live"):
        group.kill()
    assert "v2/svc/toka-x/cgroup.kill = 1" in kernel.log


def test_a_pid_that_left_before_the_signal_is_spared(kernel: FakeKernel, monkeypatch: pytest.MonkeyPatch) -> None:
    """A number may belong to another process by the time it is signalled."""
    group = Cgroup.make(on_v2(kernel), "toka-x", LIMITS)
    with running("import sys; print('up', flush=True); sys.stdin.read()") as process:
        group.add(process.pid)
        opened = os.pidfd_open

        def leaves(pid: int) -> int:
            (group.directories[0] / "cgroup.procs").write_text("")
            return opened(pid)

        monkeypatch.setattr(cgroup.os, "pidfd_open", leaves)
        group.kill()
        assert process.poll() is None


def test_members_that_cannot_be_read_are_not_taken_for_none(kernel: FakeKernel) -> None:
    group = Cgroup.make(on_v2(kernel), "toka-x", LIMITS)
    procs = group.directories[0] / "cgroup.procs"
    procs.unlink()
    procs.mkdir()
    with pytest.raises(SandboxError, match="cannot be read: Is a directory"):
        group.kill()


def test_removing_what_is_in_use_is_an_error_within_bounds(kernel: FakeKernel, monkeypatch: pytest.MonkeyPatch) -> None:
    group = Cgroup.make(on_v2(kernel), "toka-x", LIMITS)
    (group.directories[0] / "cgroup.procs").write_text("77\n")
    monkeypatch.setattr(cgroup, "REMOVE_S", 0.02)
    with pytest.raises(SandboxError, match=r"is in use; processes inside: \[77\]"):
        group.remove()


# --- orphans ---------------------------------------------------------------------------------------------------------


def dead_owner() -> str:
    """How a name ends that a process made which is dead."""
    process = subprocess.Popen(["sleep", "100"])
    stat = read_stat(process.pid)
    assert stat is not None
    process.kill()
    process.wait()
    return f"{process.pid}-{stat.started}"


def test_a_name_tells_its_owner_and_fits_a_directory() -> None:
    name = owned_name("toka", "run/1", "agent.x" * 60)
    assert name.startswith("toka-run_1-agent_x") and len(name) <= 255
    assert not owner_is_gone(name)
    pidns, pid, started = (int(part.strip("n")) for part in name.split("-")[-3:])
    assert pid == os.getpid()
    assert owner_is_gone(f"toka-n{pidns}-{pid}-{started + 1}"), "the pid was given to another process"
    assert owner_is_gone(f"toka-{pid}-{started + 1}")
    assert not owner_is_gone(f"toka-n{pidns + 1}-{pid}-{started + 1}"), "pids of another namespace mean nothing here"


def test_an_owner_that_waits_to_be_reaped_is_gone() -> None:
    process = subprocess.Popen(["sleep", "100"])
    stat = read_stat(process.pid)
    assert stat is not None
    name = f"toka-{process.pid}-{stat.started}"
    assert not owner_is_gone(name)
    process.kill()
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    assert owner_is_gone(name)
    process.wait()


def test_what_is_not_for_certain_an_orphan_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not any(owner_is_gone(name) for name in ("toka-x", LEAF, "toka-1", "toka-x-1-", f"toka-{10**30}-1"))
    gone = f"toka-{dead_owner()}"
    assert owner_is_gone(gone)

    def hidden(pid: int, number: int) -> None:
        raise PermissionError

    monkeypatch.setattr("toka.sandbox.cgroup_find.os.kill", hidden)
    assert not owner_is_gone(gone), "/proc hides the processes of others; that does not make them dead"


def test_only_cgroups_of_dead_owners_are_orphans(kernel: FakeKernel) -> None:
    found = on_v2(kernel)
    dead = dead_owner()
    names = [f"toka-a-{dead}", f"other-a-{dead}", owned_name("toka", "b"), "toka-c"]
    for name in names:
        Cgroup.make(found, name, LIMITS)
    (orphan,) = orphans(found, "toka-")
    assert orphan.name == names[0]
    orphan.end()
    assert orphans(found, "toka-") == []
    assert set(kernel.folders(kernel.root / "v2/svc")) == {LEAF, *names[1:]}
    with pytest.raises(ValueError, match="prefix"):
        orphans(found, "")


# --- the real kernel -------------------------------------------------------------------------------------------------


@contextmanager
def running(code: str, user: int | None = None) -> Iterator[subprocess.Popen[bytes]]:
    """A Python that has printed a line; it and its process group are killed afterwards."""
    process = subprocess.Popen(
        [sys.executable, "-I", "-S", "-c", code],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        process_group=0,
        user=user,
    )
    assert process.stdout is not None and process.stdin is not None
    try:
        assert process.stdout.readline()
        yield process
    finally:
        try:
            os.killpg(process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        process.wait()
        process.stdin.close()
        process.stdout.close()


def until(done: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not done():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def tell(process: subprocess.Popen[bytes]) -> None:
    assert process.stdin is not None
    process.stdin.write(b"\n")
    process.stdin.flush()


def hear(process: subprocess.Popen[bytes]) -> bytes:
    assert process.stdout is not None
    return process.stdout.readline()


WAIT = "import os, sys, time\nprint('up', flush=True)\nsys.stdin.readline()\n"


@pytest.fixture(params=["as it is", "v1 only", "v2 only"])
def machine(request: pytest.FixtureRequest) -> Hierarchies:
    """The cgroups of this machine, whole and by generation."""
    text = Path("/proc/self/mountinfo").read_text()
    unwanted = {"as it is": "none", "v1 only": " - cgroup2 ", "v2 only": " - cgroup "}[request.param]
    return Hierarchies.find(mountinfo="".join(line for line in text.splitlines(True) if unwanted not in line))


@pytest.fixture
def real(machine: Hierarchies) -> Iterator[Callable[..., Cgroup]]:
    """Makes cgroups with the kinds asked for, or skips with the reason; ends them."""
    made: list[Cgroup] = []

    def make(*kinds: Kind, **limits: float) -> Cgroup:
        for kind in kinds:
            if why := machine.why_not(kind):
                pytest.skip(f"{kind}: {why}")
        group = Cgroup.make(machine, owned_name("toka", "test", str(len(made))), CgroupLimits(**limits))
        made.append(group)
        if group.missing:
            pytest.skip("; ".join(group.missing.values()))
        return group

    yield make
    for group in made:
        group.end()
        assert not any(d.exists() for d in group.directories)


def test_too_much_memory_is_killed_and_counted(real: Callable[..., Cgroup]) -> None:
    group = real("memory", memory_bytes=64 * MIB)
    with running(WAIT + f"x = bytearray({200 * MIB})\nprint('had it', flush=True)\n") as process:
        group.add(process.pid)
        tell(process)
        assert hear(process) == b""
        assert process.wait(10) == -signal.SIGKILL
    usage = group.usage()
    assert usage.oom_kills == 1
    assert usage.memory_peak_bytes is not None and 32 * MIB < usage.memory_peak_bytes <= 64 * MIB


def test_memory_of_a_tree_counts_together(real: Callable[..., Cgroup]) -> None:
    group = real("memory", memory_bytes=96 * MIB)
    code = f"""{WAIT}
for _ in range(4):
    if not os.fork():
        x = bytearray({40 * MIB})
        sys.stdin.readline()
        os._exit(0)
killed = sum(os.waitstatus_to_exitcode(os.wait()[1]) == -9 for _ in range(2))
print(killed, flush=True)
"""
    with running(code) as process:
        group.add(process.pid)
        tell(process)
        assert hear(process) == b"2\n"
        group.kill()


def test_a_fork_loop_stops_at_the_limit_and_dies_at_once(real: Callable[..., Cgroup]) -> None:
    group = real("pids", processes=10)
    code = f"""{WAIT}
for made in range(50):
    try:
        if not os.fork(): time.sleep(100); os._exit(0)
    except BlockingIOError:
        break
print(made, flush=True)
time.sleep(100)
"""
    with running(code) as process:
        group.add(process.pid)
        tell(process)
        assert hear(process) == b"9\n"
        assert group.usage().processes == 10 == len(group.pids())
        group.kill()
        assert group.pids() == set()
        assert process.wait(10) == -signal.SIGKILL


BOMB = f"""{WAIT}
end = time.monotonic() + 5
while time.monotonic() < end:
    try:
        os.fork()
    except BlockingIOError:
        pass
"""


@pytest.mark.parametrize("freezer", [True, False], ids=["freezer", "no freezer"])
def test_a_tree_that_forks_all_the_time_is_killed(machine: Hierarchies, freezer: bool) -> None:
    if why := machine.why_not("pids"):
        pytest.skip(f"pids: {why}")
    kinds = [k for k in machine.places if freezer or k not in ("freeze", "kill", "cpuacct")]
    found = Hierarchies({kind: machine.places[kind] for kind in kinds}, files=machine.files)
    group = Cgroup.make(found, owned_name("toka", "bomb"), CgroupLimits(processes=30))
    if group.missing:
        pytest.skip(group.missing["pids"])
    with running(BOMB) as process:
        group.add(process.pid)
        tell(process)
        until(lambda: len(group.pids()) > 25)
        group.kill()
        assert group.pids() == set()
        group.remove()


@pytest.mark.slow
def test_processor_time_is_shared_out(real: Callable[..., Cgroup]) -> None:
    group = real("cpu", "cpuacct", cpu_cores=0.2)
    with running(f"{WAIT}while True: pass") as process:
        group.add(process.pid)
        tell(process)
        began = time.monotonic()
        until(lambda: time.monotonic() - began > 1)
        usage = group.usage()
        assert usage.cpu_s is not None and 0.02 < usage.cpu_s < 0.5
        assert usage.throttled_s is not None and usage.throttled_s > 0.2


def ticks(pid: int) -> int:
    stat = read_stat(pid)
    assert stat is not None
    return stat.cpu_ticks


def test_frozen_processes_stand_still_until_thawed(real: Callable[..., Cgroup]) -> None:
    group = real("freeze")
    with running(f"{WAIT}while True: pass") as process:
        group.add(process.pid)
        tell(process)
        until(lambda: ticks(process.pid) > 2)
        group.freeze()
        before, began = ticks(process.pid), time.monotonic()
        until(lambda: time.monotonic() - began > 0.06)
        assert ticks(process.pid) == before
        group.thaw()
        until(lambda: ticks(process.pid) > before)


def test_a_frozen_tree_can_be_killed(real: Callable[..., Cgroup]) -> None:
    group = real("freeze")
    with running("import os, time\nos.fork()\nprint('up', flush=True)\ntime.sleep(100)") as process:
        until(lambda: len(Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()) == 1)
        group.add(int(Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text()))
        group.add(process.pid)
        group.freeze()
        assert len(group.pids()) == 2
        group.kill()
        assert group.pids() == set()
        assert process.wait(10) == -signal.SIGKILL
        group.remove()
        group.remove()
        assert group.usage() == Usage()


def test_a_process_that_is_gone_cannot_be_added(real: Callable[..., Cgroup]) -> None:
    group = real("freeze")
    with pytest.raises(SandboxError, match=f"process {NOWHERE} could not be put into .*: No such process"):
        group.add(NOWHERE)


def test_what_is_reported_is_what_the_kernel_shows(real: Callable[..., Cgroup], machine: Hierarchies) -> None:
    group = real("memory", "cpu", "pids", memory_bytes=10 * MIB + 1, cpu_cores=0.5, processes=7)
    names = ("pids.max", "memory.limit_in_bytes", "memory.max")
    shown = {n: (d / n).read_text().strip() for d in group.directories for n in names if (d / n).exists()}
    assert shown.pop("pids.max") == "7"
    assert set(shown.values()) == {str(10 * MIB)}
    assert group.enforced == {kind: machine.places[kind][0].title for kind in ("memory", "cpu", "pids")}


def test_what_a_dead_runtime_left_frozen_is_found_and_ended(real: Callable[..., Cgroup], machine: Hierarchies) -> None:
    real("freeze")
    code = f"""
import sys, time
sys.path[:0] = {[p for p in sys.path if p]!r}
from pathlib import Path
from subprocess import Popen
from toka.sandbox.cgroup import Cgroup, CgroupLimits
from toka.sandbox.cgroup_find import Hierarchies, Place, owned_name
found = Hierarchies({ {k: [(p.generation, str(p.parent)) for p in v] for k, v in machine.places.items()}!r})
found = Hierarchies({{k: [Place(g, Path(d)) for g, d in v] for k, v in found.places.items()}})
group = Cgroup.make(found, owned_name("toka", "left"), CgroupLimits())
child = Popen(["sleep", "1000"])
group.add(child.pid)
group.freeze()
print(child.pid, flush=True)
time.sleep(100)
"""
    maker = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, process_group=0)
    try:
        left = int(hear(maker))
        assert not [o for o in orphans(machine, "toka-left-") if left in o.pids()], "its owner lives"
        maker.kill()
        maker.wait()
        (orphan,) = [o for o in orphans(machine, "toka-left-") if left in o.pids()]
        orphan.end()
        stat = read_stat(left)
        assert stat is None or stat.ended
        assert not any(d.exists() for d in orphan.directories)
        assert not [o for o in orphans(machine, "toka-left-") if o.name == orphan.name]
    finally:
        if maker.poll() is None:
            maker.kill()
            maker.wait()
        assert maker.stdout is not None
        maker.stdout.close()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_an_ordinary_user_gets_reasons_and_no_promises() -> None:
    code = f"""
import sys
sys.path[:0] = {[p for p in sys.path if p]!r}
from toka.sandbox.cgroup import Cgroup, CgroupLimits
from toka.sandbox.cgroup_find import KINDS, Hierarchies
found = Hierarchies.find()
group = Cgroup.make(found, "toka-plain", CgroupLimits(1 << 26, 0.5, 20))
print(dict(group.enforced), len(group.missing), len(group.directories), flush=True)
print(*[found.why_not(kind) for kind in KINDS], sep="\\n", flush=True)
"""
    environment = {"PATH": os.defpath}
    user: dict[str, Any] = {"user": 65534, "group": 65534, "extra_groups": []}
    if not usable(user, "sys"):
        pytest.skip(f"{sys.executable} and its packages cannot be used by another user")
    done = subprocess.run(
        [sys.executable, "-c", code],
        **user,
        capture_output=True,
        text=True,
        env=environment,
    )
    if "toka" not in done.stdout and "No module named" in done.stderr:
        pytest.skip("an ordinary user cannot read this checkout")
    assert done.returncode == 0, done.stderr
    first, *reasons = done.stdout.splitlines()
    assert first == "{} 3 0"
    assert len(reasons) == len(KINDS) and all(reasons)
    memory = Hierarchies.find().places.get("memory")
    if memory:
        assert f"{memory[0].parent} is not writable for uid 65534" in reasons[0]
