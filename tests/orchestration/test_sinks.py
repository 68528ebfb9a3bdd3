from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

from harness import Team, agent
from toka.orchestration import webhook

REPORTING = {
    "frequency": "on-milestone",
    "channels": ["team"],
    "metrics": [{"name": "defects", "description": "Defects found", "unit": "count"}],
}


def lines(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.slow
async def test_a_channel_with_a_file_gets_each_digest_as_a_line(team: Team) -> None:
    path = team.folder / "team.jsonl"
    (team.folder / "toka.toml").write_text(f'[channels.team]\nfile = "{path}"\n')
    team.script = {
        "default": [{"report": {"status": "succeeded", "summary": "found two", "metrics": {"defects": 2, "other": 1}}}]
    }
    team.__post_init__()
    result = await team.run(agent("one", reporting=REPORTING))
    told = lines(path)
    assert [t["cause"] for t in told] == ["on-milestone", "end"]
    assert {(t["run_id"], t["channel"], t["agent"]) for t in told} == {(result.run, "team", "one")}
    assert told[-1]["metrics"] == {"defects": 2.0}, "only what was declared"
    assert told[-1]["state"] == "COMPLETED"
    assert told[-1]["tasks"] == {"done": 1, "total": 1}


@pytest.mark.slow
async def test_a_file_that_cannot_be_written_costs_its_lines_and_nothing_else(team: Team) -> None:
    (team.folder / "toka.toml").write_text(f'[channels.team]\nfile = "{team.folder}/nowhere/team.jsonl"\n')
    result = await team.run(agent("one", reporting=REPORTING))
    assert result.status == "COMPLETED"


async def test_declared_metrics_are_told_to_the_model(team: Team) -> None:
    await team.run(agent("one", reporting=REPORTING))
    system = team.model.requests[0].messages[0].text
    assert "defects: Defects found (count)" in system


class Receiver:
    """A server on this machine that notes what it gets and answers as it is told."""

    def __init__(self, answers: list[int]) -> None:
        self.answers = answers
        self.got: list[tuple[dict[str, str], dict[str, object]]] = []

    async def __aenter__(self) -> str:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        return f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}/hook?key=hidden"

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        await self._server.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        headers = dict(line.lower().split(": ", 1) for line in head.splitlines()[1:] if line)
        body = json.loads(await reader.readexactly(int(headers["content-length"])))
        self.got.append((headers, body))
        status = self.answers.pop(0) if self.answers else 200
        writer.write(f"HTTP/1.1 {status} x\r\nContent-Length: 0\r\nConnection: close\r\n\r\n".encode())
        await writer.drain()
        writer.close()


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(webhook, "BACKOFF_S", 0.01)


async def test_a_channel_with_a_webhook_gets_each_digest_by_post(team: Team) -> None:
    receiver = Receiver([200, 503])
    async with receiver as address:
        (team.folder / "toka.toml").write_text(f'[channels.team]\nwebhook = "{address}"\n')
        result = await team.run(agent("one", reporting=REPORTING))
    assert result.status == "COMPLETED"
    assert [body["cause"] for _, body in receiver.got] == ["on-milestone", "end", "end"], "the refused one came again"
    keys = [headers["idempotency-key"] for headers, _ in receiver.got]
    assert keys[1] == keys[2] != keys[0]
    assert receiver.got[0][0]["content-type"] == "application/json"


async def test_a_webhook_that_refuses_or_is_not_there_costs_its_reports_and_says_so(team: Team) -> None:
    receiver = Receiver([404, 404])
    async with receiver as address:
        (team.folder / "toka.toml").write_text(
            f'[channels.team]\nwebhook = "{address}"\n[channels.other]\nwebhook = "http://127.0.0.1:9/x"\n'
        )
        reporting = {**REPORTING, "channels": ["team", "other"]}
        async with team.open() as runtime:
            session = await team.start(runtime, agent("one", reporting=reporting))
            result = await session.run()
            await session.context.recorder.close()
    assert result.status == "COMPLETED"
    assert session.problems == (
        "channel team: webhook: 2 reports were not delivered: the server answered 404",
        "channel other: webhook: 2 reports were not delivered: connection refused",
    )
    assert len(receiver.got) == 2, "what is refused for good is not tried again"
