"""The last word of a meter, as it stands in the pod's termination message: what operator and meter agree on.

The meter writes it by hand (it has no pydantic); a test reads every one with this model. It comes out of a pod and is
checked like any other input: whatever does not fit is no last word.
"""

from __future__ import annotations

import json
from typing import Annotated, Final

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from almoner_core.environment import TERMINATION_MESSAGE_BYTES_MAX, OutputProblem
from almoner_core.text import storable

VERSION: Final = 1
AMOUNT_MAX: Final = 10**18
Amount = Annotated[int, Field(ge=0, le=AMOUNT_MAX)]


class WordTotals(BaseModel):
    """Sums over all records of the attempt. Money in nano-dollars; `unpriced` counts records of unknown cost."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    cost_nanos: Amount = 0
    unpriced: Amount = 0
    input_tokens: Amount = 0
    cached_input_tokens: Amount = 0
    cache_write_tokens: Amount = 0
    output_tokens: Amount = 0
    reasoning_tokens: Amount = 0
    requests: Amount = 0
    tool_calls: Amount = 0


class WordOutput(BaseModel):
    """What became of the output. `content` is all of it, or its beginning (`truncated`), where it was not stored."""

    model_config = ConfigDict(extra="ignore", frozen=True, strict=True)

    bytes: Amount = 0
    stored: bool = False
    problem: Annotated[OutputProblem | None, Field(strict=False)] = None
    detail: Annotated[str, Field(max_length=512)] = ""
    content: Annotated[str, Field(max_length=TERMINATION_MESSAGE_BYTES_MAX)] | None = None
    truncated: bool = False

    @field_validator("detail", "content", mode="before")
    @classmethod
    def _storable(cls, text: object) -> object:
        # What JSON can bring and a database does not take.
        return storable(text) if isinstance(text, str) else text


class MeterWord(BaseModel):
    """The whole message. `complete`: no call was in flight any more, so the totals are all there is."""

    model_config = ConfigDict(extra="ignore", frozen=True, strict=True)

    version: int
    allotment: Annotated[str, Field(max_length=64)]
    attempt: Amount
    last_sequence: Amount
    posted: Amount
    final: bool
    complete: bool
    rejected: Amount = 0
    totals: WordTotals
    output: WordOutput | None = None


def read_word(message: object, allotment: str) -> MeterWord | None:
    """Read a termination message. None: it is missing, not the meter's, of another attempt, or not complete."""
    if not isinstance(message, str) or len(message) > TERMINATION_MESSAGE_BYTES_MAX:
        return None
    try:
        # Not model_validate_json: numbers beyond its reach, and nesting, are refused here at once.
        word = MeterWord.model_validate(json.loads(message))
    except (ValueError, ValidationError, RecursionError):
        return None
    good = word.version == VERSION and word.allotment == allotment and word.complete
    return word if good and word.posted <= word.last_sequence else None
