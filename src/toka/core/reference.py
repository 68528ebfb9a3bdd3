"""References to values in the texts of a team: `${inputs.area}`, `${survey.failing}`, `${item}`, `${secret:github}`.

`$${` stands for the two characters `${`. There are no expressions: a reference names a value and nothing else.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal, cast

VALUE_NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_-]{0,99}")
"""What inputs, outputs, keys of items and secrets may be called (fullmatch)."""
ITEM: Final = "item"
INPUTS: Final = "inputs"
SECRET: Final = "secret"
MODEL: Final = "model"
RESERVED: Final = frozenset({ITEM, INPUTS, SECRET, MODEL})
"""Names that no agent of a team file may have: references to it could not be told from these."""

_FORM: Final = re.compile(r"\$\$\{|\$\{([^{}]*)\}|\$\{")
_AGENT: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")

Kind = Literal["item", "input", "output", "secret"]


@dataclass(frozen=True, slots=True)
class Reference:
    """One reference.

    Attributes:
        kind: what it names: the element that an instance is for, an input, an output of an agent, a secret.
        agent: whose output; empty for the other kinds.
        name: of the input, output or secret; of an item the key, empty for the item itself.
        start, end: where it stands in its text, by characters.
    """

    kind: Kind
    agent: str
    name: str
    start: int = 0
    end: int = 0

    @property
    def key(self) -> str:
        """`survey.failing`, `inputs.area`, `item.path`, `secret:github`: what it is without the braces."""
        if self.kind == "secret":
            return f"{SECRET}:{self.name}"
        root = {"item": ITEM, "input": INPUTS}.get(self.kind, self.agent)
        return f"{root}.{self.name}" if self.name else root

    @property
    def text(self) -> str:
        """As it is written."""
        return f"${{{self.key}}}"


@dataclass(frozen=True, slots=True)
class Malformed:
    """Something that begins as a reference and is none.

    Attributes:
        text: what stands there.
        start, end: where, by characters.
    """

    text: str
    start: int
    end: int


def find_references(text: str) -> list[Reference | Malformed]:
    """All references of a text, in order, and what only looks like one."""
    found: list[Reference | Malformed] = []
    for match in _FORM.finditer(text):
        if match.group() == "$${":
            continue
        inner = match[1]
        reference = None if inner is None else parse_reference(inner)
        if reference is None:
            found.append(Malformed(match.group(), *match.span()))
        else:
            found.append(Reference(reference.kind, reference.agent, reference.name, *match.span()))
    return found


def references(text: str) -> list[Reference]:
    """The well-formed references of a text, in order."""
    return [each for each in find_references(text) if isinstance(each, Reference)]


def parse_reference(inner: str) -> Reference | None:
    """What stands between the braces; None when it is no reference."""
    if inner.startswith(f"{SECRET}:"):
        name = inner.removeprefix(f"{SECRET}:")
        return Reference("secret", "", name) if VALUE_NAME.fullmatch(name) else None
    if inner == ITEM:
        return Reference("item", "", "")
    root, dot, name = inner.rpartition(".")
    if not dot or not VALUE_NAME.fullmatch(name):
        return None
    if root == ITEM:
        return Reference("item", "", name)
    if root == INPUTS:
        return Reference("input", "", name)
    return Reference("output", root, name) if root not in RESERVED and _AGENT.fullmatch(root) else None


def only_reference(text: str) -> Reference | None:
    """The reference that a text consists of; None when it is anything else."""
    found = find_references(text)
    if len(found) == 1 and isinstance(one := found[0], Reference) and (one.start, one.end) == (0, len(text)):
        return one
    return None


def substitute(text: str, replace: Callable[[Reference], str]) -> str:
    """The text with every reference replaced and `$${` as `${`. What is malformed stays as it is."""
    out: list[str] = []
    at = 0
    for match in _FORM.finditer(text):
        out.append(text[at : match.start()])
        at = match.end()
        if match.group() == "$${":
            out.append("${")
            continue
        reference = None if match[1] is None else parse_reference(match[1])
        if reference is None:
            out.append(match.group())
        else:
            out.append(replace(Reference(reference.kind, reference.agent, reference.name, *match.span())))
    return "".join([*out, text[at:]])


def value_of(reference: Reference, values: Mapping[str, Any]) -> Any:
    """The value of a reference.

    Args:
        reference: what is asked for.
        values: by key: `survey.failing`, `inputs.area`, `item`.

    Raises:
        KeyError: there is none; the key is the argument.
    """
    if reference.kind == "item" and reference.name:
        item: object = values[ITEM]
        if isinstance(item, dict) and reference.name in item:
            return cast("dict[str, Any]", item)[reference.name]
        raise KeyError(reference.key)
    return values[reference.key]


def as_text(value: Any) -> str:
    """A value as text: text as it is, truth and numbers as JSON writes them, lists and mappings as JSON."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, separators=(",", ":"))
