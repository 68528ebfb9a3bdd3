"""What the requested capabilities of a spec stand for, by the catalogue and by what the settings define."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from toka.config.parts import CapabilityRequest
from toka.core.capability import Capability, Grant, normal_path
from toka.core.catalogue import FILESYSTEM_WRITE, resolve

Presets = Mapping[str, tuple[Capability, ...]]
"""Capabilities that the settings define: what each name stands for."""


@dataclass(frozen=True, slots=True)
class GrantNote:
    """Something to know about one requested capability.

    Attributes:
        request: what was asked.
        text: one sentence.
        empty: True when the request grants nothing; else it grants more than its name says.
    """

    request: CapabilityRequest
    text: str
    empty: bool


def granted(requests: Iterable[CapabilityRequest], custom: Presets | None) -> Grant:
    """What the requests stand for. Names that nobody defines grant nothing."""
    found = (resolve(r.name, r.arguments, custom) for r in requests)
    return Grant(tuple(c for resolution in found for c in resolution.capabilities))


def written_paths(requests: Iterable[CapabilityRequest], custom: Presets | None) -> frozenset[str]:
    """The paths that are asked for writing, each as it is named: also one that a wider path includes."""
    out: set[str] = set()
    for request in requests:
        found = resolve(request.name, request.arguments, custom).capabilities
        writes = [c for c in found if c.name == FILESYSTEM_WRITE]
        out.update(path for c in writes for path in c.paths or ())
        out.update(normal_path(path) for path in (request.arguments.get("paths", ()) if writes else ()))
    return frozenset(out)


def notes_of(requests: Iterable[CapabilityRequest], custom: Presets | None) -> tuple[GrantNote, ...]:
    """What to know about the requests: which grant nothing, which more than they seem to."""
    out: list[GrantNote] = []
    for request in requests:
        resolution = resolve(request.name, request.arguments, custom)
        if resolution.note:
            empty = all(c.empty for c in resolution.capabilities)
            out.append(GrantNote(request, resolution.note, empty))
    return tuple(out)
