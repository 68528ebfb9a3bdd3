"""What the commands of one step used of the machine, for the record: also of those that were killed with the step."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Final

from toka.sandbox.command import CommandResult
from toka.sandbox.host import Sandbox

_SUMMED: Final = ("cpu_s", "throttled_s", "read_bytes", "written_bytes", "network_up", "network_down")


class Meter:
    """The hands of one step: a sandbox that notes how each command ended."""

    def __init__(self, sandbox: Callable[[], Awaitable[Sandbox]], check: Callable[[], None]) -> None:
        """Hands that nobody has taken yet.

        Args:
            sandbox: gives the agent's, starting it at the first need.
            check: called when they are taken, since a start takes time: what it raises keeps them from doing anything.
        """
        self._start = sandbox
        self._check = check
        self._sandbox: Sandbox | None = None
        self._ended: list[CommandResult] = []

    async def hands(self) -> Meter:
        """Itself, with a sandbox that runs. Raises SandboxUnavailable, SandboxError, and what `check` raises."""
        self._sandbox = await self._start()
        self._check()
        return self

    async def run(  # noqa: PLR0913 - as Sandbox.run
        self,
        argv: Sequence[str],
        *,
        cwd: str = ".",
        env: Mapping[str, str] | None = None,
        timeout_s: float,
        output_limit: int | None = None,
        chosen_by: Any = "agent",
        apart: bool = False,
    ) -> CommandResult:
        """See `Sandbox.run`."""
        assert self._sandbox is not None, "hands() comes first"
        return await self._sandbox.run(
            argv,
            cwd=cwd,
            env=env,
            timeout_s=timeout_s,
            output_limit=output_limit,
            chosen_by=chosen_by,
            apart=apart,
            told=self._ended.append,
        )

    async def file(self, op: str, *, timeout_s: float = 30.0, body: bytes = b"", **args: Any) -> dict[str, Any]:
        """See `Sandbox.file`."""
        assert self._sandbox is not None, "hands() comes first"
        return await self._sandbox.file(op, timeout_s=timeout_s, body=body, **args)

    def used(self) -> dict[str, Any] | None:
        """The figures of all commands until now together, as JSON; None when none was run.

        `cpu_s`, `max_rss_bytes` and what else is known of `CommandResult.resources`; of several commands sums, and for
        memory the highest.
        """
        if not self._ended:
            return None
        out: dict[str, Any] = {}
        for found in map(_figures, self._ended):
            for name, value in found.items():
                if name == "at_least":
                    out[name] = [*out.get(name, ()), *(v for v in value if v not in out.get(name, ()))]
                elif name in _SUMMED:
                    total = out.get(name, 0) + value
                    out[name] = round(total, 3) if isinstance(total, float) else total
                elif name == "exceeded":
                    out.setdefault(name, value)
                else:
                    out[name] = max(out.get(name, 0), value)
        return out


def _figures(ended: CommandResult) -> dict[str, Any]:
    return {"cpu_s": round(ended.cpu_s, 3), "max_rss_bytes": ended.max_rss_bytes, **ended.resources}
