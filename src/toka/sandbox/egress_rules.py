"""Which hosts an agent may reach, compiled from its grant, and which addresses count as public. Pure.

A host is decided twice: its name by `EgressRules.decide`, and each address that the name resolves to by `is_public`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import Final

from toka.core.capability import HOST, NUMERIC, Capability, Grant
from toka.core.catalogue import NETWORK_ACCESS

DEFAULT_PORTS: Final = ("443",)
"""The ports of a `network-access` that names none."""
_PORT: Final = re.compile(r"[1-9][0-9]{0,4}")
_SHOWN_ITEMS: Final = 8

IPAddress = IPv4Address | IPv6Address

_SPECIAL_V4: Final = tuple(
    IPv4Network(n)
    for n in (
        "0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12", "192.0.0.0/24",
        "192.0.2.0/24", "192.31.196.0/24", "192.52.193.0/24", "192.88.99.0/24", "192.168.0.0/16", "192.175.48.0/24",
        "198.18.0.0/15", "198.51.100.0/24", "203.0.113.0/24", "224.0.0.0/3",
    )
)  # fmt: skip
"""The IANA special-purpose registry with multicast and the reserved rest; `168.63.129.16` is added below."""
_CLOUD_V4: Final = (IPv4Network("168.63.129.16/32"),)
"""Public by number, yet answered by the machine's own host: Azure's wire server."""
_UNICAST_V6: Final = IPv6Network("2000::/3")
"""All that is assigned to the public network. Mapped, translated (NAT64), local and multicast forms lie outside it."""
_SPECIAL_V6: Final = tuple(
    IPv6Network(n) for n in ("2001::/23", "2001:db8::/32", "2002::/16", "2620:4f:8000::/48", "3fff::/20")
)
"""Inside 2000::/3 and not the public network: Teredo and other protocols, documentation, 6to4, AS112."""


def plain_host(text: str) -> str | None:
    """A DNS name in its one canonical spelling, lower case; None when `text` is anything else.

    Refused are addresses in every notation, names without a dot (they mean a machine of this network), a dot at the
    end, and whatever is not ASCII: an international name must come in its `xn--` form.
    """
    host = text.lower() if text.isascii() else ""
    return host if "." in host and "*" not in host and HOST.fullmatch(host) and not NUMERIC.fullmatch(host) else None


def plain_port(text: str) -> int | None:
    """A TCP port in decimal without leading zeros; None when `text` is anything else."""
    return int(text) if _PORT.fullmatch(text) and int(text) < 65536 else None


def is_public(address: IPAddress) -> bool:
    """Whether an address belongs to the public network.

    False for loopback, private, link-local, carrier-grade NAT, multicast, unspecified, reserved and documentation
    addresses, and for every IPv6 form that carries an IPv4 address inside (mapped, 6to4, Teredo, NAT64, ISATAP),
    whichever one: the kernel or a gateway would unwrap it.
    """
    if isinstance(address, IPv4Address):
        return address.is_global and not any(address in n for n in (*_SPECIAL_V4, *_CLOUD_V4))
    isatap = int(address) >> 32 & 0xFDFF_FFFF == 0x0000_5EFE
    return (
        address.scope_id is None
        and address in _UNICAST_V6
        and address.is_global
        and not isatap
        and not any(address in n for n in _SPECIAL_V6)
    )


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the rules say to one host and port.

    Attributes:
        allowed: whether the name may be resolved and, its addresses being public, connected to.
        reason: the text of the capability that allows it, or one sentence that says why it is refused. One line of
            printable ASCII; it shows the host only when that is a plain name.
        need: the smallest capability that would allow it; None when it is allowed, or when none can allow it.
    """

    allowed: bool
    reason: str
    need: Capability | None = None


@dataclass(frozen=True, slots=True)
class EgressRules:
    """The hosts and ports that an agent may reach by name. Never wider than the capabilities it is made of.

    Attributes:
        capabilities: alternatives, each a `network-access`: `hosts` None = any public host, `*.x.org` = all names
            below x.org; `ports` None is read as 443. None at all = nothing may be reached.
        refused: what is refused all the same; `ports` None = any port.

    Raises:
        ValueError: a capability is of another name.
    """

    capabilities: tuple[Capability, ...] = ()
    refused: tuple[Capability, ...] = ()

    def __post_init__(self) -> None:
        """Writes the default ports out."""
        if wrong := [c.name for c in self.capabilities if c.name != NETWORK_ACCESS]:
            raise ValueError(f"{wrong[0]} is not {NETWORK_ACCESS}")
        written = tuple(
            Capability(NETWORK_ACCESS, hosts=c.hosts, ports=DEFAULT_PORTS if c.ports is None else c.ports)
            for c in self.capabilities
        )
        object.__setattr__(self, "capabilities", written)

    @staticmethod
    def of(grant: Grant) -> EgressRules | None:
        """The rules of a grant; None when it holds no network-access at all."""
        found = grant.named(NETWORK_ACCESS)
        return EgressRules(found) if found else None

    def decide(self, host: str, port: int) -> Verdict:
        """Whether a host may be reached at a port.

        Args:
            host: as the client wrote it, upper or lower case.
            port: the TCP port.
        """
        name = plain_host(host)
        if name is None:
            return Verdict(False, "the host is not a plain DNS name such as api.example.org")
        if not 0 < port < 65536:
            return Verdict(False, f"{port} is not a TCP port")
        need = Capability(NETWORK_ACCESS, hosts=(name,), ports=(str(port),))
        for rule in self.refused:
            if rule.covers(need):
                return Verdict(False, f"{name} is refused: the operator denies {rule.text}")
        for capability in self.capabilities:
            if capability.covers(need):
                return Verdict(True, capability.text)
        return Verdict(False, self._why(name, port), need)

    def _why(self, name: str, port: int) -> str:
        if not self.capabilities:
            return f"{name} is refused: this agent has no {NETWORK_ACCESS}"
        host = Capability(NETWORK_ACCESS, hosts=(name,))
        here = [c for c in self.capabilities if Capability(NETWORK_ACCESS, hosts=c.hosts).covers(host)]
        ports = sorted({p for c in here for p in c.ports or ()}, key=int)
        if ports:
            return f"port {port} of {name} is refused: this agent may use {_list(ports)} there"
        hosts = sorted({h for c in self.capabilities for h in c.hosts or ()})
        return f"{name} is refused: this agent may reach {_list(hosts)}"


def _list(items: list[str]) -> str:
    more = len(items) - _SHOWN_ITEMS
    return ", ".join(items[:_SHOWN_ITEMS]) + (f" and {more} more" if more > 0 else "")
