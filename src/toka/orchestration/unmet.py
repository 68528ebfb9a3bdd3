"""What a spec asks for that no machine, or this machine and workspace, can give: findings before a run.

Looks at installed programs and the workspace, and changes nothing.
"""

from __future__ import annotations

import contextlib
import os
import re
import stat
import sys
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Final, Literal

from toka.config.agent import AgentConfig, Presets
from toka.config.diagnostics import Finding, Position, in_order, quoted
from toka.config.flow_rules import references_of
from toka.config.load import label_of
from toka.config.rules import REQUESTS, Problem
from toka.config.settings import personal_file
from toka.core.capability import Capability, CapabilityError, Grant, normal_path
from toka.core.catalogue import COMMAND_EXECUTION, FILESYSTEM_READ, FILESYSTEM_WRITE, GIT_ACCESS, resolve
from toka.core.ids import AgentName
from toka.errors import SandboxError
from toka.orchestration.apart import private_findings
from toka.orchestration.rights import Terms, effective
from toka.orchestration.toolchains import toolchain_findings
from toka.sandbox.policy import SandboxPolicy
from toka.sandbox.profile import SEARCHED, find_program
from toka.sandbox.protect import protect
from toka.sandbox.toolchain import bin_folders
from toka.sandbox.trusted import GIT, GIT_TRUSTED, TRUSTED

ELSEWHERE: Final = "set it where the settings look for it"
Found = Literal["there", "absent", "link"]


def spec_places(files: Iterable[Path]) -> tuple[Path, ...]:
    """The files of specs, and each folder that holds nothing but specs: a new one in there would be read next time."""
    places: dict[Path, None] = {}
    only_specs: dict[Path, bool] = {}
    for file in files:
        places[file] = None
        folder = file.absolute().parent
        if folder not in only_specs:
            only_specs[folder] = _only_specs(folder)
        if only_specs[folder]:
            places[folder] = None
    return tuple(places)


def _only_specs(folder: Path) -> bool:
    """Whether all files in a folder are specs, by their names; not when it cannot be listed."""
    try:
        return all(entry.suffix in (".yaml", ".yml") or entry.is_dir() for entry in folder.iterdir())
    except OSError:
        return False


def inside(workspace: Path, paths: Iterable[Path]) -> tuple[str, ...]:
    """Those of the paths that lie below a workspace, as its sandboxes name them."""
    root = workspace.resolve()
    real = (path.absolute().parent.resolve() / path.name for path in paths)
    return tuple(p.relative_to(root).as_posix() for p in real if p.is_relative_to(root) and p != root)


def spec_findings(configs: Iterable[AgentConfig], presets: Presets) -> tuple[Finding, ...]:
    """What specs ask for that no machine can give: writing to a repository's insides.

    Args:
        configs: specs, and drafts of those with errors.
        presets: capabilities that the settings define.
    """
    return _reported(configs, lambda config: _repository(config, presets))


def place_findings(
    configs: Sequence[AgentConfig], terms: Terms, workspace: Path, started: Collection[str] = ()
) -> tuple[Finding, ...]:
    """What a workspace and this machine cannot give to a team, and what is only worth knowing.

    Args:
        configs: the agents of the run, or those that have not ended.
        terms: settings and protected paths.
        workspace: where they work.
        started: those that have worked already: their paths were there, or were told of.

    Returns:
        TK42xx: errors for what was named in a spec and is not there or not granted, for links where something must be
        protected, and for a workspace that is a link itself; notes for members of presets. Elsewhere than on Linux:
        only what is wrong with the workspace itself.
    """
    out: list[Finding] = []
    if workspace.is_symlink():
        shown = label_of(workspace)
        hint = f"name the folder itself: --workspace {label_of(workspace.resolve())}"
        out.append(Finding("TK4202", f"the workspace {shown} is a symbolic link", Position(shown), help=hint))
    if not sys.platform.startswith("linux"):
        return tuple(out)
    out += toolchain_findings(terms.toolchains, workspace)
    toolchains = [toolchain.path for toolchain in terms.toolchains]
    policies = {config.name: effective(config, terms).policy for config in configs}
    to_come = _to_come(configs, policies, started)
    found: dict[str, bool] = {}

    def installed(program: str) -> bool:
        if program not in found:
            found[program] = find_program(program, toolchains) is not None
        return found[program]

    def problems(config: AgentConfig) -> Iterator[Problem]:
        policy = policies[config.name]
        if config.name not in started:
            yield from _missing_paths(config, terms.presets, policy, workspace, to_come[config.name])
        yield from _unprotectable(config, terms.presets, policy, workspace)
        yield from _missing_programs(config, terms, installed)
        yield from _unreadable_outputs(config, policy)

    out += private_findings(configs, workspace, terms.level, started)
    return (*out, *_reported(configs, problems))


def _reported(configs: Iterable[AgentConfig], check: Callable[[AgentConfig], Iterable[Problem]]) -> tuple[Finding, ...]:
    found = ((config, [*check(config)]) for config in configs)
    return in_order(finding for config, problems in found if problems for finding in config.report(*problems))


def _repository(config: AgentConfig, presets: Presets) -> Iterator[Problem]:
    for index, capability in _requests(config, presets):
        for path in (capability.paths or ()) if capability.name == FILESYSTEM_WRITE else ():
            if path == GIT or path.startswith(GIT + "/"):
                message = f"{path} may not be granted for writing"
                hint = "ask for git-access, which opens a repository but for its hooks and settings"
                yield Problem("TK4205", message, _place(config, index, "paths", path), help=hint)


def _requests(config: AgentConfig, presets: Presets) -> Iterator[tuple[int, Capability]]:
    """What each request of a spec stands for, with its number."""
    for index, request in enumerate(config.security.capabilities_required):
        with contextlib.suppress(CapabilityError):
            yield from ((index, c) for c in resolve(request.name, request.arguments, presets).capabilities)


def _place(config: AgentConfig, index: int, argument: str, item: str) -> tuple[str | int, ...]:
    """Where a request names an item; the request itself when it does so by a preset."""
    for number, written in enumerate(config.security.capabilities_required[index].arguments.get(argument, ())):
        if item in (written, normal_path(written) if argument == "paths" else written):
            return (*REQUESTS, index, "arguments", argument, number)
    return (*REQUESTS, index)


def _to_come(
    configs: Sequence[AgentConfig], policies: Mapping[AgentName, SandboxPolicy], started: Collection[str]
) -> dict[AgentName, tuple[str, ...] | None]:
    """The paths that each agent's dependencies, and theirs, may write; None = not all of those are known here."""
    known = {config.name: config for config in configs}
    out: dict[AgentName, tuple[str, ...] | None] = {}
    for config in configs:
        seen: dict[AgentName, None] = {}
        waiting = [config]
        complete = True
        while waiting:
            edges = waiting.pop().dependencies
            for name in map(AgentName, (*edges.required, *edges.optional)):
                if name in known and name not in seen:
                    seen[name] = None
                    waiting.append(known[name])
                elif name not in known and (name in edges.required or started):
                    complete = False  # it has ended, and may have written
        out[config.name] = tuple(path for name in seen for path in policies[name].writes) if complete else None
    return out


def _missing_paths(
    config: AgentConfig, presets: Presets, policy: SandboxPolicy, workspace: Path, to_come: Sequence[str] | None
) -> Iterator[Problem]:
    """Granted paths that the sandbox would leave out."""
    for index, capability in _requests(config, presets):
        shown = {FILESYSTEM_READ: policy.reads, FILESYSTEM_WRITE: policy.writes}.get(capability.name, ())
        for path in (p for p in capability.paths or () if p in shown and p != "."):
            found = look(workspace, path)
            place = _place(config, index, "paths", path)
            if found == "link":
                message = f"{quoted(path)} is or leads through a symbolic link"
                yield Problem("TK4201", message, place, help=_instead(workspace, path))
            elif found == "absent" and capability.name == FILESYSTEM_READ and not _may_come(path, to_come):
                hint = "create it, correct the path, or depend on an agent that may write it"
                yield Problem("TK4201", f"there is no {quoted(path)} in the workspace", place, help=hint)


def _unreadable_outputs(config: AgentConfig, policy: SandboxPolicy) -> Iterator[Problem]:
    """Outputs that would be read from files the agent may not see; those with references are known later."""
    seen = [Capability(FILESYSTEM_READ, paths=(path,)) for path in (*policy.reads, *policy.writes)]
    for name, output in config.flow.outputs.items() if config.flow is not None else ():
        path = output.path
        if output.source != "file" or path is None or "${" in path:
            continue
        if not any(each.covers(Capability(FILESYSTEM_READ, paths=(path,))) for each in seen):
            message = f"the output {quoted(name)} is read from {quoted(path)}, which was not granted"
            asked = config.origin.asking(Capability(FILESYSTEM_WRITE, paths=(path,))).removeprefix("- ")
            hint = f"grant it, or its folder: {asked}"
            yield Problem("TK4207", message, ("flow", "outputs", name, "path"), help=hint)


def secret_findings(configs: Sequence[AgentConfig], known: Mapping[str, str]) -> tuple[Finding, ...]:
    """Secrets that specs name and that are not there.

    Args:
        configs: the agents.
        known: the secrets of the settings: why each is not there, or nothing.
    """

    def problems(config: AgentConfig) -> Iterator[Problem]:
        for text, reference in references_of(config):
            why = known.get(reference.name)
            if reference.kind == "secret" and why != "":
                message = f"the secret {quoted(reference.name)} is not there: {why or 'no settings name it'}"
                help_ = ELSEWHERE if why else named_secret(reference.name)
                yield Problem("TK4208", message, text.path, text=reference.text, help=help_)

    return _reported(configs, problems)


def named_secret(name: str) -> str:
    """How settings name a secret."""
    own = personal_file(os.environ)
    return f'write {name} = "${{env:NAME}}" under [secrets] in {label_of(own) if own else "your own config.toml"}'


def _instead(workspace: Path, path: str) -> str:
    """What to grant in place of a link."""
    real, root = (workspace / path).resolve(), workspace.resolve()
    if real == root or not real.is_relative_to(root):
        return "it leads out of the workspace, where nothing can be granted; put the files there in its place"
    return f"grant what it leads to: {quoted(real.relative_to(root).as_posix())}"


def look(workspace: Path, path: str) -> Found:
    """Whether a path of a workspace exists; no link is followed below the workspace."""
    at = workspace
    for name in path.split("/") if path != "." else ():
        at /= name
        try:
            mode = at.lstat().st_mode
        except (OSError, ValueError):
            return "absent"
        if stat.S_ISLNK(mode):
            return "link"
    return "there"


def _may_come(path: str, written: Sequence[str] | None) -> bool:
    """Whether something at a path may be there before the agent starts: it, or what is around or below it."""
    if written is None:
        return True
    here = Capability(FILESYSTEM_WRITE, paths=(path,))
    others = (Capability(FILESYSTEM_WRITE, paths=(other,)) for other in written)
    return any(other.covers(here) or here.covers(other) for other in others)


def _unprotectable(config: AgentConfig, presets: Presets, policy: SandboxPolicy, workspace: Path) -> Iterator[Problem]:
    """What would keep the sandbox from starting: a link or a file where something must be protected.

    Told at the request that lets the agent write there.
    """
    if any(w == GIT or w.startswith(GIT + "/") for w in policy.writes):
        return  # that is an error of its own
    told: set[str] = set()
    parts: list[tuple[tuple[str | int, ...], SandboxPolicy]] = [
        ((*REQUESTS, index), replace(policy, writes=_shared(capability, policy.writes), git=False, hidden=()))
        if capability.name == FILESYSTEM_WRITE
        else ((*REQUESTS, index), replace(policy, writes=(), git=policy.git, hidden=()))
        for index, capability in _requests(config, presets)
        if capability.name in (FILESYSTEM_WRITE, GIT_ACCESS)
    ]
    for place, part in (*parts, (REQUESTS, policy)):
        said, hint = _refused(part, workspace) if part.writes or part.git else ("", None)
        if said and said not in told:
            told.add(said)
            yield Problem("TK4203", said, place, help=hint)


def _shared(capability: Capability, writes: tuple[str, ...]) -> tuple[str, ...]:
    """What of a request to write is granted."""
    met = capability.intersect(Capability(FILESYSTEM_WRITE, paths=writes))
    return () if met is None else met.paths or (".",)


def _refused(policy: SandboxPolicy, workspace: Path) -> tuple[str, str | None]:
    """Why `protect` would refuse a policy, and what to do about it; empty when it would not.

    Paths that are protected "as given" are looked at and not created, so this asks for all of them in that way.
    """
    wanted = (*TRUSTED, GIT, *(GIT_TRUSTED if policy.git else ()))
    with ExitStack() as stack:
        try:
            root = os.open(workspace, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
            stack.callback(os.close, root)
            protect(root, replace(policy, protected=(*policy.protected, *wanted)), stack)
        except SandboxError as error:
            return error.message, error.hint
        except NotADirectoryError:
            return _file_in_the_way(workspace, (*policy.protected, *wanted))
        except OSError:
            pass  # whoever opens the workspace says what is wrong with it
    return "", None


def _file_in_the_way(workspace: Path, paths: Iterable[str]) -> tuple[str, str]:
    """Which of the paths leads through a file, and what to do about it."""
    for path in paths:
        for folder in list(Path(path).parents)[-2::-1]:
            if (workspace / folder).exists() and not (workspace / folder).is_dir():
                hint = "a worktree or submodule keeps its repository elsewhere: use the main checkout"
                said = f"{folder} is a file, so {path} cannot be protected"
                return said, hint if str(folder) == GIT else "move it away, or do not grant the folder around it"
    return "a protected path leads through a file", "move it away"


def _missing_programs(config: AgentConfig, terms: Terms, installed: Callable[[str], bool]) -> Iterator[Problem]:
    """Listed programs that are not where sandboxes look: errors when the spec names them, one note for a preset."""
    given: dict[int, set[str]] = {}
    for index, capability in _requests(config, terms.presets):
        left = terms.policy.bound(Grant((capability,) if capability.name == COMMAND_EXECUTION else ()))
        given.setdefault(index, set()).update(program for c in left.capabilities for program in c.programs or ())
    for index, programs in given.items():
        request = config.security.capabilities_required[index]
        absent = sorted(program for program in programs if not installed(program))
        named = [program for program in absent if program in request.arguments.get("programs", ())]
        for program in named:
            message = f"the program {quoted(program)} is not installed"
            looked = [*bin_folders(t.path for t in terms.toolchains), *SEARCHED.split(":")]
            hint = f"install it, or take it out; sandboxes look in {', '.join(looked)}"
            yield Problem("TK4204", message, _place(config, index, "programs", program), help=hint)
        there = {_stem(program) for program in programs.difference(absent)}
        rest = [program for program in absent if program not in named and _stem(program) not in there]
        if rest:
            message = f"{request.name}: not installed here: {', '.join(rest)}"
            yield Problem("TK4204", message, (*REQUESTS, index), severity="note")


def _stem(program: str) -> str:
    """A program's name without the version at its end: `python3` stands in for `python`."""
    return re.sub(r"[0-9.]+\Z", "", program) or program
