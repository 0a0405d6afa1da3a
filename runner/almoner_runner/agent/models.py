"""The model, as pydantic-ai talks to it: through the meter, in the dialect that the agent asks for.

Role: build the client and the settings. Boundary: base URL and placeholder key come from the environment, so that there
is no way round the meter here. Imports are inside the functions: each SDK costs half a second, and one is needed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final, TypeVar

from almoner_core.api.agent import ModelAPI, ModelSettings
from almoner_runner.agent.invocation import Invocation

if TYPE_CHECKING:
    import httpx2
    from pydantic_ai.models import Model
    from pydantic_ai.settings import ModelSettings as FrameworkSettings

    from almoner_runner.agent.heard import MendingTransport

ClientT = TypeVar("ClientT")
# The meter retries against the provider; these are for a meter that just restarts.
SDK_RETRIES: Final = 2
ANTHROPIC_OUTPUT_TOKENS: Final = 20_000
"""Anthropic's SDK refuses to wait for a longer answer that is not streamed."""


def build_model(invocation: Invocation, http: httpx2.AsyncBaseTransport | None = None) -> Model:
    """Give the model that speaks to the meter; `http` is what carries its requests, for tests."""
    from almoner_runner.agent.heard import HeardModel, MendingTransport  # noqa: PLC0415 - heavy

    anthropic = invocation.api is ModelAPI.ANTHROPIC
    transport = MendingTransport(anthropic=anthropic, wrapped=http)
    model = _anthropic(invocation, transport) if anthropic else _openai(invocation, transport)
    return HeardModel(model, transport, structured=invocation.spec.output is not None)


def _openai(invocation: Invocation, transport: MendingTransport) -> Model:
    from openai import AsyncOpenAI, DefaultAsyncHttpxClient  # noqa: PLC0415 - see above
    from pydantic_ai.models.openai import OpenAIChatModel  # noqa: PLC0415
    from pydantic_ai.providers.openai import OpenAIProvider  # noqa: PLC0415

    client = _client(AsyncOpenAI, DefaultAsyncHttpxClient(transport=transport), invocation)
    return OpenAIChatModel(invocation.spec.model.name, provider=OpenAIProvider(openai_client=client))


def _anthropic(invocation: Invocation, transport: MendingTransport) -> Model:
    from anthropic import AsyncAnthropic, DefaultAsyncHttpxClient  # noqa: PLC0415 - see above
    from pydantic_ai.models.anthropic import AnthropicModel  # noqa: PLC0415
    from pydantic_ai.providers.anthropic import AnthropicProvider  # noqa: PLC0415

    client = _client(AsyncAnthropic, DefaultAsyncHttpxClient(transport=transport), invocation)
    return AnthropicModel(invocation.spec.model.name, provider=AnthropicProvider(anthropic_client=client))


def _client(make: Callable[..., ClientT], http: httpx2.AsyncClient, invocation: Invocation) -> ClientT:
    return make(base_url=invocation.base_url, api_key=invocation.api_key, max_retries=SDK_RETRIES, http_client=http)


def build_settings(settings: ModelSettings, api: ModelAPI) -> FrameworkSettings:
    """Give the settings of every call. The API's decimal strings become floats here and nowhere else."""
    built: FrameworkSettings = {}
    if settings.max_output_tokens is not None:
        built["max_tokens"] = settings.max_output_tokens
    elif api is ModelAPI.ANTHROPIC:
        # Its API demands one; OpenAI's dialect is left to the meter, which knows the model and the budget.
        built["max_tokens"] = ANTHROPIC_OUTPUT_TOKENS
    if settings.temperature is not None:
        built["temperature"] = float(settings.temperature)
    if settings.top_p is not None:
        built["top_p"] = float(settings.top_p)
    if settings.seed is not None and api is ModelAPI.OPENAI:  # Anthropic's API has none
        built["seed"] = settings.seed
    return built
