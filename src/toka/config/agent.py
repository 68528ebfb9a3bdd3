"""AgentConfig: one agent as its spec declares it, validated and frozen."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, NamedTuple, Self, cast

from pydantic import Field, JsonValue, PrivateAttr, SkipValidation, ValidationError

from toka.config import rules
from toka.config.diagnostics import Finding, Position, in_order, summary
from toka.config.draft import standing, unreliable, without
from toka.config.faults import path_text, place_of, report
from toka.config.fields import Part, Priority, Prose, RestartWord, WorkspaceWord
from toka.config.flow import Flow
from toka.config.flow_rules import spec_problems
from toka.config.inputs import Inputs
from toka.config.load import read_source, spec_files
from toka.config.nodes import MapNode
from toka.config.origin import Origin, data_of
from toka.config.parts import (
    AgentSpec,
    CapabilityRequest,
    Check,
    Dependencies,
    Dependency,
    Metadata,
    Metric,
    ModelName,
    Objective,
    Reporting,
    Risk,
    RiskMitigation,
    Security,
    Skills,
)
from toka.config.requests import GrantNote, Presets, granted, notes_of, written_paths
from toka.config.source import MAX_BYTES, Source, screen
from toka.config.tasks import TaskEntry, Tasks, TaskSpec, resolve_tasks
from toka.config.team_keys import team_path
from toka.core.capability import Grant
from toka.core.ids import AgentName
from toka.core.limits import Limits
from toka.errors import ConfigError

if TYPE_CHECKING:
    from toka.config.documents import Document

__all__ = [
    "AgentConfig",
    "AgentSpec",
    "CapabilityRequest",
    "Check",
    "Dependencies",
    "Dependency",
    "GrantNote",
    "Metadata",
    "Metric",
    "Objective",
    "Presets",
    "Priority",
    "Reporting",
    "Risk",
    "RiskMitigation",
    "Security",
    "Skills",
    "TaskEntry",
    "TaskSpec",
    "Tasks",
]

RECORD_VERSION: Final = 1
"""The version of `AgentConfig.to_json`."""
Texts = dict[str, tuple[Prose, ...]]
Given = Inputs | Mapping[str, object] | None


class Reading(NamedTuple):
    """What files hold.

    Attributes:
        configs: the sound specs, in the order of the files.
        drafts: what stands of those with errors: enough to check it together with the others, never to be run.
        findings: what was found in all files.
        complete: False when a file is so broken that not even the name of its agent is known.
    """

    configs: tuple[AgentConfig, ...]
    drafts: tuple[AgentConfig, ...]
    findings: tuple[Finding, ...]
    complete: bool


class AgentConfig(Part):
    """One agent: who it is, what it must achieve, what it may touch and how much it may use.

    Two configurations are equal when their specs are, wherever they were read from.
    """

    metadata: Metadata = Field(description="Who made this spec and when.")
    spec: AgentSpec = Field(description="What the agent is, in four keys.")
    model: ModelName | None = Field(default=None, description="PROVIDER:MODEL or auto. Else the settings decide.")
    capabilities: Skills = Field(default=Skills(), description="What the agent is good at; grants nothing.")
    objectives: tuple[Objective, ...] = Field(default=(), max_length=1_000, description="What it must achieve.")
    tasks: Tasks = Field(default=Tasks(), description="What it does, in order.")
    dependencies: Dependencies = Field(default=Dependencies(), description="Which agents must be done before.")
    reporting: Reporting = Field(default=Reporting(), description="How and where it reports.")
    security: Security = Field(default=Security(), description="What it may touch and use.")
    restart: RestartWord | None = Field(default=None, description="When it starts again: never, on_failure or always.")
    workspace: WorkspaceWord = Field(default="shared", description="Where it works: shared, worktree (git) or copy.")
    flow: Flow | None = Field(default=None, description="What passes between this agent and others.")
    behavioral_directives: Texts = Field(default={}, description="Instructions for the agent, by topic.")
    risk_mitigation: RiskMitigation = Field(default=RiskMitigation(), description="What may go wrong; it reads this.")
    success_criteria: Texts = Field(default={}, description="Prose criteria by phase: claimed, never verified.")
    extensions: dict[str, Annotated[JsonValue, SkipValidation]] = Field(
        default={}, description="Sections that Toka does not know, in order; they are shown to the agent."
    )

    _origin: Origin = PrivateAttr()

    def model_post_init(self, context: Any, /) -> None:
        """Keeps where the spec came from, which the loaders pass as validation context."""
        self._origin = context if isinstance(context, Origin) else Origin(Source("<python>"), None)

    @classmethod
    def load_from_file(cls, path: str | Path, inputs: Given = None) -> Self:
        """Reads one agent.

        Args:
            path: a YAML file, a spec or a team file of one agent; relative paths are kept as they are in messages.
            inputs: values for the inputs of a team file, by name; None = their defaults.

        Raises:
            ConfigError: it cannot be read, is wrong or holds several agents; all findings are in the error.
        """
        path = Path(path)
        return cls._only(read_source(path), path, inputs)

    @classmethod
    def load_team(cls, *paths: str | Path, inputs: Given = None) -> tuple[Self, ...]:
        """Reads all agents of files and directories, sorted by name: team files, with what they include, and specs.

        Args:
            paths: files, and directories (see `load.spec_files`).
            inputs: values for the inputs of team files, by name; None = their defaults.

        Raises:
            ConfigError: there are none, or any is wrong; the error holds the findings of all files.
        """
        reading = cls.read(paths, inputs)
        if any(f.severity == "error" for f in reading.findings):
            raise ConfigError(summary(reading.findings), reading.findings)
        return tuple(sorted((c for c in reading.configs if isinstance(c, cls)), key=lambda c: c.name))

    @classmethod
    def load_directory(cls, path: str | Path, inputs: Given = None) -> tuple[Self, ...]:
        """Reads all specs and team files of a directory and below, sorted by name; see `load_team`.

        Raises:
            ConfigError: there are none, or any is wrong; the error holds the findings of all files.
        """
        files, notes = spec_files(Path(path))
        if notes.broken:
            raise ConfigError(summary(notes.findings), tuple(notes.findings))
        return cls.load_team(*files, inputs=inputs)

    @classmethod
    def read(cls, paths: Iterable[str | Path | Source], inputs: Given = None) -> Reading:
        """Reads files and directories without raising; a file that is named twice is read once.

        Args:
            paths: team files, specs, and directories of them; a Source is a text that was read already.
            inputs: values for the inputs of team files, by name; None = their defaults.
        """
        values = Inputs.of(inputs)
        from toka.config.documents import Documents  # commands that only look at runs read none

        documents = Documents(values)
        configs: list[AgentConfig] = []
        drafts: list[AgentConfig] = []
        findings: list[Finding] = []
        complete = True
        for document in documents.read(p if isinstance(p, Source) else Path(p) for p in paths):
            config, source = cls._of(document), document.origin.source
            findings += in_order(source.findings)
            complete &= config is not None and not config.lacks("metadata", "name")
            if config is not None:
                (drafts if source.broken else configs).append(config)
        values.report_unknown()
        findings += [*documents.findings, *(f for source in values.sources for f in source.findings)]
        complete &= documents.complete
        return Reading(tuple(configs), tuple(drafts), tuple(findings), complete)

    @classmethod
    def parse(cls, text: str, file: str = "<text>", inputs: Given = None) -> Self:
        """Reads an agent from text, YAML or JSON: a spec, or a team of one.

        Args:
            text: the text.
            file: its name in messages.
            inputs: values for the inputs of a team, by name; None = their defaults.

        Raises:
            ConfigError: the spec is wrong, or the team has several agents.
        """
        source = Source(file, text)
        if len(text) > MAX_BYTES:
            source.text = ""
            source.add("TK1004", "the text is larger than 1 MB", (1, 1, 1))
        screen(source)
        return cls._only(source, None, inputs)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """The inverse of `to_json`: no file is needed. Positions are unknown then.

        Raises:
            ConfigError: the data is no record of a spec.
        """
        file = data.get("source")
        spec: object = data.get("spec")
        source = Source(file if isinstance(file, str) else "<record>")
        if data.get("version") != RECORD_VERSION or not isinstance(spec, dict):
            source.add("TK2002", f"this is no record of a spec, version {RECORD_VERSION}")
            raise ConfigError(summary(source.findings), source.findings)
        origin = Origin(source, Path(file) if isinstance(file, str) else None)
        return cls._or_raise(cls._validated(cast("dict[str, Any]", spec), origin), source)

    def to_json(self) -> dict[str, Any]:
        """The spec in canonical form as plain data, with its version and the path it was read from."""
        path = None if self._origin.path is None else self._origin.source.file
        return {"version": RECORD_VERSION, "source": path, "spec": self._canonical()}

    @property
    def name(self) -> AgentName:
        """What dependencies and records call it."""
        return AgentName(self.metadata.name)

    @property
    def title(self) -> str:
        """What people call it."""
        return self.spec.name or self.metadata.name

    @property
    def domain(self) -> str:
        """Its field."""
        return self.spec.domain

    @property
    def priority(self) -> Priority:
        """Among agents that could start: the lowest goes first."""
        return self.spec.priority

    @property
    def limits(self) -> Limits:
        """What it may use at most."""
        return self.security.resource_limits.limits

    @property
    def source(self) -> Path | None:
        """The file it was read from; None for text."""
        return self._origin.path

    @property
    def origin(self) -> Origin:
        """Where it came from."""
        return self._origin

    @property
    def findings(self) -> tuple[Finding, ...]:
        """Warnings and notes about this spec alone. `check` adds what only shows among several."""
        return tuple(self._origin.source.findings)

    @property
    def digest(self) -> str:
        """SHA-256, in hex, of the canonical spec as JSON with sorted keys: the same for every spelling of it."""
        text = json.dumps(self._canonical(), sort_keys=True, ensure_ascii=False, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()

    def task_list(self, enabled: Collection[str] = ()) -> tuple[TaskSpec, ...]:
        """The default tasks, then those of the enabled conditional groups, in the order of the spec.

        Args:
            enabled: names of conditional groups; others are left out, unknown names are ignored.
        """
        return resolve_tasks(self.tasks, enabled)

    def grant(self, custom: Presets | None = None) -> Grant:
        """What the requested capabilities stand for. Names that nobody defines grant nothing.

        Args:
            custom: capabilities that the settings define; None = only the known ones.
        """
        return granted(self.security.capabilities_required, custom)

    def named_writes(self, custom: Presets | None = None) -> frozenset[str]:
        """The paths that the spec asks to write, each as it is named: also one that a wider path includes."""
        return written_paths(self.security.capabilities_required, custom)

    def grant_notes(self, custom: Presets | None = None) -> tuple[GrantNote, ...]:
        """What to know about the requested capabilities: which grant nothing, which more than they seem to."""
        return notes_of(self.security.capabilities_required, custom)

    def position(self, *path: str | int) -> Position:
        """Where a part of the canonical spec stands: `position("security", "capabilities_required", 2)`.

        Returns:
            The place of a single value, the key of a mapping or list; of what is absent, the nearest part around it.
            Line and column are 0 when the spec was rebuilt from a record.
        """
        line, column, _ = place_of(self._origin.canonical_nodes(), path)
        return Position(self._origin.source.file, line, column)

    def report(self, problem: rules.Problem, *more: rules.Problem) -> tuple[Finding, ...]:
        """Problems of this spec as findings, with their places and source lines.

        Of a draft, those are left out that may only come from what errors took out of it.
        """
        source = Source(self._origin.source.file, self._origin.source.text)
        nodes = self._origin.canonical_nodes()
        for one in (problem, *more):
            if not unreliable(one.code, one.path, self._origin.lost):
                one.add_to(source, nodes)
        return tuple(source.findings)

    def lacks(self, *path: str | int) -> bool:
        """Whether this is a draft (see `Reading`) from which an error took this part, or something in it."""
        return any(lost[: len(path)] == path for lost in self._origin.lost)

    def __eq__(self, other: object) -> bool:
        """Whether the specs say the same."""
        return isinstance(other, AgentConfig) and self.digest == other.digest

    def __hash__(self) -> int:
        """Of the digest."""
        return hash(self.digest)

    def _canonical(self) -> dict[str, Any]:
        """What `from_json` reads; what equals its default is left out, so that later versions keep the digest."""
        return self.model_dump(mode="json", exclude_defaults=True)

    @classmethod
    def _or_raise(cls, config: Self | None, source: Source) -> Self:
        if config is None or source.broken:
            findings = in_order(source.findings)
            raise ConfigError(summary(findings), findings)
        return config

    @classmethod
    def _only(cls, source: Source, path: Path | None, inputs: Given) -> Self:
        """The one agent of a text. Raises ConfigError."""
        values = Inputs.of(inputs)
        from toka.config.documents import Documents  # commands that only look at runs read none

        documents = Documents(values)
        found = [(document, cls._of(document)) for document in documents.of_source(source, path)]
        values.report_unknown()
        problems = [*documents.findings, *(f for given in values.sources for f in given.findings)]
        others = [document.origin.source for document, _ in found if document.origin.source is not source]
        problems += [f for other in others for f in other.findings]
        if len(found) != 1 and not any(f.severity == "error" for f in problems):
            source.add("TK2021", f"this is a team of {len(found)} agents, where one is wanted", (1, 1, 1))
        source.findings += [f for f in problems if f not in source.findings]
        return cls._or_raise(found[0][1] if found else None, source)

    @classmethod
    def _of(cls, document: Document) -> Self | None:
        """An agent; when its source has errors, which it holds, a draft, or None when nothing stands."""
        return cls._validated(document.root, document.origin) if document.root else None

    @classmethod
    def _validated(cls, given: MapNode | dict[str, Any], origin: Origin) -> Self | None:
        """Builds the models and applies the rules. Errors go to the source; with them, what stands is a draft."""
        root = given if isinstance(given, MapNode) else None
        try:
            config = cls.model_validate(given, context=origin) if root is None else cls._built(root, origin)
        except ValidationError as error:
            report(error, root, origin.source, team_path if origin.team else path_text)
            lost = None if root is None else standing(lambda n: cls._built(n, origin), root, error)
            if root is None or lost is None:
                return None
            origin = replace(origin, nodes=root, lost=origin.lost | lost)
            config = cls._built(root, origin)
        problems = [p for p in spec_problems(config) if not unreliable(p.code, p.path, origin.lost)]
        for problem in problems:
            problem.add_to(origin.source, root)
        wrong = {p.path for p in problems if p.path[:2] == rules.REQUESTS}
        if root is None or not wrong:
            return config
        origin = replace(origin, nodes=root, lost=origin.lost | without(root, wrong))
        return cls._built(root, origin)

    @classmethod
    def _built(cls, nodes: MapNode, origin: Origin) -> Self:
        return cls.model_validate(data_of(nodes, origin.source.file), context=origin)
