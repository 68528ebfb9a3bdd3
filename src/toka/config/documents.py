"""Files and directories -> one document for each agent: an original spec is one, a team file holds several."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final, NamedTuple

from toka.config.diagnostics import Finding, in_order, quoted
from toka.config.dialect import canonical
from toka.config.inputs import Inputs
from toka.config.load import is_directory, label_of, read_source, spec_files
from toka.config.nodes import MapNode, ScalarNode, at
from toka.config.origin import Origin, Workspace
from toka.config.source import Source
from toka.config.team import MARK, Team, is_team, read_team
from toka.config.team_agent import expand
from toka.config.team_file import TeamFile
from toka.config.team_keys import VERSION
from toka.config.yaml import read_nodes

UNKNOWN: Final = frozenset({("security", "capabilities_required")})
"""What may be lost of an agent that could not be expanded in full."""
MAX_INCLUDES: Final = 16
"""How deep team files may include each other."""


class Document(NamedTuple):
    """One agent.

    Attributes:
        origin: where it came from; its source holds the findings about this agent alone.
        root: its canonical nodes; None when there is nothing that could be one.
    """

    origin: Origin
    root: MapNode | None


class Documents:
    """Reads files; a file that is named twice is read once.

    Attributes:
        findings: what was found about files and directories as a whole, once they are read.
        complete: False when an agent may exist whose name is not known.
    """

    def __init__(self, inputs: Inputs) -> None:
        self._inputs = inputs
        self._seen: set[Path] = set()
        self.findings: list[Finding] = []
        self.complete = True
        self._workspace: Workspace | None = None

    def read(self, paths: Iterable[Path | Source]) -> Iterator[Document]:
        """The agents of files, directories and texts, one at a time."""
        for given in paths:
            if isinstance(given, Source):
                yield from self.of_source(given, None)
                continue
            files, notes = spec_files(given) if is_directory(given) else ((given,), Source(""))
            self.findings += notes.findings
            self.complete &= not notes.broken
            for file in sorted(files, key=_includes_none):
                if self._first(file):
                    yield from self.of_source(read_source(file), file)

    def of_source(
        self, source: Source, path: Path | None, inputs: Inputs | None = None, chain: tuple[Path, ...] = ()
    ) -> Iterator[Document]:
        """The agents of one text; `chain` are the files that include it."""
        given = inputs or self._inputs
        if not chain:
            self._workspace = None
        nodes = None if source.broken else read_nodes(source)
        if isinstance(nodes, MapNode) and not is_team(nodes) and "agents" in nodes.entries and not _is_spec(nodes):
            message, help_ = "this looks like a team file, and does not say so", f"begin it with {MARK}: {VERSION}"
            if "script" in nodes.entries:
                message, help_ = (
                    "this is the script of a model, no team",
                    "give it to toka run: --model scripted:FILE",
                )
            source.add("TK2021", message, at(nodes.keys["agents"]), help=help_)
            yield Document(Origin(source, path), None)
            return
        if not isinstance(nodes, MapNode) or not is_team(nodes):
            root = canonical(nodes, source) if nodes else None
            yield Document(Origin(source, path, workspace=self._workspace, including=chain), root)
            return
        team = read_team(nodes, source, given)
        file = TeamFile(source, given)
        if source.broken and not team.agents:
            self.complete = False
        if team.workspace is not None and path is not None and not chain:
            self._workspace = Workspace(path.parent / team.workspace.text, path)
        for agent in team.agents:
            own = source.beside()
            spec = expand(team, agent, own)
            lost = UNKNOWN if own.broken else frozenset[tuple[str | int, ...]]()
            first = team.agents[agent][0]
            at_ = (first.line, first.column)
            origin = Origin(own, path, None, lost, file, agent, at_, self._workspace, chain)
            yield Document(origin, canonical(spec, own))
        for place in team.include:
            yield from self._included(team, place, path, given.beneath(team.values), chain)
        self.findings += in_order(source.findings)

    def _included(
        self, team: Team, place: ScalarNode, path: Path | None, inputs: Inputs, chain: tuple[Path, ...]
    ) -> Iterator[Document]:
        if path is None:
            team.source.add("TK2021", "a text that is no file can include nothing", at(place))
            return
        target = path.parent / place.text
        chain = (*chain, path)
        files, notes = spec_files(target) if is_directory(target) else ((target,), Source(""))
        for note in notes.findings:
            team.source.add(note.code, f"{note.message}: {note.file}", at(place), severity=note.severity)
        self.complete &= not notes.broken
        for file in files:
            if _same(file, chain):
                if file is target:
                    message = f"{quoted(place.text)} includes itself: {_loop(file, chain)}"
                    team.source.add("TK2021", message, at(place))
            elif len(chain) > MAX_INCLUDES:
                team.source.add("TK2021", f"files include each other deeper than {MAX_INCLUDES} levels", at(place))
            elif not self._first(file):
                if file is target:
                    message = f"{quoted(place.text)} is read already; it is included once"
                    team.source.add("TK2021", message, at(place), severity="warning")
            else:
                source = read_source(file)
                if any(f.code == "TK1013" for f in source.findings):
                    self.complete = False
                    team.source.add("TK1013", f"{label_of(file)}: {source.findings[0].message}", at(place))
                    continue
                yield from self.of_source(source, file, inputs, chain)

    def _first(self, file: Path) -> bool:
        absolute = _absolute(file)
        if absolute in self._seen:
            return False
        self._seen.add(absolute)
        return True


def _includes_none(file: Path) -> bool:
    """For the order of a directory: what includes others comes first, so that they get its inputs and are read once."""
    try:
        if not file.is_file():
            return True
        with file.open("rb") as opened:
            return b"include" not in opened.read(1_000_000)
    except OSError:
        return True


def _is_spec(root: MapNode) -> bool:
    return any(name in root.entries for name in ("metadata", "spec", "tasks"))


def _absolute(path: Path) -> Path:
    """The path from the root, `..` taken out where that changes nothing."""
    try:
        return path.absolute().parent.resolve() / path.name
    except (OSError, RuntimeError, ValueError):
        return path.absolute()


def _same(file: Path, chain: tuple[Path, ...]) -> bool:
    return _absolute(file) in map(_absolute, chain)


def _loop(file: Path, chain: tuple[Path, ...]) -> str:
    names = [label_of(Path(link.name)) for link in chain]
    start = next(n for n, link in enumerate(chain) if _absolute(link) == _absolute(file))
    return " -> ".join([*names[start:], label_of(Path(file.name))])
