from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from llm.conftest import FakeClock, ask
from toka.errors import ConfigError, ModelUnavailable, UsageError
from toka.llm.registry import ModelRegistry
from toka.llm.scripted import ScriptedModel


async def test_models_are_made_once(tmp_path: Path, clock: FakeClock) -> None:
    path = tmp_path / "s.yaml"
    path.write_text("default: [{say: hello}]")
    registry = ModelRegistry({"OPENAI_API_KEY": "k"}, clock)
    scripted = registry(f"scripted:{path}")
    assert registry(f"scripted:{path}") is scripted
    assert (await scripted.request(ask())).message.text == "hello"
    vendor = registry("openai:gpt-4o")
    assert registry("openai:gpt-4o") is vendor
    await registry.aclose()
    await registry.aclose()


async def test_own_models_go_first(clock: FakeClock) -> None:
    mine = ScriptedModel(lambda _: "mine")
    registry = ModelRegistry({}, clock, models={"openai:gpt-4o": mine})
    assert registry("openai:gpt-4o") is mine
    await registry.aclose()


def test_strings_that_lead_nowhere(tmp_path: Path, clock: FakeClock) -> None:
    registry = ModelRegistry({}, clock)
    with pytest.raises(UsageError, match="resolved"):
        registry("auto")
    with pytest.raises(UsageError, match="no provider"):
        registry("gpt:4")
    with pytest.raises(ModelUnavailable):
        registry("openai:gpt-4o")
    (tmp_path / "bad.yaml").write_text("nonsense")
    with pytest.raises(ConfigError):
        registry(f"scripted:{tmp_path / 'bad.yaml'}")


@pytest.mark.slow
def test_without_a_vendor_model_no_vendor_library_is_imported(tmp_path: Path) -> None:
    path = tmp_path / "s.yaml"
    path.write_text("default: [{say: hello}]")
    program = f"""
import asyncio, sys
import toka.llm.scripted, toka.llm.gateway, toka.llm.prompts, toka.llm.resolve, toka.llm.redact, toka.llm.pricing
from toka.core.clock import SystemClock
from toka.core.message import Message
from toka.llm.model import ModelRequest
from toka.llm.registry import ModelRegistry
class Free:
    def reserve(self, attempt, estimate): ...
    def settle(self, attempt, usage, cost_usd, error): ...
clock = SystemClock()
gateway = toka.llm.gateway.LlmGateway(ModelRegistry({{}}, clock), clock, lambda: 0.5)
request = ModelRequest("scripted:{path}", (Message("user", "x"),), (), None, "a", "t", 1, "k", 5.0)
assert asyncio.run(gateway.complete(request, Free())).message.text == "hello"
asyncio.run(gateway.aclose())
heavy = {{"pydantic_ai", "pydantic", "openai", "anthropic", "aiohttp", "httpx2", "genai_prices"}} & sys.modules.keys()
sys.exit(", ".join(sorted(heavy)) or 0)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.slow
def test_one_vendors_model_does_not_load_the_other() -> None:
    program = """
import sys
from toka.core.clock import SystemClock
from toka.llm.registry import ModelRegistry
ModelRegistry({"OPENAI_API_KEY": "k"}, SystemClock())("openai:gpt-4o")
sys.exit("anthropic" in sys.modules)
"""
    assert subprocess.run([sys.executable, "-c", program], capture_output=True).returncode == 0
