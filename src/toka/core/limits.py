"""What an agent may use: one value for every kind of limit."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Final, TypeVar

T = TypeVar("T", int, float)
LEAST_MEMORY: Final = 20 * 1024 * 1024
"""Bytes under which no sandbox is started. Measured: its own processes and one small command take 16 MiB where they are
counted one by one; in a cgroup, which does not count what is in the file cache already, 5 MiB."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Upper bounds; None means that this scope sets none.

    Attributes:
        tokens: input and output tokens of all model calls.
        cost_usd: US dollars for model calls.
        model_calls: model calls, attempts that were charged included.
        tool_calls: tool calls, denied ones included.
        wall_s: seconds of wall time while running.
        cpu_cores: cores (0.75 = three quarters of one core).
        memory_bytes: memory of all processes of the agent.
        processes: processes and threads at one time.
        disk_bytes: bytes written to the workspace and /tmp.
        output_bytes: bytes of output kept of one command.
        network_bps: bits per second through the proxy.
        network_bytes: bytes through the proxy, both directions together.
    """

    tokens: int | None = None
    cost_usd: float | None = None
    model_calls: int | None = None
    tool_calls: int | None = None
    wall_s: float | None = None
    cpu_cores: float | None = None
    memory_bytes: int | None = None
    processes: int | None = None
    disk_bytes: int | None = None
    output_bytes: int | None = None
    network_bps: int | None = None
    network_bytes: int | None = None

    def tighten(self, other: Limits) -> Limits:
        """The stricter of both, kind by kind: how a scope nests in the one around it."""
        return Limits(
            _least(self.tokens, other.tokens),
            _least(self.cost_usd, other.cost_usd),
            _least(self.model_calls, other.model_calls),
            _least(self.tool_calls, other.tool_calls),
            _least(self.wall_s, other.wall_s),
            _least(self.cpu_cores, other.cpu_cores),
            _least(self.memory_bytes, other.memory_bytes),
            _least(self.processes, other.processes),
            _least(self.disk_bytes, other.disk_bytes),
            _least(self.output_bytes, other.output_bytes),
            _least(self.network_bps, other.network_bps),
            _least(self.network_bytes, other.network_bytes),
        )


def _least(one: T | None, two: T | None) -> T | None:
    return two if one is None else one if two is None else min(one, two)


KINDS: Final = tuple(f.name for f in fields(Limits))

UNITS: Final = {
    "tokens": "tokens",
    "cost_usd": "USD",
    "model_calls": "model calls",
    "tool_calls": "tool calls",
    "wall_s": "seconds",
    "cpu_cores": "cores",
    "memory_bytes": "bytes",
    "processes": "processes",
    "disk_bytes": "bytes",
    "output_bytes": "bytes",
    "network_bps": "bits per second",
    "network_bytes": "bytes",
}
"""The unit of each kind, as messages name it."""
