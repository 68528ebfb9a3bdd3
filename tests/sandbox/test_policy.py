from __future__ import annotations

import json

import pytest

from toka.core.capability import Capability, Grant
from toka.core.limits import Limits
from toka.sandbox.policy import PathRule, SandboxPolicy, compile_policy


def compiled(*capabilities: Capability, **limits: int) -> SandboxPolicy:
    return compile_policy(Grant(capabilities), Limits(**limits))


def test_an_empty_grant_opens_nothing() -> None:
    policy = compiled()
    assert (policy.reads, policy.writes, policy.programs) == ((), (), ())


def test_a_grant_without_paths_is_the_whole_workspace() -> None:
    assert compiled(Capability("filesystem-read")).reads == (".",)


def test_what_may_be_written_may_be_read() -> None:
    policy = compiled(Capability("filesystem-write", paths=("src",)))
    assert policy.writes == ("src",)
    assert policy.rules == (PathRule("src", "write"),)


def test_a_read_path_below_a_write_path_adds_nothing() -> None:
    policy = compiled(
        Capability("filesystem-write", paths=("src",)), Capability("filesystem-read", paths=("src/vendor", "docs"))
    )
    assert (policy.reads, policy.writes) == (("docs",), ("src",))


def test_a_write_path_below_a_read_path_is_mounted_after_it() -> None:
    policy = compiled(Capability("filesystem-read"), Capability("filesystem-write", paths=("src/gen", "a-b", "a")))
    assert [r.path for r in policy.rules] == [".", "a", "a-b", "src/gen"]
    assert [r.access for r in policy.rules] == ["read", "write", "write", "write"]


def test_parents_come_first_even_where_text_order_differs() -> None:
    policy = SandboxPolicy(reads=("a",), writes=("a/x", "a.b"))
    assert [r.path for r in policy.rules] == ["a", "a/x", "a.b"]


def test_programs_of_several_capabilities_add_up() -> None:
    policy = compiled(
        Capability("command-execution", programs=("git",)), Capability("command-execution", programs=("cat", "git"))
    )
    assert policy.programs == ("cat", "git")


def test_any_program_wins_over_a_list() -> None:
    assert compiled(Capability("command-execution"), Capability("command-execution", programs=("a",))).programs is None


def test_foreign_capabilities_open_nothing() -> None:
    assert compiled(Capability("mail-access"), Capability("rule-the-world")) == compiled()


def test_network_and_git_are_taken_over() -> None:
    hosts = Capability("network-access", hosts=("example.org",))
    policy = compiled(hosts, Capability("git-access"))
    assert (policy.network, policy.git) == ((hosts,), True)
    assert (compiled().network, compiled().git) == ((), False)


def test_limits_are_taken_over() -> None:
    policy = compiled(memory_bytes=1, processes=2, disk_bytes=3, output_bytes=4)
    assert (policy.memory_bytes, policy.processes, policy.file_bytes, policy.output_bytes) == (1, 2, 3, 4)


def test_a_limit_of_zero_is_not_the_default() -> None:
    assert compiled(disk_bytes=0, output_bytes=0).file_bytes == 0


@pytest.mark.parametrize("programs", [None, (), ("cat", "git")])
def test_json_gives_the_same_policy_back(programs: tuple[str, ...] | None) -> None:
    network = (Capability("network-access", hosts=("example.org",), ports=("443",)),)
    policy = SandboxPolicy(
        reads=("docs",), writes=("src",), programs=programs, network=network, refused=network, refused_programs=("rm",),
        git=True, protected=("a.yaml",), hidden=(".toka",), memory_bytes=5,
    )  # fmt: skip
    assert SandboxPolicy.from_json(json.loads(json.dumps(policy.to_json()))) == policy


def test_json_of_a_newer_version_is_read() -> None:
    assert SandboxPolicy.from_json({"reads": ["a"], "colour": "blue"}).reads == ("a",)
