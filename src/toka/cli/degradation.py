"""What happens when something is missing: one row for each thing, as `toka explain degradation` prints it. Pure.

docs/degradation.md is made from this table, and a test takes each thing away for real and looks for the row's line.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

WIDTH: Final = 100
HEAD: Final = """\
# What happens when something is missing

Made by `toka explain degradation --markdown`; a test holds it to the code, and for each row a test takes the thing away
and looks for the line and the exit code. Words in <angle brackets> differ from case to case. `toka doctor` says what a
machine lacks before anything is started. What exit codes mean: [command line](cli.md#exit-codes).
"""
_TABLE: Final = ("| missing | what still works | what you see | exit code |", "| --- | --- | --- | --- |")
_BLANK: Final = re.compile(r"<[a-z ]+>")


@dataclass(frozen=True, slots=True)
class Row:
    """What one missing thing means.

    Attributes:
        name: one word for it.
        group: what it belongs to.
        missing: what is not there.
        works: what still works.
        command: with which command the line below shows.
        seen: the line that shows, with what differs in angle brackets; empty = nothing does.
        exit_code: that the command ends with.
    """

    name: str
    group: str
    missing: str
    works: str
    command: str
    seen: str
    exit_code: int

    def line(self, values: Mapping[str, str]) -> re.Pattern[str]:
        """What a whole line of output must match.

        Args:
            values: what stands for the words in angle brackets; the others stand for any text.
        """
        pieces: list[str] = []
        at = 0
        for blank in _BLANK.finditer(self.seen):
            value = values.get(blank[0][1:-1])
            pieces += [re.escape(self.seen[at : blank.start()]), ".+" if value is None else re.escape(value)]
            at = blank.end()
        return re.compile(f"^ *{''.join(pieces)}{re.escape(self.seen[at:])} *$", re.MULTILINE)


_SANDBOX: Final = "The sandbox"
_LIMITS: Final = "Limits"
_KEPT: Final = "Checkpoints"
_MODEL: Final = "Models"
_TEAM: Final = "The team and its workspace"
_STATE: Final = "The record"
_OUT: Final = "Who looks on"
_LOOKING: Final = "validate, plan, ps, show, events; no agent runs and none is half-started"
_RECORDED: Final = "nothing starts; runs that are recorded elsewhere can be looked at with --state"

ROWS: Final = (
    Row(
        "bubblewrap", _SANDBOX, "bubblewrap (bwrap)", f"{_LOOKING}; the level reduced, for who asks for it by name",
        "toka run", "toka: bwrap (bubblewrap) is not installed", 4,
    ),
    Row(
        "namespaces", _SANDBOX, "user namespaces, as a kernel setting or a container's filter refuses them",
        f"{_LOOKING}; the level reduced, for who asks for it by name", "toka run",
        "help: allow user namespaces: `sysctl kernel.unprivileged_userns_clone=1` (Debian), "
        "`sysctl user.max_user_namespaces=10000`, or an AppArmor profile for /usr/bin/bwrap "
        "(Ubuntu; see `sysctl kernel.apparmor_restrict_unprivileged_userns`)", 4,
    ),
    Row(
        "landlock", _SANDBOX, "Landlock in the kernel", _LOOKING, "toka run",
        "toka: the sandbox needs Landlock, which this kernel has not", 4,
    ),
    Row(
        "python", _SANDBOX, "/usr/bin/python3, which runs inside the sandbox", _LOOKING, "toka run",
        "toka: /usr/bin/python3 is missing; it runs inside every sandbox", 4,
    ),
    Row(
        "id-mapping", _SANDBOX, "id-mapped mounts, where root works in an overlay or the like",
        f"{_LOOKING}; all, for an ordinary user", "toka run",
        "toka: the workspace's owner cannot be mapped to another user id: <why>", 4,
    ),
    Row(
        "linux", _SANDBOX, "Linux", "validate, plan, ps, show and events; agents run in a Linux machine or container",
        "toka run", "toka: agents run on Linux; this is <system>", 4,
    ),
    Row(
        "program", _SANDBOX, "a program that an agent is granted", "nothing starts; without it in the spec, everything",
        "toka run", 'error[TK4204]: the program "<program>" is not installed', 3,
    ),
    Row(
        "cgroup", _LIMITS, "cgroups", "everything; limits of memory and processors are best effort",
        "toka doctor", "toka: level full: agents can run here; best effort: limits of memory, cpu, pids", 0,
    ),
    Row(
        "cgroup-shown", _LIMITS, "cgroups, for an agent with such a limit",
        "the agent runs; its memory is looked at 20 times a second, its processor time has a lower priority",
        "toka plan", "held      memory: best effort, looked at 20 times a second while commands run (<why>)", 0,
    ),
    Row(
        "strict", _LIMITS, "what holds a limit, for an agent with enforcement: strict",
        "nothing starts; without strict, the limit is best effort", "toka run",
        "toka: <spec>: agent <agent> asks for strict limits, and these cannot be given here: max_disk_usage <limit> is "
        "best effort (counted while commands run; RLIMIT_FSIZE for one file): no quota of a file system holds it", 4,
    ),
    Row(
        "git", _KEPT, "git", "everything but git tools, toka diff and toka rollback; a command that a crash cuts off "
        "is not run again by itself", "toka run",
        "toka: git is not installed: the workspace is not kept before commands; after a crash in the middle of one a "
        "person is asked", 0,
    ),
    Row(
        "git-access", _KEPT, "git, for an agent with git-access", "the agent runs; its git tools answer with an error",
        "toka run", "toka: git is not installed: <agent> has git-access and cannot use it", 0,
    ),
    Row(
        "quota", _KEPT, "room under checkpoint_quota for the workspace",
        "everything; from there on, a command that a crash cuts off is not run again by itself", "toka run",
        "<time>  0/1        the workspace is not kept before commands: the checkpoint does not fit: its store may have "
        "<quota> bytes, <used> are used; after a crash in the middle of one a person is asked", 0,
    ),
    Row(
        "checkpoint-disk", _KEPT, "room on the disk of the state directory for a checkpoint",
        "everything, as long as the record itself has room", "toka show",
        "the workspace is not kept before commands: the checkpoint does not fit: No space left on device; after a "
        "crash in the middle of one a person is asked", 0,
    ),
    Row(
        "model", _MODEL, "a model, for every agent of the team", "agents whose tasks are commands; scripts, with "
        "--model scripted:FILE", "toka run", "toka: no model found", 4,
    ),
    Row(
        "model-of-one", _MODEL, "a model, for one agent of several", "the others run; the agent is SKIPPED", "toka run",
        "toka: no model: <agent> will be skipped", 0,
    ),
    Row(
        "server", _MODEL, "the server of a model: nobody listens at its port", "agents of other models, in other runs",
        "toka run", "toka: no model server answers at <address>: connection refused", 4,
    ),
    Row(
        "server-gone", _MODEL, "the server of a model, from the middle of a run on",
        "each call is tried 4 times, each task as often as task_retries says; then the agent has FAILED, what was done "
        "stays done, and toka retry goes on from there", "toka run",
        "<agent>: task <task>: <model>: <address>: connection refused", 1,
    ),
    Row(
        "price", _MODEL, "the price of a model, for an agent with max_cost", "nothing starts; with the price in "
        "toka.toml, or without max_cost, everything", "toka run",
        "error[TK6002]: max_cost cannot be held: the price of <model> is unknown", 3,
    ),
    Row(
        "price-unlimited", _MODEL, "the price of a model, without max_cost", "everything; what it cost is not known",
        "toka run", "<tokens> in 1 model call, 0 tool calls, cost unknown", 0,
    ),
    Row(
        "secret", _MODEL, "a secret that a spec names", "nothing starts", "toka run",
        "toka: <place>: ${secret:TOKEN} is not there: no settings name it", 4,
    ),
    Row(
        "required", _TEAM, "an agent that another one requires", "nothing starts", "toka run",
        'error[TK3001]: required agent "<agent>" is not part of this set', 3,
    ),
    Row(
        "optional", _TEAM, "an agent that another one depends on as optional", "everything; the agent does not wait",
        "toka plan", 'note      TK3002 optional agent "<agent>" is not part of this set (line <line>)', 0,
    ),
    Row(
        "optional-failed", _TEAM, "the work of an optional agent, which has failed",
        "the agent that names it runs; the run has FAILED all the same", "toka run",
        "<agent>: task a: `false` exited with 1", 1,
    ),
    Row(
        "workspace", _TEAM, "the workspace's folder", "nothing starts", "toka run",
        "toka: workspace <workspace> is not a directory", 2,
    ),
    Row(
        "directory", _TEAM, "the directory in which the command is given", "nothing", "toka run",
        "toka: the current directory is no longer there", 2,
    ),
    Row(
        "state", _STATE, "the right to write to the state directory", _RECORDED, "toka run",
        "toka: cannot use the state directory <state>: Read-only file system", 4,
    ),
    Row(
        "state-full", _STATE, "room for the record, from the start", "nothing starts", "toka run",
        "toka: journal <journal>: database or disk is full", 75,
    ),
    Row(
        "state-filled", _STATE, "room for the record, in the middle of a run",
        "what is recorded stays; toka resume goes on once there is room", "toka run",
        "help: free some space on that disk; nothing recorded is lost, and the run can be resumed", 75,
    ),
    Row(
        "journal", _STATE, "a journal that can be read: the file is damaged or none", f"{_RECORDED}; the file stays as "
        "it is", "toka run", "toka: journal <journal>: file is not a database", 4,
    ),
    Row(
        "version", _STATE, "a Toka that knows the journal's form", f"{_RECORDED}; the file stays as it is", "toka run",
        "toka: journal <journal> was written by a newer Toka (form <form>, this one knows <known>)", 4,
    ),
    Row(
        "network-disk", _STATE, "a disk of this machine for the record, as its directory is on a network file system",
        "runs, with a warning, as long as no other machine uses the directory", "toka doctor",
        "got: <state> is on <kind>, a network file system", 4,
    ),
    Row(
        "socket", _STATE, "the socket that tells a running process of a request, as a long path leaves no room for it",
        "everything; a pause takes effect within a second, when the process looks at the record", "toka pause",
        "paused: <agent>", 0,
    ),
    Row(
        "webhook", _OUT, "who listens to a channel's webhook",
        "everything; its reports are tried 4 times, then counted", "toka run",
        "toka: channel <channel>: webhook: 1 report was not delivered: connection refused", 0,
    ),
    Row(
        "terminal", _OUT, "a terminal", "everything; one line for each change in place of the live view", "toka run",
        "<time>  1/1        run completed", 0,
    ),
    Row(
        "width", _OUT, "room on the terminal: 30 columns", "everything; the live view cuts what does not fit",
        "toka run", "<agent>  COMPLETED  1/1 tasks", 0,
    ),
    Row(
        "stdout", _OUT, "room where stdout goes", "what is recorded stays; toka resume goes on with a run", "toka run "
        "--json", "toka: stdout cannot be written: No space left on device; nothing recorded is lost", 141,
    ),
    Row(
        "reader", _OUT, "who reads stdout", "what is recorded stays; toka resume goes on with a run", "toka run --json",
        "", 141,
    ),
)  # fmt: skip
"""In the order in which they are shown."""


def text() -> str:
    """The table for a terminal."""
    out: list[str] = []
    for group in dict.fromkeys(row.group for row in ROWS):
        out += [group, ""]
        for row in (row for row in ROWS if row.group == group):
            out += [
                f"  missing  {_filled(row.missing)}",
                f"  works    {_filled(row.works)}",
                f"  seen     {row.command}: {row.seen or 'nothing'}",
                f"  exit     {row.exit_code}",
                "",
            ]
    return "\n".join(out).rstrip()


def markdown() -> str:
    """The text of docs/degradation.md."""
    out = [HEAD]
    for group in dict.fromkeys(row.group for row in ROWS):
        out += [f"## {group}\n", *_TABLE]
        for row in (row for row in ROWS if row.group == group):
            seen = f"`{row.command}`: {_code(row.seen)}" if row.seen else f"`{row.command}`: nothing"
            cells = (row.missing, row.works, seen, str(row.exit_code))
            out.append(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |")
        out.append("")
    return "\n".join(out)


def _code(line: str) -> str:
    """A line as code in Markdown, with backquotes of its own or not."""
    fence = "``" if "`" in line else "`"
    return f"{fence}{re.sub(' +', ' ', line)}{fence}"


def _filled(words: str) -> str:
    return textwrap.fill(words, WIDTH - 11, subsequent_indent=" " * 11)
