"""Making sandboxes for a process: each tested once per policy before anybody uses it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from toka.core.clock import Clock
from toka.errors import SandboxUnavailable
from toka.sandbox import landlock
from toka.sandbox.egress_credential import Credential
from toka.sandbox.egress_link import Attempt
from toka.sandbox.host import Sandbox
from toka.sandbox.keeper import Surroundings, machine
from toka.sandbox.level import NO_LANDLOCK_HINT, Level, check, check_owner
from toka.sandbox.orphans import Ledger, end_orphans
from toka.sandbox.policy import SandboxPolicy
from toka.sandbox.reduced import ReducedSandbox, reduced_test
from toka.sandbox.selftest import SelfTest, self_test


def _silent(_: Attempt) -> None:
    """Nobody listens."""


@dataclass(frozen=True, slots=True)
class Order:
    """A sandbox that is wanted.

    Attributes:
        workspace: the folder on the host.
        policy: what it lets through.
        owner: whose it is, such as (run, agent), for the name of its cgroup.
        report: takes each attempt to reach the network.
        test: whether it must have passed a self-test; False only for a trial that nobody works in.
        variables: of all its commands, beside those that every sandbox has; not part of the policy, nor recorded.
        unsandboxed: the spec asks for no sandbox; only the operator's settings can make that count.
    """

    workspace: Path
    policy: SandboxPolicy
    owner: tuple[str, ...] = ()
    report: Callable[[Attempt], None] = _silent
    test: bool = True
    variables: Mapping[str, str] = field(default_factory=dict[str, str])
    unsandboxed: bool = False


@dataclass(slots=True)
class Shield:
    """Starts sandboxes.

    Attributes:
        clock: all time.
        credentials: keys that the proxy adds, by host name.
        idle_s: seconds without use after which a sandbox's processes end.
        level: how strongly agents are confined; what cannot be had is an error, never a weaker level.
        allow_unsandboxed: whether the settings honour `sandbox: false` in a spec.
        ledger: where sandboxes are noted; None = nowhere.
    """

    clock: Clock
    credentials: Mapping[str, Credential] = field(default_factory=dict[str, Credential])
    idle_s: float = 60.0
    level: Level = "full"
    allow_unsandboxed: bool = False
    ledger: Ledger | None = None
    _swept: asyncio.Future[None] | None = None
    _tested: dict[str, SelfTest] = field(default_factory=dict[str, SelfTest])

    async def sweep(self) -> None:
        """Ends what dead runtimes left behind, once; no sandbox starts before that. Never raises for what it meets."""
        if self._swept is None:
            self._swept = asyncio.ensure_future(asyncio.to_thread(end_orphans, machine(), self.ledger))
        await asyncio.shield(self._swept)

    async def start(self, order: Order) -> tuple[Sandbox, SelfTest | None]:
        """Starts one.

        Returns:
            It, and the self-test that its policy has passed in this process; None when none was wanted.

        Raises:
            SandboxUnavailable: this machine cannot run one.
            SandboxError: the workspace cannot be used, or the self-test found a hole. Nothing runs.
        """
        await self.sweep()
        name = ("toka", *order.owner)
        around = Surroundings(
            self.clock, self.idle_s, name, order.report, self.credentials, variables=order.variables, ledger=self.ledger
        )
        level: Level = "none" if order.unsandboxed and self.allow_unsandboxed else self.level
        if level == "full":
            if landlock.abi() < landlock.OLDEST:
                raise SandboxUnavailable("the sandbox needs Landlock, which this kernel has not", hint=NO_LANDLOCK_HINT)
            sandbox = await Sandbox.start(order.workspace, order.policy, around)
        else:
            if level == "reduced":
                check(order.policy)
                check_owner(order.workspace)
            sandbox = await ReducedSandbox.open(order.workspace, order.policy, around, level)
        if not order.test:
            return sandbox, None
        key = self._key(order, level)
        try:
            if key not in self._tested:
                self._tested[key] = await self._test(sandbox)
        except BaseException:
            await sandbox.close()
            raise
        return sandbox, self._tested[key]

    def _key(self, order: Order, level: Level) -> str:
        """What makes a second test needless. Without mounts the workspace's own path counts, too."""
        place = "" if level == "full" else str(order.workspace)
        return json.dumps([order.policy.to_json(), level, place], sort_keys=True)

    async def _test(self, sandbox: Sandbox) -> SelfTest:
        if isinstance(sandbox, ReducedSandbox):
            return await reduced_test(sandbox, self.clock)
        return await self_test(sandbox, self.clock)
