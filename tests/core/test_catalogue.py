"""The catalogue: names stand for what they say, and nothing else grants anything."""

from __future__ import annotations

import pytest

from toka.core import catalogue
from toka.core.capability import Capability, CapabilityError, Grant
from toka.core.catalogue import resolve, without_key

WRITE, READ = Capability("filesystem-write"), Capability("filesystem-read")


def test_writing_includes_reading_the_same_paths() -> None:
    assert resolve("filesystem-write", {"paths": ["src"]}).capabilities == (
        Capability("filesystem-write", paths=("src",)), Capability("filesystem-read", paths=("src",)),
    )  # fmt: skip


@pytest.mark.parametrize("name", sorted(set(catalogue.ALIASES) - catalogue.NEEDS_ARGUMENTS))
def test_an_alias_grants_what_its_name_grants(name: str) -> None:
    assert resolve(name, {}).capabilities == resolve(catalogue.ALIASES[name], {}).capabilities != ()


@pytest.mark.parametrize("name", sorted(catalogue.PRESETS))
def test_a_preset_grants_its_primitives(name: str) -> None:
    found = resolve(name, {})
    assert found.capabilities == catalogue.PRESETS[name]
    assert {c.name for c in found.capabilities} <= set(catalogue.PRIMITIVES)


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("telepathy", {}),
        ("", {}),
        ("Filesystem-Read", {}),
        ("network-access-limited", {}),
        ("network-access-limited", {"ports": ["443"]}),
        ("git-access", {"paths": ["src"]}),
        ("filesystem-read", {"hosts": ["x.org"]}),
        ("filesystem-read", {"paths": []}),
        ("filesystem-read", {"paths": ["src"], "programs": ["sh"]}),
        ("cargo-execution", {"paths": ["src"]}),
        ("cargo-execution", {"programs": ["sh"]}),
        ("github-api-access", {"hosts": ["x.org"]}),
        ("github-api-access", {"ports": ["80"]}),
        ("database-access", {"hosts": []}),
        ("database-access", {"ports": ["5433"]}),
        ("database-access", {"paths": ["db"]}),
        ("database-access", {"hosts": ["db.example.org"], "programs": ["vim"]}),
    ],
)
def test_what_is_not_understood_grants_nothing_and_says_so(name: str, arguments: dict[str, list[str]]) -> None:
    found = resolve(name, arguments)
    assert found.capabilities == ()
    assert name in found.note


def test_arguments_narrow_a_preset() -> None:
    assert resolve("script-execution", {"programs": ["sh", "perl"]}).capabilities == (
        Capability("command-execution", programs=("sh",)),
    )


def test_a_database_may_be_elsewhere() -> None:
    here, there = (Capability("command-execution", programs=("psql", "sqlite3")), ("db.example.org",))
    for arguments, ports in (({}, ("5432",)), ({"ports": ["5433"]}, ("5433",))):
        found = resolve("database-access", {"hosts": list(there), **arguments})
        assert found.capabilities == (here, Capability("network-access", hosts=there, ports=ports))
    assert resolve("database-access", {"hosts": list(there), "programs": ["psql"]}).capabilities[0].programs == (
        "psql",
    )
    assert resolve("database-access", {}).capabilities == (here,)


def test_what_compiles_can_find_its_assembler_and_linker() -> None:
    for name in ("cargo-execution", "cargo-test-execution", "make-execution"):
        (capability,) = resolve(name, {}).capabilities
        assert {"cc", "as", "ld"} <= set(capability.programs or ())


def test_a_host_that_wants_a_key_is_noted_when_it_gets_none() -> None:
    asked = ["filesystem-read", "github-api-access", "github-api-access"]
    assert without_key(asked, ["api.github.com"]) == without_key(["network-access"], ()) == ()
    (note,) = without_key(asked, ["x.org"])
    assert note.startswith('github-api-access: requests carry no key; [credentials."api.github.com"]')


SPECS = {
    "filesystem-read": "grants", "filesystem-write": "grants", "git-access": "grants", "cargo-execution": "grants",
    "cargo-test-execution": "grants", "database-access": "grants", "github-api-access": "grants",
    "network-access": "without hosts means any public host", "network-access-limited": "until it says which hosts",
    "ci-integration": "nobody defines", "kernel-modification": "nobody defines", "event-bus-access": "nobody defines",
}  # fmt: skip
"""Every name that the original specs ask for."""


@pytest.mark.parametrize("name", SPECS)
def test_every_name_of_the_original_specs_grants_something_or_says_that_it_does_not(name: str) -> None:
    found = resolve(name, {})
    if SPECS[name] == "grants":
        assert found.capabilities
        assert not found.note
    else:
        assert SPECS[name] in found.note
        assert bool(found.capabilities) == (name == "network-access")


def test_network_without_hosts_is_noted() -> None:
    assert "any public host on port 443" in resolve("network-access", {}).note
    assert "port 8443" in resolve("network-access", {"ports": ["8443"]}).note
    assert resolve("network-access", {"hosts": ["x.org"]}).note == ""


def test_hosts_that_are_wider_or_less_than_they_seem_are_noted() -> None:
    assert resolve("network-access", {"hosts": ["*.com"]}).note == "*.com means any host whose name ends in .com"
    assert resolve("network-access", {"hosts": ["*.example.com"]}).note == ""
    local = resolve("network-access", {"hosts": ["localhost"]})
    assert local.capabilities == ()
    assert local.note == "network-access: localhost is no public host, and no other can be reached"
    both = resolve("network-access", {"hosts": ["localhost", "x.org"]})
    assert [c.hosts for c in both.capabilities] == [("x.org",)]
    assert both.note == "localhost is no public host, so it cannot be reached"


def test_a_limited_network_with_hosts_is_granted() -> None:
    found = resolve("network-access-limited", {"hosts": ["x.org"]})
    assert found.capabilities == (Capability("network-access", hosts=("x.org",), ports=("443",)),)


def test_settings_define_further_names_but_not_known_ones() -> None:
    custom = {"telepathy": (READ,), "git-access": (WRITE,), "cargo-execution": (WRITE,), "git": (WRITE,)}
    assert resolve("telepathy", {}, custom).capabilities == (READ,)
    assert resolve("telepathy", {"paths": ["a"]}, custom).capabilities == (Capability("filesystem-read", paths=("a",)),)
    for name in ("git-access", "cargo-execution", "git"):
        assert Grant(resolve(name, {}, custom).capabilities).named("filesystem-write") == ()


def test_a_malformed_argument_is_an_error() -> None:
    with pytest.raises(CapabilityError, match="leaves the workspace"):
        resolve("filesystem-read", {"paths": ["../x"]})


def test_known_names_all_resolve() -> None:
    names = catalogue.known_names()
    assert list(names) == sorted(names)
    assert all(resolve(n, {"hosts": ["x.org"]} if n in catalogue.NEEDS_ARGUMENTS else {}).capabilities for n in names)


def test_no_ports_means_443_to_a_spec_whoever_widens_it() -> None:
    (asked,) = resolve("network-access", {}).capabilities
    (other,) = resolve("network-access", {"ports": ["22"]}).capabilities
    assert asked.intersect(other) is None
    assert (asked.text, other.text) == ("network-access", "network-access: *:22")
