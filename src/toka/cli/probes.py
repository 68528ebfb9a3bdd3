"""What is tried to learn what this machine offers: the sandbox, the state directory, git, a model."""

from __future__ import annotations

import asyncio
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from toka.config.settings import Settings
from toka.core.clock import SystemClock
from toka.errors import MissingError, ModelUnavailable, TokaError, UsageError
from toka.journal.database import FILE
from toka.journal.mounted import network_filesystem
from toka.journal.place import refuse_network
from toka.journal.sqlite import SqliteReader
from toka.orchestration.toolchains import toolchain_findings
from toka.sandbox.doctor import Check, deeper, needed, probe, trials
from toka.sandbox.profile import find_program
from toka.workspace.cell import GIT_HINT

LISTED: Final = 5
"""Models of a server that are named."""


@dataclass(frozen=True, slots=True)
class Layer:
    """One thing that was examined; `needed`: no agent can run without it."""

    check: Check
    needed: bool = True


@dataclass(frozen=True, slots=True)
class Answer:
    """Which model would answer.

    Attributes:
        asked: the model string of the settings.
        model: what it leads to; empty when nothing does.
        server: where that is.
        ready: whether it would answer, as far as can be told without paying for a call.
        note: what else is known.
        tried: what was tried, in order.
        hint: what to do.
    """

    asked: str
    model: str = ""
    server: str = ""
    ready: bool = False
    note: str = ""
    tried: tuple[str, ...] = field(default=())
    hint: str = ""

    def to_json(self) -> dict[str, Any]:
        """The object that `toka models --json` prints."""
        return {
            "asked": self.asked,
            "model": self.model or None,
            "server": self.server or None,
            "ready": self.ready,
            "note": self.note,
            "tried": list(self.tried),
            "hint": self.hint,
        }


def examine(settings: Settings, environment: Mapping[str, str]) -> list[Layer]:
    """Tries everything, in the order of the table. Blocks for a second, or more while servers do not answer."""
    sandbox = [*probe(), *deeper()]
    toolchains = tuple(_toolchains(settings))
    usable = tuple(t.path for t in settings.tools.toolchains) if all(check.ok for check in toolchains) else ()
    sandbox += trials(sandbox, settings.sandbox, usable)
    return [
        *(Layer(check, needed(check.layer, settings.sandbox)) for check in sandbox),
        Layer(_state(settings.state)),
        Layer(_git(), needed=False),
        *(Layer(check) for check in toolchains),
        Layer(_model(settings, environment), needed=False),
    ]


def _state(state: Path) -> Check:
    wanted, why = "a directory that can be written", "where every step is recorded"
    fix = "choose another with --state DIR or TOKA_STATE, or mend its permissions"
    if kind := network_filesystem(state):
        got, fix = f"{state} is on {kind}, a network file system", "choose one on a disk of this machine: --state DIR"
        return Check("state", wanted, got, ok=False, why=why, fix=fix)
    try:
        refuse_network(state)
        if (state / FILE).exists():
            SqliteReader(state, SystemClock()).close()
        place = next(p for p in (state, *state.parents) if p.exists())
        with tempfile.TemporaryFile(dir=place):
            pass
    except TokaError as e:
        return Check("state", wanted, e.message, ok=False, why=why, fix=e.hint or fix)
    except OSError as e:
        return Check("state", wanted, f"{state}: {e.strerror or e}", ok=False, why=why, fix=fix)
    return Check("state", wanted, str(state) if place == state else f"{state}, to be made", ok=True, why=why)


def _git() -> Check:
    wanted, why = "git", "keeps the workspace before commands, to run them again after a crash; for git-access"
    path = find_program("git")
    if path is None:
        return Check("git", wanted, "not installed", ok=False, why=why, fix=GIT_HINT)
    said = ""
    with suppress(OSError, subprocess.TimeoutExpired):
        said = subprocess.run(
            [path, "--version"], capture_output=True, check=False, timeout=10, text=True
        ).stdout.strip()
    return Check("git", wanted, said or path, ok=True, why=why)


def _toolchains(settings: Settings) -> Iterator[Check]:
    """Whether those of the settings can be shown; nothing when there are none."""
    if not settings.tools.toolchains:
        return
    wanted, why = "folders with programs", "what sandboxes show beside /usr"
    with tempfile.TemporaryDirectory(prefix="toka-doctor-") as folder:
        found = toolchain_findings(settings.tools.toolchains, Path(folder))
    if found:
        got, fixes = "; ".join(f.text for f in found), dict.fromkeys(f.help or "" for f in found)
        yield Check("toolchains", wanted, got, ok=False, why=why, fix="; ".join(fixes))
    else:
        yield Check("toolchains", wanted, ", ".join(t.path for t in settings.tools.toolchains), ok=True, why=why)


def _model(settings: Settings, environment: Mapping[str, str]) -> Check:
    wanted, why = f"a model for {settings.model!r}", "answers for tasks that are not a `run:` command"
    try:
        answer = ask_models(settings, environment)
    except (UsageError, MissingError) as e:
        return Check("model", wanted, e.message, ok=False, why=why, fix=e.hint or "toka models")
    if not answer.ready:
        return Check("model", wanted, "none; see: toka models", ok=False, why=why, fix=answer.hint)
    return Check("model", wanted, f"{answer.model} at {answer.server}", ok=True, why=why)


def ask_models(settings: Settings, environment: Mapping[str, str]) -> Answer:
    """Which model would answer. Local servers are asked for their models; vendors are not contacted.

    Raises:
        UsageError: the model string or the base URL is none.
    """
    from toka.llm.resolve import AUTO, describe, resolve_auto

    model = settings.model
    try:
        if model == AUTO:
            model = asyncio.run(resolve_auto(environment, settings.base_url))
        found = describe(model, environment, settings.base_url)
    except ModelUnavailable as e:
        return Answer(settings.model, tried=e.tried, hint=e.hint or "")
    if not found.ready:
        return Answer(settings.model, tried=(f"{model}: {found.note}",), hint=found.note)
    if found.provider == "scripted":
        return _script(settings.model, Path(found.name))
    if settings.model == AUTO or found.provider in ("openai", "anthropic"):
        return Answer(settings.model, model, found.server, ready=True)
    return _listed(settings, environment, model)


def _script(model: str, file: Path) -> Answer:
    if file.is_file():
        return Answer(model, model, str(file), ready=True, note="SCRIPTED: the file answers, no model")
    return Answer(model, tried=(f"{file}: there is no such file",), hint="name a script: scripted:FILE")


def _listed(settings: Settings, environment: Mapping[str, str], model: str) -> Answer:
    """Asks a server on this machine, or at the base URL, whether it has the model."""
    from toka.llm.resolve import endpoint_of, list_models

    endpoint = endpoint_of(model, environment, settings.base_url)
    url = endpoint.base_url or ""
    names = asyncio.run(list_models(url, endpoint.key))
    if isinstance(names, str):
        return Answer(model, tried=(f"{url}: {names}",), hint="start the server, or name another with --base-url")
    if endpoint.name in names:
        return Answer(model, model, url, ready=True)
    offered = ", ".join(names[:LISTED]) or "no model"
    return Answer(model, model, url, ready=True, note=f"the server does not list {endpoint.name}; it lists {offered}")
