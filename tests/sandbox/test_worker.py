from __future__ import annotations

import asyncio
import errno
import os
from pathlib import Path
from typing import Any

import pytest

from sandbox.conftest import Start, names
from toka.sandbox import worker
from toka.sandbox.usage import children_of

READ: dict[str, Any] = {"start": 1, "lines": None, "limit": 1_000_000}


def ask(op: str, path: Path, **args: Any) -> dict[str, Any]:
    header, body = worker.answer({"op": op, "path": str(path), **args})
    return {**header, "body": body}


def edit(path: Path, old: str, new: str, count: int = 1, dry: bool = False) -> dict[str, Any]:
    return ask("edit", path, old=old, new=new, count=count, dry=dry)


def read(path: Path, **args: Any) -> dict[str, Any]:
    return ask("read", path, **{**READ, **args})


def find(path: Path, pattern: str, **args: Any) -> dict[str, Any]:
    return ask(
        "search", path, **{"pattern": pattern, "regex": False, "ignore_case": False, "glob": None, "limit": 100, **args}
    )


@pytest.mark.parametrize(
    ("text", "args", "body", "first", "count", "total", "cut"),
    [
        ("a\nb\nc\n", {}, "a\nb\nc\n", 1, 3, 3, False),
        ("a\nb\nc", {}, "a\nb\nc", 1, 3, 3, False),
        ("a\nb\nc\n", {"start": 2, "lines": 1}, "b\n", 2, 1, 3, False),
        ("a\nb\nc\n", {"start": 3}, "c\n", 3, 1, 3, False),
        ("a\nb\nc\n", {"start": 9}, "", 9, 0, 3, False),
        ("aa\nbb\ncc\n", {"limit": 7}, "aa\nbb\n", 1, 2, 3, False),
        ("aa\nbb\n", {"limit": 6}, "aa\nbb\n", 1, 2, 2, False),
        ("abcdef\nx\n", {"limit": 3}, "abc", 1, 1, 2, True),
        ("a\r\nb\r\n", {}, "a\r\nb\r\n", 1, 2, 2, False),
        ("", {}, "", 1, 0, 0, False),
        ("\n\n", {}, "\n\n", 1, 2, 2, False),
    ],
)
def test_read_gives_whole_lines(
    tmp_path: Path, text: str, args: dict[str, Any], body: str, first: int, count: int, total: int, cut: bool
) -> None:
    (tmp_path / "f").write_bytes(text.encode())
    got = read(tmp_path / "f", **args)
    assert (got["body"].decode(), got["first"], got["count"], got["total"], got["cut"]) == (
        body,
        first,
        count,
        total,
        cut,
    )


def test_read_says_binary_instead_of_showing_it(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"a\0b")
    assert read(tmp_path / "f") == {
        "size": 3,
        "mode": (tmp_path / "f").stat().st_mode & 0o7777,
        "binary": True,
        "body": b"",
    }


@pytest.mark.parametrize("op", ["read", "hash", "write", "edit"])
def test_only_regular_files_are_touched(tmp_path: Path, op: str) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "link").symlink_to("fifo")
    args = {"body": b"x", "old": "a", "new": "b", "count": 1, "dry": False, **READ}
    for name, code in (("fifo", "not-a-file"), ("link", "not-a-file"), ("", "folder")):
        assert ask(op, tmp_path / name, **args)["error"] == code
    assert ask(op, Path("/dev/null"), **args)["error"] == "not-a-file"


def test_a_huge_file_is_refused_without_reading_it(tmp_path: Path) -> None:
    with (tmp_path / "f").open("wb") as file:
        file.truncate(1 << 40)
    assert read(tmp_path / "f")["error"] == "too-large"
    assert edit(tmp_path / "f", "a", "b")["error"] == "too-large"
    assert ask("write", tmp_path / "g", body=b"x" * (worker.MAX_FILE + 1))["error"] == "too-large"


def test_errors_say_what_and_where(tmp_path: Path) -> None:
    (tmp_path / "dangling").symlink_to("nowhere")
    (tmp_path / "loop").symlink_to("loop")
    assert read(tmp_path / "none") == {"error": "not-found", "message": f"{tmp_path}/none does not exist", "body": b""}
    assert read(tmp_path / "dangling")["error"] == "bad-link"
    assert read(tmp_path / "loop")["error"] == "bad-link"
    assert read(tmp_path / ("x" * 300))["error"] == "bad-path"
    assert ask("nonsense", tmp_path)["error"] == "failed"


def test_write_creates_with_parents_and_replaces_keeping_the_mode(tmp_path: Path) -> None:
    path = tmp_path / "a/b/f"
    assert ask("write", path, body=b"one")["created"] is True
    assert path.stat().st_mode & 0o777 == 0o644
    path.chmod(0o755)
    got = ask("write", path, body=b"two")
    assert (got["created"], got["size"]) == (False, 3)
    assert path.read_bytes() == b"two"
    assert path.stat().st_mode & 0o777 == 0o755
    assert names(tmp_path / "a/b") == ["f"]


def test_write_never_keeps_a_set_user_id_bit(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"x")
    (tmp_path / "f").chmod(0o4755)
    ask("write", tmp_path / "f", body=b"two")
    assert (tmp_path / "f").stat().st_mode & 0o7777 == 0o755


def test_write_through_a_link_keeps_the_link(tmp_path: Path) -> None:
    (tmp_path / "real").write_bytes(b"old")
    (tmp_path / "link").symlink_to("real")
    ask("write", tmp_path / "link", body=b"new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real").read_bytes() == b"new"


@pytest.mark.parametrize("call", ["rename", "fsync"])
def test_a_write_that_fails_leaves_the_old_contents_and_no_rest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    def full(*args: object) -> None:
        raise OSError(errno.ENOSPC, "full")

    (tmp_path / "f").write_bytes(b"old")
    monkeypatch.setattr(worker.os, call, full)
    assert ask("write", tmp_path / "f", body=b"new")["error"] == "no-space"
    assert (tmp_path / "f").read_bytes() == b"old"
    assert names(tmp_path) == ["f"]


def test_edit_replaces_exactly(tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.write_bytes(b"one two\r\nthree\ttwo\xff")
    got = edit(path, "one two\r\n", "1\n")
    assert path.read_bytes() == b"1\nthree\ttwo\xff"
    assert got["count"] == 1
    assert got["before"] != got["after"] == ask("hash", path)["sha256"]


@pytest.mark.parametrize(
    ("old", "count", "code"),
    [
        ("twice", 1, "ambiguous"),
        ("twice", 3, "ambiguous"),
        ("Twice", 1, "no-match"),
        ("twice  ", 1, "no-match"),
        ("", 1, "no-match"),
    ],
)
def test_edit_refuses_what_is_not_exact(tmp_path: Path, old: str, count: int, code: str) -> None:
    (tmp_path / "f").write_bytes(b"twice twice \n")
    assert edit(tmp_path / "f", old, "x", count)["error"] == code
    assert (tmp_path / "f").read_bytes() == b"twice twice \n"


def test_edit_takes_the_right_count_and_a_dry_run_changes_nothing(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"aXbX")
    dry = edit(tmp_path / "f", "X", "", 2, dry=True)
    assert (tmp_path / "f").read_bytes() == b"aXbX"
    assert edit(tmp_path / "f", "X", "", 2) == dry
    assert (tmp_path / "f").read_bytes() == b"ab"


def test_list_gives_kinds_and_sizes_in_order(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    (tmp_path / "b/c").write_bytes(b"123")
    (tmp_path / "a").symlink_to("b")
    os.mkfifo(tmp_path / "d")
    (tmp_path / ".git").mkdir()
    (tmp_path / ".git/x").write_bytes(b"")
    flat = [[".git", "folder", None], ["a", "link", None], ["b", "folder", None], ["d", "other", None]]
    assert ask("list", tmp_path, depth=1, limit=10)["entries"] == flat
    deep = ask("list", tmp_path, depth=3, limit=10)
    assert deep["entries"] == [*flat[:3], ["b/c", "file", 3], flat[3]]
    assert ask("list", tmp_path, depth=3, limit=2) == {"entries": flat[:2], "more": True, "body": b""}


def test_a_name_that_is_no_text_is_shown_all_the_same(tmp_path: Path) -> None:
    Path(os.fsdecode(bytes(tmp_path) + b"/\xff")).write_bytes(b"find me")
    assert ask("list", tmp_path, depth=1, limit=10)["entries"] == [["\ufffd", "file", 7]]
    assert find(tmp_path, "me")["matches"][0][0].endswith("/\ufffd")


def test_search_finds_lines_and_skips_what_it_says(tmp_path: Path) -> None:
    (tmp_path / "src").mkdir()
    (tmp_path / "src/a.py").write_text("x = 1\ny.z = 2\n")
    (tmp_path / "src/b.txt").write_text("y.z\nY-Z\n" + "z" * 1000)
    (tmp_path / "bin").write_bytes(b"\0y.z")
    (tmp_path / ".git").mkdir()
    (tmp_path / ".git/c").write_text("y.z")
    (tmp_path / "loop").symlink_to(tmp_path)
    os.mkfifo(tmp_path / "fifo")
    top = f"{tmp_path}/src"
    assert find(tmp_path, "y.z")["matches"] == [[f"{top}/a.py", 2, "y.z = 2"], [f"{top}/b.txt", 1, "y.z"]]
    assert find(tmp_path, "y.z", glob="*.py")["matches"] == [[f"{top}/a.py", 2, "y.z = 2"]]
    assert find(tmp_path, "y.z", glob="src/*.txt")["matches"] == [[f"{top}/b.txt", 1, "y.z"]]
    assert find(tmp_path, "^y.z$", regex=True, ignore_case=True)["matches"] == [
        [f"{top}/b.txt", 1, "y.z"],
        [f"{top}/b.txt", 2, "Y-Z"],
    ]
    assert find(tmp_path / "src/a.py", "x")["matches"] == [[f"{top}/a.py", 1, "x = 1"]]
    assert len(find(tmp_path, "zzz")["matches"][0][2]) == worker.MAX_LINE
    limited = find(tmp_path, "z", limit=1)
    assert (len(limited["matches"]), limited["stopped"]) == (1, "the limit of matches")
    assert find(tmp_path, "(", regex=True)["error"] == "bad-pattern"
    assert find(tmp_path / "none", "x")["error"] == "not-found"


def test_search_gives_up_on_too_many_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(5):
        (tmp_path / str(number)).write_text("x")
    monkeypatch.setattr(worker, "MAX_SEARCHED_FILES", 3)
    got = find(tmp_path, "x")
    assert (got["files"], got["stopped"]) == (3, "too much to search")


def test_hash_of_what_is_not_there(tmp_path: Path) -> None:
    assert ask("hash", tmp_path / "none") == {"exists": False, "sha256": None, "size": 0, "body": b""}


# ---- in a sandbox


async def test_writes_stay_inside_the_writable_mounts(start: Start, workspace: Path) -> None:
    sandbox = await start(reads=(".",), writes=("src",))
    for path in ("docs/a.txt", "docs/new", "new", "new/er", "private/key"):
        assert (await sandbox.file("write", path=path, body=b"x"))["error"] == "read-only", path
    assert (await sandbox.file("write", path="src/deep/er/f", body=b"x"))["created"]
    assert (workspace / "src/deep/er/f").read_bytes() == b"x"
    assert names(workspace) == ["docs", "private", "src"]


async def test_a_granted_file_is_written_in_place(start: Start, workspace: Path) -> None:
    sandbox = await start(reads=(), writes=("src/main.py", "notes.md"))
    inode = (workspace / "src/main.py").stat().st_ino
    assert not (await sandbox.file("write", path="src/main.py", body=b"longer than it was before\n"))["created"]
    assert not (await sandbox.file("write", path="src/main.py", body=b"short"))["created"]
    assert (workspace / "src/main.py").read_bytes() == b"short"
    assert (workspace / "src/main.py").stat().st_ino == inode
    await sandbox.file("edit", path="src/main.py", old="sh", new="SH", count=1, dry=False)
    await sandbox.file("write", path="notes.md", body=b"n")
    assert (workspace / "src/main.py").read_bytes() == b"SHort"
    assert (workspace / "notes.md").read_bytes() == b"n"


async def test_a_deadline_kills_the_worker_and_the_next_operation_has_a_new_one(start: Start, workspace: Path) -> None:
    (workspace / "src/evil").write_text("a" * 40 + "!")
    sandbox = await start()
    args = {"path": "src", "regex": True, "ignore_case": False, "glob": None, "limit": 10}
    answer = await sandbox.file("search", pattern="(a+)+$", timeout_s=0.1, **args)
    assert answer["error"] == "timeout"
    assert (await sandbox.file("read", path="docs/a.txt", **READ))["body"] == b"alpha\n"


async def test_cancelling_an_operation_ends_it(start: Start, workspace: Path) -> None:
    (workspace / "src/evil").write_text("a" * 40 + "!")
    sandbox = await start()
    args = {"path": "src", "regex": True, "ignore_case": False, "glob": None, "limit": 10}
    searching = asyncio.create_task(sandbox.file("search", pattern="(a+)+$", **args))
    await asyncio.sleep(0.05)
    searching.cancel()
    with pytest.raises(asyncio.CancelledError):
        await searching
    assert (await sandbox.file("hash", path="docs/a.txt"))["exists"]


@pytest.mark.slow
async def test_a_write_is_whole_or_not_at_all(start: Start, workspace: Path) -> None:
    sandbox = await start()
    (workspace / "src/f").write_bytes(b"0" * 8_000_000)
    ended = set()
    for number in range(1, 21):
        body = str(number % 10).encode() * 8_000_000
        answer = await sandbox.file("write", path="src/f", body=body, timeout_s=0.004 * number)
        ended.add(answer.get("error", "written"))
        data = (workspace / "src/f").read_bytes()
        assert len(data) == 8_000_000
        assert len(set(data)) == 1
        if "error" not in answer:
            assert data == body
    assert "timeout" in ended


async def test_operations_wait_for_one_another(start: Start) -> None:
    sandbox = await start()
    await asyncio.gather(*(sandbox.file("write", path=f"src/{n}", body=str(n).encode() * 1000) for n in range(30)))
    answers = await asyncio.gather(*(sandbox.file("read", path=f"src/{n}", **READ) for n in range(30)))
    assert [a["body"] for a in answers] == [str(n).encode() * 1000 for n in range(30)]


async def test_the_worker_has_no_privileges_and_sees_no_system(start: Start) -> None:
    sandbox = await start(warm=False)
    await sandbox.file("hash", path="docs/a.txt")
    zygote = sandbox._zygote
    assert zygote is not None
    children = [str(pid) for pid in children_of(zygote._inner)]
    assert len(children) == 1
    jail = await sandbox.run(["ls", "-A", "/toka/jail/workspace"], timeout_s=5)
    assert (jail.exit_code, jail.output) == (0, b"")  # the worker's mounts are its own
    status = Path(f"/proc/{children[0]}/status").read_text()
    assert "CapPrm:\t0000000000000000" in status
    assert "CapBnd:\t0000000000000000" in status
    if os.getuid() == 0:
        assert names(f"/proc/{children[0]}/root") == ["workspace"]
        assert len(names(f"/proc/{children[0]}/fd")) <= 5
