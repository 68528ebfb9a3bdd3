"""The self-test: what must fail inside a real sandbox is tried there, before an agent's first step."""

from __future__ import annotations

import asyncio
import json
from dataclasses import asdict, dataclass
from typing import Any, Final

from toka.core.clock import Clock
from toka.errors import SandboxError
from toka.sandbox.host import Sandbox
from toka.sandbox.landlock import abi
from toka.sandbox.level import Level

LONGEST_S: Final = 20.0
"""Seconds that the tries of one kind of process may take."""
ABSENT: Final = (
    "/root",
    "/home",
    "/run",
    "/var",
    "/sys",
    "/boot",
    "/srv",
    "/etc/shadow",
    "/etc/ssh",
    "/proc/1/environ",
)
"""What must not be readable in any sandbox."""
READ_ONLY: Final = ("/", "/usr", "/etc", "/toka", "/proc/sys")
"""What must not be writable in any sandbox."""
LAYERS: Final = (
    "user", "capabilities", "no new privileges", "mounts", "processes", "system calls", "sockets", "network",
)  # fmt: skip
"""What a passed test has shown to hold, in words."""


@dataclass(frozen=True, slots=True)
class SelfTest:
    """A self-test that was passed, for the record.

    Attributes:
        layers: what holds.
        landlock: the version of the kernel's Landlock; 0 = it has none, and the mounts alone hold the paths.
        uid: the user id of the sandbox on the host; never 0.
        limits: each limit that is set, with how it is held and whether strictly.
        wall_s: how long it took.
        level: of the sandbox; at `none` nothing was tested.
    """

    layers: tuple[str, ...]
    landlock: int
    uid: int
    limits: tuple[tuple[str, str, bool], ...]
    wall_s: float
    level: Level = "full"

    def to_json(self) -> dict[str, Any]:
        """A JSON object with one key per attribute."""
        return {**asdict(self), "layers": list(self.layers), "limits": [list(limit) for limit in self.limits]}


async def self_test(sandbox: Sandbox, clock: Clock) -> SelfTest:
    """Tests a sandbox that has just been started.

    Raises:
        SandboxError: something succeeded that must fail, so nothing may run in it; or the test did not end.
        SandboxUnavailable: the sandbox died.
    """
    began = clock.monotonic()
    shown = [o.target for o in sandbox.granted.opened if o.rule.access != "write"]
    wanted = {
        "network": bool(sandbox.policy.network),
        "write": [*READ_ONLY, *shown, *sandbox.policy.toolchains, *sandbox.policy.shown],
        "read": list(ABSENT),
    }
    uid = sandbox.host_uid()
    problems = ["user: it is root outside"] if uid == 0 else []
    for kind in ("person", "agent"):
        try:
            async with asyncio.timeout(LONGEST_S):  # the machine's time: a test's clock says nothing about a probe
                result = await sandbox.probe(kind, wanted)
        except TimeoutError:
            raise SandboxError(f"the self-test of the sandbox did not end within {LONGEST_S:g} s") from None
        if result.ended != "exited" or result.exit_code:
            said = result.reason or result.output.decode("utf-8", "replace")[-300:] or result.ended
            raise SandboxError(f"the self-test of the sandbox did not come to its end: {said}")
        found: dict[str, str] = json.loads(result.output)
        problems += [f"{layer}: {why}" for layer, why in found.items()]
    if problems:
        raise SandboxError(
            f"the sandbox does not hold: {'; '.join(dict.fromkeys(problems))}",
            hint="`toka doctor` tests each layer; nothing was run in this sandbox",
        )
    limits = tuple((e.limit, e.how, e.strict) for e in sandbox.keeper.enforced)
    return SelfTest(LAYERS, abi(), uid, limits, clock.monotonic() - began)
