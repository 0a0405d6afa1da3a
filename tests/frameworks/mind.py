"""What the scripted provider answers to any framework: it knows the clients' prompts, and nothing of frameworks."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from typing import Any

from almoner_dev.scripted import Reply, ToolCall, Usage

Json = dict[str, Any]

GREETING = "Hello from the model."
FORECAST = "It is sunny in Paris, 21 degrees."
CITY: Json = {"name": "Paris", "population": 2_100_000}
SQUARE = "A red square."
TOOL_RESULT = "sunny, 21 degrees"
PICTURE_BYTES = "iVBORw0KGgo"
"""How every PNG begins in base64."""
READERS: dict[str, Callable[[str], Json]] = {
    "Read": lambda path: {"file_path": path},
    "exec_command": lambda path: {"cmd": f"cat {path}"},
    "shell_command": lambda path: {"command": f"cat {path}"},
    "shell": lambda path: {"command": ["cat", path]},
}
"""Tools of coding agents by which they read a file."""
TOGETHER_MS = 150.0
"""How long each of several answers takes, so that the calls are under way at the same time."""


class Mind:
    """Chooses replies; each has a usage of its own. One for one client: the first pause it is asked for is a 429."""

    def __init__(self) -> None:
        self._number = 0
        self._paused = False

    def __call__(self, path: str, body: Json) -> Reply:
        """Answer one request."""
        self._number += 1
        text = json.dumps(body)
        if "after a pause" in text and not self._paused:
            self._paused = True
            return Reply(status=429, message="too many requests", usage=None, headers={"retry-after": "1"})
        number = self._number
        usage = Usage(input_tokens=20 + number % 7, output_tokens=5 + number % 11, cached_input_tokens=number % 3)
        latency = TOGETHER_MS if "hello together" in text else 0
        call = self._call(text, dict(tools_of(body)))
        if call is not None:
            return Reply(tool_calls=(call,), usage=usage, latency_ms=latency)
        return Reply(text=self._text(text), usage=usage, latency_ms=latency)

    def _call(self, text: str, tools: dict[str, Json]) -> ToolCall | None:
        ident = f"call_{self._number}"
        if "city of Paris" in text:
            for name, schema in tools.items():
                if "population" in (schema.get("properties") or {}):
                    return ToolCall(name=name, arguments=CITY, id=ident)
        weather = next((name for name in tools if name.endswith("get_weather")), None)
        if "weather in Paris" in text and TOOL_RESULT not in text and weather is not None:
            return ToolCall(name=weather, arguments={"city": "Paris"}, id=ident)
        named = re.search(r"in the file ([\w/.-]+)", text)
        if named is not None and TOOL_RESULT not in text and PICTURE_BYTES not in text:
            for name, arguments in READERS.items():
                if name in tools:
                    return ToolCall(name=name, arguments=arguments(named[1]), id=ident)
        if "final_answer" in tools:
            return ToolCall(name="final_answer", arguments={"answer": self._text(text)}, id=ident)
        return None

    def _text(self, text: str) -> str:
        if "weather in Paris" in text:
            return FORECAST if TOOL_RESULT in text else "There is no tool."
        if "city of Paris" in text:
            return json.dumps(CITY)
        if "in this picture" in text:
            return SQUARE if PICTURE_BYTES in text else "There is no picture."
        return GREETING


def tools_of(body: Json) -> Iterator[tuple[str, Json]]:
    """The tools of a request in any dialect: name, and schema of the arguments."""
    for tool in body.get("tools") or []:
        told = tool.get("function") or tool
        yield str(told.get("name")), told.get("parameters") or told.get("input_schema") or {}
