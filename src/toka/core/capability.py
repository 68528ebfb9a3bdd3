"""What an agent may do, as values that can be compared.

A capability is a name with arguments. An argument is None (everything of its kind) or a tuple of items (only those).
`covers` says whether one includes another; `intersect` gives what both include. Both work on the written form alone:
paths are compared name by name, and the operating system's mounts, not this module, decide what a path reaches.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

ARGUMENTS: Final = ("paths", "hosts", "programs", "ports")
HOST: Final = re.compile(
    r"(?=.{1,253}$)(?:\*\.)?[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?(?:\.[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?)*"
)
"""A plain ASCII host name, lower case, possibly `*.` in front (fullmatch)."""
PORT: Final = re.compile(r"[0-9]{1,5}")
"""Decimal text that may be a TCP port (fullmatch)."""
NUMERIC: Final = re.compile(r"(?:.*\.)?(?:[0-9]+|0x[0-9a-f]*)")
"""A host whose last label is a number: resolvers read it as an IPv4 address (fullmatch)."""
PROGRAM: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,99}")
"""A program's file name, no path (fullmatch)."""


class CapabilityError(ValueError):
    """An argument of a capability is malformed."""


def normal_path(path: str) -> str:
    """A path relative to the workspace, in its one canonical spelling: `src`, `src/a.py`, `.` for the workspace itself.

    Raises:
        CapabilityError: the path is absolute, leaves the workspace, is empty, or holds a NUL or a newline.
    """
    if not path or "\0" in path or "\n" in path:
        raise CapabilityError(f"{path!r} is not a path")
    if path.startswith(("/", "~")):
        raise CapabilityError(f"{path!r} is not relative to the workspace")
    parts: list[str] = []
    for part in path.split("/"):
        if part in ("", "."):
            continue
        if part == "..":
            if not parts:
                raise CapabilityError(f"{path!r} leaves the workspace")
            parts.pop()
        else:
            parts.append(part)
    return "/".join(parts) or "."


def _path_in(outer: str, inner: str) -> bool:
    return outer in (".", inner) or inner.startswith(outer + "/")


def _host_in(outer: str, inner: str) -> bool:
    if outer == inner:
        return True
    return outer.startswith("*.") and inner.removeprefix("*").endswith(outer[1:])


def _same(outer: object, inner: object) -> bool:
    return outer == inner


def _reduced(items: Iterable[str], inside: Callable[[str, str], bool]) -> tuple[str, ...]:
    """The smallest set of items that includes all of them, sorted."""
    unique = sorted(set(items))
    return tuple(a for a in unique if not any(b != a and inside(b, a) for b in unique))


def _covers(outer: tuple[str, ...] | None, inner: tuple[str, ...] | None, inside: Callable[[str, str], bool]) -> bool:
    if outer is None:
        return True
    return inner is not None and all(any(inside(o, i) for o in outer) for i in inner)


def _meet(
    one: tuple[str, ...] | None, two: tuple[str, ...] | None, inside: Callable[[str, str], bool]
) -> tuple[str, ...] | None:
    if one is None:
        return two
    if two is None:
        return one
    shared = [b if inside(a, b) else a for a in one for b in two if inside(a, b) or inside(b, a)]
    return _reduced(shared, inside)


@dataclass(frozen=True, slots=True)
class Capability:
    """A name with arguments, in canonical form: items are validated, sorted, and none includes another.

    Attributes:
        name: such as `filesystem-write`.
        paths: workspace-relative paths with everything below them; None = the whole workspace.
        hosts: host names, `*.example.org` for all names below one; None = every public host.
        programs: file names of programs; None = every program of the system.
        ports: TCP ports as decimal text; None = the default of the protocol.

    Raises:
        CapabilityError: an item is malformed.
    """

    name: str
    paths: tuple[str, ...] | None = None
    hosts: tuple[str, ...] | None = None
    programs: tuple[str, ...] | None = None
    ports: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        """Validates and canonicalises the items."""
        if self.paths is not None:
            object.__setattr__(self, "paths", _reduced(map(normal_path, self.paths), _path_in))
        if self.hosts is not None:
            hosts = [h.lower() for h in self.hosts]
            if wrong := [h for h in hosts if not HOST.fullmatch(h) or NUMERIC.fullmatch(h)]:
                raise CapabilityError(
                    f"{wrong[0]!r} is not a host name; write names such as api.example.org or *.example.org"
                )
            object.__setattr__(self, "hosts", _reduced(hosts, _host_in))
        if self.programs is not None:
            if wrong := [p for p in self.programs if not PROGRAM.fullmatch(p)]:
                raise CapabilityError(f"{wrong[0]!r} is not a program; write its file name, such as git")
            object.__setattr__(self, "programs", _reduced(self.programs, _same))
        if self.ports is not None:
            if wrong := [p for p in self.ports if not PORT.fullmatch(p) or not 0 < int(p) < 65536]:
                raise CapabilityError(f"{wrong[0]!r} is not a TCP port")
            object.__setattr__(self, "ports", _reduced((str(int(p)) for p in self.ports), _same))

    def covers(self, need: Capability) -> bool:
        """Whether everything that `need` includes is included here."""
        return (
            self.name == need.name
            and _covers(self.paths, need.paths, _path_in)
            and _covers(self.hosts, need.hosts, _host_in)
            and _covers(self.programs, need.programs, _same)
            and _covers(self.ports, need.ports, _same)
        )

    def intersect(self, other: Capability) -> Capability | None:
        """What both include; None when that is nothing. Never wider; associative, commutative, idempotent."""
        if self.name != other.name:
            return None
        met = Capability(
            self.name,
            _meet(self.paths, other.paths, _path_in),
            _meet(self.hosts, other.hosts, _host_in),
            _meet(self.programs, other.programs, _same),
            _meet(self.ports, other.ports, _same),
        )
        return None if met.empty else met

    def to_json(self) -> dict[str, Any]:
        """The name and the arguments that restrict it."""
        items = {a: getattr(self, a) for a in ARGUMENTS}
        return {"name": self.name, **{a: list(v) for a, v in items.items() if v is not None}}

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> Capability:
        """The inverse of `to_json`. Raises CapabilityError."""
        return Capability(data["name"], **{a: tuple(data[a]) for a in ARGUMENTS if a in data})

    @property
    def empty(self) -> bool:
        """Whether an argument has no items left, so that nothing is included."""
        return () in (self.paths, self.hosts, self.programs, self.ports)

    @property
    def text(self) -> str:
        """`filesystem-write: docs, src`, `network-access: example.org:8443` or the bare name; port 443 is not said."""
        items = [i for values in (self.paths, self.hosts, self.programs) if values is not None for i in values]
        if self.ports is not None and self.ports != ("443",):
            hosts = items or ["*"]
            items = [f"{host}:{port}" for host in hosts for port in self.ports]
        restricted = any(v is not None for v in (self.paths, self.hosts, self.programs)) or bool(items)
        return f"{self.name}: {', '.join(items) or 'nothing'}" if restricted or self.empty else self.name


def request_line(capability: Capability) -> str:
    """What a spec would say to ask for it: `- filesystem-write: {paths: [docs]}`."""
    items = [f"{a}: [{', '.join(v)}]" for a in ARGUMENTS if (v := getattr(capability, a)) is not None]
    return f"- {capability.name}: {{{', '.join(items)}}}" if items else f"- {capability.name}"


@dataclass(frozen=True, slots=True)
class Grant:
    """All that an agent may do: a set of capabilities, none of which includes another.

    Two capabilities of one name are alternatives: each allows what it includes.
    """

    capabilities: tuple[Capability, ...] = ()

    def __post_init__(self) -> None:
        """Drops empty and included capabilities and sorts the rest."""
        unique = {c for c in self.capabilities if not c.empty}
        kept = [c for c in unique if not any(o != c and o.covers(c) for o in unique)]
        object.__setattr__(self, "capabilities", tuple(sorted(kept, key=lambda c: c.text)))

    def covering(self, need: Capability) -> Capability | None:
        """The capability that includes `need`; None when there is none."""
        return next((c for c in self.capabilities if c.covers(need)), None)

    def named(self, name: str) -> tuple[Capability, ...]:
        """The capabilities of one name."""
        return tuple(c for c in self.capabilities if c.name == name)

    def intersect(self, other: Grant) -> Grant:
        """What both allow. Never wider than either; associative, commutative, idempotent."""
        pairs = (a.intersect(b) for a in self.capabilities for b in other.capabilities)
        return Grant(tuple(c for c in pairs if c is not None))
