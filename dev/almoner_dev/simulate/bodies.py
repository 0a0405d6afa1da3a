"""Requests by seed, as agents might write them: every spelling of JSON, references to stored content, and defects.

Role: draws bodies of all four routes as bytes. What names stored content says in its name how many tokens that has
(`stored`), so that a provider can be played that knows. A body is `sound` where the meter has no reason to refuse it.
Boundary: knows nothing of how the meter bounds.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

MODEL: Final = "simulated"
PATHS: Final = {
    "chat": "/openai/v1/chat/completions",
    "responses": "/openai/v1/responses",
    "embeddings": "/openai/v1/embeddings",
    "messages": "/anthropic/v1/messages",
}
STORED: Final = "stored_"
LONG_CONTEXT: Final = "context-1m-2025-08-07"
BETAS: Final = ((LONG_CONTEXT,), ("files-api-2025-04-14", LONG_CONTEXT), (f"files-api-2025-04-14,{LONG_CONTEXT}",))
NUMBERS: Final = ("1e15", "1E20", "-1e+15", "0.70", "-0.0", "1e-300", "1E400", "9" * 30, "3", "0.1000000000000000055")
SCRAPS: Final = ("the sea ", "é", "漢字", "🎉", '"', "\\", "\n", "\t", "\x00", "</s>", "\\ud83d", ",", ":", "1e15")
HALF_PAIRS: Final = ("\ud83d", "\ude00")

Json = dict[str, Any]


class Spelled(str):
    """JSON that is written as it is."""

    __slots__ = ()


@dataclass(frozen=True, slots=True)
class Drawn:
    """One request. `sound`: nothing in it is to be refused, but for want of room."""

    route: str
    content: bytes
    sound: bool
    betas: tuple[str, ...] = ()
    """Lines of the header `anthropic-beta`."""


def stored(chance: random.Random) -> str:
    """Name something that the provider has stored."""
    return f"{STORED}{chance.choice((0, 40, 1500, 5000, 900_000))}_{chance.getrandbits(32):08x}"


def stored_tokens(value: Any) -> int:
    """Give the tokens of all that a request names and does not hold."""
    if isinstance(value, str) and value.startswith(STORED):
        return int(value.split("_")[1])
    if isinstance(value, dict):
        return sum(map(stored_tokens, value.values()))
    return sum(map(stored_tokens, value)) if isinstance(value, list) else 0


class Drawer:
    """Draws requests, and remembers whether the one under way is sound."""

    def __init__(self, chance: random.Random, defects: float) -> None:
        self._chance = chance
        self._defects = defects
        self._sound = True

    def draw(self) -> Drawn:
        """Draw one."""
        self._sound = True
        route = self._chance.choice(tuple(PATHS))
        fields: Json = {"model": MODEL, **self._routes[route](self)}
        if self._strikes():
            fields["metadata"] = self._deep()
        members = list(fields.items())
        self._chance.shuffle(members)
        text = self._spell(dict(members))
        betas = self._chance.choice(BETAS) if self._chance.random() < 0.3 else ()
        return Drawn(route, text.encode("utf-8", "surrogatepass"), self._sound, betas)

    # -- requests --------------------------------------------------------------------------------------------

    def _chat(self) -> Json:
        chance = self._chance
        fields: Json = {"messages": [self._chat_message() for _ in range(chance.randint(1, 4))], **self._sampling()}
        for name in ("max_tokens", "max_completion_tokens"):
            if chance.random() < 0.5:
                fields[name] = chance.randint(1, 400)
        if chance.random() < 0.2:
            fields["n"] = chance.randint(1, 3)
        if chance.random() < 0.3:
            fields |= {"stream": True, **self._maybe("stream_options", {"include_usage": chance.random() < 0.5})}
        if chance.random() < 0.3:
            function = {"name": "f", "description": self._text(), "parameters": self._any()}
            fields["tools"] = [{"type": "function", "function": function}]
        if chance.random() < 0.2:
            fields["response_format"] = {"type": "json_schema", "json_schema": {"name": "s", "schema": self._any()}}
        return fields

    def _chat_message(self) -> Json:
        return self._chance.choice(
            (
                lambda: {"role": "user", "content": self._text()},
                lambda: {"role": "user", "content": [{"type": "text", "text": self._text()}]},
                lambda: {"role": "assistant", "tool_calls": [self._chat_call()]},
                lambda: {"role": "tool", "tool_call_id": "c", "content": self._text()},
                lambda: {"role": "assistant", "audio": {"id": stored(self._chance)}},
                lambda: {"role": "user", "content": [{"type": "file", "file": {"file_id": stored(self._chance)}}]},
            )
        )()

    def _chat_call(self) -> Json:
        arguments = Spelled(json.dumps(self._spell(self._any()), ensure_ascii=self._chance.random() < 0.5))
        return {"id": "c", "type": "function", "function": {"name": "f", "arguments": arguments}}

    def _responses(self) -> Json:
        chance = self._chance
        given = self._text() if chance.random() < 0.2 else [self._item() for _ in range(chance.randint(1, 4))]
        fields: Json = {"input": given, **self._maybe("max_output_tokens", chance.randint(1, 400)), **self._sampling()}
        if chance.random() < 0.1:
            fields["previous_response_id"] = stored(chance)
        if chance.random() < 0.3:
            fields["tools"] = [{"type": "function", "name": "f", "parameters": self._any()}]
        return fields

    def _item(self) -> Json:
        chance = self._chance
        name = stored(chance)
        return chance.choice(
            (
                lambda: {"role": "user", "content": self._text()},
                lambda: {
                    "type": "message",
                    "id": "msg_1",
                    "role": "assistant",
                    "content": [{"type": "output_text", "text": self._text() + "."}],
                },
                lambda: {"type": "function_call", "call_id": "c", "name": "f", "arguments": json.dumps(self._text())},
                lambda: {"type": "function_call_output", "call_id": "c", "output": self._text()},
                lambda: {"type": "reasoning", "id": "rs_1", "summary": [], "encrypted_content": "gAAAA" * 20},
                lambda: {"id": name},
                lambda: {"type": "item_reference", "id": name},
                lambda: {"type": "reasoning", "id": name, "summary": []},
                lambda: {"type": "message", "id": name},
                lambda: {"role": "user", "content": [{"type": "input_image", "file_id": name}]},
            )
        )()

    def _embeddings(self) -> Json:
        chance = self._chance
        return {
            "input": chance.choice(
                (
                    self._text,
                    lambda: [self._text() for _ in range(chance.randint(1, 5))],
                    lambda: [chance.randint(0, 200_000) for _ in range(chance.randint(1, 50))],
                    lambda: [[chance.randint(0, 9)] * chance.randint(1, 50)] * 2,
                )
            )()
        }

    def _messages(self) -> Json:
        chance = self._chance
        fields: Json = {
            "messages": [
                {"role": "user", "content": self._text() if chance.random() < 0.3 else [self._block()]}
                for _ in range(chance.randint(1, 4))
            ],
            "max_tokens": chance.randint(1, 400),
            **self._maybe("system", self._text()),
        }
        if chance.random() < 0.3:
            fields["tools"] = [{"name": "f", "input_schema": self._any()}]
        return fields

    def _block(self) -> Json:
        name = stored(self._chance)
        return self._chance.choice(
            (
                lambda: {"type": "text", "text": self._text()},
                lambda: {"type": "tool_use", "id": "t", "name": "f", "input": {"x": self._any()}},
                lambda: {"type": "tool_result", "tool_use_id": "t", "content": self._text()},
                lambda: {"type": "image", "source": {"type": "file", "file_id": name}},
                lambda: {"type": "document", "source": {"type": "url", "url": name}},
                lambda: {"type": "container_upload", "file_id": name},
            )
        )()

    _routes: Final[dict[str, Callable[[Drawer], Json]]] = {
        "chat": _chat,
        "responses": _responses,
        "embeddings": _embeddings,
        "messages": _messages,
    }

    # -- their parts -----------------------------------------------------------------------------------------

    def _strikes(self) -> bool:
        """Whether to build in a defect here."""
        if self._chance.random() >= self._defects:
            return False
        self._sound = False
        return True

    def _maybe(self, name: str, value: Any) -> Json:
        return {name: value} if self._chance.random() < 0.5 else {}

    def _sampling(self) -> Json:
        return self._maybe("temperature", Spelled(self._chance.choice(("0.70", "1", "1e0", "0.1000000000000000055"))))

    def _text(self) -> str:
        chance = self._chance
        scraps = [chance.choice(SCRAPS) for _ in range(chance.choice((0, 1, 5, 40)))]
        if chance.random() < 0.05:
            scraps.append(chance.choice(HALF_PAIRS))
        return "".join(scraps)

    def _any(self, depth: int = 0) -> Any:
        """Any JSON, with numbers that programs write in different ways."""
        chance = self._chance
        if self._strikes():
            return chance.choice((Spelled("NaN"), Spelled("-Infinity"), self._deep()))
        kind = chance.random()
        if kind < 0.3 and depth < 3:
            return {f"k{number}": self._any(depth + 1) for number in range(chance.randint(0, 4))}
        if kind < 0.5 and depth < 3:
            return [self._any(depth + 1) for _ in range(chance.randint(0, 4))]
        if kind < 0.7:
            return [Spelled(chance.choice(NUMBERS)) for _ in range(chance.choice((1, 4, 60)))]
        return self._text() if kind < 0.9 else chance.choice((None, True, False))

    def _deep(self) -> Spelled:
        levels = self._chance.choice((150, 1_200, 20_000))
        return Spelled("[" * levels + "]" * levels)

    # -- spelling --------------------------------------------------------------------------------------------

    def _spell(self, value: Any) -> str:
        if isinstance(value, Spelled):
            return value
        if isinstance(value, str):
            plain = not any(half in value for half in HALF_PAIRS) and self._chance.random() < 0.7
            return json.dumps(value, ensure_ascii=not plain)
        space = self._chance.choice(("", "", " ", "\n  "))
        if isinstance(value, list):
            return "[" + f",{space}".join(map(self._spell, value)) + "]"
        if isinstance(value, dict):
            members = [self._member(name, each) for name, each in value.items()]
            if members and self._strikes():
                members.append(self._member(self._chance.choice(tuple(value)), 1))
            return "{" + f",{space}".join(members) + space + "}"
        return json.dumps(value)

    def _member(self, name: str, value: Any) -> str:
        escaped = "".join(f"\\u{ord(letter):04x}" for letter in name) if self._chance.random() < 0.02 else name
        return f'"{escaped}":{self._spell(value)}'
