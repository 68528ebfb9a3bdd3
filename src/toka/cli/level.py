"""How strongly a person's own command confines: as the settings say, or not at all when the command itself says so."""

from __future__ import annotations

from dataclasses import replace

from toka.cli.output import say
from toka.config.settings import Settings
from toka.sandbox.level import NO_SANDBOX, REDUCED_SANDBOX


def at_level(settings: Settings, *, no_sandbox: bool) -> Settings:
    """The settings with the level that counts for this command. A person is told what any but the full one means."""
    if no_sandbox:
        say(f"toka: {NO_SANDBOX} (--dangerously-no-sandbox)")
        return replace(settings, sandbox="none")
    if settings.sandbox == "reduced":
        say(f"toka: {REDUCED_SANDBOX} (sandbox, from {settings.origins.get('sandbox', 'the caller')})")
    return settings
