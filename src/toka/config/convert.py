"""Agents as a team file, and back, without loss: short keys where they say exactly the same, else whole sections."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any, Final, cast

from toka.config.agent import AgentConfig
from toka.config.diagnostics import closest
from toka.config.emit import to_yaml
from toka.config.flow_rules import references_of
from toka.config.source import MAX_BYTES, Source
from toka.config.team import MARK
from toka.config.team_keys import GRANTS, LIMITS, OUTPUT, VERSION
from toka.config.team_parts import CAPABILITIES, first_argument
from toka.config.written import spec_data
from toka.core.catalogue import known_names
from toka.core.reference import RESERVED
from toka.errors import ConfigError

HEAD: Final = "# A team of agents. What each key means: toka schema --markdown\n"
_SPEC: Final = {"description": "description", "title": "name", "domain": "domain", "priority": "priority"}
_VERBATIM: Final = (
    "capabilities", "reporting", "behavioral_directives", "risk_mitigation", "success_criteria",
)  # fmt: skip
_SHORT: Final = {name: short for short, name in CAPABILITIES.items()}
_LIMITS: Final = {long: short for short, (long, _) in LIMITS.items() if long}
_OUTPUTS: Final = {long: short for short, (long, _) in OUTPUT.items()}

Data = dict[str, Any]


def team_text(configs: Iterable[AgentConfig]) -> str:
    """A team file of these agents.

    Raises:
        ConfigError: read again, it would not be the same: it is too large, say. All findings are in the error.
    """
    wanted = tuple(configs)
    keys = _keys(wanted)
    inputs = _shared_inputs(wanted)
    agents = {keys[c.name]: agent_data(c, keys[c.name], inputs) for c in wanted}
    team = {MARK: int(VERSION), **({"inputs": inputs} if inputs else {}), "agents": agents}
    text = HEAD + to_yaml(team)
    check_same(text, wanted, "<team>")
    return text


def spec_text(config: AgentConfig) -> str:
    """A spec of one agent.

    Raises:
        ConfigError: read again, it would not be the same.
    """
    text = to_yaml(spec_data(config))
    check_same(text, (config,), f"{config.name}.yaml")
    return text


def check_same(text: str, wanted: Iterable[AgentConfig], file: str) -> None:
    """Raises ConfigError when a text, read again, does not hold exactly these agents."""
    source = Source(file, text)
    if len(text.encode()) > MAX_BYTES:
        source.text = ""
        source.add("TK1004", "it would be larger than 1 MB", (1, 1, 1))
    found, _, findings, _ = AgentConfig.read([source])
    wrong = tuple(f for f in findings if f.severity == "error")
    if wrong:
        raise ConfigError(f"this cannot be written as one file: {wrong[0].message}", wrong)
    by_name = {config.name: config for config in found}
    lost = [config.name for config in wanted if by_name.get(config.name) != config]
    if lost:
        raise ConfigError(f"{lost[0]} cannot be written in this form without loss")


def _keys(configs: Iterable[AgentConfig]) -> dict[str, str]:
    """The key of each agent: its name, unless references could not tell that."""
    names = {str(config.name) for config in configs}
    out: dict[str, str] = {}
    for name in sorted(names):
        key = name.replace(".", "-") if name not in RESERVED else f"{name}-agent"
        while key != name and (key in names or key in out.values()):
            key += "-"
        out[name] = key
    return out


def _shared_inputs(configs: Iterable[AgentConfig]) -> Data:
    """The inputs that mean the same for every agent that has them, and are named in its texts."""
    values: dict[str, list[Any]] = {}
    apart: set[str] = set()
    for config in configs:
        used = {reference.name for _, reference in references_of(config) if reference.kind == "input"}
        for name, value in (config.flow.inputs if config.flow else {}).items():
            values.setdefault(name, []).append(value)
            if name not in used or isinstance(value, dict | None):
                apart.add(name)
    same = {name: each for name, each in values.items() if len({json.dumps(v) for v in each}) == 1}
    return {name: each[0] for name, each in sorted(same.items()) if name not in apart}


def agent_data(config: AgentConfig, key: str, inputs: Mapping[str, Any]) -> Data:
    """One agent in the keys of a team file that declares these inputs."""
    spec = spec_data(config)
    given: Data = {name: spec.pop(name, None) or {} for name in ("metadata", "spec", "security", "dependencies")}
    flow: Data | None = spec.pop("flow", None)
    out: Data = {}
    if flow is None:
        if _mentions(given) or _mentions(spec):
            out["references"] = False
    elif not flow:
        out["references"] = True
    if given["metadata"].get("name") == key:
        del given["metadata"]["name"]
    for short, name in _SPEC.items():
        if name in given["spec"]:
            out[short] = given["spec"].pop(name)
    out |= {name: spec.pop(name) for name in ("model", "restart", "workspace") if name in spec}
    _put_needs(out, given["dependencies"])
    for name in ("when", "for_each", "max_parallel", "approve"):
        if flow and name in flow:
            out[name] = flow.pop(name)
    if "approve" in out and out["approve"].keys() == {"question"}:
        out["approve"] = out["approve"]["question"]
    _put_work(out, spec.pop("tasks"))
    _put_checks(out, spec.pop("objectives", []))
    _put_grants(out, given["security"])
    _put_limits(out, given["security"], flow)
    if flow:
        flow["inputs"] = {n: v for n, v in flow.get("inputs", {}).items() if n not in inputs}
        _put_flow(out, flow if flow["inputs"] else {k: v for k, v in flow.items() if k != "inputs"})
    for name in ("sandbox", "enforcement"):
        if name in given["security"]:
            out[name] = given["security"].pop(name)
    out |= {name: given[name] for name in ("metadata", "spec", "security", "dependencies") if given[name]}
    out |= {name: spec.pop(name) for name in _VERBATIM if name in spec}
    if spec:
        out["extensions"] = spec
    return out if flow is None else _escaped(out)


def _mentions(value: Any) -> bool:
    """Whether a text in it could be taken for a reference."""
    if isinstance(value, dict):
        return any(_mentions(inner) for inner in cast("Data", value).values())
    if isinstance(value, list):
        return any(_mentions(inner) for inner in cast("list[Any]", value))
    return isinstance(value, str) and "${" in value


def _put_needs(out: Data, dependencies: Data) -> None:
    required: Data = dependencies.get("required", {})
    optional: Data = dependencies.get("optional", {})
    if required.keys() & optional.keys() or not (required or optional):
        return
    needs = {
        name: edge | ({"optional": True} if name in optional else {}) for name, edge in (required | optional).items()
    }
    out["needs"] = list(needs) if not any(needs.values()) else {name: _edge(edge) for name, edge in needs.items()}
    dependencies.clear()


def _edge(edge: Data) -> Any:
    return edge["reason"] if edge.keys() == {"reason"} else edge


def _put_work(out: Data, tasks: Data) -> None:
    """goal or run for one simple task, else tasks."""
    entries: list[Data] = tasks["default"]
    only = entries[0] if len(entries) == 1 and "conditional" not in tasks else {}
    for name, short in (("description", "goal"), ("run", "run")):
        if name in only and only.keys() <= {name, "retries", "timeout"}:
            out[short] = only[name]
            out |= {each: only[each] for each in ("retries", "timeout") if each in only}
            return
    listed = [entry["description"] if entry.keys() == {"description"} else entry for entry in entries]
    out["tasks"] = listed if "conditional" not in tasks else {**tasks, "default": listed}


def _put_checks(out: Data, objectives: list[Data]) -> None:
    checks: list[Any] = []
    for objective in objectives:
        check: Data = objective.get("check", {})
        said = check.get("run") if checks or "goal" not in out else out["goal"]
        if objective.keys() != {"description", "check"} or objective["description"] != said:
            break
        checks.append(check["run"] if check.keys() == {"run"} else check)
    rest = objectives[len(checks) :]
    if checks:
        out["check"] = checks.pop(0)
    if checks:
        out["checks"] = checks
    if rest:
        out["objectives"] = rest


def _put_grants(out: Data, security: Data) -> None:
    """grants, when every request has a short form of its own."""
    grants: Data = {}
    for request in security.get("capabilities_required", ()):
        asked: Mapping[str, Data] = {request: {}} if isinstance(request, str) else request
        ((name, arguments),) = asked.items()
        short = _SHORT.get(name, name)
        taken = CAPABILITIES.get(short, name) != name or short in grants
        if taken or (name not in _SHORT and name not in known_names() and closest(name, GRANTS)):
            return
        first = first_argument(name)
        grants[short] = (
            True if not arguments else arguments[first] if first and arguments.keys() == {first} else arguments
        )
    if grants:
        out["grants"] = grants
        del security["capabilities_required"]


def _put_limits(out: Data, security: Data, flow: Data | None) -> None:
    limits = {_LIMITS[name]: value for name, value in security.pop("resource_limits", {}).items()}
    if flow and "repairs" in flow:
        limits["repairs"] = flow.pop("repairs")
    if limits:
        out["limits"] = limits


def _put_flow(out: Data, flow: Data) -> None:
    outputs: Mapping[str, Data] = flow.pop("outputs", {})
    if outputs:
        short = {name: {_OUTPUTS[key]: value for key, value in one.items()} for name, one in outputs.items()}
        out["outputs"] = {name: one["from"] if one.keys() == {"from"} else one for name, one in short.items()}
    if "env" in flow:
        out["env"] = flow.pop("env")
    if flow:
        out["flow"] = flow


_LIVE: Final = frozenset({"goal", "run", "when", "env"})
"""Keys whose texts hold references; the others' are settled when the file is read."""
_INNER: Final[Mapping[str, tuple[frozenset[str], bool]]] = {
    "check": (frozenset({"run"}), True),
    "checks": (frozenset({"run"}), True),
    "tasks": (frozenset({"description", "run"}), True),
    "objectives": (frozenset({"description", "run"}), True),
    "outputs": (frozenset({"path"}), False),
    "approve": (frozenset({"question"}), True),
}


def _escaped(data: Data) -> Data:
    """An agent with references; in the texts that are settled when the file is read, `${` is text and written so."""
    out: Data = {}
    for name, value in data.items():
        live, bare = _INNER.get(name, (frozenset[str](), name == "for_each" and isinstance(value, str)))
        out[name] = value if name in _LIVE else _settled(value, live, bare=bare)
    return out


def _settled(value: Any, live: frozenset[str], *, bare: bool) -> Any:
    if isinstance(value, dict):
        entries = cast("Data", value).items()
        return {
            name: inner
            if name in live and isinstance(inner, str)
            else _settled(inner, live, bare=bare and not isinstance(inner, str))
            for name, inner in entries
        }
    if isinstance(value, list):
        return [_settled(inner, live, bare=bare) for inner in cast("list[Any]", value)]
    return value.replace("${", "$${") if isinstance(value, str) and not bare else value
