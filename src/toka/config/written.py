"""An AgentConfig as plain data in the dialect of specs, quantities as people write them: what can be read again."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

from toka.config.agent import AgentConfig
from toka.core import units

QUANTITIES: Final[Mapping[str, tuple[Callable[[Any], str], Callable[[Any], object]]]] = {
    "max_memory": (units.format_bytes, units.parse_bytes),
    "max_disk_usage": (units.format_bytes, units.parse_bytes),
    "max_network_usage": (units.format_bytes, units.parse_bytes),
    "max_output": (units.format_bytes, units.parse_bytes),
    "max_cpu": (units.format_cpu, units.parse_cpu),
    "max_cost": (units.format_money, units.parse_money),
}
"""How the limits that the record holds as numbers are written."""
_ORDER: Final = (
    "metadata", "spec", "model", "capabilities", "objectives", "tasks", "dependencies", "security", "flow", "reporting",
    "behavioral_directives", "risk_mitigation", "success_criteria",
)  # fmt: skip


def spec_data(config: AgentConfig) -> dict[str, Any]:
    """A spec that, read again, equals the configuration: known sections in a fixed order, then extensions."""
    data = config.to_json()["spec"]
    extensions: dict[str, Any] = data.pop("extensions", {})
    out: dict[str, Any] = {name: data[name] for name in _ORDER if name in data}
    for name in ("metadata", "spec"):
        out.setdefault(name, {})
    if security := out.get("security"):
        requests: list[dict[str, Any]] = security.get("capabilities_required", [])
        if requests:
            security["capabilities_required"] = [_request(r) for r in requests]
        if bounds := security.get("resource_limits"):
            security["resource_limits"] = {name: _quantity(name, value) for name, value in bounds.items()}
    _durations(out)
    return {**out, **extensions}


def _request(request: Mapping[str, Any]) -> object:
    """A capability as specs write it: its name, or its name with arguments."""
    name, arguments = request["name"], request.get("arguments")
    return {name: arguments} if arguments else name


def _quantity(name: str, value: Any) -> Any:
    if name == "max_network_bandwidth":
        return units.format_rate(units.parse_rate(value))
    if name not in QUANTITIES:
        return value
    write, read = QUANTITIES[name]
    text = write(value)
    return text if read(text) == value else value


def _durations(data: dict[str, Any]) -> None:
    """Seconds as a person writes them, wherever that says the same."""
    tasks: dict[str, Any] = data.get("tasks", {})
    entries = [*tasks.get("default", []), *(e for group in tasks.get("conditional", {}).values() for e in group)]
    checks = [objective["check"] for objective in data.get("objectives", []) if "check" in objective]
    limits = data.get("security", {}).get("resource_limits", {})
    for part in (*entries, *checks, limits):
        _duration(part, "timeout")
    _duration(data.get("flow", {}).get("approve", {}), "expires")


def _duration(part: dict[str, Any], name: str) -> None:
    if name in part:
        seconds = units.parse_duration(part[name])
        text = units.format_duration(seconds)
        part[name] = text if units.parse_duration(text) == seconds else part[name]
