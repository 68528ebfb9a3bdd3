"""The toolchains of settings in the place of a run: which of them no sandbox could show there."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from toka.config.diagnostics import Finding, summary
from toka.config.settings_tools import Toolchain
from toka.errors import ConfigError
from toka.sandbox.toolchain import why_unusable


def toolchain_findings(toolchains: Iterable[Toolchain], workspace: Path) -> tuple[Finding, ...]:
    """TK4206 for each that is not there, is a link, or meets the workspace, at its line. Changes nothing."""
    found = ((toolchain, why_unusable(toolchain.path, workspace)) for toolchain in toolchains)
    return tuple(toolchain.finding("TK4206", *problem) for toolchain, problem in found if problem is not None)


def check_toolchains(toolchains: Iterable[Toolchain], workspace: Path) -> None:
    """Raises ConfigError with all findings when one of them cannot be used."""
    if found := toolchain_findings(toolchains, workspace):
        raise ConfigError(summary(found), found)
