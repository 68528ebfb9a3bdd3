"""Making sandboxes for a process: each tested once per policy before anybody uses it."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from toka.core.clock import Clock
from toka.sandbox.egress_credential import Credential
from toka.sandbox.egress_link import Attempt
from toka.sandbox.host import Sandbox
from toka.sandbox.keeper import Surroundings
from toka.sandbox.policy import SandboxPolicy
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
    """

    workspace: Path
    policy: SandboxPolicy
    owner: tuple[str, ...] = ()
    report: Callable[[Attempt], None] = _silent
    test: bool = True


@dataclass(slots=True)
class Shield:
    """Starts sandboxes.

    Attributes:
        clock: all time.
        credentials: keys that the proxy adds, by host name.
        idle_s: seconds without use after which a sandbox's processes end.
    """

    clock: Clock
    credentials: Mapping[str, Credential] = field(default_factory=dict[str, Credential])
    idle_s: float = 60.0
    _tested: dict[str, SelfTest] = field(default_factory=dict[str, SelfTest])

    async def start(self, order: Order) -> tuple[Sandbox, SelfTest | None]:
        """Starts one.

        Returns:
            It, and the self-test that its policy has passed in this process; None when none was wanted.

        Raises:
            SandboxUnavailable: this machine cannot run one.
            SandboxError: the workspace cannot be used, or the self-test found a hole. Nothing runs.
        """
        around = Surroundings(self.clock, self.idle_s, ("toka", *order.owner), order.report, self.credentials)
        sandbox = await Sandbox.start(order.workspace, order.policy, around)
        if not order.test:
            return sandbox, None
        key = json.dumps(order.policy.to_json(), sort_keys=True)
        try:
            if key not in self._tested:
                self._tested[key] = await self_test(sandbox, self.clock)
        except BaseException:
            await sandbox.close()
            raise
        return sandbox, self._tested[key]
