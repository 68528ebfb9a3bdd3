"""The whole orchestration over faulty ports, on virtual time: a seed replays, and what is broken shows."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from torture.simulation.known import is_known
from torture.simulation.mutations import MUTATIONS, check

TESTS = Path(__file__).parent.parent
SURE: Mapping[str, int] = {
    "no-intent": 500,
    "too-many-tasks": 500,
    "dependency-forgotten": 500,
    "fold-differs": 500,
    "chain-broken": 500,
    "billed-twice": 500,
    "unapproved-is-allowed": 500,
    "recorded-runs-again": 1500,
}
"""Mutations that are found at once, and the steps that this takes at most."""


def simulate(seed: str, steps: int, *more: str, hash_seed: str = "0") -> list[dict[str, Any]]:
    """The outcomes of worlds, from a process of their own."""
    command = [
        sys.executable,
        "-m",
        "torture.simulation.driver",
        "--seed",
        seed,
        "--steps",
        str(steps),
        "--json",
        *more,
    ]
    paths = os.pathsep.join(p for p in sys.path if p)
    environment = {**os.environ, "PYTHONPATH": f"{TESTS}{os.pathsep}{paths}", "PYTHONHASHSEED": hash_seed}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=TESTS.parent)
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads(line) for line in done.stdout.splitlines()]


def broken(outcomes: list[dict[str, Any]]) -> list[str]:
    """What was broken that is not known yet."""
    found = [o for o in outcomes if o["rule"] and not is_known(o["rule"], o["text"])]
    return [f"{o['seed']}: {o['rule']}: {o['text']}" for o in found]


@pytest.mark.slow
def test_a_seed_replays_byte_for_byte_in_another_process_and_breaks_no_rule() -> None:
    one, other = (simulate("short", 400, hash_seed=h) for h in ("1", "2"))
    assert [o["trace"] for o in one] == [o["trace"] for o in other]
    assert sum(o["steps"] for o in one) >= 400
    assert not broken(one)


@pytest.mark.slow
def test_another_seed_is_another_story() -> None:
    one, other = simulate("short", 50), simulate("other", 50)
    assert one[0]["trace"] != other[0]["trace"]


def test_the_mutations_fit_the_product() -> None:
    check()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["no-intent", "billed-twice"])
def test_a_broken_product_is_noticed(name: str) -> None:
    assert broken(simulate("short", SURE[name], "--mutate", name, "--stop-at-first"))


@pytest.mark.torture
@pytest.mark.parametrize("name", MUTATIONS)
def test_every_broken_product_is_noticed(name: str) -> None:
    assert broken(simulate("mutated", SURE.get(name, 60_000), "--mutate", name, "--stop-at-first"))


@pytest.mark.torture
def test_three_hundred_thousand_steps_break_no_rule_within_ten_minutes() -> None:
    outcomes = simulate("torture", 300_000, "--minutes", "10", "--jobs", "2")
    assert sum(o["steps"] for o in outcomes) >= 300_000
    assert not broken(outcomes)
