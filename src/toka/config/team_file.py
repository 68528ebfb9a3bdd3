"""A team file whose agents can be expanded again, to say where something stands."""

from __future__ import annotations

from toka.config.dialect import canonical
from toka.config.inputs import Inputs
from toka.config.nodes import MapNode
from toka.config.source import Source
from toka.config.team import Team, read_team
from toka.config.team_agent import expand
from toka.config.team_parts import grant_line
from toka.config.yaml import read_nodes
from toka.core.capability import Capability


class TeamFile:
    """The text of a team file and the values of its inputs: what it takes to expand one of its agents again."""

    def __init__(self, source: Source, inputs: Inputs) -> None:
        self._source = Source(source.file, source.text)
        self._inputs = Inputs(inputs.given)
        self._team: Team | None = None

    def nodes(self, agent: str) -> MapNode | None:
        """The canonical nodes of an agent. The file is parsed once, and only when somebody asks."""
        if self._team is None:
            source = self._source.beside()
            root = read_nodes(source)
            self._team = read_team(root, source, self._inputs) if isinstance(root, MapNode) else Team(source)
        if agent not in self._team.agents:
            return None
        scratch = self._source.beside()
        return canonical(expand(self._team, agent, scratch), scratch)

    @staticmethod
    def grant_line(capability: Capability) -> str:
        """See `team_parts.grant_line`."""
        return grant_line(capability)
