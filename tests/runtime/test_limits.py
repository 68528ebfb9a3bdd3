"""Limits of the machine, met in real sandboxes: what is ended, what is recorded, what people and the model are told."""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from harness import Team, agent, call, succeed
from toka.core.clock import SystemClock
from toka.events.event import StepDone
from toka.events.lifecycle import TaskStatus
from toka.sandbox import keeper
from toka.sandbox.cgroup_find import Hierarchies
from toka.sandbox.egress import Egress
from toka.sandbox.host import Sandbox, shell
from toka.sandbox.keeper import Surroundings
from toka.sandbox.policy import SandboxPolicy

NO_CGROUPS = Hierarchies.find(mountinfo="", own="")
by_cgroup = pytest.mark.skipif(
    not Hierarchies.find().places.get("memory"), reason="no cgroup holds memory here: what asks for too much gets none"
)
HOG = "python3 -c 'import time; a = bytearray(400_000_000); print(len(a), flush=True); time.sleep(15)'"
GET = """
import os, socket, sys
proxy = os.environ["HTTPS_PROXY"].split("//")[1].strip("/").split(":")
s = socket.create_connection((proxy[0], int(proxy[1])))
s.sendall(f"CONNECT example.org:{sys.argv[1]} HTTP/1.1\\r\\nHost: example.org:{sys.argv[1]}\\r\\n\\r\\n".encode())
n = 0
while data := s.recv(65536):
    n += len(data)
print(n)
sys.exit(3)
"""
LIMITED = {"max_memory": "100MB"}


def met(team: Team) -> list[dict[str, Any]]:
    """The limits in the record, in order."""
    return [dict(r.event.limit) for r in team.records if isinstance(r.event, StepDone) and r.event.limit is not None]


@pytest.fixture
def team(tmp_path: Path) -> Team:
    return Team(tmp_path)


@by_cgroup
async def test_a_command_that_takes_too_much_memory_ends_the_task_for_that_reason(team: Team) -> None:
    begun = time.monotonic()
    result = await team.run(agent(tasks=[{"id": "hog", "run": HOG}], limits=LIMITED))
    assert time.monotonic() - begun < 12, "it would have taken 15 seconds"
    assert result.exit_code == 6
    task = result.state.agents["one"].tasks["hog"]
    assert (task.status, task.why) == (TaskStatus.FAILED, "limit")
    assert "was killed: memory limit of 100MB reached" in task.reason
    (limit,) = met(team)
    assert limit["used"] >= limit["limit"] == 100 * 1024**2
    assert (limit["scope"], limit["unit"]) == ("memory of agent one", "bytes")
    (told,) = [event for event in team.progress if event.kind == "limit_exceeded"]
    assert (told.agent, told.task) == ("one", "hog") and "memory of agent one" in told.text


@by_cgroup
async def test_the_model_is_told_of_the_limit_and_goes_on(tmp_path: Path) -> None:
    team = Team(tmp_path, {"agents": {"one": {"task-1": [call("run_command", command=HOG), succeed()]}}})
    result = await team.run(agent(grant=["command-execution"], limits=LIMITED))
    assert result.exit_code == 0
    assert "[killed: memory limit of 100MB reached]" in team.model.requests[1].messages[-1].text
    assert [limit["scope"] for limit in met(team)] == ["memory of agent one"]


@pytest.mark.parametrize(
    ("line", "scope", "unit", "why"),
    [
        ("yes", "output of a command of agent one", "bytes", "limit"),
        (
            "for i in 1 2 3 4 5 6 7 8; do head -c 20000000 /dev/zero > f$i; sleep 0.3; done",
            "disk of agent one",
            "bytes",
            "limit",
        ),
    ],
)
async def test_other_limits_name_their_scope_and_figures(
    team: Team, line: str, scope: str, unit: str, why: str
) -> None:
    task = {"id": "t", "run": line}
    spec = agent(tasks=[task], grant=["filesystem-write"], limits={"max_disk_usage": "50MB"})
    result = await team.run(spec)
    assert result.state.agents["one"].tasks["t"].why == why
    (limit,) = met(team)
    assert (limit["scope"], limit["unit"]) == (scope, unit) and limit["used"] >= limit["limit"]


async def test_use_is_told_while_a_command_works_and_not_recorded(team: Team) -> None:
    await team.run(agent(tasks=[{"run": "timeout 5 sh -c 'while :; do :; done'; true"}]))
    told = team.used
    assert told and all(event.agent == "one" and " s CPU" in event.text for event in told)
    assert float(told[-1].text.split()[0]) > 0.5
    assert not any(getattr(record.event, "KIND", "") == "usage" for record in team.records)


async def test_without_a_cgroup_a_share_of_the_processors_becomes_seconds_and_a_low_priority(tmp_path: Path) -> None:
    (tmp_path / "ws").mkdir()
    policy = SandboxPolicy(cpu_cores=0.05)
    sandbox = await Sandbox.start(tmp_path / "ws", policy, Surroundings(SystemClock(), hierarchies=NO_CGROUPS))
    try:
        told = await sandbox.run(shell("ulimit -t; nice"), timeout_s=65, chosen_by="person")
        assert told.output.split() == [b"4", b"10"]
        spin = await sandbox.run(shell("while :; do :; done"), timeout_s=20, chosen_by="person")
        assert (spin.ended, spin.exit_code) in (("exited", -9), ("exited", -24), ("exited", 137), ("exited", 152))
        assert spin.wall_s < 19
    finally:
        await sandbox.close()


async def test_the_bytes_of_the_network_are_limited(team: Team, monkeypatch: pytest.MonkeyPatch) -> None:
    async def flood(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError):
            while True:
                writer.write(bytes(65536))
                await writer.drain()

    async def here(name: str) -> list[str]:
        return ["127.0.0.1"]

    monkeypatch.setattr(keeper, "Egress", partial(Egress, resolve=here, reachable=lambda _: True))
    async with await asyncio.start_server(flood, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        host = {"network-access": {"hosts": ["example.org"], "ports": [str(port)]}}
        task = {"id": "get", "run": f"python3 -c '{GET}' {port}"}
        spec = agent(tasks=[task], grant=[host], limits={"max_network_usage": "2MB"})
        result = await team.run(spec)
        server.close()
    (limit,) = met(team)
    assert (limit["scope"], limit["unit"], limit["limit"]) == ("network of agent one", "bytes", 2 * 1024**2)
    assert result.exit_code == 6 and "network limit of 2MB reached" in result.state.agents["one"].tasks["get"].reason
