"""Capabilities: canonical form, covering, and an intersection that never widens."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from toka.core.capability import Capability, CapabilityError, Grant, normal_path

paths = st.sampled_from(["a", "a/b", "a/b/c", "ab", "b", ".", "b/../a", "./a//b/"])
hosts = st.sampled_from(["x.org", "a.x.org", "b.a.x.org", "*.x.org", "*.a.x.org", "y.org", "*.org", "X.ORG"])
programs = st.sampled_from(["git", "make", "cc", "sh"])
ports = st.sampled_from(["80", "443", "0443"])


def argument(items: st.SearchStrategy[str]) -> st.SearchStrategy[tuple[str, ...] | None]:
    return st.none() | st.lists(items, min_size=1, max_size=3).map(tuple)


names = st.sampled_from(["read", "write"])
capabilities = st.builds(Capability, names, argument(paths), argument(hosts), argument(programs), argument(ports))
grants = st.lists(capabilities, max_size=4).map(lambda c: Grant(tuple(c)))


@given(capabilities, capabilities)
def test_an_intersection_is_in_both(a: Capability, b: Capability) -> None:
    both = a.intersect(b)
    if both is not None:
        assert a.covers(both)
        assert b.covers(both)
    assert both == b.intersect(a)


@given(capabilities, capabilities, capabilities)
def test_an_intersection_holds_all_that_both_cover(a: Capability, b: Capability, need: Capability) -> None:
    both = a.intersect(b)
    assert (a.covers(need) and b.covers(need)) == (both is not None and both.covers(need))


@given(capabilities, capabilities, capabilities)
def test_intersecting_capabilities_is_associative_and_idempotent(a: Capability, b: Capability, c: Capability) -> None:
    ab, bc = a.intersect(b), b.intersect(c)
    assert (ab and ab.intersect(c)) == (bc and a.intersect(bc))
    assert a.intersect(a) == a


@given(grants, grants, grants)
def test_intersecting_grants_is_associative_commutative_and_idempotent(a: Grant, b: Grant, c: Grant) -> None:
    assert a.intersect(b) == b.intersect(a)
    assert a.intersect(b).intersect(c) == a.intersect(b.intersect(c))
    assert a.intersect(a) == a


@given(grants, grants, capabilities)
def test_intersecting_grants_never_widens(a: Grant, b: Grant, need: Capability) -> None:
    both = a.intersect(b)
    allowed = both.covering(need) is not None
    assert allowed == (a.covering(need) is not None and b.covering(need) is not None)
    assert both.intersect(a) == both


@given(capabilities, capabilities, capabilities)
def test_covering_is_an_order(a: Capability, b: Capability, c: Capability) -> None:
    assert a.covers(a)
    if a.covers(b) and b.covers(c):
        assert a.covers(c)
    if a.covers(b) and b.covers(a):
        assert a == b


@pytest.mark.parametrize(
    ("path", "normal"),
    [
        ("src", "src"),
        ("src/", "src"),
        ("./src//a", "src/a"),
        ("a/../b", "b"),
        (".", "."),
        ("a/..", "."),
        ("...", "..."),
    ],
)
def test_a_path_has_one_spelling(path: str, normal: str) -> None:
    assert normal_path(path) == normal


@pytest.mark.parametrize("path", ["", "/etc", "..", "a/../..", "~", "~root/x", "a\0b", "a\nb"])
def test_a_path_outside_the_workspace_is_refused(path: str) -> None:
    with pytest.raises(CapabilityError):
        Capability("filesystem-read", paths=(path,))


@pytest.mark.parametrize(
    "host",
    ["", "*", "*.", "a b", "http://x.org", "x.org:443", "x.org/", "10.0.0.1", "0x7f.1", "127.1", "2130706433",
     "0x7f000001", "x.0x", "é.org", "xn--", "-a.org", "a..b", "*.*.org", "a.*.org", "user@x.org", "[::1]",
     "a" * 64, "x.org\n"],
)  # fmt: skip
def test_what_is_no_host_name_is_refused(host: str) -> None:
    with pytest.raises(CapabilityError):
        Capability("network-access", hosts=(host,))


@pytest.mark.parametrize("host", ["x.org", "localhost", "*.x.org", "3com.com", "a-b.x1.org", "X.org", "xn--p1ai"])
def test_host_names_are_accepted(host: str) -> None:
    assert Capability("network-access", hosts=(host,)).hosts == (host.lower(),)


def test_a_wildcard_covers_names_below_it_only() -> None:
    wide = Capability("network-access", hosts=("*.x.org",))
    assert wide.covers(Capability("network-access", hosts=("a.b.x.org",)))
    assert not wide.covers(Capability("network-access", hosts=("x.org",)))
    assert not wide.covers(Capability("network-access", hosts=("evilx.org",)))


def test_a_path_covers_what_is_below_it_only() -> None:
    src = Capability("filesystem-read", paths=("src",))
    assert src.covers(Capability("filesystem-read", paths=("src/a/b",)))
    assert not src.covers(Capability("filesystem-read", paths=("srcs",)))
    assert not src.covers(Capability("filesystem-read"))


@pytest.mark.parametrize("program", ["", "/bin/sh", "a b", "../sh", "-c", "a\n", "é"])
def test_a_program_is_a_file_name(program: str) -> None:
    with pytest.raises(CapabilityError):
        Capability("command-execution", programs=(program,))


@pytest.mark.parametrize("port", ["", "0", "65536", "http", "-1", "٤٤٣", "²", "1.5"])
def test_a_port_is_a_tcp_port(port: str) -> None:
    with pytest.raises(CapabilityError):
        Capability("network-access", ports=(port,))


def test_text_names_the_items() -> None:
    assert Capability("a").text == "a"
    assert Capability("a", paths=("y", "x")).text == "a: x, y"
    assert Capability("a", paths=()).text == "a: nothing"


def test_a_grant_drops_what_is_empty_or_included() -> None:
    wide, narrow = Capability("a", paths=("x",)), Capability("a", paths=("x/y",))
    assert Grant((narrow, wide, wide, Capability("a", paths=()))).capabilities == (wide,)
    assert Grant((narrow,)).named("b") == ()
    assert Grant((narrow,)).named("a") == (narrow,)
