"""Where a spec came from, and its canonical nodes as data for the models."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple, cast

from toka.config.diagnostics import Position
from toka.config.dialect import CAPABILITY_LIST, canonical
from toka.config.faults import place_of
from toka.config.nodes import MapNode, plain
from toka.config.source import Source
from toka.config.yaml import read_nodes
from toka.core.capability import Capability, request_line

if TYPE_CHECKING:
    from toka.config.team_file import TeamFile  # commands that only look at runs read no team file

TYPED: Final = frozenset({"extensions", "flow"})
"""Sections whose bare numbers are numbers."""


class Workspace(NamedTuple):
    """A directory to work on that a team file names.

    Attributes:
        path: the directory, from the file that names it.
        file: that file.
    """

    path: Path
    file: Path


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a spec came from.

    Attributes:
        source: its text, empty when it was rebuilt from a record, and the findings about it.
        path: its file; None for text.
        nodes: what is left of the canonical nodes of a draft; None for a sound spec, whose text is read again.
        lost: the paths that errors took out of a draft.
        team, agent: the team file that the spec was expanded from, and the agent's key there; None and empty otherwise.
        first: line and column at which the agent begins.
        including: the team files through which it was reached.
        workspace: the directory that the team file names which was asked for; None when it names none.
    """

    source: Source
    path: Path | None
    nodes: MapNode | None = None
    lost: frozenset[tuple[str | int, ...]] = frozenset()
    team: TeamFile | None = None
    agent: str = ""
    first: tuple[int, int] = (1, 1)
    workspace: Workspace | None = None
    including: tuple[Path, ...] = ()

    @property
    def files(self) -> tuple[Path, ...]:
        """The files that made the agent what it is: its own, and those that include it."""
        return self.including if self.path is None else (self.path, *self.including)

    def asking(self, capability: Capability) -> str:
        """What the file would say to ask for a capability: `- filesystem-write: {paths: [docs]}` or, of a team,
        `grants: {write: [docs]}`.
        """
        return request_line(capability) if self.team is None else self.team.grant_line(capability)

    def canonical_nodes(self) -> MapNode | None:
        """The canonical nodes, read again: keeping them would cost ten times the memory of the spec."""
        if self.nodes is not None:
            return self.nodes
        if self.team is not None:
            return self.team.nodes(self.agent)
        source = Source(self.source.file, self.source.text)
        root = read_nodes(source) if source.text else None
        return canonical(root, source) if root else None


def data_of(root: MapNode, file: str) -> dict[str, Any]:
    """Canonical nodes as data for the models.

    Numbers stay as written in known sections and become numbers in extensions. Each requested capability is told
    where it stands. `file` is the name of the spec in messages.
    """
    data = {name: plain(node, numbers=name in TYPED) for name, node in root.entries.items()}
    _mark_requests(data, root, file)
    return data


def _mark_requests(data: dict[str, Any], root: MapNode, file: str) -> None:
    """Tells each requested capability where it stands. What is not shaped as it should be is left to the models."""
    security: object = data.get("security")
    requests: object = cast("dict[str, object]", security).get(CAPABILITY_LIST) if isinstance(security, dict) else None
    for index, request in enumerate(cast("list[object]", requests) if isinstance(requests, list) else ()):
        if isinstance(request, dict):
            line, column, _ = place_of(root, ("security", CAPABILITY_LIST, index))
            cast("dict[str, object]", request)["position"] = Position(file, line, column)
