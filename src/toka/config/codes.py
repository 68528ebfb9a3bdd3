"""The stable table of finding codes, as data: what `toka explain CODE` prints.

TK1 syntax, TK2 schema, TK3 dependencies, TK4 capabilities, TK5 limits and budgets, TK6 models. A code never changes
its meaning and is never reused.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal

Severity = Literal["error", "warning", "note"]


@dataclass(frozen=True, slots=True)
class Code:
    """One code.

    Attributes:
        title: a few words.
        explanation: one paragraph: what is meant, why it matters, what to do.
        severity: what a finding of this code is unless the place says otherwise.
    """

    title: str
    explanation: str
    severity: Severity = "error"


FAMILIES: Final[Mapping[str, str]] = {
    "TK1": "syntax",
    "TK2": "schema",
    "TK3": "dependencies",
    "TK4": "capabilities",
    "TK5": "limits and budgets",
    "TK6": "models",
}
"""What the first digit of a code says."""

CODES: Final[Mapping[str, Code]] = {
    "TK1001": Code(
        "not valid YAML",
        "The text breaks the grammar of YAML, so nothing after this place could be read. The usual causes are "
        "indentation that does not line up, a missing space after a colon, a tab used as indentation, and a colon or "
        "a quote inside unquoted text. Correct the place that is shown and validate again.",
    ),
    "TK1002": Code(
        "not UTF-8",
        "Specs and settings are UTF-8 text. This file is in another encoding (often UTF-16 from a Windows editor) or "
        "is not text at all. Save it as UTF-8. A byte order mark at the start of a UTF-8 file is skipped with a note.",
    ),
    "TK1003": Code(
        "forbidden character",
        "The text holds a character that programs show or count differently: NUL, a control character, a lone "
        "carriage return, or a Unicode line separator. Such a character can hide a line from the person who reviews "
        "the file. Remove it; inside double quotes it may be written as an escape such as \\u2028.",
    ),
    "TK1004": Code(
        "too large",
        "A spec may have 1 MB of text and 50,000 values. Real specs have a hundredth of that; the bound keeps a "
        "broken or hostile file from using up the machine. Split the file, or move data that is not configuration "
        "into the workspace.",
    ),
    "TK1005": Code(
        "nested too deep",
        "Lists and mappings may be nested 64 levels deep. The bound is checked while the text is read, because "
        "deeper documents crash YAML libraries. Flatten the structure.",
    ),
    "TK1006": Code(
        "duplicate key",
        "The same key stands twice in one mapping. YAML libraries keep one of the two silently, and people and "
        "programs disagree about which. Remove one of them.",
    ),
    "TK1007": Code(
        "look-alike key",
        "The key holds invisible characters, letters of another script that look like Latin ones, or a spelling "
        "that is not in Unicode normal form. It is not the key that it looks like. Type it again in plain letters.",
    ),
    "TK1008": Code(
        "merge key",
        "`<<` is not part of YAML 1.2. Where it is honoured, it adds keys that do not stand where they take effect, "
        "for example rights in a security section. Write the keys out; an alias for a whole value is allowed.",
    ),
    "TK1009": Code(
        "tag or directive",
        "Tags such as !!python/object or !custom and %TAG directives ask the reader to build something other than "
        "plain data. Only !!str is accepted. Remove the tag.",
    ),
    "TK1010": Code(
        "alias that cannot be used",
        "An alias must name an anchor that stands before it, must not contain itself, and all aliases of a file "
        "together may stand for 200,000 characters. Small files that expand to gigabytes are refused before they do.",
    ),
    "TK1011": Code(
        "several documents",
        "A file holds one spec. A second document (after `---` or `...`) would be ignored by some programs and used "
        "by others. Put it in a file of its own.",
    ),
    "TK1012": Code(
        "empty",
        "The file holds nothing but blank lines and comments. The smallest spec has `metadata`, `spec` and `tasks`.",
    ),
    "TK1013": Code(
        "cannot be read",
        "The path does not exist, may not be read, or is no regular file. Devices, pipes and sockets are refused "
        "before anything is read from them.",
    ),
    "TK1014": Code(
        "key is not text",
        "Keys are text. A list or mapping as a key, an empty key, and an alias as a key are refused.",
    ),
    "TK1015": Code(
        "hidden text",
        "A value holds characters that reorder or hide text on the screen (bidirectional controls, tag characters). "
        "A model reads them, a reviewer does not see them. Remove them unless they are meant.",
        "warning",
    ),
    "TK2001": Code(
        "missing",
        "A section or key that the schema requires is absent. `toka schema` prints the whole schema with "
        "descriptions; the smallest spec has `metadata.name`, `spec` and one task.",
    ),
    "TK2002": Code(
        "wrong kind of value",
        "The schema wants another kind of value here: text, a list, a mapping, true or false, a number. Note that "
        "only `true` and `false` are booleans; `no`, `yes` and `on` are text.",
    ),
    "TK2003": Code(
        "unknown key",
        "The schema does not know this key. In sections that decide what an agent may do or what it must do "
        "(security, tasks, dependencies) that is an error, because a misspelled key would silently drop a rule; "
        "elsewhere the key is kept, shown to the agent, and reported as a warning.",
    ),
    "TK2004": Code(
        "unknown word",
        "The value must be one of a fixed list of words, which the message shows.",
    ),
    "TK2005": Code(
        "invalid name",
        "Names of agents, tasks and groups have 1 to 100 letters, digits, dots, underscores and hyphens, and start "
        "with a letter or a digit. They become file names, metrics and parts of keys.",
    ),
    "TK2006": Code(
        "empty, too long or too many",
        "Text and lists have generous bounds, shown in the message. A required text may not be empty.",
    ),
    "TK2007": Code(
        "duplicate task id",
        "Two tasks of one agent have the same id. Tasks without an id are called `task-N` by their place in the "
        "list (`GROUP-N` in a conditional group), which an explicit id must not repeat.",
    ),
    "TK2008": Code(
        "duplicate agent name",
        "Two specs have the same `metadata.name`. Dependencies name agents by it, so it must be unique in a run.",
    ),
    "TK2009": Code(
        "nothing to do",
        "An agent needs at least one task. Add one under `tasks.default`; a plain list under `tasks` works too.",
    ),
    "TK2010": Code(
        "unknown setting",
        "The settings do not know this key or variable. `toka config show` lists all settings with their origin.",
    ),
    "TK2011": Code(
        "wrong setting",
        "The value of a setting is not of the right kind or out of its range; the message says what is accepted.",
    ),
    "TK2012": Code(
        "secret written out",
        "Secrets are written as references, ${env:NAME} or ${file:/path}, never as values, so that files, plans and "
        "records can be shown to anybody.",
    ),
    "TK2013": Code(
        "reserved task id",
        "Ids such as `repair-1` and `objective-1` are the runtime's own: repairs and checks are recorded under them. "
        "A conditional group called `repair` or `objective` would make such ids for its tasks.",
    ),
    "TK2014": Code(
        "not a reference",
        "References are ${AGENT.OUTPUT}, ${inputs.NAME}, ${item}, ${item.KEY} and ${secret:NAME}, and nothing else: "
        "there are no expressions. For the two characters as they are write $${; in a command, $NAME is a variable of "
        "the shell.",
    ),
    "TK2015": Code(
        "reference out of place",
        "No value can stand here. In a command a value becomes one quoted word, which is impossible in single quotes, "
        "comments, here-documents, arithmetic, backquotes and the shell's own ${...}. In texts that are settled before "
        "anything runs, such as a description, only inputs are known.",
    ),
    "TK2016": Code(
        "value of the wrong type",
        "`for_each` takes a list: an output with `as: lines`, `list` or `json`, or an input of type list. `when` takes "
        "true or false: an output with `as: boolean` or `json`, or an input of type boolean; it knows no comparisons.",
    ),
    "TK2017": Code(
        "input missing, unknown or wrong",
        "A team file declares its inputs with their types. Each needs a value: `--input NAME=VALUE`, a line of "
        "`--inputs FILE`, or a default. A name that nobody declares is refused, because it may be misspelled.",
    ),
    "TK2018": Code(
        "output that cannot come",
        "An output is what the last command of the agent printed (`from: stdout`), a file of the workspace (`from: "
        "file` with `path`) or what its model reports (`from: report`). Each needs a task that can leave it.",
    ),
    "TK2019": Code(
        "no such number of instances",
        "`for_each` makes an agent of each element: 1 to 1,000 of them. `max_parallel` bounds how many work at one "
        "time, and means nothing without `for_each`.",
    ),
    "TK2020": Code(
        "reserved name",
        "The name has a meaning of its own. Agents of a team file are not called item, inputs, secret or model, and "
        "have no dot in their names; outputs are not called like what every agent has (status, verified, completed, "
        "failed, total, report); variables that begin with TOKA_ are set by Toka.",
    ),
    "TK2021": Code(
        "team file that cannot be used so",
        "Team files are of version 1. They may include others, but none itself, and each file counts once. Where one "
        "agent is wanted, a team of several is refused.",
    ),
    "TK3001": Code(
        "unknown required agent",
        "The agent depends on one that is not part of this set of specs, so it could never start. Add the missing "
        "spec, correct the name, or move the dependency to `optional`.",
    ),
    "TK3002": Code(
        "unknown optional agent",
        "An optional dependency names an agent that is not part of this set. It is skipped.",
        "note",
    ),
    "TK3003": Code(
        "circular dependency",
        "Agents wait for each other in a circle, shown as a path, so none of them could start. Break the circle at "
        "one edge, or make one edge optional and remove the need for it.",
    ),
    "TK3004": Code(
        "unknown task",
        "`depends_on` names a task that this agent does not have, so the waiting task could never start. Correct the "
        "id; tasks without one are called task-N by their place.",
    ),
    "TK3005": Code(
        "circular tasks",
        "Tasks of one agent wait for each other in a circle, shown as a path, so none of them could start. Break the "
        "circle at one edge.",
    ),
    "TK3006": Code(
        "verified dependency on claims",
        "The dependency asks for verified success, but the agent it names has objectives without a `check`. Such "
        "objectives can only be claimed, never verified, so the edge may never open.",
        "warning",
    ),
    "TK3007": Code(
        "task in a conditional group",
        "`depends_on` names a task of a conditional group. When that group is not enabled, the task does not exist.",
        "warning",
    ),
    "TK3008": Code(
        "unknown agent in a reference",
        "`${AGENT.OUTPUT}` names an agent that is not part of this team. Correct the name, or add the agent.",
    ),
    "TK3009": Code(
        "unknown output",
        "`${AGENT.OUTPUT}` names a value that the agent does not declare. Declare it under the agent's `outputs`, or "
        "use one that every agent has: status, verified, completed, failed, total, report.",
    ),
    "TK3010": Code(
        "value of an agent that is not waited for",
        "A value is there when its agent is done, so the agent that names it has to wait for that one, directly or "
        "through others. Add it to `needs`. Nor can an agent use a value of its own.",
    ),
    "TK3011": Code(
        "element without for_each",
        "`${item}` is the element that an instance is for. An agent has instances when it has `for_each`.",
    ),
    "TK4001": Code(
        "grants nothing",
        "The capability stands for nothing: nobody defines its name, or its arguments leave nothing of it. The "
        "agent runs without it. Use a known name, or define it under [capabilities] in the settings.",
        "warning",
    ),
    "TK4002": Code(
        "grants more than it seems",
        "The capability is wider than its name suggests; the message says what it includes. Narrow it by arguments.",
        "warning",
    ),
    "TK4003": Code(
        "malformed argument",
        "An argument of a capability is not a workspace path, a host name, a program's file name or a TCP port. "
        "Paths are relative to the workspace and cannot leave it.",
    ),
    "TK4004": Code(
        "empty grant",
        "Nothing in `capabilities_required` grants anything, so the agent can neither read a file nor run a "
        "command; its tasks can only produce text.",
        "warning",
    ),
    "TK4005": Code(
        "no sandbox asked for",
        "`sandbox: false` asks to run an agent without its sandbox. It gets one all the same, unless the operator has "
        "set `allow_unsandboxed = true` in their own config.toml (or TOKA_ALLOW_UNSANDBOXED=1); a project's "
        "toka.toml cannot. Where it is honoured, the agent's commands can do whatever you can, and the record says so.",
        "warning",
    ),
    "TK4006": Code(
        "value that would decide what is granted",
        "A value that comes from a model or a tool cannot decide what an agent may touch, use or reach: paths, hosts, "
        "programs, limits, models, secrets, and which agents come before. Otherwise whoever writes what a tool reads "
        "could widen the grant. Write it out, or make it an input, which a person gives.",
    ),
    "TK4007": Code(
        "secret out of place",
        "A secret is named in the values of `env` and nowhere else: in a prompt, a command line or a path it would be "
        "read by others. Give it to the commands as a variable, and let them read that.",
    ),
    "TK4009": Code(
        "secret written out",
        "The value of a variable that is a secret by its name stands in the file, where everybody who reads the "
        "project reads it. Name it in your own settings under [secrets], and write ${secret:NAME} here.",
        "warning",
    ),
    "TK4201": Code(
        "path that is not there",
        "A granted path does not exist in the workspace, so the agent would not see it. Create it, correct it, or "
        "depend on an agent that may write it. Nor is it there for an agent if it is a symbolic link or leads through "
        "one: where that leads could change while agents work. Grant what it leads to.",
    ),
    "TK4202": Code(
        "workspace that is a link",
        "The workspace is a symbolic link. Where it leads to could change while agents work on it. Name the folder "
        "itself; links in the folders above it are followed.",
    ),
    "TK4203": Code(
        "path that cannot be protected",
        "Git hooks and settings, editor settings, workflows and specs stay as they are in a writable workspace. A "
        "symbolic link in such a place, or a file where a folder belongs, cannot be protected, so no sandbox would "
        "start. A `.git` that is a file (a worktree, a submodule) keeps its repository elsewhere: use the main "
        "checkout.",
    ),
    "TK4204": Code(
        "program that is not installed",
        "A program that the spec lists is not installed where sandboxes look for programs. Install it, or take it out "
        "of the list. For a preset, which lists what is usual, this is a note.",
    ),
    "TK4205": Code(
        "writing inside a repository",
        "Paths in `.git` may not be granted for writing: git executes its hooks and takes orders from its settings, "
        "outside the sandbox. Ask for `git-access`, which opens the rest of the repository.",
    ),
    "TK4206": Code(
        "toolchain that cannot be used",
        "A folder under `toolchains` in your settings' [tools] is not there, holds no `bin` folder, is reached through "
        "a symbolic link, or meets the workspace. Install it, write the folder that the link leads to, or take it out.",
    ),
    "TK4207": Code(
        "output out of reach",
        "An output is read from a file of the workspace that its agent was not granted, so it would never come. Grant "
        "the file or its folder: `write` where the agent makes it, `read` where it is there.",
    ),
    "TK4208": Code(
        "secret that nobody has",
        "A spec names a secret that your settings do not name, so no run would start. Write under [secrets] in your "
        "own config.toml where it is kept: an environment variable or a file.",
    ),
    "TK4209": Code(
        "private workspace that cannot be made",
        "`workspace: worktree` needs a repository of git with a commit, and a branch of the agent's own. Say `copy`.",
    ),
    "TK5001": Code(
        "malformed quantity",
        "Sizes, times, rates, money and CPU shares are written in one fixed form each, shown in the message. Units "
        "are as in the examples: MB = 1024 * 1024 bytes, 75% = three quarters of one core.",
    ),
    "TK5002": Code(
        "task may outlast its agent",
        "A task's timeout is longer than the timeout of the whole agent, so it can never be reached.",
        "warning",
    ),
    "TK5003": Code(
        "limit that nothing can live with",
        "The limit is so small that no process could start under it, or out of the range that can be enforced. Memory "
        "has to be 20MB or more: a sandbox's own processes and one small command take up to 16MB.",
    ),
    "TK6001": Code(
        "no such model",
        "A model is written as `provider:model`, such as `openai:NAME`, or as `auto`, and the provider is one that "
        "Toka knows; the message says which there are. `scripted:FILE` names a file that can be read.",
    ),
    "TK6002": Code(
        "cost limit without a price",
        "A limit in dollars can be held only when the model's price is known. Give the price in the settings, under "
        '`[pricing."PROVIDER:MODEL"]`, or limit tokens instead.',
    ),
    "TK6101": Code(
        "mistake in a script",
        "A scripted model reads its replies from a YAML or JSON file: `script: 1`, then `agents`, below each agent its "
        "tasks, and below each task a list of replies with `say`, `calls`, `report` or `error`.",
    ),
}
"""Every code there is."""
