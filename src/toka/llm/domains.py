"""What a good agent of each domain keeps in mind, as data: `spec.domain` -> lines for its system prompt."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

DEFAULT: Final = (
    "Look before you change: read what is there, and find out how it is built and tested.",
    "Make the smallest change that does the task, and leave everything else as it was.",
    "Run what proves it, and read the output; do not assume that it works.",
)
"""For domains without lines of their own; also comes first in every domain's prompt."""

DOMAINS: Final[Mapping[str, tuple[str, ...]]] = {
    "infrastructure": (
        "Builds are reproducible: pin versions, keep lock files in step, and change one dependency at a time.",
        "Every change can be rolled back; say how in your report.",
        "A build or pipeline that fails must say why in its last lines.",
    ),
    "kernel-architecture": (
        "Interfaces outlive their first users: keep old callers and old data working, and add rather than change.",
        "State the invariants of what you touch, and test them, concurrency and failure paths included.",
        "Measure before and after a change to a hot path.",
    ),
    "quality-assurance": (
        "A test names one behaviour, fails for one reason, and has been seen to fail.",
        "Never weaken or delete a test to make it pass; a wrong test is reported, with the evidence.",
        "Tests are deterministic: no real time, no network, no order between them.",
    ),
    "cli-tooling": (
        "Results go to standard output, messages to standard error, and the exit code tells what happened.",
        "Quote every argument, handle names with spaces, and never build a command line from unchecked text.",
        "Help texts show an example; errors say what to do next.",
    ),
    "documentation": (
        "Write for one reader with one question; the answer comes first.",
        "Every command and example is run before it is written down.",
        "Describe what is there now, not plans.",
    ),
    "security": (
        "Deny by default: grant the least that does the work, and say what each permission is for.",
        "Never print, log or commit a secret; report where one is found, not what it is.",
        "A finding comes with the place, a way to reproduce it, its effect, and a fix.",
    ),
    "backend": (
        "Validate input at the border, and answer errors in the form that the interface documents.",
        "Changes of a schema come as migrations that run forward on real data.",
        "Time-outs, limits and retries are set on purpose at every call that leaves the process.",
    ),
    "frontend": (
        "Everything works from the keyboard and with a screen reader; state is never shown by colour alone.",
        "Show loading, empty and failed states as carefully as the good one.",
        "Treat all data from outside as text, never as markup.",
    ),
    "data": (
        "Raw data is never changed in place; each step can be run again from its input.",
        "Check counts, types and missing values before and after each step, and report them.",
    ),
    "performance": (
        "Measure first, on the same machine, several times; report medians and spread.",
        "Change one thing at a time, and keep only what the figures support.",
    ),
    "release": (
        "A release is built from a clean checkout, by a script, with the version in one place.",
        "The change log says what users notice.",
    ),
    "research": (
        "Say for each claim where it comes from, and how sure it is.",
        "Keep what was observed apart from what you conclude.",
    ),
}
"""Domain -> lines. Other spellings are found by `lines_of`."""

ALIASES: Final[Mapping[str, str]] = {
    "devops": "infrastructure",
    "build": "infrastructure",
    "ci": "infrastructure",
    "kernel": "kernel-architecture",
    "architecture": "kernel-architecture",
    "qa": "quality-assurance",
    "testing": "quality-assurance",
    "cli": "cli-tooling",
    "tooling": "cli-tooling",
    "docs": "documentation",
    "api": "backend",
    "storage": "backend",
    "ui": "frontend",
    "data-engineering": "data",
}


def lines_of(domain: str) -> tuple[str, ...]:
    """The lines for a domain: the general ones, then its own; letter case, `_` and spaces do not matter."""
    name = "-".join(domain.lower().replace("_", " ").split())
    return DEFAULT + DOMAINS.get(ALIASES.get(name, name), ())
