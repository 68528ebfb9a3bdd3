"""Tools of other distributions, found by their entry points in the group `toka.tools`.

An entry point without an object, `greet = acme_tools.greet`, names a script, `acme_tools/greet.py`, that runs inside
the agent's sandbox, and beside it `acme_tools/greet.json`, which describes it. Neither is imported here: both are read,
and compared with the hashes in the distribution's RECORD. `[tools] allow` in the settings names the distributions.

An entry point with an object, `greet = acme_tools:Greet`, is a `Tool` that runs in the process of Toka itself, outside
every sandbox. `[tools] host` names its distribution with version and the SHA-256 of RECORD; all files must be as RECORD
says. What the distribution in turn imports from others is not checked, nor are Python's compiled copies of its modules.

What the settings do not allow is told and not loaded. What they name and cannot be used ends the command.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from importlib.metadata import Distribution, EntryPoint, distributions
from pathlib import Path
from typing import Final

from toka.config.diagnostics import Finding, Position
from toka.config.settings import Settings
from toka.config.settings_tools import Pin, ToolRules, normal_name
from toka.errors import ConfigError
from toka.tools.builtin import Toolbox
from toka.tools.hosted import load_hosted
from toka.tools.script import MAX_SCRIPT, ScriptTool, Unfit, read_tool
from toka.tools.tool import Tool

GROUP: Final = "toka.tools"
NAME: Final = re.compile(r"[a-z][a-z0-9_]{0,63}")
_MODULE: Final = re.compile(r"[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*", re.ASCII)
_UNHASHED: Final = re.compile(r".*\.pyc|[^/]+\.dist-info/RECORD")
"""Files that RECORD lists without a hash: itself, and what Python compiled."""

Installed = Callable[[], Iterable[Distribution]]


@dataclass(frozen=True, slots=True)
class Plugins:
    """What was found.

    Attributes:
        scripts: tools that run inside the sandbox.
        host: entry points of tools that run outside; not imported yet.
        notes: one sentence for each tool that is not loaded because no rule allows it.
        faults: one sentence for each tool that a rule allows and that cannot be used, and each rule that nothing fits.
    """

    scripts: tuple[ScriptTool, ...] = ()
    host: tuple[EntryPoint, ...] = ()
    notes: tuple[str, ...] = ()
    faults: tuple[str, ...] = ()


@dataclass(slots=True)
class _Finder:
    rules: ToolRules
    taken: set[str]
    scripts: list[ScriptTool] = field(default_factory=list[ScriptTool])
    host: list[EntryPoint] = field(default_factory=list[EntryPoint])
    notes: list[str] = field(default_factory=list[str])
    faults: list[str] = field(default_factory=list[str])

    def look(self, distribution: Distribution, points: Iterable[EntryPoint]) -> None:
        """Takes the tools of one distribution, as far as the rules allow them."""
        name = normal_name(distribution.name)
        pin = self.rules.host.get(name)
        changed = _changed(distribution, pin) if pin else ""
        for point in points:
            said = f"{name} {distribution.version} offers the tool {point.name!r}"
            inside = ":" not in point.value
            allowed = pin is not None or (inside and name in self.rules.allow)
            if not allowed:
                self.notes.append(f"{said}; {_remedy(distribution, name, inside=inside)}")
            elif changed:
                self.faults.append(f"{said}, and is not what [tools] host names: {changed}")
            elif not NAME.fullmatch(point.name) or point.name in self.taken:
                why = "another tool has" if point.name in self.taken else "no tool can have"
                self.faults.append(f"{said}, a name that {why}; it is not loaded")
            else:
                self._take(distribution, point, said, inside=inside)

    def _take(self, distribution: Distribution, point: EntryPoint, said: str, *, inside: bool) -> None:
        try:
            if inside:
                self.scripts.append(_script(distribution, point))
            else:
                self.host.append(point)
        except Unfit as error:
            self.faults.append(f"{said}, which cannot be used: {error}")
        else:
            self.taken.add(point.name)


def find_plugins(rules: ToolRules, taken: Collection[str], installed: Installed = distributions) -> Plugins:
    """The tools of installed distributions, as far as the settings allow them. Imports and runs nothing of them.

    Args:
        rules: whose tools may be used.
        taken: names of tools that there are already.
        installed: the distributions of this Python, in the order in which they would be imported.
    """
    finder = _Finder(rules, set(taken))
    seen: set[str] = set()
    for distribution in installed():
        name = _name(distribution)
        if not name or name in seen:
            continue
        seen.add(name)
        named = name in rules.allow or name in rules.host
        try:
            points = sorted((p for p in distribution.entry_points if p.group == GROUP), key=lambda p: p.name)
            if points:
                finder.look(distribution, points)
        except Exception as error:  # noqa: BLE001 - metadata may be anything, and libraries raise as much
            (finder.faults if named else finder.notes).append(f"{name} offers what cannot be read: {error}")
            continue
        if named and not points:
            finder.faults.append(f"[tools] names {name}, which offers no tools")
    finder.faults += [
        f"[tools] names {name}, which is not installed"
        for name in dict.fromkeys((*rules.allow, *rules.host))
        if name not in seen
    ]
    return Plugins(tuple(finder.scripts), tuple(finder.host), tuple(finder.notes), tuple(finder.faults))


def toolbox(settings: Settings, more: tuple[Tool, ...] = (), installed: Installed = distributions) -> Toolbox:
    """All tools that there are under these settings.

    Args:
        settings: whose [tools] and [credentials] count.
        more: tools that a program brings of its own.
        installed: see `find_plugins`.

    Raises:
        ConfigError: see `load_tools`.
        UsageError: a tool of `more` has another tool's name.
    """
    own = Toolbox(more)
    place = settings.origins.get("tools.allow") or settings.origins.get("tools.host") or "settings"
    further = load_tools(settings.tools, {tool.name for tool in own}, installed, place)
    keyed = {host: key.port for host, key in settings.credentials.items()}
    return Toolbox((*more, *further), keyed, tuple(toolchain.path for toolchain in settings.tools.toolchains))


def load_tools(
    rules: ToolRules, taken: Collection[str], installed: Installed = distributions, place: str = "settings"
) -> tuple[Tool, ...]:
    """The tools that the settings name; those that run outside are imported. Nothing is looked for without rules.

    Args:
        rules, taken, installed: see `find_plugins`.
        place: the file of the settings, for findings.

    Raises:
        ConfigError: what the settings name is missing, changed, or no tool; with one finding for each.
    """
    if not rules.allow and not rules.host:
        return ()
    found = find_plugins(rules, taken, installed)
    faults = list(found.faults)
    tools: list[Tool] = list(found.scripts)
    for point in found.host:
        try:
            tools.append(load_hosted(point))
        except Unfit as error:
            faults.append(f"the tool {point.name!r} of [tools] host cannot be used: {error}")
    if faults:
        findings = [Finding("TK2011", f"tools: {fault}", Position(place)) for fault in faults]
        raise ConfigError("the settings name tools that cannot be used; nothing was started", findings)
    return tuple(tools)


def _name(distribution: Distribution) -> str:
    """The normalised name; empty where the metadata holds none."""
    try:
        return normal_name(distribution.name or "")
    except Exception:  # noqa: BLE001 - metadata may be anything, and libraries raise as much
        return ""


def _remedy(distribution: Distribution, name: str, *, inside: bool) -> str:
    """What a person would write to allow it."""
    if inside:
        return f'it is not loaded: [tools] allow = ["{name}"] lets it work inside sandboxes'
    record = _record(distribution)
    if record is None:
        return "outside the sandbox: it is not loaded, and cannot be, as it was not installed from a wheel"
    pin = f"{name}=={distribution.version} sha256:{hashlib.sha256(record.read_bytes()).hexdigest()}"
    return f'outside the sandbox: it is not loaded; [tools] host = ["{pin}"] would trust it with everything'


def _script(distribution: Distribution, point: EntryPoint) -> ScriptTool:
    """Raises Unfit."""
    if not _MODULE.fullmatch(point.value.strip()):
        raise Unfit(f"{point.value!r} names no module")
    path = point.value.strip().replace(".", "/")
    hashes = _hashes(distribution)
    script, manifest = (_as_recorded(distribution, hashes, f"{path}{suffix}") for suffix in (".py", ".json"))
    return read_tool(point.name, script, manifest)


def _as_recorded(distribution: Distribution, hashes: Mapping[str, str], name: str) -> str:
    if not hashes.get(name):
        raise Unfit(f"{name} is not among its files with a hash")
    data = _read(distribution, name)
    if _digest(data) != hashes[name]:
        raise Unfit(f"{name} is not what was installed")
    if len(data) > MAX_SCRIPT:
        raise Unfit(f"{name} has {len(data)} bytes; {MAX_SCRIPT} can be used")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        raise Unfit(f"{name} is not UTF-8") from None


def _changed(distribution: Distribution, pin: Pin) -> str:
    """In what way a distribution is not the one that the operator pinned; empty when it is."""
    if distribution.version != pin.version:
        return f"version {pin.version}"
    record = _record(distribution)
    if record is None or hashlib.sha256(record.read_bytes()).hexdigest() != pin.sha256:
        return "the hash of its RECORD"
    for name, wanted in _hashes(distribution).items():
        if not wanted and _UNHASHED.fullmatch(name):
            continue
        try:
            if not wanted or _digest(_read(distribution, name)) != wanted:
                return f"the hash of {name}"
        except Unfit as error:
            return str(error)
    return ""


def _record(distribution: Distribution) -> Path | None:
    """The file RECORD; None when it was not installed from a wheel."""
    names = [file for file in distribution.files or () if re.fullmatch(r"[^/]+\.dist-info/RECORD", str(file))]
    path = Path(str(names[0].locate())) if names else None
    return path if path is not None and path.is_file() else None


def _hashes(distribution: Distribution) -> dict[str, str]:
    """Every file of a distribution with its SHA-256 as RECORD writes it; empty where it has none."""
    return {
        str(file): file.hash.value if file.hash is not None and file.hash.mode == "sha256" else ""
        for file in distribution.files or ()
    }


def _read(distribution: Distribution, name: str) -> bytes:
    try:
        return Path(str(distribution.locate_file(name))).read_bytes()
    except OSError as error:
        raise Unfit(f"{name} cannot be read: {error.strerror}") from None


def _digest(data: bytes) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(data).digest()).decode().rstrip("=")
