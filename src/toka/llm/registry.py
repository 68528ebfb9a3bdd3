"""Model string -> model: makes each model once, and imports vendors' libraries only when one of theirs is asked for."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from toka.core.clock import Clock
from toka.errors import UsageError
from toka.llm.model import Model
from toka.llm.names import AUTO
from toka.llm.redact import Redactor, secrets_of
from toka.llm.resolve import endpoint_of
from toka.llm.scripted import ScriptedModel

if TYPE_CHECKING:
    from toka.llm.models import VendorModels


class ModelRegistry:
    """The models of a process; what `LlmGateway` takes as `models`."""

    def __init__(
        self,
        environment: Mapping[str, str],
        clock: Clock,
        base_url: str | None = None,
        models: Mapping[str, Model] | None = None,
        *,
        connections: int = 1000,
    ) -> None:
        """Makes a registry; connects to nobody.

        Args:
            environment: keys and addresses (see `toka.llm.resolve`). Its secrets are taken out of providers' errors.
            clock: time, for scripted delays and Retry-After dates.
            base_url: the server of the settings; None: by environment.
            models: models of one's own, by model string; they go before all others.
            connections: most connections at a time to all providers together.
        """
        self._environment = dict(environment)
        self._clock = clock
        self._base_url = base_url
        self._made: dict[str, Model] = dict(models or {})
        self._connections = connections
        self._vendors: VendorModels | None = None

    def __call__(self, model: str) -> Model:
        """The model of a string, the same object each time.

        Raises:
            UsageError: no such provider; `auto`, which must be resolved first; or a script that cannot be read.
            ConfigError: a script with mistakes.
            ModelUnavailable: what the provider needs is not set.
        """
        found = self._made.get(model)
        if found is None:
            found = self._made[model] = self._make(model)
        return found

    def _make(self, model: str) -> Model:
        if model == AUTO:
            raise UsageError("the model 'auto' must be resolved before it is called")
        endpoint = endpoint_of(model, self._environment, self._base_url)
        if endpoint.wire == "scripted":
            return ScriptedModel.from_file(Path(endpoint.name), clock=self._clock)
        if self._vendors is None:
            from toka.llm.models import VendorModels
            from toka.llm.transport import TransportSettings

            redact = Redactor(secrets_of(self._environment)).text
            self._vendors = VendorModels(self._clock, TransportSettings(connections=self._connections), redact)
        return self._vendors.model(model, endpoint)

    async def aclose(self) -> None:
        """Closes all models and their connections. Safe to call twice."""
        made, self._made = self._made, {}
        for model in made.values():
            await model.aclose()
        vendors, self._vendors = self._vendors, None
        if vendors is not None:
            await vendors.aclose()
