"""What the meter learns of an answer, plain or streamed: its usage, whether it is whole, and whether it is an error.

Pure. One `Seen` an answer; it is fed the events of a stream, or the object of a plain answer.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any, Final

from almoner_core.pricing import CardLike, TokenCounts, prices_long_writes
from almoner_runner.meter import told as reading
from almoner_runner.meter.dialect import UsageShape
from almoner_runner.meter.told import DEARER_TIERS, Told, details

TIER_CHARS_MAX: Final = 32
ERROR_CHARS_MAX: Final = 200
ID_CHARS_MAX: Final = 256
BOM: Final = b"\xef\xbb\xbf"
_ANTHROPIC_EVENTS: Final = (b"message_start", b"message_delta", b"message_stop", b'"error"')
_RESPONSE_ENDS: Final = ("response.completed", "response.incomplete", "response.failed")
_RESPONSE_EVENTS: Final = (*(name.encode() for name in _RESPONSE_ENDS), b'"error"')


@dataclass(slots=True)
class Seen:
    """What an answer has said so far."""

    shape: UsageShape
    told: Told = field(default_factory=Told)
    complete: bool = False
    """The stream said that it is over."""
    error: str | None = None
    """What the answer is instead of one."""
    response_id: str | None = None
    """The id of a response that later calls may name."""
    tier: str | None = None
    """The service tier that the call was served as."""

    def tokens(self) -> TokenCounts | None:
        """Give all tokens; None where not all kinds were told."""
        if self.shape == "anthropic":
            return reading.anthropic_tokens(self.told)
        return reading.openai_tokens(self.told, embedding=self.shape == "embeddings")

    def input_tokens(self) -> TokenCounts | None:
        """Give the input alone; None where it was not told."""
        if self.shape == "anthropic":
            return reading.anthropic_input(self.told)
        return reading.openai_input(self.told, embedding=self.shape == "embeddings")

    def beyond(self, card: CardLike | None) -> str | None:
        """Name what was used that the price card has no price for; None where there is nothing of the kind."""
        used = sorted(self.told.beyond)
        if self.told.get("written_long") and not (card is not None and prices_long_writes(card)):
            used.insert(0, "cache writes of an hour")
        if self.tier in DEARER_TIERS:
            used.append(f"service tier {self.tier}")
        return ", ".join(used) or None

    def read(self, data: dict[str, Any]) -> None:
        """Take a plain answer."""
        self._note(data.get("usage"))
        self._note_tier(data)
        self._note_error(data)
        self._note_id(data)
        self.complete = True

    def watch(self, event: bytes) -> bool:
        """Take one event of a stream; True where it holds nothing but usage."""
        match self.shape:
            case "anthropic":
                self._watch_anthropic(event)
                return False
            case "responses":
                self._watch_response(event)
                return False
            case _:
                return self._watch_chat(event)

    def _note(self, usage: Any) -> bool:
        note = reading.note_anthropic if self.shape == "anthropic" else reading.note_openai
        return note(usage, self.told)

    def _note_tier(self, data: dict[str, Any]) -> None:
        self.tier = tier_of(data) or self.tier

    def _note_id(self, data: dict[str, Any]) -> None:
        value = data.get("id")
        if self.shape == "responses" and isinstance(value, str) and len(value) <= ID_CHARS_MAX:
            self.response_id = value

    def _note_error(self, data: dict[str, Any]) -> None:
        """Some gateways answer 200 with an error in the place of the answer."""
        error = data.get("error")
        if error and not (data.get("choices") or data.get("output") or data.get("content") or data.get("data")):
            said = error.get("message") if isinstance(error, dict) else error
            words = " ".join(str(said)[:ERROR_CHARS_MAX].split())
            self.error = f"the provider answered with an error: {words}"

    def _watch_chat(self, event: bytes) -> bool:
        if b"[DONE]" in event and event_text(event) == b"[DONE]":
            self.complete = True
            return False
        # Servers that report usage put `"usage":null` on every other event: no need to read those.
        said = event.count(b'"usage"') - event.count(b'"usage":null') - event.count(b'"usage": null')
        if said <= 0 and b'"error"' not in event:
            return False
        data = event_data(event)
        found = self._note(data.get("usage"))
        choices = data.get("choices")
        for choice in choices if isinstance(choices, list) else ():
            # Kimi's place for it.
            if isinstance(choice, dict):
                self._note(choice.get("usage"))
        self._note_tier(data)
        if said <= 0:
            self._note_error(data)
        return found and choices == []

    def _watch_response(self, event: bytes) -> None:
        """The last event of a response carries the whole response."""
        if not any(name in event for name in _RESPONSE_EVENTS):
            return
        data = event_data(event)
        if data.get("type") in _RESPONSE_ENDS:
            response = details(data, "response")
            self._note(response.get("usage"))
            self._note_tier(response)
            self._note_id(response)
            self.complete = True
        elif data.get("type") == "error":
            self.error = "the provider's stream reported an error"

    def _watch_anthropic(self, event: bytes) -> None:
        """`message_start` has the input, each `message_delta` the output so far."""
        if not any(name in event for name in _ANTHROPIC_EVENTS):
            return
        data = event_data(event)
        match data.get("type"):
            case "message_start":
                reading.note_anthropic(details(details(data, "message"), "usage"), self.told, output=False)
            case "message_delta":
                reading.note_anthropic(details(data, "usage"), self.told)
            case "message_stop":
                self.complete = True
            case "error":
                self.error = "the provider's stream reported an error"


def tier_of(data: dict[str, Any]) -> str | None:
    """Read `service_tier`; None where it is absent or no short word: it goes into the record."""
    value = data.get("service_tier")
    good = isinstance(value, str) and value.isascii() and value.isprintable() and len(value) <= TIER_CHARS_MAX
    return value if good else None


def event_text(event: bytes) -> bytes:
    """Give the data of a server-sent event, its lines joined; comments, names and a byte order mark are left out."""
    lines = event.removeprefix(BOM).splitlines()
    return b"\n".join(line[5:].strip() for line in lines if line.startswith(b"data:"))


def event_data(event: bytes) -> dict[str, Any]:
    """Read the JSON object in the data lines of a server-sent event; empty where there is none."""
    try:
        data = json.loads(event_text(event))
    except (ValueError, RecursionError):
        return {}
    return data if isinstance(data, dict) else {}
