"""What passes between agents: inputs, outputs, conditions, one instance for each element, a person's approval.

With this section in a spec, `${...}` in its commands, checks, goals and variables are references (see
`toka.core.reference`). Without it they are text, as the shell's own variables are.
"""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal

from pydantic import BeforeValidator, Field, JsonValue, StringConstraints, WithJsonSchema
from pydantic.json_schema import SkipJsonSchema

from toka.config.diagnostics import quoted
from toka.config.fields import MAX_ITEMS, Duration, Line, Optionally, Part, Prose, SmallCount, fault
from toka.core.capability import CapabilityError, normal_path
from toka.core.reference import INPUTS, ITEM, VALUE_NAME
from toka.core.units import UnitError, parse_count

MAX_INSTANCES: Final = 1_000
"""Elements that `for_each` may have."""
BUILT_IN: Final = ("status", "verified", "completed", "failed", "total", "report")
"""What `${agent.NAME}` knows of every agent without being declared."""

ValueType = Literal["text", "lines", "integer", "number", "boolean", "list", "json"]


def _value_name(value: object) -> str:
    if not isinstance(value, str) or not VALUE_NAME.fullmatch(value):
        expected = "1 to 100 letters, digits, '_' and '-', the first a letter or '_'"
        raise fault("TK2005", f"{quoted(str(value))} cannot be the name of a value", label=f"expected {expected}")
    return value


def _text(value: object) -> object:
    """Scalars as the text that was written: the value of a variable is text."""
    if isinstance(value, bool):
        return str(value).lower()
    return str(value) if isinstance(value, (int, float)) else value


def _path(value: object) -> object:
    if not isinstance(value, str):
        return value
    try:
        return normal_path(value)
    except CapabilityError as error:
        raise fault("TK4003", str(error)) from None


def _parallel(value: object) -> int:
    try:
        count = parse_count(value) if isinstance(value, (str, int)) and not isinstance(value, bool) else -1
    except UnitError:
        count = -1
    if not 1 <= count <= MAX_INSTANCES:
        raise fault("TK5003", f"{value} is out of range", label=f"at least 1, at most {MAX_INSTANCES}")
    return count


ValueName = Annotated[str, BeforeValidator(_value_name)]
VariableName = Annotated[str, StringConstraints(strict=True, pattern=r"^[A-Za-z_][A-Za-z0-9_]{0,199}$")]
Text = Annotated[str, BeforeValidator(_text), StringConstraints(strict=True, max_length=20_000)]
WorkspacePath = Annotated[str, BeforeValidator(_path), StringConstraints(strict=True, min_length=1, max_length=1_000)]
Parallel = Annotated[
    int,
    BeforeValidator(_parallel),
    WithJsonSchema({"type": ["string", "integer"], "description": "A whole number from 1."}),
]


class Output(Part):
    """A value that an agent leaves for those that need it."""

    source: Literal["stdout", "file", "report"] = Field(
        description="stdout: what its last command printed. file: a file of the workspace. report: its model says it."
    )
    path: WorkspacePath | None = Field(default=None, description="The file, relative to the workspace.")
    type: ValueType = Field(
        default="text",
        description="What it must be: text, lines (a list of the lines that are not empty), integer, number, boolean, "
        "list (a JSON list) or json.",
    )
    description: Optionally = Field(default="", description="What it is; the model that reports it reads this.")


class Approval(Part):
    """A person who must agree before the agent starts."""

    question: Prose = Field(description="What the person is asked.")
    expires: Duration | None = Field(
        default=None, description="After how long the question counts as unanswered. Else the settings decide."
    )


class Flow(Part):
    """What passes between agents. `${...}` in the spec's texts are references when this section is there."""

    inputs: dict[ValueName, JsonValue] = Field(
        default={}, max_length=MAX_ITEMS, description="Values that a person gave: `${inputs.NAME}`."
    )
    outputs: dict[ValueName, Output] = Field(
        default={}, max_length=MAX_ITEMS, description="Values that it leaves: `${agent.NAME}`."
    )
    for_each: Prose | tuple[JsonValue, ...] | None = Field(
        default=None, description="A list, or a reference to one: the agent is there once for each element, `${item}`."
    )
    max_parallel: Parallel | None = Field(default=None, description="How many of these work at one time.")
    when: tuple[Line, ...] = Field(
        default=(),
        max_length=MAX_ITEMS,
        description="References to booleans, or `model.available`, each with `not` before it if need be: all must "
        "hold, else the agent is skipped.",
    )
    approve: Approval | None = Field(default=None, description="A person must agree before it starts.")
    env: dict[VariableName, Text] = Field(
        default={}, max_length=MAX_ITEMS, description="Variables of its commands; `${secret:NAME}` is a secret."
    )
    repairs: SmallCount | None = Field(
        default=None, description="How often a failing check goes back to the model. Else the settings decide."
    )
    template: SkipJsonSchema[str | None] = Field(default=None, description="Of an instance: the agent it is one of.")
    item: SkipJsonSchema[JsonValue] = Field(default=None, description="Of an instance: its element.")

    @property
    def inputs_by_key(self) -> dict[str, Any]:
        """The values of inputs, and of the element of an instance, by the keys of their references."""
        known: dict[str, Any] = {f"{INPUTS}.{name}": value for name, value in self.inputs.items()}
        return known if self.template is None else {**known, ITEM: self.item}
