"""What the scripted provider answers: it knows the clients' prompts, and the forms in which frameworks take answers."""

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
FINAL = {"final_answer": "answer", "Answer": "text"}
"""The field of the answer, by the end of the name of a tool by which a framework or a client's schema takes it."""
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
        call = call_of(text, dict(tools_of(body)))
        if call is not None:
            call = call.model_copy(update={"id": f"call_{number}"})
            return Reply(tool_calls=(call,), usage=usage, latency_ms=latency)
        said = by_fields(text) if "[[ ## completed ## ]]" in text else answer_of(text)
        return Reply(text=said, usage=usage, latency_ms=latency)


def answer_of(text: str) -> str:
    """The answer to the prompt in a request's text."""
    if "weather in Paris" in text:
        return FORECAST if TOOL_RESULT in text else "There is no tool."
    if "city of Paris" in text:
        return json.dumps(CITY)
    if "in this picture" in text:
        return SQUARE if PICTURE_BYTES in text else "There is no picture."
    return GREETING


def call_of(text: str, tools: dict[str, Json]) -> ToolCall | None:
    """The call of a tool that has to come next, if any."""
    if "city of Paris" in text:
        for name, schema in tools.items():
            if "population" in (schema.get("properties") or {}):
                return ToolCall(name=name, arguments=CITY)
    if TOOL_RESULT not in text and PICTURE_BYTES not in text and (call := _question(text, tools)) is not None:
        return call
    for name, schema in tools.items():
        field = next((field for ending, field in FINAL.items() if name.endswith(ending)), None)
        if field in (schema.get("properties") or {}):
            return ToolCall(name=name, arguments={field: answer_of(text)})
    return None


def _question(text: str, tools: dict[str, Json]) -> ToolCall | None:
    """The call that asks for the weather, for a tool that is not given yet, or for a file."""
    if "weather in Paris" in text:
        if weather := next((name for name in tools if name.endswith("get_weather")), None):
            return ToolCall(name=weather, arguments={"city": "Paris"})
        if "ToolSearch" in tools and (deferred := re.search(r"mcp__\w+__get_weather", text)):
            return ToolCall(name="ToolSearch", arguments={"query": f"select:{deferred[0]}"})
    if named := re.search(r"in the file ([\w/.-]+)", text):
        for name, arguments in READERS.items():
            if name in tools:
                return ToolCall(name=name, arguments=arguments(named[1]))
    return None


def by_fields(text: str) -> str:
    """The answer as DSPy asks for it: each field of the output below its name."""
    done = TOOL_RESULT in text
    values = {
        "reasoning": "It is so.",
        "next_thought": "The tool knows.",
        "next_tool_name": "finish" if done else "get_weather",
        "next_tool_args": "{}" if done else '{"city": "Paris"}',
        "city": json.dumps(CITY),
        "answer": answer_of(text),
    }
    asked = [(name, value) for name, value in values.items() if f"[[ ## {name} ## ]]" in text]
    return "\n\n".join([*(f"[[ ## {name} ## ]]\n{value}" for name, value in asked), "[[ ## completed ## ]]"])


def tools_of(body: Json) -> Iterator[tuple[str, Json]]:
    """The tools of a request in any dialect: name, and schema of the arguments."""
    for tool in body.get("tools") or []:
        told = tool.get("function") or tool
        yield str(told.get("name")), told.get("parameters") or told.get("input_schema") or {}
