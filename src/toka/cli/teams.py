"""The team files that `toka init` writes: templates of the package, filled in with what was found."""

from __future__ import annotations

import json
from importlib.resources import files
from typing import Final

from toka.cli.detect import Found
from toka.cli.text import clean

RESULT: Final = "toka-report/tests.txt"
PASSED: Final = f"tail -n 1 {RESULT} | grep -qx 'exit 0'"


def starter_team() -> str:
    """A first team for an empty directory, as the text of a team file."""
    return _template("starter")


def project_team(found: Found | None) -> str:
    """A team for a project, as the text of a team file.

    When the sandbox has what the test command needs, the tests must pass; else the team records why they did not run.
    """
    text = _template("project")
    for name, value in (_unknown() if found is None else _known(found)).items():
        text = text.replace(f"@{name}@", value)
    return text


def _known(found: Found) -> dict[str, str]:
    run = [f"{found.command} > {RESULT} 2>&1", f'echo "exit $?" >> {RESULT}']
    origin = f"The command comes from {clean(found.source)}."
    title, objective, check = f"Run the tests: {found.command}", "The tests pass", PASSED
    if found.missing:
        reason = f"not run: {found.missing}"
        run = [f"if {found.there}; then", *(f"  {line}" for line in run), "else", f"  echo '{reason}' > {RESULT}", "fi"]
        origin += f" Not possible yet: {found.missing}. When it is, make this the check: {PASSED}"
        title = f"Say why the tests do not run: {found.missing}"
        objective, check = "What the tests said, or why they did not run, is on record", f"test -s {RESULT}"
    return {
        "ORIGIN": origin,
        "OBJECTIVE": objective,
        "CHECK": json.dumps(check),
        "TITLE": json.dumps(title),
        "RUN": _block([*run, f"tail -n 20 {RESULT}"]),
        "GRANT": "write" if found.writes else "read",
    }


def _unknown() -> dict[str, str]:
    reason = "not run: no test command was found; write yours into the tester of agents/team.yaml"
    return {
        "ORIGIN": f"No test command was found. Write yours into `run`, and make this the check: {PASSED}",
        "OBJECTIVE": "It is on record why the tests did not run",
        "CHECK": json.dumps(f"test -s {RESULT}"),
        "TITLE": "Run the tests",
        "RUN": _block([f"echo '{reason}' > {RESULT}", f"cat {RESULT}"]),
        "GRANT": "read",
    }


def _block(lines: list[str]) -> str:
    return "\n".join(" " * 6 + line.replace("${", "$${") for line in lines)


def _template(name: str) -> str:
    return (files("toka") / "cli" / "templates" / f"{name}.yaml").read_text("utf-8")
