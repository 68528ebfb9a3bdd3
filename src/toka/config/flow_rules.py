"""Rules of references and of the section `flow`, as far as one spec shows them (pure)."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, Literal, Protocol, cast

from toka.config import rules
from toka.config.diagnostics import did_you_mean, one_of, quoted
from toka.config.flow import BUILT_IN, MAX_INSTANCES, Flow
from toka.config.parts import Objective, Reporting, Security
from toka.config.rules import REQUESTS, Problem
from toka.config.tasks import Tasks, resolve_tasks
from toka.core.capability import CapabilityError, normal_path
from toka.core.reference import Malformed, Reference, as_text, find_references, only_reference, substitute
from toka.core.shellwords import misplaced

Use = Literal["command", "text", "env", "for_each", "when", "path"]
Path = tuple[str | int, ...]
AVAILABLE: Final = "model.available"
"""The one condition that is no reference."""
NOT: Final = re.compile(r"not\s+")
OWN_VARIABLES: Final = "TOKA_"
"""What the names of the variables begin with that Toka sets itself."""

SECRET_NAME: Final = re.compile(r"(?i)(?:API_?KEY|ACCESS_KEY|SECRET_KEY|PRIVATE_KEY|TOKEN|SECRET|PASSWORD|PASSWD)$")
"""How the names of variables end that hold secrets."""

_MALFORMED: Final = {
    "command": "write $NAME, or $${NAME}, for a variable of the shell",
    "env": "write $${ for the two characters as they are",
}
_BARE: Final = re.compile(r"\$\{([a-z][a-z0-9_-]*)\}")
_CONDITION: Final = "write a reference such as ${survey.ready}, or model.available, with `not` before it if need be"


class Spec(Protocol):
    """What the rules look at of a spec."""

    @property
    def flow(self) -> Flow | None:
        """What passes between it and others."""
        ...

    @property
    def model(self) -> str | None:
        """Its model."""
        ...

    @property
    def reporting(self) -> Reporting:
        """How it reports."""
        ...

    @property
    def tasks(self) -> Tasks:
        """What it does."""
        ...

    @property
    def objectives(self) -> tuple[Objective, ...]:
        """What it must achieve."""
        ...

    @property
    def security(self) -> Security:
        """What it may touch."""
        ...


@dataclass(frozen=True, slots=True)
class Text:
    """A text in which references are resolved while the agent runs.

    Attributes:
        path: where it stands in the canonical spec.
        text: as written.
        use: what it is for.
    """

    path: Path
    text: str
    use: Use


def texts(spec: Spec) -> Iterator[Text]:
    """All texts of a spec in which references are resolved; none without `flow`."""
    flow = spec.flow
    if flow is None:
        return
    groups: list[tuple[Path, Sequence[Any]]] = [(("tasks", "default"), spec.tasks.default)]
    groups += [(("tasks", "conditional", name), group) for name, group in spec.tasks.conditional.items()]
    for base, entries in groups:
        for number, entry in enumerate(entries):
            if entry.description is not None:
                yield Text((*base, number, "description"), entry.description, "text")
            if entry.run is not None:
                yield Text((*base, number, "run"), entry.run, "command")
    for number, objective in enumerate(spec.objectives):
        yield Text(("objectives", number, "description"), objective.description, "text")
        if objective.check is not None:
            yield Text(("objectives", number, "check", "run"), objective.check.run, "command")
    for name, output in flow.outputs.items():
        if output.path is not None:
            yield Text(("flow", "outputs", name, "path"), output.path, "path")
    for name, value in flow.env.items():
        yield Text(("flow", "env", name), value, "env")
    if isinstance(flow.for_each, str):
        yield Text(("flow", "for_each"), flow.for_each, "for_each")
    for number, condition in enumerate(flow.when):
        yield Text(("flow", "when", number), condition, "when")
    if flow.approve is not None:
        yield Text(("flow", "approve", "question"), flow.approve.question, "text")


def references_of(spec: Spec) -> Iterator[tuple[Text, Reference]]:
    """The well-formed references of a spec, with the text that each stands in."""
    for text in texts(spec):
        if "${" in text.text:
            yield from ((text, r) for r in find_references(text.text) if isinstance(r, Reference))


def spec_problems(spec: Spec) -> Iterator[Problem]:
    """All problems of one spec."""
    yield from rules.model_problems(spec.model)
    yield from rules.task_problems(spec.tasks, spec.security.resource_limits.limits.wall_s)
    yield from rules.security_problems(spec.security)
    yield from rules.reporting_problems(spec.reporting)
    yield from flow_problems(spec)


def flow_problems(spec: Spec) -> Iterator[Problem]:
    """What is wrong with references and with `flow`, as far as one spec shows it."""
    flow = spec.flow
    if flow is None:
        return
    for text in texts(spec):
        if "${" in text.text:
            yield from _text_problems(text, flow)
        yield from _condition_problems(text, flow) if text.use == "when" else ()
    yield from _output_problems(spec, flow)
    yield from _instance_problems(flow)
    yield from _grant_problems(spec.security)
    for name, value in flow.env.items():
        if SECRET_NAME.search(name) and value and "${" not in value:
            message = f"{name} is written out, and by its name it is a secret"
            help_ = f'write {name}: "${{secret:NAME}}", and let your own settings say where it is kept'
            yield Problem("TK4009", message, ("flow", "env", name), help=help_)
        if name.startswith(OWN_VARIABLES):
            message = f"variables that begin with {OWN_VARIABLES} are Toka's own"
            yield Problem("TK2020", message, ("flow", "env", name), help="choose another name")


def malformed_help(text: str, use: str) -> str:
    """What to write for something that only looks like a reference."""
    if text.startswith("${secret."):
        return f"did you mean ${{secret:{text.removeprefix('${secret.')}?"
    told = _MALFORMED.get(use, "write ${AGENT.OUTPUT}, ${inputs.NAME} or ${item}; $${ for plain text")
    bare = _BARE.fullmatch(text)
    return f"{told}; an input is ${{inputs.{bare[1]}}}" if bare and use in _MALFORMED else told


def before(text: str, found: Reference | Malformed) -> int:
    """How often the same stands in the text before it."""
    return text[: found.start].count(found.text)


def condition(text: str) -> Reference | None:
    """The reference of a condition of `when`; None when it is `model.available` or nothing that can be one."""
    return only_reference(NOT.sub("", text.strip(), count=1) if NOT.match(text.strip()) else text.strip())


def _text_problems(text: Text, flow: Flow) -> Iterator[Problem]:
    for each in find_references(text.text):
        if isinstance(each, Malformed):
            help_ = malformed_help(each.text, text.use)
            message = f"{quoted(each.text)} is no reference"
            yield Problem("TK2014", message, text.path, help=help_, text=each.text, skip=before(text.text, each))
        else:
            skip = before(text.text, each)
            yield from (replace(problem, skip=skip) for problem in _reference_problems(each, text, flow))
    for wrong in misplaced(text.text) if text.use == "command" else ():
        message = f"{wrong.reference.text} stands {wrong.place}, where no value can become one word"
        help_ = "put it outside, as a word of its own or in double quotes"
        if wrong.place.endswith("of a program"):
            help_ = "hand it over as a word after the text: sh -c 'echo \"$1\"' sh ${...}"
        skip = before(text.text, wrong.reference)
        yield Problem("TK2015", message, text.path, help=help_, text=wrong.reference.text, skip=skip)
    if text.use == "path":
        yield from _path_problems(text, flow)


def _reference_problems(each: Reference, text: Text, flow: Flow) -> Iterator[Problem]:
    if each.kind == "secret" and text.use != "env":
        message = f"the secret {each.text} cannot stand here"
        help_ = "a secret is given to commands by env: {NAME: ...}"
        yield Problem("TK4007", message, text.path, help=help_, text=each.text)
    elif each.kind == "item" and text.use in ("for_each", "when"):
        message = f"{each.text} is not known before the instances are made"
        yield Problem("TK2015", message, text.path, text=each.text)
    elif each.kind == "item" and flow.for_each is None and flow.template is None:
        message = f"{each.text} stands for an element, and this agent has no for_each"
        yield Problem("TK3011", message, text.path, text=each.text, help="add for_each: a list, or a reference to one")
    elif each.kind == "item" and each.name and (lacking := _lacking(each, flow)):
        message = f"element {lacking} of for_each has no {quoted(each.name)}"
        yield Problem("TK3011", message, text.path, text=each.text, help=_parts_of(lacking, each, flow))
    elif each.kind == "input" and each.name not in flow.inputs:
        message = f"there is no input {quoted(each.name)}"
        near = did_you_mean(each.name, flow.inputs)
        yield Problem("TK2017", message, text.path, text=each.text, help=near)
    elif text.use == "path" and (each.kind == "output" or (each.kind == "item" and not _given(flow))):
        message = f"{each.text} comes from a model or a tool and cannot decide which file is read"
        yield Problem("TK4006", message, text.path, text=each.text, help="write the path out, or make it an input")


def _elements(flow: Flow) -> Sequence[object]:
    """The elements of `for_each` that are known before anything runs."""
    if flow.template is not None:
        return (flow.item,)
    if not isinstance(flow.for_each, str):
        return flow.for_each or ()
    alone = only_reference(flow.for_each)
    known = flow.inputs.get(alone.name) if alone is not None and alone.kind == "input" else ()
    return cast("Sequence[object]", known) if isinstance(known, list | tuple) else ()


def _lacking(each: Reference, flow: Flow) -> int:
    """The number of the first element that has no such part; 0 when all have it, as far as they are known."""
    known = enumerate(_elements(flow), 1)
    return next((n for n, one in known if not isinstance(one, dict) or each.name not in one), 0)


def _parts_of(number: int, each: Reference, flow: Flow) -> str:
    """What an element has."""
    one = _elements(flow)[number - 1]
    if not isinstance(one, dict):
        return "it is no mapping; ${item} is the whole of it"
    parts = [str(name) for name in cast("dict[object, object]", one)]
    return did_you_mean(each.name, parts) or (f"it has {one_of(parts[:8])}" if parts else "it is empty")


def _given(flow: Flow) -> bool:
    """Whether a person wrote the elements of `for_each`."""
    alone = only_reference(flow.for_each) if isinstance(flow.for_each, str) else None
    return not isinstance(flow.for_each, str) or (alone is not None and alone.kind == "input")


def _path_problems(text: Text, flow: Flow) -> Iterator[Problem]:
    if any(isinstance(r, Malformed) or r.kind in ("output", "secret") for r in find_references(text.text)):
        return
    for item in flow.for_each if isinstance(flow.for_each, tuple) else (flow.item or "item",):
        try:
            normal_path(_filled(text.text, flow.inputs, item))
        except CapabilityError as error:
            yield Problem("TK4003", str(error), text.path)
            return


def _filled(text: str, inputs: Mapping[str, Any], item: object) -> str:
    """A text with the values of inputs and of an element."""
    return substitute(text, lambda r: as_text(inputs.get(r.name) if r.kind == "input" else _inner(item, r)))


def _inner(item: object, reference: Reference) -> object:
    """A part of an element; a stand-in where it has none."""
    if not reference.name or reference.kind != "item":
        return item
    return cast("dict[str, object]", item).get(reference.name, "item") if isinstance(item, dict) else "item"


def _condition_problems(text: Text, flow: Flow) -> Iterator[Problem]:
    reference = condition(text.text)
    plain = NOT.sub("", text.text.strip(), count=1) if NOT.match(text.text.strip()) else text.text.strip()
    if reference is None:
        if plain != AVAILABLE and not any(isinstance(r, Malformed) for r in find_references(text.text)):
            yield Problem("TK2016", f"{quoted(text.text)} is no condition", text.path, help=_CONDITION)
    elif reference.kind == "input" and flow.inputs.get(reference.name, "") not in ("", True, False):
        message = f"{reference.text} is not true or false"
        yield Problem("TK2016", message, text.path, text=reference.text, help="declare it with type: boolean")


def _output_problems(spec: Spec, flow: Flow) -> Iterator[Problem]:
    tasks = resolve_tasks(spec.tasks, None)
    for name, output in flow.outputs.items():
        path: Path = ("flow", "outputs", name)
        if name in BUILT_IN:
            message = f"every agent has {quoted(name)} already: {one_of(BUILT_IN)}"
            yield Problem("TK2020", message, path, help="choose another name")
        if output.source == "file" and output.path is None:
            message = f"the output {quoted(name)} is read from a file, and no path says which"
            yield Problem("TK2018", message, path, help="add path: FILE")
        elif output.source != "file" and output.path is not None:
            message = f"the output {quoted(name)} has a path, and is not read from a file"
            yield Problem("TK2018", message, (*path, "path"), help="write from: file, or take the path out")
        elif output.source == "stdout" and tasks and all(t.run is None for t in tasks):
            message = f"the output {quoted(name)} is what a command prints, and this agent has no task with run"
            yield Problem("TK2018", message, path, help="write from: report when its model is to say it")
        elif output.source == "report" and tasks and all(t.run is not None for t in tasks):
            message = f"the output {quoted(name)} is what a model reports, and this agent has no task for a model"
            yield Problem("TK2018", message, path, help="write from: stdout when its command prints it")


def _instance_problems(flow: Flow) -> Iterator[Problem]:
    path: Path = ("flow", "for_each")
    each: object = flow.for_each
    if each is None:
        if flow.max_parallel is not None and flow.template is None:
            message = "max_parallel bounds the instances of for_each, and there is none"
            yield Problem("TK2019", message, ("flow", "max_parallel"), help="add for_each, or take it out")
        return
    if isinstance(each, str):
        alone = only_reference(each)
        if alone is None:
            if not any(isinstance(r, Malformed) for r in find_references(each)):
                message = "for_each is a list, or one reference to a list"
                yield Problem("TK2016", message, path, help="write such as ${survey.failing}, or [a, b]")
            return
        each = flow.inputs.get(alone.name, ("",)) if alone.kind == "input" else ("",)
        if not isinstance(each, (list, tuple)):
            message = f"{alone.text} is no list"
            yield Problem("TK2016", message, path, text=alone.text, help="declare it with type: list")
            return
    count = len(cast("Sequence[object]", each))
    if not count or count > MAX_INSTANCES:
        said = "for_each has no element" if not count else f"for_each has {count:,} elements"
        yield Problem("TK2019", said, path, label=f"expected 1 to {MAX_INSTANCES:,}")


def _grant_problems(security: Security) -> Iterator[Problem]:
    """References in what is granted: they are never resolved there."""
    for index, request in enumerate(security.capabilities_required):
        named: Mapping[str, tuple[str, ...]] = request.arguments
        for argument, items in named.items():
            for place, item in enumerate(items):
                for each in find_references(item) if "${" in item else ():
                    message = f"{quoted(each.text)} cannot decide what is granted"
                    path = (*REQUESTS, index, "arguments", argument, place)
                    yield Problem("TK4006", message, path, text=each.text, help="write it out")
