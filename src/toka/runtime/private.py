"""An agent's private workspace: made before it first starts; the branch of one that is done comes back."""

from __future__ import annotations

import asyncio
import os
import tempfile
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, cast

from toka.config.agent import AgentConfig
from toka.core.ids import AgentName
from toka.errors import JournalError, TokaError, UsageError
from toka.events.state import AgentState
from toka.events.workspace import BranchReturned, WorkspaceMade
from toka.runtime.context import RunContext
from toka.runtime.values import branch_of
from toka.sandbox.command import CommandResult
from toka.sandbox.host import Sandbox
from toka.sandbox.policy import SandboxPolicy
from toka.sandbox.protect import tidy
from toka.sandbox.shield import Order
from toka.sandbox.trusted import TRUSTED
from toka.tools.git import ENVIRONMENT, SETTINGS
from toka.workspace.checkpoints import Checkpoints
from toka.workspace.private import Wanted, make, outgoing
from toka.workspace.repository import NotBrought, look_at, receive

NEEDS_STATE: Final = "a private workspace lies in the state directory, and this run has none"
_STATUS: Final = ("status", "--porcelain=v1", "-z", "--untracked-files=all", "--ignore-submodules=all")
_LISTED: Final = 4 << 20
"""Bytes of the list of what was not committed."""
_REFS: Final = 20
"""Refs beside its branch whose commits are counted."""


@dataclass(frozen=True, slots=True)
class Site:
    """Where an agent works.

    Attributes:
        workspace: the folder.
        shown: folders that its sandbox shows beside that.
        hidden: paths of it that no agent sees.
    """

    workspace: Path
    shown: tuple[str, ...] = ()
    hidden: tuple[str, ...] = ()


def site_of(run: RunContext, state: AgentState | None) -> Site:
    """Where an agent works, as it is recorded."""
    if state is None or state.private is None:
        return Site(run.workspace, hidden=run.hidden)
    objects = state.private.objects
    return Site(Path(state.private.path), (objects,) if objects else ())


def checkpoints_of(run: RunContext, workspace: Path) -> Checkpoints | None:
    """What keeps a workspace as it was before steps; None = nothing does."""
    if workspace == run.workspace or run.checkpoints is None:
        return run.checkpoints
    return run.runtime.keep(workspace, run.execution)


async def settle_in(run: RunContext, config: AgentConfig) -> None:
    """Makes the private workspace of an agent that is to have one, and records it. Idempotent.

    Raises:
        UsageError: it cannot be made, or is gone.
        JournalError: it cannot be recorded.
    """
    state, private = run.recorder.state.agents.get(config.name), run.runtime.private or _OnDisk()
    if state is not None and state.private is not None:
        private.need(run, state.private, config.name)
    elif config.workspace != "shared":
        await run.recorder.record(config.name, await private.make(run, config))


async def bring_back(run: RunContext, name: AgentName) -> None:
    """Brings the branch of an agent that is done into the user's repository, and records what became of it.

    Nothing of the agent may run any more. Its repository is data of somebody who is not trusted: git looks at it in a
    sandbox, and what comes out is a stream of objects, each of which is checked before it is taken. Idempotent.

    Raises:
        JournalError: it cannot be recorded.
    """
    state = run.recorder.state.agents.get(name)
    if state is None or state.private is None or state.private.how != "worktree" or state.returned is not None:
        return
    private = run.runtime.private or _OnDisk()
    await run.recorder.record(name, await private.bring_back(run, state.private, name))


class _OnDisk:
    """See PrivateWorkspaces."""

    async def make(self, run: RunContext, config: AgentConfig) -> WorkspaceMade:
        """See PrivateWorkspaces."""
        assert config.workspace != "shared"
        if run.runtime.state is None:
            raise UsageError(NEEDS_STATE)
        branch = branch_of(config, run.id) if config.workspace == "worktree" else ""
        wanted = Wanted(config.workspace, run.workspace, run.runtime.state.resolve(), run.id, config.name, branch)
        made = await make(wanted)
        return WorkspaceMade(made.how, made.path, made.base, made.branch, made.objects)

    def need(self, run: RunContext, made: WorkspaceMade, agent: AgentName) -> None:  # noqa: ARG002
        """See PrivateWorkspaces."""
        if not Path(made.path).is_dir():
            raise UsageError(f"its workspace {made.path} is gone", hint="start a new run")

    async def bring_back(self, run: RunContext, made: WorkspaceMade, agent: AgentName) -> BranchReturned:  # noqa: ARG002
        """See PrivateWorkspaces. Raises JournalError."""
        try:
            return await _returned(run, made)
        except JournalError:
            raise
        except (NotBrought, TokaError, OSError) as error:
            return BranchReturned(made.branch, problem=str(error))


async def _returned(run: RunContext, made: WorkspaceMade) -> BranchReturned:
    tree = Path(made.path)
    await asyncio.to_thread(tidy, tree)
    policy = SandboxPolicy(writes=(".",), programs=("git",), git=True, shown=(made.objects,))
    sandbox, _ = await run.runtime.start_sandbox(Order(tree, policy))
    bundle = f"toka-{os.urandom(6).hex()}.bundle"
    try:
        inside = _Inside(sandbox, run.execution.command_timeout_s)
        tip = await inside.word("rev-parse", "--quiet", "--verify", f"refs/heads/{made.branch}^{{commit}}")
        left = await inside.uncommitted()
        elsewhere = await inside.elsewhere(made.base, f"refs/heads/{made.branch}")
        if tip != made.base:
            await inside.word(
                "bundle", "create", "--quiet", f".git/{bundle}", f"refs/heads/{made.branch}", f"^{made.base}"
            )
    finally:
        await sandbox.close()
        await asyncio.to_thread(tidy, tree)
    if tip == made.base:
        return BranchReturned(made.branch, left=left, elsewhere=elsewhere)
    try:
        commits = await asyncio.to_thread(_received, run.workspace, made, tip, bundle)
    except (NotBrought, UsageError) as problem:
        return BranchReturned(made.branch, problem=str(problem), left=left, elsewhere=elsewhere)
    return BranchReturned(made.branch, tip, commits, left=left, elsewhere=elsewhere)


def _received(workspace: Path, made: WorkspaceMade, tip: str, bundle: str) -> int:
    """Takes what git made of the branch into the user's repository; how many commits it has."""
    with outgoing(Path(made.path), bundle) as file, tempfile.TemporaryFile() as kept:
        while block := file.read(1 << 20):
            kept.write(block)  # what is looked at and what is taken are the same bytes
        kept.flush()
        return receive(look_at(workspace), made.branch, tip, made.base, kept)


class _Inside:
    """Runs git in a sandbox, in the agent's own repository."""

    def __init__(self, sandbox: Sandbox, timeout_s: float) -> None:
        self._sandbox = sandbox
        self._timeout_s = timeout_s

    async def _git(self, *argv: str) -> CommandResult:
        settings = [part for setting in SETTINGS for part in ("-c", setting)]
        done = await self._sandbox.run(
            ["git", "--no-pager", *settings, *argv],
            env=ENVIRONMENT, timeout_s=self._timeout_s, output_limit=_LISTED, chosen_by=cast("Any", "git"), apart=True,
        )  # fmt: skip
        if done.exit_code != 0:
            said = done.output.decode("utf-8", "replace").strip().splitlines()
            raise NotBrought(f"git {argv[0]} failed in its clone: {said[-1] if said else done.reason or done.ended}")
        return done

    async def word(self, *argv: str) -> str:
        """What it prints, as one word."""
        return ((await self._git(*argv)).stdout or b"").decode("ascii", "replace").strip()

    async def elsewhere(self, *known: str) -> dict[str, int]:
        """How many commits other refs, and a HEAD that is none of them, lead to and what is known does not.

        A repository in which that cannot be seen has none of them; its branch comes back all the same.
        """
        found: dict[str, int] = {}
        but = [f"^{each}" for each in known]
        with suppress(NotBrought, ValueError):
            refs = [f"--no-merged={each}" for each in known]
            listed = (await self._git("for-each-ref", f"--count={_REFS}", "--format=%(refname)", *refs)).stdout or b""
            for name in listed.decode("utf-8", "replace").split():
                found[name] = int(await self.word("rev-list", "--count", name, *but))
        with suppress(NotBrought, ValueError):
            if await self.word("rev-parse", "--symbolic-full-name", "HEAD") == "HEAD":
                more = int(await self.word("rev-list", "--count", "HEAD", *but, "--not", "--branches", "--tags"))
                found |= {"HEAD": more} if more else {}
        return found

    async def uncommitted(self) -> int:
        """How many files are not as they were committed last. What the sandbox itself put there does not count."""
        put = {f"?? {path}" for path, kind in TRUSTED.items() if kind == "file"}
        lines = ((await self._git(*_STATUS)).stdout or b"").decode("utf-8", "replace").split("\0")
        return sum(1 for line in lines if line[2:3] == " " and line not in put)
