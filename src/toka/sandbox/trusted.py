"""Which paths of a workspace are protected, and what the spec would have to say to have them. Pure.

What is protected is run, read or trusted by somebody who is not in the sandbox: git hooks and settings, editor and
shell settings, workflows, the settings and specs of agents. `protect` mounts them read-only; what is said here to a
single call is the polite half of that.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Final, Literal

from toka.core.capability import Capability, request_line
from toka.core.catalogue import FILESYSTEM_READ, FILESYSTEM_WRITE, GIT_ACCESS
from toka.core.decision import Decision
from toka.sandbox.policy import SandboxPolicy

Kind = Literal["folder", "file"]

GIT: Final = ".git"
GIT_TRUSTED: Final[dict[str, Kind]] = {
    ".git/hooks": "folder", ".git/info": "folder", ".git/modules": "folder", ".git/config": "file",
    ".git/commondir": "file", ".git/config.worktree": "file", ".git/worktrees": "folder",
}  # fmt: skip
"""Inside a writable .git: what git executes or takes its orders from."""
TRUSTED: Final[dict[str, Kind]] = {
    ".gitmodules": "file", ".github/workflows": "folder", ".envrc": "file", ".vscode": "folder", ".mcp.json": "file",
    ".claude": "folder", ".codex": "folder", "toka.toml": "file",
}  # fmt: skip
"""Protected unless the spec grants that very path for writing. `toka.toml` always is."""
ALWAYS: Final = frozenset({"toka.toml"})
_BY_GIT: Final = "git outside the sandbox runs or obeys what is there; no grant opens it"
_BY_TOKA: Final = "it steers Toka itself; no grant opens it"
_BY_SPEC: Final = "it says what the agents of this run may do"
_BY_NAME: Final = "programs outside the sandbox run or obey what is there, so it is only writable where it is named"


@dataclass(frozen=True, slots=True)
class Protected:
    """Why a call may not touch a path.

    Attributes:
        path: what is protected: the path or a folder around it.
        why: the reason, for people, after `docs/x is protected: `.
        asks: what the spec would have to ask for; None when that does not help.
        word: what is said of it: `protected`, or `hidden` when not even its existence is shown.
    """

    path: str
    why: str
    asks: Capability | None = None
    word: Literal["protected", "hidden"] = "protected"


def wanted(policy: SandboxPolicy, *, git: bool, obeyed: Mapping[str, Kind]) -> dict[str, Kind]:
    """Every path to protect where the agent may write around it, with its kind if it must be created.

    Args:
        policy: for the paths that it adds, and those that the spec opens by name.
        git: whether `.git` is writable, so that only parts of it are protected.
        obeyed: where git's settings lead.
    """
    repository: dict[str, Kind] = GIT_TRUSTED if git else {GIT: "folder"}
    given: dict[str, Kind] = dict.fromkeys(policy.protected, "file")
    every: dict[str, Kind] = {**obeyed, **TRUSTED, **repository, **given}
    return {path: kind for path, kind in every.items() if path not in policy.named or path in (*ALWAYS, *given)}


def named_trusted(paths: Iterable[str]) -> tuple[str, ...]:
    """Those of the paths that are only writable because a spec names them."""
    return tuple(sorted({path for path in paths if path in TRUSTED and path not in ALWAYS}))


def find_protected(policy: SandboxPolicy, need: Capability, obeyed: Mapping[str, Kind]) -> Protected | None:
    """What speaks against reading or writing a path, whatever is granted around it; None when nothing does.

    Args:
        policy: the agent's.
        need: one need of a call; only those about files are looked at.
        obeyed: where git's settings lead, see `gitconfig.obeyed`.
    """
    for path in need.paths or ():
        if need.name in (FILESYSTEM_READ, FILESYSTEM_WRITE) and (at := _around(policy.hidden, path)) is not None:
            return Protected(at, "no agent is shown it", word="hidden")
        if need.name == FILESYSTEM_WRITE and (found := _guarded(policy, path, obeyed)) is not None:
            return found
    return None


def decide(
    found: Protected,
    need: Capability,
    origin: Callable[[str], str],
    asking: Callable[[Capability], str] = request_line,
) -> Decision:
    """The denial of a call that needs a protected path.

    Args:
        found: what is protected.
        need: what the call needs.
        origin: where the spec asks for a capability, by its name; empty when that is not known.
        asking: what the spec would say to ask for one.
    """
    asks = found.asks
    return Decision(
        "denied",
        f"{found.word}: {found.path}",
        f"{', '.join(need.paths or ())} is {found.word}: {found.why}",
        origin(need.name if asks is None else asks.name),
        "" if asks is None else asking(asks),
    )


def _guarded(policy: SandboxPolicy, path: str, obeyed: Mapping[str, Kind]) -> Protected | None:
    at = _around(wanted(policy, git=policy.git, obeyed=obeyed), path)
    granted = _around(policy.writes, path)
    covered = granted is not None or (policy.git and within(GIT, path))
    if at is None or (granted is not None and within(at, granted) and granted not in ALWAYS):
        return None
    if at == GIT:
        return Protected(at, "a repository is writable with git-access", Capability(GIT_ACCESS) if covered else None)
    if at in ALWAYS:
        return Protected(at, _BY_TOKA)
    if within(GIT, at) or at in obeyed:
        return Protected(at, _BY_GIT)
    if not covered:
        return None
    if at in policy.protected:
        return Protected(at, _BY_SPEC)
    return Protected(at, _BY_NAME, Capability(FILESYSTEM_WRITE, paths=(at,)))


def _around(paths: Iterable[str], path: str) -> str | None:
    """The path of these that is it or lies around it, the outermost one; None when there is none."""
    return min((p for p in paths if within(p, path)), key=len, default=None)


def within(outer: str, path: str) -> bool:
    """Whether a path is `outer` or lies below it; `.` is around everything."""
    return outer in (".", path) or path.startswith(outer + "/")
