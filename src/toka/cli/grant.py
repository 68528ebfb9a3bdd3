"""`toka explain grant`: what an agent gets, from its spec's lines down to mounts, rules and system calls."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import click

from toka.cli.check import check_specs, count_specs, terms_of, warned_settings
from toka.cli.door import ANY_PATH
from toka.cli.ids import match_name
from toka.cli.output import coloured, emit, say
from toka.cli.render_findings import as_json, counted
from toka.cli.render_plan import by_agent, capability_text, held_lines, limits_text
from toka.cli.rows import listed
from toka.cli.team_options import folder_of, inputs_option, workspace_option
from toka.cli.text import Cell, Paint, columns, json_line, line_of, painter, plain
from toka.config.diagnostics import Finding, in_order
from toka.config.inputs import Inputs
from toka.core.units import format_bytes
from toka.errors import ConfigError
from toka.orchestration.compiled import BY_ARGUMENT, Compiled, compile_here
from toka.orchestration.rights import GIVEN, Asked, Rights, rights_of
from toka.orchestration.unmet import place_findings
from toka.sandbox.policy import SandboxPolicy
from toka.sandbox.profile import PROXY_PORT
from toka.sandbox.toolchain import needed_by

WIDTH: Final = 200


@click.command()
@click.argument("agent")
@click.argument("paths", metavar="SPEC...", nargs=-1, required=True, type=ANY_PATH)
@workspace_option
@inputs_option
@click.option("--json", "json_", is_flag=True, help="Print one JSON object.")
def grant(
    agent: str,
    paths: Sequence[Path],
    workspace: Path | None,
    json_: bool,  # noqa: FBT001 - click's way
    inputs: Inputs,
) -> int:
    """Show what an agent gets: tools, mounts, rules, system calls, network, environment, limits.

    For each capability that its spec asks for, what it became. Exits 3 when a spec has an error, or asks for what the
    workspace or this machine does not have.
    """
    settings = warned_settings()
    configs, findings = check_specs(paths, settings, inputs)
    if any(f.severity == "error" for f in findings):
        if json_:
            emit(json_line(as_json(findings)))
        for finding in () if json_ else findings:
            say(f"{finding.render()}\n")
        say(f"toka: {counted(count_specs(paths), findings)}; no grant is compiled")
        return ConfigError.exit_code
    named = {str(config.name): config for config in configs}
    config = named[match_name(named, agent)]
    folder = folder_of(workspace, configs)
    terms = terms_of(settings, configs, folder)
    placed = place_findings(configs, terms, folder)
    own = [*by_agent(configs, placed).get(config.name, ()), *(f for f in placed if f.code in ("TK4202", "TK4206"))]
    found = in_order((*by_agent(configs, findings).get(config.name, ()), *own))
    compiled = compile_here(rights_of(config, terms), folder)
    if json_:
        emit(json_line({**grant_json(compiled), **as_json(found)}))
    else:
        emit("\n".join(grant_lines(compiled, found, painter(coloured()))))
    return ConfigError.exit_code if any(f.severity == "error" for f in own) else 0


def grant_json(compiled: Compiled) -> dict[str, Any]:
    """The object that `toka explain grant --json` prints, without the findings."""
    return {"type": "grant", **compiled.rights.to_json(), **compiled.to_json()}


def grant_lines(compiled: Compiled, findings: Sequence[Finding] = (), paint: Paint = plain) -> list[str]:
    """The same for a person."""
    rights = compiled.rights
    policy = rights.policy
    sections: dict[str, list[str]] = {
        "asked for": [line for asked in rights.asked for line in _asked(asked)] or ["nothing"],
        "tools": _tools(rights, paint),
        "workspace": columns([[m.rule.path, m.rule.access, m.why] for m in compiled.mounts]) or ["empty"],
        "beside it": [
            "read-only: /usr, certificates and loader files of /etc",
            *(f"read-only: {path}, a toolchain" for path in policy.toolchains),
            f"writable: /tmp ({format_bytes(policy.tmp_bytes)} in memory), /dev/shm; nothing else of this machine",
        ],
        "programs": _programs(policy, compiled.absent),
        f"landlock version {compiled.landlock}" if compiled.landlock else "landlock: none here": _rules(compiled.rules),
        f"system calls refused: {sum(map(len, compiled.calls.values()))}": [
            *columns([[f"{group}:", _count(names)] for group, names in compiled.calls.items()]),
            f"with some arguments: {', '.join(BY_ARGUMENT)}",
        ],
        "network": list(_network(policy)),
        "environment": columns([*rights.environment.items(), *((k, f"({v})") for k, v in GIVEN.items())]),
        "limits": [limits_text(rights.limits), *held_lines(compiled.held)],
    }
    out = [f"agent {paint(line_of(rights.agent), 'bold')}"]
    for title, lines in sections.items():
        out += ["", paint(title, "dim"), *(f"  {line_of(line, WIDTH)}" for line in lines)]
    if findings:
        out += ["", *(f.text for f in findings)]
    return out


def _asked(asked: Asked) -> Iterator[str]:
    given = "; ".join(map(capability_text, asked.granted))
    yield f"{asked.place or 'the spec'}: {asked.text}"
    yield f"  -> {given or 'nothing'}{'' if given or asked.taken else f': {asked.note}'}"
    if given and asked.note:
        yield f"  note: {asked.note}"
    yield from (f"  taken out: {taken.text}" for taken in asked.taken)


def _tools(rights: Rights, paint: Paint) -> list[str]:
    styles = {"allowed": "good", "denied": "dim", "ask": "warn"}
    rows: list[list[Cell]] = [[(head, "dim") for head in ("TOOL", "NEEDS", "", "BY")]]
    for right in rights.table:
        needs = ", ".join(right.needs) or "as it is called"
        held = (c for name in right.needs for c in rights.grant.named(name))
        by = "; ".join(map(capability_text, held)) if right.outcome == "allowed" else right.rule
        rows.append([right.tool, needs, (right.outcome, styles[right.outcome]), by or right.rule])
    head, *lines = columns(rows, paint=paint)
    out = [head]
    for right, line in zip(rights.table, lines, strict=True):
        out += [line, *(f"  but {rule}" for rule in right.but)]
    return out


def _programs(policy: SandboxPolicy, absent: Sequence[str]) -> list[str]:
    if policy.programs == ():
        return ["none; `run:` and `check:`, which you wrote, may start any under /usr" + _and_toolchains(policy)]
    out = [", ".join(policy.programs or ())]
    if policy.programs is None:
        out = [f"any under /usr{_and_toolchains(policy)}, through a shell"]
    elif policy.toolchains:
        used = needed_by(policy.programs, policy.toolchains)
        out.append(f"with all that they find in {', '.join(used)}" if used else "none of a toolchain")
    if policy.refused_programs:
        out.append(f"but not: {', '.join(policy.refused_programs)}")
    if absent:
        out.append(f"not installed: {', '.join(absent)}")
    return out


def _and_toolchains(policy: SandboxPolicy) -> str:
    return " and in the toolchains" if policy.toolchains else ""


def _rules(rules: Mapping[str, Mapping[str, Sequence[str]]]) -> list[str]:
    rows: list[list[Cell]] = []
    for title, paths in rules.items():
        for at, (words, of) in enumerate(paths.items()):
            rows.append(["" if at else title, words, listed(list(of))])
    return columns(rows)


def _count(names: Sequence[str]) -> str:
    return f"{len(names)}: {listed(list(names))}"


def _network(policy: SandboxPolicy) -> Iterator[str]:
    if not policy.network:
        yield "none: an empty network namespace, and no socket can be made"
        return
    yield f"sockets: inet and inet6, streams only; they reach the proxy at 127.0.0.1:{PROXY_PORT} and nothing else"
    for capability in policy.network:
        hosts = "any public host" if capability.hosts is None else ", ".join(capability.hosts)
        yield f"allow: {hosts}, port {', '.join(capability.ports or ('443',))}"
    yield from (f"refuse: {c.text.partition(': ')[2] or 'everything'}" for c in policy.refused)
    yield "always refused: addresses that are not public, whatever name leads to them"
