"""The presets' programs, in real sandboxes: what each is for can be done with them."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from toka.core.capability import Capability, Grant
from toka.core.catalogue import PRESETS, resolve
from toka.core.limits import Limits
from toka.sandbox import profile
from toka.sandbox.policy import compile_policy
from toka.sandbox.profile import BEHIND, find_program
from toka.tools.builtin import tools_for
from toka.tools.python import Python
from toka.tools.shell import RunCommand
from toka.tools.tool import ToolContext, ToolResult
from tools.conftest import Room, Watched
from tools.web import LOOPBACK, Web, certificate


def needs(*programs: str) -> pytest.MarkDecorator:
    """Skips where the machine has not all of these programs where sandboxes look."""
    missing = [name for name in programs if find_program(name) is None]
    return pytest.mark.skipif(bool(missing), reason=f"{', '.join(missing)} not installed where sandboxes look")


def granted(name: str, **arguments: list[str]) -> Grant:
    return Grant((*resolve(name, arguments).capabilities, *resolve("filesystem-write", {}).capabilities))


def prepared(room: Room, grant: Grant) -> tuple[RunCommand, ToolContext]:
    """The command tool of a grant, and a sandbox as that grant compiles to."""
    policy = compile_policy(grant, Limits())
    (tool,) = [tool for tool in tools_for(grant) if isinstance(tool, RunCommand)]
    return tool, room(
        reads=policy.reads, writes=policy.writes, programs=policy.programs, network=policy.network, git=policy.git
    )


async def run(tool: RunCommand, ctx: ToolContext, command: str) -> ToolResult:
    assert tool.needs({"command": command})
    return await tool.call({"command": command}, ctx)


C = '#include <stdio.h>\n#include <math.h>\nint main(int n, char **a) { printf("%.0f\\n", pow(n, 2)); return 0; }\n'


@needs("cc", "as", "ld")
@pytest.mark.parametrize("name", [n for n in PRESETS if n.startswith(("cargo", "make"))])
async def test_a_compiler_works_and_its_product_runs(room: Room, workspace: Path, name: str) -> None:
    (workspace / "a.c").write_text(C)
    (workspace / "target/debug").mkdir(parents=True)
    tool, ctx = prepared(room, granted(name))
    built = await run(tool, ctx, "cc -O1 -o target/debug/a a.c -lm")
    assert not built.failed, built.text
    hands = await ctx.hands()
    made = await hands.run(["target/debug/a", "2", "3"], timeout_s=5)
    assert (made.exit_code, made.output) == (0, b"9\n")


@needs("make", "cc", "as", "ld")
async def test_make_builds_and_runs(room: Room, workspace: Path) -> None:
    (workspace / "a.c").write_text(C)
    recipe = (
        "target/a: a.c\n\tmkdir -p target && cc -o $@ $< -lm\ntest: target/a\n\t./target/a 2 | grep -q 4 && echo fine\n"
    )
    (workspace / "Makefile").write_text(recipe)
    tool, ctx = prepared(room, granted("make-execution"))
    assert (await run(tool, ctx, "make -s test")).text == "fine\n"


async def test_cargo_is_told_to_be_missing_where_it_is(room: Room) -> None:
    tool, ctx = prepared(room, granted("cargo-execution"))
    result = await run(tool, ctx, "cargo --version")
    if find_program("cargo"):
        assert result.text.startswith("cargo ")
    else:
        assert (result.failed, result.text.partition(" ")[0]) == (True, "cargo")
        assert "is not installed on this machine where sandboxes look: /usr/local/bin:" in result.text


@needs("cc", "as", "ld")
async def test_without_a_compiler_in_the_list_what_was_written_does_not_run(room: Room, workspace: Path) -> None:
    shutil.copy("/bin/true", workspace / "brought")
    for grant, runs in ((granted("script-execution"), False), (granted("make-execution"), True)):
        hands = await prepared(room, grant)[1].hands()
        assert ((await hands.run(["./brought"], timeout_s=5)).exit_code == 0) is runs


async def test_python(room: Room, workspace: Path) -> None:
    grant = granted("python-execution")
    _, ctx = prepared(room, grant)
    (tool,) = [tool for tool in tools_for(grant) if isinstance(tool, Python)]
    assert tool.needs({"code": "1"}) == (Capability("command-execution", programs=("python3",)),)
    told = await tool.call({"code": "import os, sys; print(os.getcwd(), sys.argv, sys.stdin.read())"}, ctx)
    assert (told.text, told.failed) == ("/workspace ['-c'] \n", False)
    told = await tool.call({"code": "import os; print(os.environ['TOKA_IDEMPOTENCY_KEY']); 1 / 0"}, ctx)
    assert told.text.startswith("k" * 32 + "\nTraceback")
    assert told.text.endswith("ZeroDivisionError: division by zero\n[exit code 1]")
    for code in ("--help", "-c 1", "'", "$(touch owned)", "\\", "\u00e4 = 1"):
        told = await tool.call({"code": code}, ctx)
        assert "usage" not in told.text
    assert not (workspace / "owned").exists()
    assert (await tool.call({"code": "a\0b"}, ctx)).text.startswith("[not run: ")
    assert "too long" in (await tool.call({"code": "#" + "\U0001f600" * 29_999}, ctx)).text


async def test_python_is_not_for_those_who_may_not_run_it(room: Room) -> None:
    result = await Python().call({"code": "print(1)"}, room(reads=(".",)))
    assert (result.failed, "[exit code 127]" in result.text or "[exit code 126]" in result.text) == (True, True)


async def test_scripts(room: Room, workspace: Path) -> None:
    (workspace / "x.sh").write_text("set -e\nfor i in 1 2; do echo $i; done | sort -r | awk '{print $1 * 2}'\n")
    tool, ctx = prepared(room, granted("script-execution"))
    assert (await run(tool, ctx, "bash x.sh")).text == "4\n2\n"


@needs("node")
async def test_node(room: Room) -> None:
    tool, ctx = prepared(room, granted("node-execution"))
    assert (await run(tool, ctx, "node -p '1 + 1'")).text == "2\n"


@pytest.mark.parametrize(
    ("name", "variable"),
    [
        ("cargo-execution", "CARGO_NET_OFFLINE=true"),
        ("node-execution", "npm_config_offline=true"),
        ("python-execution", "PIP_NO_INDEX=1"),
    ],
)
async def test_a_toolchain_is_offline_unless_hosts_are_granted_and_keeps_its_cache_to_itself(
    room: Room, name: str, variable: str
) -> None:
    index = resolve("network-access", {"hosts": ["index.example.org"]}).capabilities
    for more, offline in (((), True), (index, False)):
        _, ctx = prepared(room, Grant((*granted(name).capabilities, *more)))
        hands = await ctx.hands()
        told = await hands.run(["/bin/sh", "-c", "env; echo kept > ~/cache"], timeout_s=5, chosen_by="person")
        lines = told.output.decode().splitlines()
        assert (variable in lines) is offline
        assert ("HTTPS_PROXY=http://127.0.0.1:3128" in lines) is not offline
        assert "HOME=/tmp" in lines
    assert not Path("/tmp/cache").exists()
    hands = await prepared(room, granted(name))[1].hands()
    assert (await hands.run(["cat", "/tmp/cache"], timeout_s=5, chosen_by="person")).exit_code == 1


@pytest.mark.parametrize("name", ["cargo-execution", "node-execution", "python-execution", "make-execution"])
async def test_toolchains_are_read_only(room: Room, name: str) -> None:
    hands = await prepared(room, granted(name))[1].hands()
    for folder in ("/usr/lib", "/usr/bin", "/usr/local/lib", "/usr/share"):
        told = await hands.run(["/bin/sh", "-c", f": > {folder}/planted"], timeout_s=5, chosen_by="person")
        assert told.exit_code != 0
        assert b"Read-only file system" in told.output or b"Permission denied" in told.output


@needs("git")
async def test_git_execution_is_the_tool_and_the_program(room: Room) -> None:
    grant = granted("git-execution")
    assert {"git", "run_command"} <= {tool.name for tool in tools_for(grant)}
    tool, ctx = prepared(room, grant)
    assert (await run(tool, ctx, "git --version")).text.startswith("git version ")


# --- databases


@needs("sqlite3")
async def test_sqlite(room: Room, workspace: Path) -> None:
    tool, ctx = prepared(room, granted("database-access"))
    assert (
        await run(tool, ctx, "sqlite3 data.db 'create table t(x); insert into t values (7); select * from t'")
    ).text == "7\n"
    assert (workspace / "data.db").exists()


class Postgres:
    """Speaks as much of the protocol as it takes to refuse everybody in words that are told."""

    def __init__(self) -> None:
        self.users: list[bytes] = []
        self.welcoming = False

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        size = int.from_bytes(await reader.readexactly(4), "big")
        start = await reader.readexactly(size - 4)
        if start == (80877103).to_bytes(4, "big"):  # may we speak TLS?
            writer.write(b"N")
            size = int.from_bytes(await reader.readexactly(4), "big")
            start = await reader.readexactly(size - 4)
        self.users.append(start)
        if self.welcoming:
            writer.write(b"R\0\0\0\x08\0\0\0\0" + b"Z\0\0\0\x05I")
            await reader.read()
            writer.close()
            return
        fields = b"SFATAL\0C28000\0Mno entry for you\0\0"
        writer.write(b"E" + (len(fields) + 4).to_bytes(4, "big") + fields)
        await writer.drain()
        writer.close()


@pytest.fixture
async def database() -> AsyncIterator[tuple[Postgres, int]]:
    postgres = Postgres()
    async with await asyncio.start_server(postgres.serve, LOOPBACK, 0) as server:
        yield postgres, server.sockets[0].getsockname()[1]


@needs("psql")
async def test_psql_reaches_a_granted_host(
    room: Room, database: tuple[Postgres, int], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    postgres, port = database
    web = Web(certificate(tmp_path / "tls"))
    grant = granted("database-access", hosts=["db.example.org", "*.far.example.org"], ports=[str(port)])
    policy = compile_policy(grant, Limits())
    (tool,) = [tool for tool in tools_for(grant) if isinstance(tool, RunCommand)]
    ctx = room(writes=policy.writes, programs=policy.programs, network=policy.network, around=web.around(monkeypatch))
    for command in (
        "psql -h db.example.org -U me -c 'select 1' data",
        f"psql --host=x.far.example.org -p {port} -U me data",
        "psql 'postgresql://me@DB.example.org/data'",
        "psql 'host=a.b.far.example.org user=me dbname=data'",
    ):
        result = await run(tool, ctx, command)
        assert result.failed
        assert "FATAL:  no entry for you" in result.text, command
    assert web.looked_up == ["db.example.org", "x.far.example.org", "db.example.org", "a.b.far.example.org"]
    assert all(b"user\0me\0database\0data\0" in start for start in postgres.users)
    for command, says in (
        ("psql -h other.example.org -U me data", "could not translate host name"),
        ("psql -h xdb.example.org -U me data", "could not translate host name"),
        ("psql -h db.example.org,x.far.example.org data", "psql: name one of these hosts"),
        ("psql --version", "psql (PostgreSQL)"),
    ):
        assert says in (await run(tool, ctx, command)).text, command
    assert len(postgres.users) == 4
    hands = await ctx.hands()
    assert isinstance(hands, Watched)
    await hands.sandbox.close()


@needs("psql")
async def test_the_only_host_needs_no_name_and_a_refusal_is_told(
    room: Room, database: tuple[Postgres, int], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    _, port = database
    web = Web(certificate(tmp_path / "tls"))
    hosts = (Capability("network-access", hosts=("db.example.org",), ports=(str(port),)),)
    refused = (Capability("network-access", hosts=("db.example.org",)),)
    for more, says in (({}, "FATAL:  no entry for you"), ({"refused": refused}, "403 db.example.org is refused")):
        tool = RunCommand(("psql",), hosts)
        ctx = room(programs=("psql",), network=hosts, around=web.around(monkeypatch), **more)
        assert says.removeprefix("403 ") in (await run(tool, ctx, "psql -U me data")).text


@needs("psql")
async def test_psql_starts_no_other_program(
    room: Room, database: tuple[Postgres, int], monkeypatch: pytest.MonkeyPatch, workspace: Path, tmp_path: Path
) -> None:
    postgres, port = database
    postgres.welcoming = True
    web = Web(certificate(tmp_path / "tls"))
    hosts = (Capability("network-access", hosts=("db.example.org",), ports=(str(port),)),)
    for script in ("\\! : > owned", "\\o |cat > owned", "\\setenv PAGER python3\n\\?", "\\! python3"):
        (workspace / "x.sql").write_text(f"{script}\n\\echo went on\n")
        ctx = room(writes=(".",), programs=("psql",), network=hosts, around=web.around(monkeypatch))
        result = await run(RunCommand(("psql",), hosts), ctx, "psql -f x.sql -U me data")
        assert "went on" in result.text
        assert not (workspace / "owned").exists()
    monkeypatch.setattr(profile, "PYTHON", "/usr")  # with every program the first of these leaves its trace
    (workspace / "x.sql").write_text("\\! : > owned\n")
    ctx = room(writes=(".",), programs=("psql",), network=hosts, around=web.around(monkeypatch))
    await run(RunCommand(("psql",), hosts), ctx, "psql -f x.sql -U me data")
    assert (workspace / "owned").exists()


def test_the_newest_database_client_is_taken(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for version in ("9.6", "15", "100"):
        (tmp_path / version).mkdir()
        (tmp_path / version / "psql").touch()
    monkeypatch.setitem(BEHIND, "psql", f"{tmp_path}/*/psql")
    assert find_program("psql") == f"{tmp_path}/100/psql"
