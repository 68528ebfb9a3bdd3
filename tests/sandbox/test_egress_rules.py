"""What the rules allow: never more than the capabilities cover, and no address outside the public network."""

from __future__ import annotations

from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from toka.core.capability import Capability, Grant
from toka.sandbox.egress_rules import EgressRules, Verdict, is_public, plain_host, plain_port

KELVIN = "\u212a"  # lower() makes it an ASCII k


def net(*hosts: str, ports: tuple[str, ...] | None = None) -> Capability:
    return Capability("network-access", hosts=hosts or None, ports=ports)


def rules(*capabilities: Capability) -> EgressRules:
    found = EgressRules.of(Grant(capabilities))
    assert found is not None
    return found


some_hosts = st.sampled_from(
    ["x.org", "a.x.org", "b.a.x.org", "y.org", "x.org.evil.com", "evilx.org", "X.ORG", "k.org"]
)
odd_hosts = st.sampled_from(
    ["x.org.", ".x.org", "*.x.org", "1.2.3.4", "0x7f.1", "x.org\n", "x.org\0.y.org", KELVIN + ".org"]
)
asked_hosts = some_hosts | odd_hosts | st.text(max_size=12)
patterns = some_hosts | st.sampled_from(["*.x.org", "*.a.x.org", "*.org"])
some_ports = st.sampled_from(["80", "443", "8443"])
capabilities = st.builds(
    Capability,
    st.sampled_from(["network-access", "filesystem-read"]),
    hosts=st.none() | st.lists(patterns, max_size=3).map(tuple),
    ports=st.none() | st.lists(some_ports, max_size=2).map(tuple),
)


@given(st.lists(capabilities, max_size=4), asked_hosts, st.sampled_from([0, 80, 443, 8443, 70000, -1]))
def test_nothing_is_allowed_that_no_capability_covers(granted: list[Capability], host: str, port: int) -> None:
    grant = Grant(tuple(granted))
    found = EgressRules.of(grant)
    if found is None:
        assert not grant.named("network-access")
        return
    verdict = found.decide(host, port)
    name = plain_host(host)
    if name is None or not 0 < port < 65536:
        assert (verdict.allowed, verdict.need) == (False, None)
        return
    need = Capability("network-access", hosts=(name,), ports=(str(port),))
    covering = [c for c in grant.capabilities if c.covers(need) and (c.ports is not None or port == 443)]
    assert verdict.allowed == bool(covering)
    assert verdict.need == (None if verdict.allowed else need)


@given(st.lists(capabilities, max_size=4), asked_hosts, st.sampled_from([80, 443, 8443]))
def test_the_capability_named_in_a_refusal_would_allow_it(granted: list[Capability], host: str, port: int) -> None:
    need = EgressRules(tuple(c for c in granted if c.name == "network-access")).decide(host, port).need
    if need is not None:
        assert EgressRules((need,)).decide(host, port).allowed


@given(st.lists(capabilities, max_size=4), asked_hosts, st.integers())
def test_a_reason_is_one_line_of_printable_ascii(granted: list[Capability], host: str, port: int) -> None:
    reason = EgressRules(tuple(c for c in granted if c.name == "network-access")).decide(host, port).reason
    assert reason
    assert reason.isascii()
    assert reason.isprintable()


def test_a_grant_without_network_access_has_no_rules() -> None:
    assert EgressRules.of(Grant((Capability("filesystem-read"),))) is None


def test_rules_are_made_of_network_access_only() -> None:
    with pytest.raises(ValueError, match="filesystem-read is not network-access"):
        EgressRules((Capability("filesystem-read"),))


def test_ports_default_to_443() -> None:
    assert rules(net("x.org")).decide("x.org", 443) == Verdict(True, "network-access: x.org")
    assert not rules(net("x.org")).decide("x.org", 80).allowed
    assert not EgressRules((net("x.org", ports=()),)).decide("x.org", 443).allowed


def test_two_capabilities_are_alternatives_not_a_product() -> None:
    both = rules(net("x.org", ports=("443",)), net("y.org", ports=("8443",)))
    assert both.decide("y.org", 8443).allowed
    assert not both.decide("x.org", 8443).allowed


@pytest.mark.parametrize(
    ("host", "allowed"),
    [
        ("a.x.org", True),
        ("b.a.x.org", True),
        ("A.X.ORG", True),
        ("x.org", False),
        ("notx.org", False),
        ("a.x.org.evil.com", False),
        ("a.x.org.", False),
        ("*.x.org", False),
        ("a..x.org", False),
        (".x.org", False),
    ],
)
def test_a_star_means_all_names_below(host: str, allowed: bool) -> None:
    assert rules(net("*.x.org")).decide(host, 443).allowed == allowed


@pytest.mark.parametrize(
    ("asked", "reason"),
    [
        (("y.org", 443), "y.org is refused: this agent may reach *.x.org, z.org"),
        (("z.org", 22), "port 22 of z.org is refused: this agent may use 443, 8443 there"),
        (("1.2.3.4", 443), "the host is not a plain DNS name such as api.example.org"),
        (("z.org", 0), "0 is not a TCP port"),
    ],
)
def test_a_refusal_says_what_is_allowed(asked: tuple[str, int], reason: str) -> None:
    granted = rules(net("*.x.org"), net("z.org", ports=("8443", "443")))
    assert granted.decide(*asked).reason == reason


def test_a_long_list_is_cut_in_the_reason() -> None:
    granted = rules(net(*(f"h{i}.org" for i in range(10))))
    assert granted.decide("x.org", 443).reason.endswith("h6.org, h7.org and 2 more")
    assert EgressRules().decide("x.org", 443).reason == "x.org is refused: this agent has no network-access"


@pytest.mark.parametrize(
    "text",
    [
        "", ".", "localhost", "metadata", "x.org.", "x.org\n", "x.org\0", "x.org\0.y.org", "a@x.org", "x.org:443",
        "[::1]", "::1", "x.org/",
        "127.0.0.1", "127.1", "2130706433", "0x7f000001", "0177.0.0.1", "0x7f.0.0.1", "x.0x1f", "1.2.3.4.5", "x.org%00",
        "x\u3002org", "x\uff0eorg", "b\u00fccher.org", KELVIN + ".org", "\uff11.org", "-x.org", "x-.org", "x_y.org",
        "*.org", " x.org",
        "x.org ", "x\t.org", ".".join(["a" * 60] * 5), "a" * 64 + ".org",
    ],
)  # fmt: skip
def test_what_is_no_plain_host(text: str) -> None:
    assert plain_host(text) is None


@pytest.mark.parametrize("text", ["x.org", "X.Org", "xn--bcher-kva.org", "1.x.org", "0x1.x.org", "a-b.c-d.org", "x.1a"])
def test_what_is_a_plain_host(text: str) -> None:
    assert plain_host(text) == text.lower()


@pytest.mark.parametrize(
    "text", ["", "0", "0443", "65536", "99999", "443 ", "+443", "-1", "4_43", "\u0664\u0664\u0663", "1e3", "0x1bb"]
)
def test_what_is_no_port(text: str) -> None:
    assert plain_port(text) is None


def test_what_is_a_port() -> None:
    assert [plain_port(t) for t in ("1", "443", "65535")] == [1, 443, 65535]


@pytest.mark.parametrize(
    "text",
    [
        "127.0.0.1", "127.9.9.9", "0.0.0.0", "0.1.2.3", "10.0.0.1", "172.16.0.1", "172.31.255.255", "192.168.1.1",
        "169.254.169.254",
        "100.64.0.1", "100.100.100.200", "192.0.0.8", "192.0.0.192", "192.0.2.1", "198.18.0.1", "198.51.100.1",
        "203.0.113.1", "192.88.99.1",
        "224.0.0.1", "239.255.255.250", "240.0.0.1", "255.255.255.255", "168.63.129.16",
        "::", "::1", "::7f00:1", "::ffff:127.0.0.1", "::ffff:8.8.8.8", "::ffff:0:127.0.0.1", "64:ff9b::7f00:1",
        "64:ff9b::808:808",
        "64:ff9b:1::7f00:1", "2002:7f00:1::", "2002:808:808::1", "2001:0:1::1", "2001:10::1", "2001:20::1",
        "2001:db8::1", "3fff::1",
        "2606:4700::5efe:7f00:1", "2606:4700::200:5efe:a00:1", "fe80::1", "fe80::1%2", "2606:4700::1%2", "fec0::1",
        "fc00::1", "fd00:ec2::254",
        "ff02::1", "ff0e::1", "100::1", "4000::1", "5f00::1",
    ],
)  # fmt: skip
def test_what_is_not_the_public_network(text: str) -> None:
    assert not is_public(ip_address(text))


@pytest.mark.parametrize(
    "text", ["8.8.8.8", "1.1.1.1", "172.32.0.1", "100.128.0.1", "192.0.1.1", "2606:4700::1111", "2a00:1450::5efe"]
)
def test_what_is_the_public_network(text: str) -> None:
    assert is_public(ip_address(text))
