"""Findings for people's other programs: JSON, GitHub annotations, SARIF. Pure."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from toka.cli.text import some
from toka.config.codes import CODES
from toka.config.diagnostics import Finding, visible
from toka.version import __version__

SARIF_SCHEMA = "https://json.schemastore.org/sarif-2.1.0.json"


def counted(specs: int, findings: Sequence[Finding], agents: int | None = None) -> str:
    """`12 specs, 2 errors, 1 warning`; notes only when there are some.

    Args:
        specs: files.
        findings: about them.
        agents: how many these hold, where that is known: `1 file, 3 agents` when a file holds several.
    """
    several = agents is not None and agents > specs
    parts = [
        f"{some(specs, 'file')}, {some(agents or 0, 'agent')}" if several else some(specs, "spec"),
        some(_count(findings, "error"), "error"),
        some(_count(findings, "warning"), "warning"),
    ]
    notes = _count(findings, "note")
    return ", ".join([*parts, some(notes, "note")] if notes else parts)


def as_json(findings: Sequence[Finding]) -> dict[str, Any]:
    """Findings with their counts."""
    return {
        "errors": _count(findings, "error"),
        "warnings": _count(findings, "warning"),
        "notes": _count(findings, "note"),
        "findings": [f.to_json() for f in findings],
    }


def github(findings: Sequence[Finding]) -> list[str]:
    """Workflow commands of GitHub Actions, which it shows beside the lines they are about."""
    out: list[str] = []
    for finding in findings:
        places = {"file": finding.file}
        if finding.line:
            places |= {"line": str(finding.line), "col": str(finding.column)}
            places["endColumn"] = str(finding.end_column)
        places["title"] = f"{finding.code} {CODES[finding.code].title}" if finding.code in CODES else finding.code
        level = "notice" if finding.severity == "note" else finding.severity
        properties = ",".join(f"{key}={_property(value)}" for key, value in places.items())
        out.append(f"::{level} {properties}::{_data(_message(finding))}")
    return out


def sarif(findings: Sequence[Finding]) -> str:
    """A SARIF 2.1.0 log, which code scanners and editors read."""
    rules = [
        {
            "id": code,
            "shortDescription": {"text": CODES[code].title},
            "fullDescription": {"text": CODES[code].explanation},
            "defaultConfiguration": {"level": CODES[code].severity},
        }
        for code in sorted({f.code for f in findings if f.code in CODES})
    ]
    driver = {"name": "toka", "version": __version__, "rules": rules}
    results = [
        {
            "ruleId": f.code,
            "level": f.severity,
            "message": {"text": visible(_message(f))},
            "locations": [{"physicalLocation": _location(f)}],
        }
        for f in findings
    ]
    run = {"tool": {"driver": driver}, "columnKind": "unicodeCodePoints", "results": results}
    return json.dumps({"$schema": SARIF_SCHEMA, "version": "2.1.0", "runs": [run]}, indent=2)


def _location(finding: Finding) -> dict[str, Any]:
    path = Path(finding.file)
    uri = path.as_uri() if path.is_absolute() else quote(path.as_posix())
    out: dict[str, Any] = {"artifactLocation": {"uri": uri}}
    if finding.line:
        out["region"] = {
            "startLine": finding.line,
            "startColumn": max(1, finding.column),
            "endColumn": max(1, finding.end_column),
        }
    return out


def _message(finding: Finding) -> str:
    extra = [f"({finding.label})"] if finding.label else []
    return " ".join([finding.message, *extra]) + (f"; {finding.help}" if finding.help else "")


def _data(text: str) -> str:
    return visible(text).replace("%", "%25")


def _property(text: str) -> str:
    return _data(text).replace(":", "%3A").replace(",", "%2C")


def _count(findings: Sequence[Finding], severity: str) -> int:
    return sum(1 for f in findings if f.severity == severity)
