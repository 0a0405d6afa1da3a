"""The Anthropic dialect: messages. Requests to bounds.

Pure; answers are read in answers.py. Fields by Anthropic's API reference. Left out on purpose, because they cost what
is not bounded here: server tools, MCP servers, containers, context editing (extra sampling), fast mode, data residency.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any, Final

from almoner_core.pricing import TOOLS_OVERHEAD_TOKENS, prices_long_writes
from almoner_runner.meter import images, inline
from almoner_runner.meter.body import Body, growth
from almoner_runner.meter.config import Model, Provider
from almoner_runner.meter.dialect import (
    THINKING_LEAST,
    Call,
    Rules,
    find_model,
    flag,
    input_bound,
    number,
    sequence,
    set_output_maximum,
    text_bound,
    words,
)
from almoner_runner.meter.fields import Faults, Free, only_clears, standard, unknown
from almoner_runner.meter.refusals import InvalidCallError

MESSAGE_FIELDS: Final = words(
    "model messages max_tokens system stop_sequences stream temperature top_k top_p tools tool_choice metadata "
    "thinking service_tier cache_control output_config output_format"
)
MESSAGE_FREE: Final[Free] = {"context_management": only_clears, "speed": standard}
SERVICE_TIERS: Final = (None, "auto", "standard_only")
THREADS_UNSUPPORTED: Final = "thread_unsupported_request"
# Tools that run at the client's; each brings instructions of its own.
CLIENT_TOOLS: Final = ("bash_", "text_editor_", "memory_", "computer_")


def messages(provider: Provider, payload: Body, rules: Rules) -> Call:
    """Bound a message."""
    model = find_model(provider, payload, rules)
    long_cache = _asks_for_long_cache(payload)
    names = unknown(payload.fields, MESSAGE_FIELDS | provider.allow_fields, MESSAGE_FREE)
    if rules.strict:
        _check(payload, model, names, long_cache=long_cache)
    thinking = _thinking_budget(payload)
    call = Call(
        operation="chat",
        resource_type="llm",
        provider=provider,
        model=model,
        payload=payload,
        usage_shape="anthropic",
        input_bound=_input(provider, payload, model, rules, known=not names),
        output_fields=("max_tokens",),
        long_cache=long_cache,
        # The API wants max_tokens above the thinking budget; with interleaved thinking the budget may be the larger.
        output_least=max(16, thinking + 1),
        stream=flag(payload, "stream"),
    )
    set_output_maximum(call, [number(payload, "max_tokens", least=1)], rules)
    if thinking >= call.output_max:
        call.output_extra = thinking
    elif thinking >= THINKING_LEAST and _is_plain(payload.get("thinking")):
        # The budget can go down with the maximum: Claude Code asks for all but one token of its 32,000.
        call.thinking, call.output_least = thinking, 2 * THINKING_LEAST
    return call


def _is_plain(thinking: dict[str, Any]) -> bool:
    """Say whether an object of thinking is no longer when it is written anew: it goes out after it was bounded."""
    return all(isinstance(value, str) or name == "budget_tokens" for name, value in thinking.items())


def _check(payload: Body, model: Model, names: list[str], *, long_cache: bool) -> None:
    """Raises InvalidCallError with everything in the request that may raise its cost beyond the bound."""
    faults = Faults()
    if names == ["thread"]:
        raise ThreadsUnsupportedError
    faults.add_unknown(names, "messages")
    _check_tools(sequence(payload, "tools"), faults)
    if long_cache and not (model.price is not None and prices_long_writes(model.price)):
        faults.add(
            "cache_control",
            f"cache_control.ttl: under a budget only '5m' is let through: the price of longer entries of model "
            f"{model.name!r} is not known (longCacheWritePerMillion in spec.prices of the ModelProvider)",
        )
    if payload.get("service_tier") not in SERVICE_TIERS:
        faults.add("service_tier", "service_tier: under a budget only 'auto' and 'standard_only' are let through")
    faults.check()


def _input(provider: Provider, payload: Body, model: Model, rules: Rules, *, known: bool) -> int:
    given, tools = sequence(payload, "messages"), sequence(payload, "tools")
    schemas = ("tools", "output_config", "output_format")
    bound, covered = text_bound(provider, payload, model, images.in_messages(given), len(given) + 1, *schemas)
    bound += TOOLS_OVERHEAD_TOKENS * sum(1 for tool in tools if _is_client_tool(tool))
    whole = (
        known
        and covered
        and inline.system(payload.get("system") or "")
        and all(map(inline.message, given))
        and all(map(inline.message_tool, tools))
    )
    bound += sum(map(_calls_growth, given)) if whole else 0
    return input_bound(bound, whole=whole, name="messages", provider=provider, model=model, rules=rules)


def _calls_growth(message: dict[str, Any]) -> int:
    content = message["content"]
    return 0 if isinstance(content, str) else sum(growth(block.get("input")) for block in content or ())


def window_asked(betas: Iterable[str]) -> int:
    """Give the context window that a beta header asks for (`context-1m-2025-08-07`); 0 where none does."""
    found = [int(millions) for beta in betas for millions in re.findall(r"context-([0-9]{1,3})m\b", beta)]
    return max(found, default=0) * 1_000_000


def _thinking_budget(payload: Body) -> int:
    thinking = payload.get("thinking")
    return number(thinking, "budget_tokens") or 0 if isinstance(thinking, dict) else 0


def _is_client_tool(tool: Any) -> bool:
    return isinstance(tool, dict) and str(tool.get("type", "")).startswith(CLIENT_TOOLS)


def _check_tools(tools: list[Any], faults: Faults) -> None:
    for index, tool in enumerate(tools):
        kind = tool.get("type") if isinstance(tool, dict) else "?"
        if kind not in (None, "custom") and not _is_client_tool(tool):
            faults.add(
                "tools",
                f"tools[{index}]: server tool {str(kind)[:64]!r} costs what the meter cannot bound; "
                "under a budget only custom and client tools are let through",
            )


def _asks_for_long_cache(payload: Body) -> bool:
    """Say whether a cache entry may live for longer than five minutes: writing it costs more."""
    stack: list[Any] = [payload.fields]
    while stack:
        value = stack.pop()
        if isinstance(value, dict):
            control = value.get("cache_control")
            if isinstance(control, dict) and control.get("ttl") not in (None, "5m"):
                return True
            value = value.values()
        stack.extend(child for child in value if isinstance(child, (dict, list)))
    return False


class ThreadsUnsupportedError(InvalidCallError):
    """The refusal of `thread` by which Anthropic's tool runners know to go on without one."""

    def __init__(self) -> None:
        message = "thread: under a budget the meter keeps no threads: their stored input has no bound"
        super().__init__(message, code=THREADS_UNSUPPORTED, param="thread")


def error_body(code: str, message: str, status: int, param: str | None) -> dict[str, Any]:
    """Give a refusal in Anthropic's shape. The code stays readable: the shape has no field for it."""
    kinds = {400: "invalid_request_error", 402: "billing_error", 404: "not_found_error", 413: "request_too_large"}
    kinds |= {429: "rate_limit_error", 503: "overloaded_error"}
    error: dict[str, Any] = {"type": kinds.get(status, "api_error"), "message": f"{code}: {message}"}
    if code == THREADS_UNSUPPORTED:
        error["details"] = {"error_code": code, "unsupported": [param]}
    return {"type": "error", "error": error}
