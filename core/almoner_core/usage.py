"""The usage record: what a runner reports, one for every try that could cost something.

Fields follow OpenTelemetry's GenAI conventions where those have a name. Subsets: `cached_input` and `cache_write` are
part of `input`; `reasoning` is part of `output`.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Any

from pydantic import BaseModel, ConfigDict, Field


class ResourceType(StrEnum):
    """What was used."""

    LLM = "llm"
    EMBEDDING = "embedding"
    VECTOR_DB = "vector_db"
    WEB_SEARCH = "web_search"
    HTTP = "http"
    EMAIL = "email"
    TOOL = "tool"
    COMPUTE = "compute"


class Outcome(StrEnum):
    """How a try ended. ESTIMATED: what was billed could not be known, so the hold was taken."""

    OK = "ok"
    ERROR = "error"
    CANCELLED = "cancelled"
    ESTIMATED = "estimated"


class Tokens(BaseModel):
    """Tokens by kind, 0 where there are none."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    input: int = Field(default=0, ge=0, le=10**12)
    cached_input: int = Field(default=0, ge=0, le=10**12)
    cache_write: int = Field(default=0, ge=0, le=10**12)
    output: int = Field(default=0, ge=0, le=10**12)
    reasoning: int = Field(default=0, ge=0, le=10**12)


class UsageRecord(BaseModel):
    """One try. `cost_nanos` None means unknown, which is not zero; started is Unix time in milliseconds."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    id: str = Field(min_length=36, max_length=36, description="UUIDv7, written to the spool before the call goes out.")
    sequence: int = Field(ge=1, description="Counts from 1 per allotment; a gap shows a loss.")
    resource_type: ResourceType = ResourceType.LLM
    provider: str = Field(max_length=253)
    model: str = Field(max_length=128)
    operation: str = Field(max_length=64, description="gen_ai.operation.name, such as chat, or the tool's name.")
    tokens: Tokens = Tokens()
    requests: int = Field(default=1, ge=0, le=1_000_000)
    tool_calls: int = Field(default=0, ge=0, le=1_000_000)
    units: int = Field(default=0, ge=0, le=10**15)
    cost_nanos: int | None = Field(ge=0, le=10**18)
    price_version: str | None = Field(default=None, max_length=128)
    started_unix_ms: int = Field(ge=0, le=10**14)
    duration_ms: int = Field(ge=0, le=10**10)
    outcome: Outcome
    error: str | None = Field(default=None, max_length=256)
    metadata: dict[str, Any] = Field(default_factory=dict, max_length=32, description="Never content.")
