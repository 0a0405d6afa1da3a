"""What operator, meter and agent agree on: labels, environment, paths, ports, and the meter's configuration.

The constants live in `almoner_core.environment` (standard library alone) and are handed on from here.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from almoner_core.environment import *  # noqa: F403 - hands every constant on


class AgentExitCode:
    """Exit codes of our agent loop that say more than failure; any image may use them."""

    INVALID_INPUT = 64
    GUARDRAIL_TRIPPED = 65
    INVALID_OUTPUT = 66
    LIMIT_EXCEEDED = 67
    BUDGET_EXHAUSTED = 68
    PROVIDER_FAILED = 69
    RATE_LIMITED = 70


class Dialect(StrEnum):
    """Dialects of model APIs that the meter speaks."""

    OPENAI = "OpenAI"
    ANTHROPIC = "Anthropic"


class ContractModel(BaseModel):
    """Base of what is handed over as JSON: snake_case, unknown fields refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class PriceTier(ContractModel):
    """Rates in nano-dollars per million tokens, for a call whose input reaches `input_tokens_min` tokens."""

    input_tokens_min: int = Field(default=0, ge=0)
    input: int = Field(ge=0)
    cached_input: int = Field(ge=0)
    cache_write: int = Field(ge=0)
    output: int = Field(ge=0)
    cache_write_long: int | None = Field(
        default=None, ge=0, description="Of entries that live for an hour; None: there is no such price."
    )


class PriceCard(ContractModel):
    """What one model costs: tiers by input size (ascending, the first from 0), and nano-dollars per request.

    `batch` are the tiers of calls that are served slowly (flex, batch); empty: there is no such price.
    """

    version: str = Field(max_length=128, description="Where the prices come from; kept with every record.")
    tiers: tuple[PriceTier, ...] = Field(min_length=1, max_length=8)
    per_request: int = Field(default=0, ge=0)
    batch: tuple[PriceTier, ...] = Field(default=(), max_length=8)


class MeterModel(ContractModel):
    """One model that the meter may call. `price` None: unknown, refused where `usd` is limited.

    `context_window` None: unknown, so that input which its bytes do not bound is refused where money or tokens are.
    """

    name: str
    price: PriceCard | None = None
    context_window: int | None = None
    max_output_tokens: int | None = None


class MeterProvider(ContractModel):
    """One provider. `key_file` is below the providers' directory; None where the server asks for no credential.

    `ledger_key`: the ledger hands its key over, to the meter's memory; there is no file then. `allow_fields`: fields of
    requests that pass under a budget besides those that the meter knows.
    """

    name: str
    type: str
    base_url: str
    dialects: tuple[Dialect, ...]
    key_file: str | None = None
    ledger_key: bool = False
    allow_fields: tuple[str, ...] = Field(default=(), max_length=32)
    models: tuple[MeterModel, ...] = Field(max_length=64)


class ToolPriceCard(ContractModel):
    """What one tool's calls cost, in nano-dollars: so much a call, and so much for each unit."""

    version: str = Field(max_length=128, description="Where the prices come from; kept with every record.")
    per_call: int = Field(default=0, ge=0)
    per_unit: int = Field(default=0, ge=0)


class MeterTool(ContractModel):
    """One tool of a ToolProvider. `price` None: unknown, refused where `usd` is limited."""

    name: str
    provider: str
    resource_type: str
    price: ToolPriceCard | None = None


class MeterConfig(ContractModel):
    """All that the meter is told, by the operator, in one environment variable."""

    execution_namespace: str
    execution_name: str
    execution_uid: str
    kind: str = "Execution"
    attempt: int = Field(ge=1)
    agent: str
    owner: str
    allotment: str
    ledger_url: str
    # Certificates in PEM by which the ledger is known; None: those of the runner image. Left out where there are none:
    # an older runner then takes the configuration.
    ledger_ca: str | None = None
    # The agent's own provider and model come first; fallbacks follow in order.
    providers: tuple[MeterProvider, ...] = Field(max_length=9)
    # Tools that cost something; others are free, and counted all the same.
    tools: tuple[MeterTool, ...] = Field(default=(), max_length=64)
    default_model: str | None = None
    max_output_tokens: int | None = None
    # Input as it is to be written to the input file; None where it comes from `input_file` (a mounted ConfigMap key).
    input: str | None = None
    input_file: str | None = None
    # JSON given to a trainer, and anything else later versions add.
    extra: dict[str, Any] = Field(default_factory=dict)
