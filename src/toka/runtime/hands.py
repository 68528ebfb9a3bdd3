"""An agent's hands: its sandbox, started when it is first needed, recorded, and closed with the agent."""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import replace
from typing import Final

from toka.core.capability import Capability, CapabilityError
from toka.core.catalogue import NETWORK_ACCESS
from toka.core.ids import AgentName, RunId
from toka.errors import JournalError
from toka.events.event import NetworkAttempted, SandboxReady
from toka.journal.recorder import Recorder
from toka.runtime.capability import CapabilityValidator
from toka.runtime.context import StartSandbox
from toka.sandbox.egress_link import Attempt
from toka.sandbox.host import Sandbox
from toka.sandbox.shield import Order
from toka.sandbox.usage import Usage
from toka.tools.tool import Mask, unmasked

MAX_ATTEMPTS: Final = 200
"""Different attempts to reach the network that are recorded of one agent; a loop of refusals fills no journal."""


class LazyHands:
    """See Hands. One sandbox for all tasks of the agent."""

    def __init__(
        self,
        agent: AgentName,
        order: Order,
        start: StartSandbox,
        recorder: Recorder,
        validator: CapabilityValidator,
        mask: Mask = unmasked,
    ) -> None:
        self._agent = agent
        self._mask = mask
        self._validator = validator
        self._policy = order.policy
        self._start = start
        self._recorder = recorder
        owner = (RunId(recorder.lease.run), agent)
        self._order = replace(order, owner=owner, report=self._attempted)
        self._lock = asyncio.Lock()
        self._sandbox: Sandbox | None = None
        self._seen: set[tuple[str, int, str]] = set()
        self._recording: set[asyncio.Task[None]] = set()

    async def sandbox(self) -> Sandbox:
        """See Hands."""
        async with self._lock:
            if self._sandbox is None:
                self._sandbox, test = await self._start(self._order)
                notes = list(self._sandbox.notes)
                ready = SandboxReady(self._policy.to_json(), notes, test.to_json() if test else {})
                await self._recorder.record(self._agent, ready)
            return self._sandbox

    async def freeze(self) -> None:
        """Makes everything in the sandbox stand still, if there is one. Raises SandboxError: it cannot be had."""
        if self._sandbox is not None:
            await self._sandbox.freeze()

    async def thaw(self) -> None:
        """Lets it go on."""
        if self._sandbox is not None:
            await self._sandbox.thaw()

    def usage(self) -> Usage | None:
        """What its processes used until now; None before there are any."""
        return self._sandbox.usage() if self._sandbox is not None else None

    def _attempted(self, attempt: Attempt) -> None:
        """Records what is new about the agent's use of the network; told while the sandbox works, so never waits."""
        key = (attempt.host, attempt.port, attempt.reason)
        if key in self._seen or len(self._seen) >= MAX_ATTEMPTS:
            return
        self._seen.add(key)
        host = self._mask(attempt.host)
        attempt = replace(attempt, host=host, reason=self._mask(attempt.reason))
        event = NetworkAttempted(
            host, attempt.port, attempt.allowed, attempt.reason, attempt.address or "",
            attempt.bytes_up, attempt.bytes_down, *self._refusal(attempt),
        )  # fmt: skip
        task = asyncio.ensure_future(self._record(event))
        self._recording.add(task)
        task.add_done_callback(self._recording.discard)

    def _refusal(self, attempt: Attempt) -> tuple[str, str, str]:
        """The rule, its place and the patch, where it is the grant or the operator that refuses an attempt."""
        if attempt.allowed or not attempt.port:
            return ("", "", "")
        try:
            need = Capability(NETWORK_ACCESS, hosts=(attempt.host,), ports=(str(attempt.port),))
        except CapabilityError:  # no host name, which nothing would allow
            return ("", "", "")
        decision = self._validator.check((need,))
        return ("", "", "") if decision.allowed else (decision.rule, decision.place, decision.patch)

    async def _record(self, event: NetworkAttempted) -> None:
        with contextlib.suppress(JournalError):  # whoever takes the agent's next step meets the same error
            await self._recorder.record(self._agent, event)

    async def close(self) -> None:
        """Ends everything that runs in the sandbox."""
        sandbox, self._sandbox = self._sandbox, None
        if sandbox is not None:
            await sandbox.close()
        if self._recording:
            await asyncio.wait(self._recording)
