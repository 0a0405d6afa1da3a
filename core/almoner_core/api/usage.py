"""Usage as it stands in the status of any kind."""

from __future__ import annotations

from pydantic import Field

from almoner_core.api.base import APIModel
from almoner_core.money import Money


class TokenUsage(APIModel):
    """Tokens by kind. `cachedInput` and `cacheWrite` are subsets of `input`; `reasoning` is a subset of `output`."""

    input: int = Field(default=0, ge=0, description="Input tokens, cached ones included.")
    cached_input: int = Field(default=0, ge=0, description="Input tokens read from the provider's cache.")
    cache_write: int = Field(default=0, ge=0, description="Input tokens written to the provider's cache.")
    output: int = Field(default=0, ge=0, description="Output tokens, reasoning included.")
    reasoning: int = Field(default=0, ge=0, description="Output tokens spent on reasoning.")
    total: int = Field(default=0, ge=0, description="Input plus output tokens.")


class ComputeUsage(APIModel):
    """Machine time used, as integral products of a resource and seconds."""

    cpu_milli_seconds: int = Field(default=0, ge=0, description="Millicores times seconds requested by the pods.")
    memory_mebibyte_seconds: int = Field(default=0, ge=0, description="Mebibytes times seconds requested by the pods.")
    gpu_seconds: int = Field(default=0, ge=0, description="GPUs times seconds requested by the pods.")


class Usage(APIModel):
    """What was used. Unknown is not zero: records whose cost is unknown are counted in `unpricedRecords`."""

    cost: Money = Field(default=Money(0), description="Known cost in US dollars, exact to the nano-dollar.")
    unpriced_records: int = Field(
        default=0, ge=0, description="Records whose cost is unknown because the model has no price; not in `cost`."
    )
    unaccounted: Money | None = Field(
        default=None,
        description="Part of `cost` charged for attempts that vanished without a word: what they could have spent.",
    )
    tokens: TokenUsage = Field(default=TokenUsage(), description="Tokens by kind.")
    requests: int = Field(default=0, ge=0, description="Calls to model providers, every try counted.")
    tool_calls: int = Field(default=0, ge=0, description="Calls of metered tools.")
    compute: ComputeUsage | None = Field(default=None, description="Machine time of the pods.")
