"""Calls through a meter as an agent makes them: the real SDKs, unmodified, and what their tests share."""

from __future__ import annotations

from typing import Any

import anthropic
import httpx
import httpx2
import openai

from tests.support.ledger_double import LedgerDouble
from tests.support.meter import MODEL, Meter
from tests.support.polling import until

HI: Any = [{"role": "user", "content": "hi"}]
# A body that ends too early, in the words of whichever HTTP library an SDK brings.
BROKEN = (httpx.TransportError, httpx2.TransportError, openai.APIConnectionError, anthropic.APIConnectionError)
MICRO = 1000  # nano-dollars: the price of one token of input; output costs two


def openai_client(meter: Meter, *, retries: int = 0) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{meter.url}/openai/v1", api_key="placeholder", max_retries=retries)


def anthropic_client(meter: Meter, *, retries: int = 0) -> anthropic.Anthropic:
    return anthropic.Anthropic(base_url=f"{meter.url}/anthropic", api_key="placeholder", max_retries=retries)


def settled(meter: Meter, ledger: LedgerDouble, calls: int) -> None:
    """Waits until the ledger has so many records, and nothing is in flight any more."""
    until(lambda: len(ledger.records) == calls, 10, f"{calls} records in the ledger")
    until(lambda: not any(meter.get("/usage")["in_flight"].values()), 5, "nothing in flight")


def refused(meter: Meter, error: type[openai.APIStatusError], says: str) -> bool:
    """Make a call; whether it is refused by such an error with these words. Raises whatever else the SDK raises."""
    try:
        openai_client(meter).chat.completions.create(model=MODEL, messages=HI)
    except error as refusal:
        return says in str(refusal)
    return False
