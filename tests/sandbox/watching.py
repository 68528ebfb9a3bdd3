"""Commands of agents, watched as those of `toka jail` are: for suites that must hold there as well."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from toka.sandbox.host import Sandbox
from toka.sandbox.launch import Zygote
from toka.sandbox.observe import Observer
from toka.sandbox.profile import calls_of, profiles
from toka.sandbox.reduced import ReducedSandbox
from toka.sandbox.refusal import Refusal, Rules
from toka.sandbox.watched import Judge, watching_filter

VARIABLE = "TOKA_TEST_WATCHED"
"""Set, every command of an agent is watched in all tests of the process."""
MACHINE = os.uname().machine
SEND = Sandbox._send


class Watch:
    """Watches every command that is sent from now on.

    Attributes:
        refusals: what was told.
        observers: one for each command.
        lost: how often a watch broke off.
    """

    def __init__(self) -> None:
        self.refusals: list[Refusal] = []
        self.observers: list[Observer] = []
        self.lost = 0

    def observer(self, policy: Any, granted: Any, workspace: Path) -> Observer:
        profile = profiles(policy, granted)["agent"]
        judge = Judge(MACHINE, bytes.fromhex(profile["seccomp"]))
        rules = Rules(workspace, policy, granted, profile)
        return Observer(judge, rules, self.refusals.append, self._lose)

    def _lose(self) -> None:
        self.lost += 1

    def replacement(self) -> Any:
        """In the place of `Sandbox._send`."""
        watch = self

        async def send(self: Sandbox, request: dict[str, Any], fds: Sequence[int]) -> Zygote:
            theirs: tuple[int, ...] = ()
            if (request["op"], request.get("profile")) == ("run", "agent") and not isinstance(self, ReducedSandbox):
                policy = self.policy
                observer = watch.observer(policy, self.granted, self._workspace)
                watch.observers.append(observer)
                theirs = (observer.theirs,)
                asking = watching_filter(MACHINE, calls_of(policy, policy.programs)).hex()
                request = {**request, "watch": {"filter": asking, "at": len(fds) - 1}}
            *streams, lifeline = fds
            try:
                return await SEND(self, request, (*streams, *theirs, lifeline))
            finally:
                for fd in theirs:
                    os.close(fd)

        return send


def watch_if_wanted() -> None:
    """Watches every command of an agent in this process, if the variable is set."""
    if os.environ.get(VARIABLE):
        Sandbox._send = Watch().replacement()
