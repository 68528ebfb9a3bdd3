from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from toka.journal import holder
from toka.journal.holder import holder_lives, start_ticks, this_holder


def test_this_process_lives() -> None:
    me = this_holder()
    assert me.pid == os.getpid() and me.started > 0 and me.boot
    assert holder_lives(me) is True


@pytest.mark.parametrize(
    ("changes", "lives"),
    [
        ({"started": 1}, False),  # the pid was given to another process since
        ({"pid": 2**22 + 1}, False),
        ({"boot": "another"}, False),
        ({"pidns": "pid:[1]"}, None),
        ({"host": "elsewhere"}, None),
        ({"host": "elsewhere", "boot": "another"}, None),
    ],
)
def test_a_holder_lives_only_as_the_same_process(changes: dict[str, object], lives: bool | None) -> None:
    assert holder_lives(replace(this_holder(), **changes)) is lives  # type: ignore[arg-type]


def test_a_zombie_is_dead() -> None:
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    ticks = start_ticks(process.pid)
    assert ticks is not None
    process.kill()
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    assert start_ticks(process.pid) is None
    process.communicate()


def test_a_name_with_brackets_and_spaces_does_not_confuse_the_start_time(tmp_path: Path) -> None:
    program = tmp_path / "a) Z 1 (b"
    program.symlink_to("/bin/sleep")
    process = subprocess.Popen([str(program), "100"])
    ticks = start_ticks(process.pid)
    process.kill()
    process.wait()
    assert ticks is not None and ticks >= this_holder().started


def test_without_proc_only_the_pid_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    assert holder._without_proc(os.getpid()) == 0
    assert holder._without_proc(2**22 + 1) is None
