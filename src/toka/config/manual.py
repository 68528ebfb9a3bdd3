"""The manual of team files and specs, generated from their JSON Schema: every key with type, default and example."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from toka.config.diagnostics import one_of
from toka.config.flow import BUILT_IN, MAX_INSTANCES
from toka.config.schema import DEFAULT, Schema, spec_schema
from toka.config.team_schema import team_schema

LIVE: Final = "goal, run, tasks, check, checks, objectives, env, when, for_each, approve"
HEAD: Final = f"""\
# Keys of team files and specs

Made by `toka schema --markdown`; a test holds it to the schema. `toka validate` finds every mistake at once,
`toka explain CODE` says what a finding means, `toka plan --expanded` prints what a team file stands for.

A team file is YAML with the key `toka: 1`. Each of its agents stands for the spec of one agent: there is one loader and
one way to run them, and files of both kinds can be given together. `toka convert` turns each kind into the other.

```yaml
toka: 1
inputs: {{area: tests/}}
defaults:
  grants: {{read: [.], run: [python3]}}
  limits: {{cost: $1, time: 30m}}
agents:
  survey:
    run: python3 -m unittest discover -s ${{inputs.area}}
    outputs: {{failing: {{from: stdout, as: lines}}}}
  fix:
    needs: [survey]
    for_each: ${{survey.failing}}
    max_parallel: 4
    grants: {{write: [src/]}}
    goal: Make ${{item}} pass without touching tests.
    check: python3 -m unittest ${{item}}
```

## References

| written | is | may stand in |
| --- | --- | --- |
| `${{inputs.NAME}}` | what a person gave: `--input NAME=VALUE`, or `--input 'NAME=["a", "b"]'` | every text |
| `${{AGENT.NAME}}` | an output of an agent that is waited for, or what every agent has: {one_of(BUILT_IN)} | {LIVE} |
| `${{item}}`, `${{item.KEY}}` | the element that an instance is for; of an element that is a mapping, a part | the \
same, but for when and for_each |
| `${{secret:NAME}}` | a secret of the settings | the values of env |
| `$${{` | the two characters | every text |

In `run` and `check` a value becomes one quoted word, whatever it holds: it is never read as shell. So it stands outside
quotes or in double quotes; in single quotes, comments, here-documents, arithmetic, backquotes and the shell's own `${{`
it is refused. A list or mapping is one word of JSON.

A value that comes from a model or a tool never decides what is granted: paths, hosts, programs, limits,
models and secrets are written out or are inputs (TK4006). There are no expressions, loops or templates.

An output of an agent with `for_each` is the list of what its instances left, in their order. `for_each` takes 1 to
{MAX_INSTANCES:,} elements. `limits` hold for each instance. Instances are named `fix[1]`, `fix[2]` and so on.

What every agent has without declaring it:

| value | is |
| --- | --- |
| `${{AGENT.status}}` | text: `completed`, `failed`, `skipped` or `stopped` |
| `${{AGENT.total}}` | how many instances it has; 1 without `for_each` |
| `${{AGENT.completed}}`, `${{AGENT.failed}}` | how many of them completed, and failed |
| `${{AGENT.verified}}` | how many completed with a check that passed, and none that did not |
| `${{AGENT.report}}` | what its model said at the end of each task, a line each |

An agent whose `when` does not hold, or whose `for_each` is empty, is skipped, and what needs it is skipped as well; the
run does not fail of that. When an agent fails, what needs it is skipped, and the run fails. An optional one in `needs`,
`{{NAME: {{optional: true}}}}`, is waited for, however it ends. An agent with `for_each` fails when an instance
fails; the other instances go on to their ends.
"""

_TEAM: Final = (
    ("A team file", "", ""),
    ("inputs", "Input", "A value alone is the default, with its type."),
    ("agents", "TeamAgent", "One of `goal`, `run` and `tasks`. Keys that are sections of a spec are as there."),
    ("grants", "Grants", "A list narrows a grant, `true` does not, `false` takes that of `defaults` back. Further keys "
     "are names of capabilities: see [specs.md](specs.md). So what a denial says would be needed, such as "
     "`- filesystem-write: {paths: [docs]}`, is a key of `grants` without its dash."),
    ("limits", "Limits", ""),
    ("needs", "Need", ""),
    ("outputs", "TeamOutput", "`stdout` or `report` alone is a text from there."),
)  # fmt: skip
_PARTS: Final = (
    ("metadata", "Metadata"), ("spec", "AgentSpec"), ("capabilities", "Skills"), ("objectives", "Objective"),
    ("objectives: check", "Check"), ("tasks", "Tasks"), ("tasks: an entry", "TaskEntry"),
    ("dependencies", "Dependencies"), ("dependencies: an entry", "Dependency"), ("security", "Security"),
    ("security.resource_limits", "ResourceLimits"), ("flow", "Flow"), ("flow.outputs", "Output"),
    ("flow.approve", "Approval"), ("reporting", "Reporting"), ("reporting.metrics", "Metric"),
    ("risk_mitigation", "RiskMitigation"), ("risk_mitigation: a risk", "Risk"),
)  # fmt: skip


_WORDS: Final = {
    "string": "text", "object": "mapping", "array": "list", "boolean": "true or false", "null": "", "integer": "number",
}  # fmt: skip


def manual() -> str:
    """The text of docs/spec.md."""
    team, spec = team_schema(), spec_schema()
    defs: Mapping[str, Any] = team["$defs"]
    out = [HEAD]
    for title, name, said in _TEAM:
        definition = team["$defs"][name] if name else team
        out += [f"\n## {title}\n" if not name else f"\n### {title}\n", *([f"{said}\n"] if said else [])]
        out.append("\n".join(_table(definition, defs)) + "\n")
    out += ["\n## A spec\n", f"{spec['description']}\n", "\n".join(_table(spec, defs)) + "\n"]
    for title, name in _PARTS:
        definition = spec["$defs"][name]
        told = _described(definition)
        out += [f"\n### {title}\n", *([f"{told}\n"] if told else []), "\n".join(_table(definition, defs)) + "\n"]
    return "\n".join(out).replace("\n\n\n", "\n\n")


def _mapping(definition: Schema) -> Schema:
    """The spelling of a definition that has keys."""
    return next((o for o in (definition, *definition.get("anyOf", ())) if "properties" in o), definition)


def _described(definition: Schema) -> str:
    text: str = _mapping(definition).get("description", "")
    return text.partition("\n\n")[0].replace("\n", " ")


def _table(definition: Schema, definitions: Mapping[str, Any]) -> Iterator[str]:
    yield "| key | type | default | meaning | example |"
    yield "| --- | --- | --- | --- | --- |"
    mapping = _mapping(definition)
    for name, field in mapping["properties"].items():
        said, _, default = str(field.get("description", "")).partition(DEFAULT)
        needed = "required" if name in mapping.get("required", ()) else ""
        example = json.dumps(field["examples"][0], ensure_ascii=False) if field.get("examples") else ""
        cells = [f"`{name}`", type_of(field, definitions), default.strip().removesuffix(".") or needed, said.strip()]
        yield f"| {' | '.join(_cell(c) for c in cells)} | {_cell(f'`{example}`') if example else ''} |"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def type_of(field: Mapping[str, Any], definitions: Mapping[str, Any]) -> str:
    """What kinds of value a key takes, in words."""
    if "enum" in field:
        words = dict.fromkeys(str(word).lower() for word in field["enum"])
        return one_of([f"`{word}`" for word in words])
    if "anyOf" in field:
        return _joined([type_of(option, definitions) for option in field["anyOf"]])
    if "$ref" in field:
        return type_of(definitions.get(field["$ref"].rpartition("/")[2], {"type": "object"}), definitions)
    given: str | list[str] = field.get("type", "anything")
    kinds = [given] if isinstance(given, str) else given
    return "text" if kinds == ["string", "number", "boolean"] else _joined([_WORDS.get(kind, kind) for kind in kinds])


def _joined(kinds: Sequence[str]) -> str:
    """Each kind once."""
    known = dict.fromkeys(part for kind in kinds for part in kind.split(", ") if part)
    return ", ".join(known)
