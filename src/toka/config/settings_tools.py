"""The table `[tools]`: whose tools agents get, and folders of programs that their sandboxes show."""

from __future__ import annotations

import os
import pwd
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, cast

from toka.config.diagnostics import Finding, Position, did_you_mean, quoted
from toka.config.options import as_written
from toka.config.source import Source
from toka.config.toml import TomlFile

NAMES: Final = ("allow", "host", "toolchains")
MAX_TOOLCHAINS: Final = 32
MAX_PATH: Final = 1_000
"""Characters."""
SYSTEM: Final = (
    "/bin", "/boot", "/dev", "/etc", "/lib", "/lib32", "/lib64", "/libx32", "/lost+found", "/proc", "/run", "/sbin",
    "/sys", "/tmp", "/toka", "/var", "/workspace",
)  # fmt: skip
"""Where no toolchain may lie: the machine's own, what changes all the time, and what sandboxes have in these places."""
SHOWN: Final = ("/usr", "/usr/local")
"""Every sandbox shows them, and looks for programs in them."""
KEPT: Final = (
    ".aws", ".azure", ".cargo/credentials", ".cargo/credentials.toml", ".config/gcloud", ".config/gh", ".config/op",
    ".config/toka", ".docker", ".git-credentials", ".gnupg", ".kube", ".local/share/keyrings", ".mozilla", ".netrc",
    ".npmrc", ".password-store", ".pypirc", ".ssh", ".terraform.d", ".thunderbird",
)  # fmt: skip
"""Where people keep keys, below their homes."""
SECRET_FOLDERS: Final = frozenset({".aws", ".azure", ".docker", ".gnupg", ".kube", ".password-store", ".ssh"})
"""Names of folders that hold keys wherever they are."""
FORM: Final = 'name a folder with a bin folder in it, such as "~/.rustup/toolchains/stable-x86_64-unknown-linux-gnu"'
_DISTRIBUTION: Final = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,98}[A-Za-z0-9])?")
_PIN: Final = re.compile(
    rf"(?P<name>{_DISTRIBUTION.pattern}) *== *(?P<version>[A-Za-z0-9._+!-]{{1,100}}) +sha256:(?P<sha256>[0-9a-f]{{64}})"
)
_KEY: Final = re.compile(r"""\btoolchains["']?\s*=""")


@dataclass(frozen=True, slots=True)
class Pin:
    """A distribution in exactly one form: `sha256`, in hex, is that of its RECORD, which holds those of its files."""

    version: str
    sha256: str


@dataclass(frozen=True, slots=True)
class Toolchain:
    """A folder with a `bin` folder, which sandboxes show read-only.

    Attributes:
        path: absolute and normalised. Whether it is there, and no link, is asked when it is to be used.
        position: where it was written; without a file: nobody knows.
        source: that line.
        length: characters of it that are meant.
    """

    path: str
    position: Position = Position("")  # noqa: RUF009 - frozen
    source: str = ""
    length: int = 1

    def finding(self, code: str, message: str, hint: str | None) -> Finding:
        """What is wrong with it, at its place."""
        place = self.position if self.position.file else Position("the run's own toolchains")
        return Finding(
            code, f"tools.toolchains: {message}", place, help=hint, source=self.source, length=max(1, self.length)
        )


@dataclass(frozen=True, slots=True)
class ToolRules:
    """What agents get beyond what comes with Toka and the system. Distributions by their normalised names.

    Attributes:
        allow: their tools run inside the sandbox.
        host: their tools run in the process of Toka itself, if they are these and no others.
        toolchains: in the order in which programs are looked for in them.
    """

    allow: tuple[str, ...] = ()
    host: Mapping[str, Pin] = field(default_factory=dict[str, Pin])
    toolchains: tuple[Toolchain, ...] = ()


def read_tools(file: TomlFile, entries: Mapping[str, object], origins: dict[str, str], home: str) -> ToolRules | None:
    """`[tools]`: names under `allow`, pins under `host`, folders under `toolchains`.

    Args:
        file: what is wrong becomes findings of its source.
        entries: the table.
        origins: gets the file of each key.
        home: what `~` stands for; empty = nothing.

    Returns:
        None when the file says nothing of it.
    """
    allow: list[str] = []
    host: dict[str, Pin] = {}
    toolchains: dict[str, Toolchain] = {}
    for name, value in entries.items():
        if name not in NAMES:
            file.source.add("TK2010", f"unknown setting {quoted('tools.' + name)}", help=did_you_mean(name, NAMES))
            continue
        origins[f"tools.{name}"] = file.source.file
        for item in cast("list[object]", value) if isinstance(value, list) else [value]:
            if name == "toolchains":
                if (found := _toolchain(file.source, item, home)) is not None:
                    toolchains.setdefault(found.path, found)
                continue
            pattern, form = (_DISTRIBUTION, '"NAME"') if name == "allow" else (_PIN, '"NAME==VERSION sha256:HEX"')
            named = pattern.fullmatch(item) if isinstance(item, str) else None
            if named is None:
                file.source.add("TK2011", f"tools.{name}: {as_written(item)} is no distribution", help=f"write {form}")
            elif name == "allow":
                allow.append(normal_name(named[0]))
            else:
                host[normal_name(named["name"])] = Pin(named["version"], named["sha256"])
    if len(toolchains) > MAX_TOOLCHAINS:
        file.source.add("TK2011", f"tools.toolchains: more than {MAX_TOOLCHAINS} folders", _place(file.source, None))
    return ToolRules(tuple(dict.fromkeys(allow)), host, tuple(toolchains.values())) if entries else None


def normal_name(distribution: str) -> str:
    """A distribution's name in its one spelling, as Python's packaging compares them."""
    return re.sub(r"[-_.]+", "-", distribution).lower()


def _toolchain(source: Source, item: object, home: str) -> Toolchain | None:
    """A folder as it is written; None, and a finding, when it can be none."""
    line, column, length = at = _place(source, item)
    said = as_written(item)
    if not isinstance(item, str) or not item:
        source.add("TK2011", f"tools.toolchains: {said} is no folder", at, help=FORM)
        return None
    path = home + item[1:] if (item == "~" or item.startswith("~/")) and home.startswith("/") else item
    if not path.startswith("/"):
        source.add("TK2011", f"tools.toolchains: {said} is not absolute", at, help="begin with / or ~/")
        return None
    if not path.isprintable() or len(path) > MAX_PATH or ".." in path.split("/") or ":" in path:
        hint = 'write it without "..", ":" and signs that nobody sees'
        source.add("TK2011", f"tools.toolchains: {said} is no plain path", at, help=hint)
        return None
    whole = "/" + "/".join(part for part in path.split("/") if part not in ("", "."))
    return Toolchain(whole, Position(source.file, line, column), source.line(line), length)


def _place(source: Source, item: object) -> tuple[int, int, int]:
    """Where an item of `toolchains` stands: line, column, length; the key when it is written in another way."""
    place = (0, 0, 1)
    for found in _KEY.finditer(source.text):
        line, column = source.place(found.start())
        if "#" in source.line(line)[: column - 1]:
            continue
        place = (line, column, len("toolchains"))
        for literal in (f'"{item}"', f"'{item}'") if isinstance(item, str) else ():
            for at in re.finditer(re.escape(literal), source.text[found.end() :]):
                line, column = source.place(found.end() + at.start())
                if "#" not in source.line(line)[: column - 1]:
                    return line, column, len(literal)
    return place


# ---- where a toolchain may lie


def misplaced(toolchains: Collection[Toolchain], home: str, guarded: Iterable[Path]) -> Iterator[Finding]:
    """Toolchains in places that no sandbox shows. Looks at no toolchain, only at where homes and links lead.

    Args:
        toolchains: those of the settings, or of a run.
        home: the user's; may be empty.
        guarded: folders and files of Toka and of its keys.
    """
    if not toolchains:
        return
    homes = _homes(home)
    own = {form for path in guarded for form in (os.path.normpath(path), os.path.realpath(path))}
    for toolchain in toolchains:
        if said := _why_not(toolchain.path, homes, own):
            yield toolchain.finding("TK2011", *said)


def _homes(home: str) -> set[str]:
    """The homes of this machine, as they are written and as they are."""
    every = {"/root", *(entry.pw_dir for entry in pwd.getpwall()), *([home] if home.startswith("/") else [])}
    real = {form for path in every for form in (os.path.normpath(path), os.path.realpath(path))}
    return {path for path in real if path.startswith("/") and path != "/"}


def _why_not(path: str, homes: Collection[str], own: Collection[str]) -> tuple[str, str] | None:
    """Why a folder cannot be a toolchain, and what to do; None when it can."""
    shown = quoted(path, 80)
    if path == "/":
        return f"{shown} is the whole machine", FORM
    for folder in SHOWN:
        if path == folder:
            return f"sandboxes show {shown} already", "take it out"
    for folder in SYSTEM:
        if _overlap(path, folder):
            return f"{shown} is or lies in {folder}, which no sandbox shows of this machine", "install it elsewhere"
    if path == "/home" or os.path.dirname(path) == "/home" or any(_below(h, path) for h in homes):  # noqa: PTH120
        return f"{shown} is or holds a home folder", "name the folder of the toolchain in it"
    for kept in own:
        if _overlap(path, kept):
            return f"{shown} meets {quoted(kept, 80)}, which Toka keeps from agents", "name a folder apart from it"
    held = next((f"{h}/{k}" for h in homes for k in KEPT if _overlap(path, f"{h}/{k}")), None)
    if held is not None or SECRET_FOLDERS.intersection(path.split("/")):
        told = f" ({held})" if held else ""
        return f"{shown} is a place of keys{told}", "name the folder of one toolchain, and nothing around it"
    return None


def _below(path: str, folder: str) -> bool:
    """Whether a path is a folder, or lies in it."""
    return path == folder or path.startswith(folder.rstrip("/") + "/")


def _overlap(one: str, other: str) -> bool:
    return _below(one, other) or _below(other, one)
