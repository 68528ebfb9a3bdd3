"""Settings, with their defaults."""

DEFAULTS = {"timeout": 20, "retries": 2, "agent": "fetch/1"}
