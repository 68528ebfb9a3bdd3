"""The variables that a command finds in a sandbox. Nothing of Toka's own environment is among them."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from toka.sandbox.policy import SandboxPolicy
from toka.sandbox.profile import PROXY_PORT
from toka.sandbox.toolchain import bin_folders

ENVIRONMENT: Final[Mapping[str, str]] = {
    "PATH": "/usr/local/bin:/usr/bin:/bin",
    "HOME": "/tmp",
    "LANG": "C.UTF-8",
}
"""All that a command finds unless the policy or the caller adds to it. HOME is the agent's own: so are caches in it."""
_PROXY: Final = f"http://127.0.0.1:{PROXY_PORT}"
PROXIED: Final[Mapping[str, str]] = dict.fromkeys(
    ("HTTPS_PROXY", "https_proxy", "HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"), _PROXY
)
"""Added when there is a way out."""
OFFLINE: Final[Mapping[str, Mapping[str, str]]] = MappingProxyType(
    {
        "cargo": {"CARGO_NET_OFFLINE": "true"},
        "npm": {"npm_config_offline": "true"},
        "python3": {"PIP_NO_INDEX": "1"},
    }
)
"""Added when there is none, for each of these programs that is listed: it says so at once instead of trying."""


def environment_of(policy: SandboxPolicy) -> dict[str, str]:
    """The variables of each command under a policy; those of a single command come on top."""
    out = {**ENVIRONMENT, "PATH": ":".join((*bin_folders(policy.toolchains), ENVIRONMENT["PATH"]))}
    if policy.network:
        return out | PROXIED
    for program in policy.programs or ():
        out |= OFFLINE.get(program, {})
    return out
