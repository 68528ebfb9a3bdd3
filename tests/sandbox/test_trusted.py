"""What is said to a single call about protected paths, and that mounts and words agree."""

from __future__ import annotations

from pathlib import Path

import pytest

from sandbox.conftest import Start
from toka.core.capability import Capability, Grant
from toka.core.catalogue import FILESYSTEM_READ, FILESYSTEM_WRITE, GIT_ACCESS
from toka.core.limits import Limits
from toka.sandbox.policy import Place, SandboxPolicy, compile_policy
from toka.sandbox.trusted import Kind, decide, find_protected, named_trusted

WHOLE = SandboxPolicy(writes=(".",))
SOME = SandboxPolicy(writes=("src",))
HUSKY: dict[str, Kind] = {".husky": "folder"}


def write(path: str) -> Capability:
    return Capability(FILESYSTEM_WRITE, paths=(path,))


@pytest.mark.parametrize(
    ("policy", "path", "at"),
    [
        (WHOLE, ".git/hooks/pre-commit", ".git"),
        (SandboxPolicy(writes=(".",), git=True), ".git/hooks/pre-commit", ".git/hooks"),
        (SandboxPolicy(git=True), ".git/config", ".git/config"),
        (SOME, ".git/hooks/pre-commit", ".git"),
        (WHOLE, "toka.toml", "toka.toml"),
        (SandboxPolicy(writes=("toka.toml",)), "toka.toml", "toka.toml"),
        (WHOLE, ".vscode", ".vscode"),
        (WHOLE, ".github/workflows/ci.yml", ".github/workflows"),
        (SandboxPolicy(writes=(".github",)), ".github/workflows/ci.yml", ".github/workflows"),
        (SandboxPolicy(writes=(".",), protected=("agents",)), "agents/a.yaml", "agents"),
        (WHOLE, ".husky/pre-push", ".husky"),
        (SOME, ".husky/pre-push", ".husky"),
    ],
)
def test_a_protected_path_is_found(policy: SandboxPolicy, path: str, at: str) -> None:
    found = find_protected(policy, write(path), HUSKY)
    assert found is not None
    assert (found.path, found.word) == (at, "protected")


@pytest.mark.parametrize(
    ("policy", "path"),
    [
        (WHOLE, "src/main.py"),
        (WHOLE, ".vscodes"),
        (SandboxPolicy(writes=(".",), git=True), ".git/HEAD"),
        (SandboxPolicy(writes=(".vscode",)), ".vscode/tasks.json"),
        (SandboxPolicy(writes=(".github/workflows/ci.yml",)), ".github/workflows/ci.yml"),
        (SandboxPolicy(writes=(".",), named=(".vscode",)), ".vscode/tasks.json"),
        (SandboxPolicy(writes=(".husky",)), ".husky/pre-push"),
        (SOME, ".vscode/tasks.json"),
        (SandboxPolicy(writes=("src",), protected=("agents",)), "agents/a.yaml"),
    ],
)
def test_what_is_granted_by_name_or_not_at_all_is_no_matter_of_protection(policy: SandboxPolicy, path: str) -> None:
    assert find_protected(policy, write(path), HUSKY) is None


def test_what_is_hidden_is_neither_read_nor_written() -> None:
    policy = SandboxPolicy(writes=(".",), hidden=("state",))
    for name in (FILESYSTEM_READ, FILESYSTEM_WRITE):
        found = find_protected(policy, Capability(name, paths=("state/journal.db",)), {})
        assert found is not None
        assert found.word == "hidden"
    assert find_protected(policy, Capability(FILESYSTEM_READ, paths=(".vscode/a",)), {}) is None


def test_the_words_name_rule_place_and_patch() -> None:
    need = write(".vscode/tasks.json")
    found = find_protected(WHOLE, need, {})
    assert found is not None
    decision = decide(found, need, {FILESYSTEM_WRITE: "a.yaml:7", GIT_ACCESS: "a.yaml:9"}.__getitem__)
    assert (decision.outcome, decision.rule, decision.place) == ("denied", "protected: .vscode", "a.yaml:7")
    assert decision.patch == "- filesystem-write: {paths: [.vscode]}"
    assert decision.reason.startswith(".vscode/tasks.json is protected: ")
    hook = find_protected(WHOLE, write(".git/hooks/x"), {})
    assert hook is not None
    git = decide(hook, write(".git/hooks/x"), {FILESYSTEM_WRITE: "a.yaml:7", GIT_ACCESS: "a.yaml:9"}.__getitem__)
    assert (git.place, git.patch) == ("a.yaml:9", "- git-access")


def test_a_patch_is_only_given_where_it_helps() -> None:
    """Applied, it must lead to a policy that protects the path no longer."""
    granted = Capability(FILESYSTEM_WRITE)
    for path in (".vscode/tasks.json", ".envrc", ".github/workflows/ci.yml", "toka.toml"):
        found = find_protected(compile_policy(Grant((granted,)), Limits()), write(path), {})
        assert found is not None
        if found.asks is None:
            assert path == "toka.toml"
            continue
        named = named_trusted(found.asks.paths or ())
        mended = compile_policy(Grant((granted, found.asks)), Limits(), place=Place(named=named))
        assert find_protected(mended, write(path), {}) is None


def test_a_name_that_is_not_granted_opens_nothing() -> None:
    policy = compile_policy(Grant((write("src"),)), Limits(), place=Place(named=(".vscode",)))
    assert policy.named == ()
    assert named_trusted((".vscode", "toka.toml", "src", ".git/hooks")) == (".vscode",)


async def test_mounts_and_words_agree(start: Start, workspace: Path) -> None:
    """Each path is written through the file worker: refused exactly where the words refuse it."""
    (workspace / "agents").mkdir()
    (workspace / ".husky").mkdir()
    (workspace / ".git").mkdir()
    (workspace / ".git/config").write_text("[core]\n\thooksPath = .husky\n")
    paths = (
        "a", ".vscode/x", ".claude/x", ".envrc", ".github/workflows/x", ".github/x", "toka.toml", "agents/x",
        ".husky/x", ".git/hooks/x", ".git/config", ".git/HEAD", ".git/objects/x",
    )  # fmt: skip
    for options in (
        {"writes": (".",), "protected": ("agents",)},
        {"writes": (".",), "named": (".vscode", ".envrc"), "git": True},
        {"writes": (".claude", ".github", ".husky", "agents"), "protected": ("agents",)},
    ):
        sandbox = await start(reads=(), **options)
        policy = sandbox.policy
        for path in paths:
            if not Grant((Capability(FILESYSTEM_WRITE, paths=policy.writes),)).covering(write(path)):
                continue
            answer = await sandbox.file("write", path=path, body=b"x")
            said = find_protected(policy, write(path), HUSKY)
            assert ("error" in answer) == (said is not None), (options, path, answer)
        await sandbox.close()
