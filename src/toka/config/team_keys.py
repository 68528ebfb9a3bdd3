"""The keys of a team file, each with what it means and an example: for the reader, the JSON Schema and the manual."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from toka.config.faults import path_text


@dataclass(frozen=True, slots=True)
class Key:
    """One key.

    Attributes:
        description: what it means, one or two sentences.
        example: a value, as plain data.
        default: what holds without it, in words; empty when nothing does.
    """

    description: str
    example: Any
    default: str = ""


VERSION: Final = "1"
"""The version of the format: the value of `toka`."""

TEAM: Final[Mapping[str, Key]] = {
    "toka": Key("Says that this is a team file, and the version of the format: 1.", 1),
    "name": Key("What people call the team.", "Nightly repairs"),
    "description": Key("What the team is for.", "Finds failing tests and repairs them."),
    "inputs": Key("Values that a person may give with --input NAME=VALUE; texts name them as ${inputs.NAME}.",
                  {"area": {"type": "string", "default": "tests/", "description": "Where to look."}}, "none"),
    "defaults": Key("What holds for every agent of this file. A key of the agent wins; grants, limits and env are "
                    "merged key by key.", {"grants": {"read": ["."]}, "limits": {"time": "30m"}}, "nothing"),
    "agents": Key("The agents, by name. A name has 1 to 100 letters, digits, '_' and '-', and is not item, inputs, "
                  "secret or model.", {"survey": {"run": "wc -l *.py", "grants": {"read": ["."], "run": ["wc"]}}}),
    "include": Key("Further team files, agent specs and folders of them, relative to this file. Each has its own "
                   "defaults; inputs of this file reach those of the same name.", ["lint.yaml", "agents/"], "nothing"),
    "workspace": Key("The directory the agents work on, relative to this file, unless --workspace names one.", ".",
                     "the current directory"),
}  # fmt: skip

INPUT: Final[Mapping[str, Key]] = {
    "type": Key("string, integer, number, boolean or list.", "string", "the type of the default, else string"),
    "default": Key("Its value when none is given. Without it, one must be given.", "tests/"),
    "description": Key("What it means.", "Where to look."),
}

AGENT: Final[Mapping[str, Key]] = {
    "description": Key("What the agent is for, in prose; its model reads it.", "Repairs one failing test."),
    "title": Key("What people call it.", "Repairer", "its name"),
    "priority": Key("critical, high, medium or low: among agents that could start, who goes first.", "high", "medium"),
    "domain": Key("Its field, which chooses the prompt template.", "quality-assurance", "general"),
    "model": Key("PROVIDER:MODEL or auto.", "auto", "the settings' model"),
    "restart": Key("never, on_failure (after a crash) or always (also when it failed): when it is started again.",
                   "never", "on_failure"),
    "workspace": Key("shared, worktree (a clone of its own; its branch comes back when it is done) or copy: where it "
                     "works.", "worktree", "shared"),
    "goal": Key("What a model is to do: one task. With a check, the goal is done when the check passes. An agent has "
                "one of goal, run and tasks.", "Make ${item} pass without touching tests."),
    "run": Key("A command of /bin/sh that is the whole task, or the words of one; no model is asked. Its exit code is "
               "that of the last command: begin several with set -e. A reference in it is one word of data, whatever "
               "the value holds.", "python3 -m unittest discover -s ${inputs.area}"),
    "tasks": Key("Several tasks, as in a spec: a list, or {default: [...], conditional: {GROUP: [...]}}.",
                 [{"id": "count", "run": "wc -l *.py"}, "Explain the figure."]),
    "check": Key("A command that proves that the goal is reached: it exits 0. Text, words, or "
                 "{run, expect_exit, timeout}.", "python3 -m unittest ${item}", "none: the goal is only claimed"),
    "checks": Key("Further checks.", ["make lint", {"run": "make test", "timeout": "10m"}], "none"),
    "grants": Key("What it may touch. What is not granted is denied.", {"read": ["."], "write": ["src/"]}, "nothing"),
    "limits": Key("What it may use at most.", {"cost": "$0.40", "time": "10m", "repairs": 2}, "the settings' limits"),
    "needs": Key("Agents that must be done before: a name, a list, or {NAME: {verified, optional, reason}}. When one "
                 "is skipped or fails, this one is skipped, unless it is optional.",
                 {"survey": {"verified": True}}, "none"),
    "outputs": Key("Values that it leaves for agents that need it: ${AGENT.NAME}. Each agent has status, verified, "
                   "completed, failed, total and report without declaring them.",
                   {"failing": {"from": "stdout", "as": "lines"}}, "none"),
    "for_each": Key("A list, or a reference to one: the agent is there once for each element, which is ${item}. "
                    "Limits hold for each of these instances. They are named NAME[1], NAME[2]; with an empty list the "
                    "agent is skipped.",
                    "${survey.failing}", "the agent is there once"),
    "max_parallel": Key("How many of these work at one time.", 4, "as many as the settings allow"),
    "when": Key("References to booleans, or model.available, each with `not` before it if need be. Unless all hold, "
                "the agent is skipped.", ["${survey.broken}", "not ${inputs.dry_run}"], "always"),
    "approve": Key("A person must agree before it starts: the question, or {question, expires}.",
                   "Merge ${fix.verified} repairs?", "nobody is asked"),
    "env": Key("Variables of its commands. ${secret:NAME} is a secret, which the settings keep.",
               {"GH_TOKEN": "${secret:github}"}, "none"),
    "references": Key("false: ${...} in its texts is text, as the shell's own variables are.", False, "true"),
    "retries": Key("How often its tasks are tried again, where they do not say.", 1, "the settings' value"),
    "timeout": Key("How long each of its tasks may take, where they do not say.", "10m", "the settings' value"),
    "sandbox": Key("false asks to run without a sandbox, where the settings allow it.", True, "true"),
    "enforcement": Key("strict: refuse to start where the machine cannot enforce every limit.", "strict",
                       "best-effort"),
    "metadata": Key("The section metadata of a spec. Its `name`, if any, is the agent's name instead of the key.",
                    {"version": "v1.0.0"}, "nothing"),
    "spec": Key("The section spec of a spec, for keys that have no short form.", {"owner": "release team"}, "nothing"),
    "objectives": Key("The section objectives of a spec; what goal and checks make comes first.",
                      [{"description": "All is documented", "deliverable": "docs/"}], "none"),
    "capabilities": Key("What it is good at; grants nothing.", {"primary": ["Python"]}, "nothing"),
    "dependencies": Key("The section dependencies of a spec, beside needs.", {"optional": {"lint": "Style"}}, "none"),
    "reporting": Key("How and where it reports.", {"metrics": [{"name": "repaired"}]}, "nothing"),
    "security": Key("The section security of a spec, beside grants and limits.",
                    {"capabilities_required": ["filesystem-read"]}, "nothing"),
    "flow": Key("The section flow of a spec, beside outputs, for_each, when, approve and env.",
                {"inputs": {"depth": 2}}, "nothing"),
    "behavioral_directives": Key("Instructions for its model, by topic.", {"style": ["Keep changes small"]}, "none"),
    "risk_mitigation": Key("What may go wrong; its model reads it.", {"monitoring": ["Size of the change"]}, "nothing"),
    "success_criteria": Key("Prose criteria by phase: claimed, never verified.", {"release": ["Notes are clear"]},
                            "none"),
    "extensions": Key("Further sections, by name; they are shown to the agent.", {"team_notes": {"contact": "ops"}},
                      "none"),
}  # fmt: skip

DEFAULTS: Final = (
    "model", "grants", "limits", "env", "retries", "timeout", "priority", "domain", "enforcement", "restart",
    "workspace", "references",
)  # fmt: skip
"""The keys of an agent that `defaults` may hold."""

GRANTS: Final[Mapping[str, Key]] = {
    "read": Key("Paths that it may read, with everything below; true = the whole workspace.", ["."]),
    "write": Key("Paths that it may read and write, with everything below; true = the whole workspace. What is not "
                 "there is created: a file, empty, where the name has an extension, else a folder.", ["src/"]),
    "run": Key("Programs that its model may run; true = every program of the system. Commands that are written in the "
               "file itself, in run and check, need no grant.", ["python3", "git"]),
    "network": Key("Hosts that it reaches through the proxy, on port 443; true = every public host. With ports: "
                   "{hosts: [...], ports: [...]}.", ["pypi.org"]),
    "git": Key("commit or true: the repository may be written, and the git tool commits. read: the whole workspace may "
               "be read, which git needs to look.", "commit"),
    "python": Key("python-execution: Python programs.", True),
    "cargo": Key("cargo-execution: cargo, and what builds call.", True),
    "node": Key("node-execution: node, npm and npx.", True),
    "make": Key("make-execution: make, and what makefiles call.", True),
    "script": Key("script-execution: shells and the usual small programs.", True),
    "database": Key("database-access: sqlite3 and psql; {hosts: [...]} for servers.", True),
    "github-api": Key("github-api-access: api.github.com; a key from the settings is added outside the sandbox.", True),
}  # fmt: skip
"""Short names of capabilities; every other key is the name of a capability itself."""

LIMITS: Final[Mapping[str, tuple[str, Key]]] = {
    "cost": ("max_cost", Key("US dollars for model calls.", "$1")),
    "time": ("timeout", Key("Wall time while it runs.", "30m")),
    "memory": ("max_memory", Key("Memory of all its processes.", "1GB")),
    "cpu": ("max_cpu", Key("Processor time: a share of one core, or cores.", "75%")),
    "tokens": ("max_tokens", Key("Input and output tokens together.", "200k")),
    "processes": ("max_processes", Key("Processes and threads at one time.", 64)),
    "disk": ("max_disk_usage", Key("Bytes written.", "1GB")),
    "output": ("max_output", Key("Output kept of one command.", "1MB")),
    "calls": ("max_model_calls", Key("Model calls.", 40)),
    "tool_calls": ("max_tool_calls", Key("Tool calls.", 100)),
    "bandwidth": ("max_network_bandwidth", Key("Bandwidth of its network traffic.", "100Mbps")),
    "traffic": ("max_network_usage", Key("Bytes sent and received.", "500MB")),
    "repairs": ("", Key("How often a failing check goes back to the model.", 2)),
}
"""Each with its key in `security.resource_limits`; `repairs` is one of `flow`."""

NEED: Final[Mapping[str, Key]] = {
    "verified": Key("All its objectives must be verified, not claimed.", True, "false"),
    "optional": Key("Waited for when it is there; its failure does not matter.", True, "false"),
    "reason": Key("Why, in prose.", "The list of tests comes from it.", "none"),
}
OUTPUT: Final[Mapping[str, tuple[str, Key]]] = {
    "from": ("source", Key("stdout: what its last command printed. file: a file of the workspace. report: its model "
                           "says it.", "stdout")),
    "as": ("type", Key("text, lines (a list of the lines that are not empty), integer, number, boolean (true or "
                       "false), list (of JSON) or json.",
                       "lines", "text")),
    "path": ("path", Key("The file, relative to the workspace.", "out/failing.json")),
    "description": ("description", Key("What it is; the model that reports it reads this.", "Tests that fail.")),
}  # fmt: skip
"""Each with its key in `flow.outputs`."""


def team_path(path: Sequence[str | int]) -> str:
    """How a team file calls a place in the canonical spec: `limits.cost`, `outputs.failing.as`, `tasks[2].retries`."""
    match tuple(path):
        case ("flow", "outputs", name, str(key)):
            return f"outputs.{name}.{next((short for short, (long, _) in OUTPUT.items() if long == key), key)}"
        case ("flow", "repairs"):
            return "limits.repairs"
        case ("flow" | "spec", *rest) if rest:
            return path_text(rest)
        case ("security", "resource_limits", key):
            return f"limits.{next((short for short, (long, _) in LIMITS.items() if long == key), key)}"
        case ("tasks", "default", *rest) if rest:
            return path_text(["tasks", *rest])
        case ():
            return "the agent"
        case _:
            return path_text(path)
