"""Events about the private workspace of an agent."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar


@dataclass(frozen=True, slots=True)
class WorkspaceMade:
    """The agent's private workspace is there; it works in it from here to its end.

    Attributes:
        how: `worktree` or `copy`.
        path: its folder, absolute.
        base: of a worktree: the commit that it began with.
        branch: of a worktree: the branch that comes back when the agent is done.
        objects: of a worktree: the folder of the objects that it borrows, absolute.
    """

    KIND: ClassVar[str] = "workspace_made"
    how: str
    path: str
    base: str = ""
    branch: str = ""
    objects: str = ""


@dataclass(frozen=True, slots=True)
class BranchReturned:
    """The branch of an agent that is done was brought into the repository of the run's workspace, or was not.

    Attributes:
        branch: its name.
        commit: where it stands in that repository now; empty when nothing was brought back.
        commits: how many commits came with it.
        problem: why it was not brought back; empty when it was, and when there was nothing to bring.
        left: files that were not committed; they stay where the agent worked.
        elsewhere: commits that stay there, too, since they are not on that branch: ref, or HEAD -> how many.
    """

    KIND: ClassVar[str] = "branch_returned"
    branch: str
    commit: str = ""
    commits: int = 0
    problem: str = ""
    left: int = 0
    elsewhere: dict[str, int] = field(default_factory=dict[str, int])
