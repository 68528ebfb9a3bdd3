"""Toka runs teams of LLM agents declared in YAML."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from toka.version import __version__ as __version__

_EXPORTS = {
    "AgentConfig": "toka.config.agent",
    "ExecutionConfig": "toka.config.settings",
    "LlmGateway": "toka.llm.gateway",
    "OrchestrationEngine": "toka.orchestration.engine",
    "OrchestrationRuntimeExt": "toka.orchestration.integration",
    "Parts": "toka.app",
    "RunRequest": "toka.orchestration.request",
    "RunResult": "toka.orchestration.result",
    "RuntimeIntegration": "toka.orchestration.integration",
    "Settings": "toka.config.settings",
    "TokaError": "toka.errors",
    "open_runtime": "toka.app",
    "read_settings": "toka.app",
}

if TYPE_CHECKING:
    from toka.app import Parts as Parts
    from toka.app import open_runtime as open_runtime
    from toka.app import read_settings as read_settings
    from toka.config.agent import AgentConfig as AgentConfig
    from toka.config.settings import ExecutionConfig as ExecutionConfig
    from toka.config.settings import Settings as Settings
    from toka.errors import TokaError as TokaError
    from toka.llm.gateway import LlmGateway as LlmGateway
    from toka.orchestration.engine import OrchestrationEngine as OrchestrationEngine
    from toka.orchestration.integration import (
        OrchestrationRuntimeExt as OrchestrationRuntimeExt,
    )
    from toka.orchestration.integration import (
        RuntimeIntegration as RuntimeIntegration,
    )
    from toka.orchestration.request import RunRequest as RunRequest
    from toka.orchestration.result import RunResult as RunResult


def __getattr__(name: str) -> Any:
    """Imports an exported name when it is first used, so that `import toka` stays cheap."""
    if name in _EXPORTS:
        return getattr(importlib.import_module(_EXPORTS[name]), name)
    raise AttributeError(f"module 'toka' has no attribute {name!r}")
