"""The sections of a spec, except its tasks: frozen models whose descriptions become the JSON Schema."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, StringConstraints
from pydantic.json_schema import SkipJsonSchema

from toka.config.diagnostics import Position
from toka.config.fields import (
    MAX_ITEMS,
    ByteCount,
    Count,
    CpuShare,
    Duration,
    ExitStatus,
    Line,
    MemorySize,
    Money,
    Name,
    OpenPart,
    Optionally,
    Part,
    Priority,
    PriorityWord,
    ProcessCount,
    Prose,
    Rate,
)
from toka.core.limits import Limits

ModelName = Annotated[str, StringConstraints(strict=True, max_length=200)]


class Metadata(OpenPart):
    """Who made this spec and when. Further keys are kept."""

    name: Name = Field(description="The agent's name: unique in a run, and what dependencies refer to.")
    version: Line | None = Field(default=None, description="The version of this spec, such as v0.3.0.")
    created: Line | None = Field(default=None, description="When it was written.")
    modified: Line | None = Field(default=None, description="When it was last changed.")
    workstream: Line | None = Field(default=None, description="The work it belongs to.")
    branch: Line | None = Field(default=None, description="The branch its work goes to.")
    schema_version: Line | None = Field(default=None, description="The generation of the format.")
    checksum: Line | None = Field(
        default=None, description="A checksum that the generating tool left. It is not verified."
    )


class AgentSpec(OpenPart):
    """What the agent is."""

    name: Line | None = Field(default=None, description="Its title, for people. Without it: the name in metadata.")
    domain: Line = Field(default="general", description="Its field, which chooses the prompt template.")
    priority: PriorityWord = Field(
        default=Priority.MEDIUM, description="Among agents that could start, who goes first."
    )
    description: Optionally = Field(default="", description="What it is for, in prose; the agent reads it.")


class Skills(OpenPart):
    """What the agent is good at. It goes into the prompt and grants nothing."""

    primary: tuple[Line, ...] = Field(default=(), max_length=MAX_ITEMS, description="Main skills.")
    secondary: tuple[Line, ...] = Field(default=(), max_length=MAX_ITEMS, description="Further skills.")


class Check(Part):
    """A command that proves an objective. It runs in the agent's sandbox."""

    run: Prose = Field(description="A shell command.")
    expect_exit: ExitStatus = Field(default=0, description="The exit status that means success.")
    timeout: Duration | None = Field(default=None, description="How long it may take. Else the settings decide.")


class Objective(OpenPart):
    """Something the agent must achieve. Without a check it can be claimed, never verified."""

    description: Prose = Field(description="What must be achieved.")
    deliverable: Optionally = Field(default="", description="What will exist then.")
    validation: Optionally = Field(default="", description="How a person would tell, in prose.")
    priority: PriorityWord = Field(default=Priority.MEDIUM, description="How urgent it is.")
    check: Check | None = Field(default=None, description="The command that proves it.")


class Dependency(Part):
    """Why one agent waits for another."""

    reason: Optionally = Field(default="", description="Why, in prose.")
    verified: bool = Field(
        default=False, strict=True, description="Whether all objectives must be verified, not claimed."
    )


class Dependencies(Part):
    """Which agents must be done before this one starts."""

    required: dict[Name, Dependency] = Field(
        default={}, max_length=MAX_ITEMS, description="This agent waits for these."
    )
    optional: dict[Name, Dependency] = Field(
        default={}, max_length=MAX_ITEMS, description="Waited for when in the run."
    )


class Metric(OpenPart):
    """A figure that the agent reports."""

    name: Line = Field(description="Its name.")
    description: Optionally = Field(default="", description="What it counts.")
    type: Line = Field(default="gauge", description="gauge, counter or histogram.")
    unit: Line | None = Field(default=None, description="Its unit.")


class Reporting(OpenPart):
    """How and where the agent reports."""

    frequency: Line | None = Field(default=None, description="When a digest is made.")
    channels: tuple[Line, ...] = Field(
        default=(), max_length=MAX_ITEMS, description="Topics of the run that get its reports."
    )
    metrics: tuple[Metric, ...] = Field(default=(), max_length=MAX_ITEMS, description="Figures it reports.")


class CapabilityRequest(Part):
    """One capability that the agent asks for.

    Attributes:
        position: where it stands; None when the spec was rebuilt from a record.
    """

    name: Line = Field(description="The name of the capability.")
    arguments: dict[str, tuple[Line, ...]] = Field(
        default={}, description="What it is narrowed to, by kind of argument."
    )
    position: SkipJsonSchema[Position | None] = Field(default=None, exclude=True)


class ResourceLimits(Part):
    """What the agent may use at most. Absent = the settings' value, or no limit."""

    max_memory: MemorySize | None = Field(default=None, description="Memory of all its processes: 512MB.")
    max_cpu: CpuShare | None = Field(default=None, description="Processor time: 75% of one core, or cores.")
    timeout: Duration | None = Field(default=None, description="Wall time while it runs: 2h.")
    max_disk_usage: ByteCount | None = Field(default=None, description="Bytes written: 1GB.")
    max_cost: Money | None = Field(default=None, description="US dollars for model calls: $2.50.")
    max_tokens: Count | None = Field(default=None, description="Input and output tokens together: 200k.")
    max_processes: ProcessCount | None = Field(default=None, description="Processes and threads at one time.")
    max_model_calls: Count | None = Field(default=None, description="Model calls.")
    max_tool_calls: Count | None = Field(default=None, description="Tool calls.")
    max_network_bandwidth: Rate | None = Field(default=None, description="Bandwidth of its network traffic: 100Mbps.")
    max_network_usage: ByteCount | None = Field(default=None, description="Bytes sent and received: 500MB.")
    max_output: ByteCount | None = Field(default=None, description="Output kept of one command: 1MB.")

    @property
    def limits(self) -> Limits:
        """The same as the value that the rest of Toka uses."""
        return Limits(
            tokens=self.max_tokens,
            cost_usd=self.max_cost,
            model_calls=self.max_model_calls,
            tool_calls=self.max_tool_calls,
            wall_s=self.timeout,
            cpu_cores=self.max_cpu,
            memory_bytes=self.max_memory,
            processes=self.max_processes,
            disk_bytes=self.max_disk_usage,
            output_bytes=self.max_output,
            network_bps=self.max_network_bandwidth,
            network_bytes=self.max_network_usage,
        )


class Security(Part):
    """What the agent may touch and use. Everything that is not asked for is denied."""

    sandbox: bool = Field(default=True, strict=True, description="false runs without one, where settings allow it.")
    capabilities_required: tuple[CapabilityRequest, ...] = Field(
        default=(), max_length=MAX_ITEMS, description="What it asks for. Names that nobody defines grant nothing."
    )
    resource_limits: ResourceLimits = Field(default=ResourceLimits(), description="What it may use at most.")
    enforcement: Literal["strict", "best-effort"] = Field(
        default="best-effort", description="strict: refuse to start where the machine cannot enforce every limit."
    )


class Risk(OpenPart):
    """Something that may go wrong."""

    risk: Prose = Field(description="What may go wrong.")
    mitigation: Optionally = Field(default="", description="What is done about it.")
    probability: Line | None = Field(default=None, description="How likely it is.")
    impact: Line | None = Field(default=None, description="How bad it would be.")


class RiskMitigation(OpenPart):
    """What may go wrong and what is watched; the agent reads it."""

    high_priority_risks: tuple[Risk, ...] = Field(default=(), max_length=MAX_ITEMS, description="The main risks.")
    monitoring: tuple[Prose, ...] = Field(default=(), max_length=MAX_ITEMS, description="What is watched.")
