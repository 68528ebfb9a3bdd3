"""Specs to validate: as long as those that people write, each one different."""

from __future__ import annotations

from pathlib import Path

_TASKS = 9
_OBJECTIVES = 4
_DIRECTIVES = 4


def spec(number: int, needs: int | None) -> str:
    """One spec of about a hundred lines. `needs` is the number of an agent it depends on; None: it needs none."""
    lines = [
        "metadata:",
        f"  name: stream-{number:04d}",
        "  version: v0.3.0",
        '  created: "2026-01-15"',
        "spec:",
        f"  name: Stream {number}",
        "  domain: build-systems",
        f"  priority: {('high', 'medium', 'low')[number % 3]}",
        "capabilities:",
        "  primary: [build-analysis, dependency-resolution, toolchain-care]",
        "  secondary: [documentation, reporting]",
        "objectives:",
    ]
    for n in range(_OBJECTIVES):
        lines += [
            f'  - description: "Part {n + 1} of stream {number} builds from a clean checkout"',
            f'    deliverable: "A change that makes part {n + 1} of stream {number} build on every supported system"',
            f'    validation: "The build of part {n + 1} ends without an error and without new warnings"',
        ]
        if n % 2:
            lines.append(f'    check: "make part-{n + 1}"')
    lines += ["tasks:", "  default:"]
    for n in range(_TASKS):
        lines += [
            f'    - description: "Step {n + 1}: look at what part {n % _OBJECTIVES + 1} needs, and write it down"',
            f"      priority: {('high', 'medium', 'low')[n % 3]}",
        ]
    lines += ["dependencies:", "  required:" if needs is not None else "  required: []"]
    if needs is not None:
        lines.append(f'    - stream-{needs:04d}: "Its build must be stable first"')
    lines += [
        "reporting:",
        "  frequency: daily",
        "  channels: [main, builds]",
        "  metrics:",
        '    - parts-built: "How many parts build"',
        '    - warnings: "How many warnings the build prints"',
        "security:",
        "  sandbox: true",
        "  capabilities_required:",
        "    - filesystem-read",
        "    - filesystem-write",
        "    - command-execution: {programs: [make, cc]}",
        "  resource_limits:",
        "    max_memory: 512MB",
        '    max_cpu: "75%"',
        "    timeout: 2h",
        "behavioral_directives:",
    ]
    for topic in ("operational_focus", "error_handling", "coordination"):
        lines.append(f"  {topic}:")
        lines += [f'    - "Rule {n + 1} about {topic}: say what was done, and why"' for n in range(_DIRECTIVES)]
    lines += ["risk_mitigation:", "  high_priority_risks:"]
    for n in range(2):
        lines += [f'    - risk: "Part {n + 1} breaks its users"', '      mitigation: "Build the users, too"']
    lines += ["success_criteria:"]
    for phase in ("phase_1", "final_validation"):
        lines.append(f"  {phase}:")
        lines += [f'    - "Criterion {n + 1} of {phase} holds for stream {number}"' for n in range(3)]
    return "\n".join(lines) + "\n"


def write(directory: Path, count: int) -> None:
    """Writes so many specs; every one but each tenth depends on the one before it."""
    directory.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        path = directory / f"stream-{number:04d}.yaml"
        path.write_text(spec(number, number - 1 if number % 10 else None))


ONE_RUN = """
metadata: {name: hello, version: v1}
spec: {name: Hello, domain: testing, priority: medium}
tasks:
  default:
    - {description: say hello, run: "echo hello"}
"""
"""An agent whose one task is a command: no model is needed."""
