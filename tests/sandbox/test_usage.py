from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from toka.sandbox import usage
from toka.sandbox.usage import Sampler, Usage, children_of, parse_figure, parse_io, parse_stat, read_stat

MIB = 1024 * 1024
pytestmark = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="no /proc here")
needs_children = pytest.mark.skipif(
    not Path(f"/proc/self/task/{os.getpid()}/children").exists(), reason="this kernel does not list children"
)
needs_io = pytest.mark.skipif(not os.access("/proc/self/io", os.R_OK), reason="this kernel does not count io")


@contextmanager
def running(code: str) -> Iterator[subprocess.Popen[bytes]]:
    """A Python that has printed a line; it and its process group are killed afterwards."""
    process = subprocess.Popen(
        [sys.executable, "-I", "-S", "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, process_group=0
    )
    assert process.stdout is not None and process.stdin is not None
    try:
        assert process.stdout.readline()
        yield process
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        process.stdin.close()
        process.stdout.close()


def until(done: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not done():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def stat_line(name: str = "x", *, threads: int = 1, started: int = 5, rss: int = 7, state: str = "S") -> str:
    before = [state, *["0"] * 10, "100", "20", "3", "4", "0", "0", str(threads), "0", str(started), "0", str(rss)]
    return f"1 ({name}) {' '.join(before)} 0 0\n"


def fake(proc: Path, pid: int, children: str = "", **files: str) -> None:
    folder = proc / str(pid) / "task" / str(pid)
    folder.mkdir(parents=True)
    (folder / "children").write_text(children)
    (folder / "stat").write_text("")
    for name, text in {"stat": stat_line(), **files}.items():
        (proc / str(pid) / name).write_text(text)


# --- reading ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["sh", "a) Z (b", "1 2 3", "new\nline) S 1"])
def test_a_process_may_be_called_anything(name: str) -> None:
    stat = parse_stat(stat_line(name, threads=3))
    assert (stat.state, stat.threads, stat.started, stat.cpu_ticks) == ("S", 3, 5, 127)
    assert stat.rss_bytes == 7 * os.sysconf("SC_PAGE_SIZE")


def test_no_such_process_has_no_stat() -> None:
    assert read_stat(2**22 + 1) is None
    assert children_of(2**22 + 1, 1) == children_of(2**22 + 1, 2) == []


def test_figures_of_cgroup_files_are_found_by_their_word() -> None:
    assert parse_figure("nr_periods 4\nthrottled_usec 12\n", "throttled_usec") == 12
    with pytest.raises(ValueError, match="oom_kill"):
        parse_figure("oom_kill_disable 0\n", "oom_kill")
    assert parse_io("8:0 rbytes=1 wbytes=2 rios=9\n8:16 rbytes=10 wbytes=20 dbytes=7\n") == (11, 22)
    assert parse_io("") == (0, 0)


# --- sampling --------------------------------------------------------------------------------------------------------


@needs_children
def test_a_tree_is_counted_whole() -> None:
    code = f"""
import os, sys, threading, time
hold = bytearray({24 * MIB})
for depth in range(3):
    if os.fork():
        threading.Thread(target=sys.stdin.read).start()
        break
    own = bytearray({8 * MIB})
print("up", flush=True)
time.sleep(100)
"""
    with running(code) as process:
        sampler = Sampler(process.pid)
        until(lambda: sampler.sample().processes == 7)  # with the thread that each parent starts last
        until(lambda: (sampler.sample().memory_bytes or 0) > (24 + 3 * 8) * MIB)
        found = sampler.sample()
        assert found.processes == 7
        assert found.memory_bytes is not None and found.memory_bytes < 80 * MIB, "shared pages count once"
        cheap = sampler.sample(exact_from=1 << 50).memory_bytes
        assert cheap is not None and cheap > found.memory_bytes + 24 * MIB
        assert found.throttled_s is None and found.oom_kills is None


@needs_children
def test_children_of_every_thread_are_seen() -> None:
    code = """
import subprocess, threading, time
def start():
    child = subprocess.Popen(["sleep", "100"])
    print("up", flush=True)
    child.wait()
threading.Thread(target=start).start()
time.sleep(100)
"""
    with running(code) as process:
        assert Sampler(process.pid).sample().processes == 3


@needs_children
def test_more_children_than_fit_on_a_page_of_proc_are_all_seen() -> None:
    """Behind a thousand that nobody waits for, one could run unseen."""
    code = """
import os, time
for _ in range(1500):
    if not os.fork():
        os._exit(0)
last = os.fork()
if last:
    print(last, flush=True)
time.sleep(100)
"""
    with running(code) as process:
        children = children_of(process.pid)
        assert len(children) == 1501
        assert Sampler(process.pid).sample().processes == 1502
        assert read_stat(children[-1]) is not None


def test_what_was_killed_and_waited_for_by_nobody_stays_in_the_sum(tmp_path: Path) -> None:
    ticks = os.sysconf("SC_CLK_TCK")
    io = "read_bytes: 10\nwrite_bytes: 100\n"
    fake(tmp_path, 5, children="6", io=io)
    fake(tmp_path, 6, io=io)
    sampler = Sampler(5, proc=tmp_path)
    before = sampler.sample()
    assert (before.cpu_s, before.written_bytes) == (2 * 127 / ticks, 200)
    shutil.rmtree(tmp_path / "6")
    sampler.settle()
    sampler.settle()
    assert sampler.sample().cpu_s == before.cpu_s
    fake(tmp_path, 6, io=io)  # a new one
    after = sampler.sample()
    assert (after.cpu_s, after.read_bytes, after.written_bytes) == (3 * 127 / ticks, 30, 300)
    shutil.rmtree(tmp_path / "5")
    sampler.settle()
    assert sampler.sample().cpu_s == after.cpu_s, "the first one has ended"


@needs_children
def test_what_ended_processes_used_stays_counted() -> None:
    code = """
import os, sys, time
print("up", flush=True)
if not os.fork():
    while time.process_time() < 0.15: pass
    os._exit(0)
os.wait()
print("done", flush=True)
sys.stdin.read()
"""
    with running(code) as process:
        sampler = Sampler(process.pid)
        assert process.stdout is not None
        process.stdout.readline()
        found = sampler.sample()
        assert found.processes == 1
        assert found.cpu_s is not None and 0.14 <= found.cpu_s < 2


@needs_children
@needs_io
def test_bytes_written_are_counted(tmp_path: Path) -> None:
    code = f"""
import os, sys
fd = os.open({str(tmp_path / "f")!r}, os.O_CREAT | os.O_WRONLY)
os.write(fd, bytes({4 * MIB}))
os.fsync(fd)
print("up", flush=True)
sys.stdin.read()
"""
    with running(code) as process:
        own = Path(f"/proc/{process.pid}/io").read_text()
        found = Sampler(process.pid).sample()
        assert f"\nwrite_bytes: {found.written_bytes}\n" in own
        assert f"\nread_bytes: {found.read_bytes}\n" in own


@needs_children
def test_after_the_end_nothing_is_used_and_nothing_goes_back() -> None:
    with running(
        "import sys; x = 0\nfor i in range(2000000): x += i\nprint('up', flush=True); sys.stdin.read()"
    ) as process:
        sampler = Sampler(process.pid)
        before = sampler.sample()
    after = sampler.sample()
    assert (after.processes, after.memory_bytes) == (0, 0)
    assert after.memory_peak_bytes == before.memory_peak_bytes != 0
    assert after.cpu_s == before.cpu_s


def test_a_pid_that_another_process_has_now_is_not_measured(tmp_path: Path) -> None:
    fake(tmp_path, 1)
    sampler = Sampler(1, proc=tmp_path)
    assert sampler.sample().processes == 1
    (tmp_path / "1/stat").write_text(stat_line(started=6))
    assert sampler.sample().processes == 0


def test_a_first_process_that_waits_to_be_reaped_has_ended(tmp_path: Path) -> None:
    fake(tmp_path, 1)
    sampler = Sampler(1, proc=tmp_path)
    (tmp_path / "1/stat").write_text(stat_line(state="Z"))
    assert sampler.sample().processes == 0


def test_a_zombie_is_counted_but_has_no_memory(tmp_path: Path) -> None:
    fake(tmp_path, 1, "2", smaps_rollup="x\nRss: 9 kB\nPss: 4 kB\n", io="read_bytes: 1\nwrite_bytes: 2\n")
    fake(tmp_path, 2, stat=stat_line(state="Z", rss=99))
    found = Sampler(1, proc=tmp_path).sample()
    assert (found.processes, found.memory_bytes, found.read_bytes, found.written_bytes) == (2, 4096, 1, 2)


def test_rss_stands_in_for_a_pss_that_may_not_be_read(tmp_path: Path) -> None:
    fake(tmp_path, 1, "2", smaps_rollup="x\nRss: 9 kB\nPss: 4 kB\nPss_Dirty: 2 kB\n")
    fake(tmp_path, 2)
    found = Sampler(1, proc=tmp_path).sample()
    assert found.memory_bytes == 4096 + 7 * os.sysconf("SC_PAGE_SIZE")


def test_io_is_unknown_when_one_process_hides_it(tmp_path: Path) -> None:
    fake(tmp_path, 1, "2", io="read_bytes: 1\nwrite_bytes: 2\n")
    fake(tmp_path, 2)
    found = Sampler(1, proc=tmp_path).sample()
    assert (found.read_bytes, found.written_bytes, found.processes) == (None, None, 2)


def test_a_kernel_that_lists_no_children_gives_nothing_instead_of_a_part(tmp_path: Path) -> None:
    fake(tmp_path, 1)
    (tmp_path / "1/task/1/children").unlink()
    assert Sampler(1, proc=tmp_path).sample() == Usage()


def test_a_circle_in_what_proc_says_ends(tmp_path: Path) -> None:
    fake(tmp_path, 1, "2 2")
    fake(tmp_path, 2, "1 2")
    assert Sampler(1, proc=tmp_path).sample().processes == 2


def test_a_tree_that_is_slow_to_measure_is_measured_seldom(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = iter([100.0, 101.0, 104.9, 105.1, 105.1])
    monkeypatch.setattr(usage.time, "monotonic", lambda: next(now))
    fake(tmp_path, 1, smaps_rollup="x\nPss: 4 kB\n")
    sampler = Sampler(1, proc=tmp_path)
    seen = [sampler.sample().memory_bytes]
    (tmp_path / "1/smaps_rollup").write_text("x\nPss: 8 kB\n")
    seen += [sampler.sample().memory_bytes, sampler.sample().memory_bytes]
    assert seen == [4096, 4096, 8192], "one second of work, four without"


def test_below_the_limit_the_dear_figure_is_not_asked_for(tmp_path: Path) -> None:
    fake(tmp_path, 1, smaps_rollup="x\nPss: 4 kB\n")
    rss = 7 * os.sysconf("SC_PAGE_SIZE")
    assert Sampler(1, proc=tmp_path).sample(exact_from=rss + 1).memory_bytes == rss
    assert Sampler(1, proc=tmp_path).sample(exact_from=rss).memory_bytes == 4096


@needs_children
def test_a_sample_costs_little() -> None:
    with running("import sys; print('up', flush=True); sys.stdin.read()") as process:
        sampler = Sampler(process.pid)
        began = time.process_time()
        for _ in range(100):
            sampler.sample(exact_from=1 << 50)
        assert (time.process_time() - began) / 100 < 0.002, "2 ms of 50, ten times what it takes"
