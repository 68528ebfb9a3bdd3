"""What a model is told about the agent it is: the spec's own words, in the form the prompt templates take."""

from __future__ import annotations

from collections.abc import Iterable

from toka.config.agent import AgentConfig
from toka.core.capability import Grant
from toka.core.message import ToolSpec
from toka.llm.prompts import AgentBrief, ObjectiveBrief
from toka.tools.tool import Tool

WORKSPACE = "The current directory holds the files you work on. Paths are relative to it."


def brief(config: AgentConfig, grant: Grant, tools: Iterable[Tool]) -> AgentBrief:
    """The brief of an agent: every section of its spec that describes it, and what it was really granted."""
    return AgentBrief(
        title=config.title or config.name,
        domain=config.domain,
        description=config.spec.description or "",
        primary=tuple(config.capabilities.primary),
        secondary=tuple(config.capabilities.secondary),
        objectives=tuple(
            ObjectiveBrief(o.description, o.deliverable or "", o.validation or "", o.check is not None)
            for o in config.objectives
        ),
        directives=config.behavioral_directives,
        risks=tuple((r.risk, r.mitigation) for r in config.risk_mitigation.high_priority_risks),
        success=config.success_criteria,
        extensions=config.extensions,
        tools=tuple(ToolSpec(t.name, t.description, t.parameters) for t in tools),
        workspace=WORKSPACE,
        grants=tuple(c.text for c in grant.capabilities),
        metrics=tuple((m.name, m.description, m.unit or "") for m in config.reporting.metrics),
    )
