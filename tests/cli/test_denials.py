"""Each refusal of a real run names the rule, the place in the spec, and the smallest patch, wherever it is shown."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from cli.records import Toka

pytestmark = pytest.mark.skipif(not shutil.which("bwrap"), reason="no bwrap: agents cannot run here")
SPEC = """
metadata: {name: one}
spec: {name: One}
tasks: [reach out]
security:
  capabilities_required:
    - filesystem-write: {paths: [docs]}
    - network-access: {hosts: ["*.example.org"]}
    - command-execution
"""
REACH = "import urllib.request as u; u.urlopen('https://evil.example.net/')"
SCRIPT: dict[str, Any] = {
    "script": 1,
    "default": [
        {
            "calls": [
                {"write_file": {"path": "src/x", "content": "y"}},
                {"git": {"command": "status"}},
                {"run_command": {"command": f'python3 -c "{REACH}"'}},
                {"http_request": {"method": "GET", "url": "https://example.com/"}},
            ]
        },
        {"report": {"status": "succeeded", "summary": "done"}},
    ],
}
EXPECTED = {
    "write_file": ("filesystem-write: docs", "one.yaml:7", "- filesystem-write: {paths: [src/x]}"),
    "git": ("no git-access", "one.yaml", "- git-access"),
    "http_request": (
        "network-access: *.example.org", "one.yaml:8", "- network-access: {hosts: [example.com], ports: [443]}",
    ),
}  # fmt: skip
NETWORK = ("network-access: *.example.org", "one.yaml:8", "- network-access: {hosts: [evil.example.net], ports: [443]}")


def run(toka: Toka, place: Path) -> None:
    (place / "ws/docs").mkdir(parents=True)
    (place / "one.yaml").write_text(SPEC)
    (place / "s.json").write_text(json.dumps(SCRIPT))
    done = toka("run", "one.yaml", "--workspace", "ws", "--state", "state", "--model", "scripted:s.json")
    assert done.code == 0, done.out + done.err


def test_a_refusal_says_what_would_allow_it(toka: Toka, tmp_path: Path) -> None:
    run(toka, tmp_path)
    events = toka("events", "@last", "--state", "state", "--json").json_lines()
    denied = {e["what"]: (e["rule"], e["place"], e["patch"]) for e in events if e["kind"] == "step_denied"}
    assert {k: (rule, place.removesuffix(":6"), patch) for k, (rule, place, patch) in denied.items()} == EXPECTED
    (refused,) = (e for e in events if e["kind"] == "network")
    assert (refused["rule"], refused["place"], refused["patch"]) == NETWORK

    shown = toka("show", "@last", "--state", "state", "--json").json["agents"]["one"]
    assert {d["tool"]: (d["rule"], d["place"], d["patch"]) for d in shown["denials"]} == denied
    assert [(n["rule"], n["place"], n["patch"]) for n in shown["network_refused"]] == [NETWORK]
    for command in ("show", "logs", "events"):
        text = toka(command, "@last", "--state", "state").out
        for rule, place, patch in denied.values():
            assert rule in text, command
            assert f"{place} would need: {patch}" in text, command
        assert "refused evil.example.net:443: " in text, command
        if command != "events":  # one line an event
            assert f"{NETWORK[1]} would need: {NETWORK[2]}" in text, command


def test_an_agent_of_a_team_is_told_in_the_words_of_its_file(toka: Toka, tmp_path: Path) -> None:
    (tmp_path / "ws/docs").mkdir(parents=True)
    (tmp_path / "team.yaml").write_text(
        "toka: 1\nagents:\n  one:\n    goal: reach out\n    grants:\n      write: [docs]\n"
        "      network: ['*.example.org']\n      script: true\n      python: true\n"
    )
    (tmp_path / "s.json").write_text(json.dumps(SCRIPT))
    done = toka("run", "team.yaml", "--workspace", "ws", "--state", "state", "--model", "scripted:s.json")
    assert done.code == 0, done.out + done.err
    shown = toka("show", "@last", "--state", "state", "--json").json["agents"]["one"]
    assert {d["tool"]: (d["place"], d["patch"]) for d in shown["denials"] if d["tool"] != "run_command"} == {
        "write_file": ("team.yaml:6", "grants: {write: [src/x]}"),
        "git": ("team.yaml:5", "grants: {git: true}"),
        "http_request": ("team.yaml:7", "grants: {network: [example.com]}"),
    }
    assert "team.yaml:6 would need: grants: {write: [src/x]}" in toka("show", "@last", "--state", "state").out
    for patch in ("grants: {write: [src/x]}", "grants: {git: true}", "grants: {network: [example.com]}"):
        (tmp_path / "patched.yaml").write_text(f"toka: 1\nagents:\n  one:\n    goal: x\n    {patch}\n")
        assert toka("validate", "patched.yaml").code == 0


def test_the_patches_together_allow_what_was_refused(toka: Toka, tmp_path: Path) -> None:
    run(toka, tmp_path)
    shown = toka("show", "@last", "--state", "state", "--json").json["agents"]["one"]
    patches = [*(d["patch"] for d in shown["denials"]), *(n["patch"] for n in shown["network_refused"])]
    (tmp_path / "ws/.git").mkdir()
    (tmp_path / "one.yaml").write_text(SPEC + "".join(f"    {patch}\n" for patch in patches))
    assert toka("run", "one.yaml", "--workspace", "ws", "--state", "state", "--model", "scripted:s.json").code == 0
    shown = toka("show", "@last", "--state", "state", "--json").json["agents"]["one"]
    assert shown["denials"] == []
    assert all(not n["rule"] for n in shown["network_refused"]), "no rule refuses it; a name may not be found here"


def test_an_operator_s_rule_is_named_with_its_place(toka: Toka, tmp_path: Path) -> None:
    (tmp_path / "toka.toml").write_text('[policy]\ndeny = ["filesystem-write: docs/fixed"]\n')
    script = {
        **SCRIPT,
        "default": [
            {"calls": [{"write_file": {"path": "docs/fixed", "content": "y"}}]},
            SCRIPT["default"][1],
        ],
    }
    (tmp_path / "ws/docs").mkdir(parents=True)
    (tmp_path / "one.yaml").write_text(SPEC)
    (tmp_path / "s.json").write_text(json.dumps(script))
    toka("run", "one.yaml", "--workspace", "ws", "--state", "state", "--model", "scripted:s.json")
    text = toka("show", "@last", "--state", "state").out
    assert "(rule: policy: deny filesystem-write: docs/fixed)" in text
    assert "see [policy] deny" in text
