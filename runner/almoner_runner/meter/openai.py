"""The OpenAI dialect: chat completions, responses, embeddings. Requests to bounds.

Pure; answers are read in answers.py. Fields by OpenAI's API reference and what compatible servers (llama.cpp, vLLM,
DeepSeek) add. Left out on purpose, because they cost what is not bounded here: hosted tools, web search, audio,
predictions, background runs, stored prompts.
"""

from __future__ import annotations

from typing import Any, Final

from almoner_core.environment import DEFAULT_CONTEXT_WINDOW
from almoner_core.pricing import input_tokens_bound
from almoner_core.refusals import BUDGET_IN_USE
from almoner_runner.meter import images, inline
from almoner_runner.meter.body import Body, growth, schema_growth
from almoner_runner.meter.config import Model, Provider
from almoner_runner.meter.dialect import (
    CHOICES_MAX,
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
from almoner_runner.meter.fields import Faults, Free, labels, only_text, unknown
from almoner_runner.meter.refusals import InvalidCallError

CHAT_FIELDS: Final = words(
    "model messages max_tokens max_completion_tokens n stream stream_options temperature top_p stop presence_penalty "
    "frequency_penalty logit_bias logprobs top_logprobs user seed tools tool_choice parallel_tool_calls functions "
    "function_call response_format reasoning_effort verbosity metadata store service_tier safety_identifier "
    "prompt_cache_key prompt_cache_retention "
    # What compatible servers add, all of them about sampling.
    "top_k min_p repetition_penalty repeat_penalty cache_prompt"
)
RESPONSES_FIELDS: Final = words(
    "model input instructions max_output_tokens max_tool_calls metadata parallel_tool_calls previous_response_id "
    "reasoning store stream stream_options temperature text tool_choice tools top_logprobs top_p truncation user "
    "safety_identifier prompt_cache_key prompt_cache_retention include service_tier"
)
CHAT_FREE: Final[Free] = {"modalities": only_text}
RESPONSES_FREE: Final[Free] = {"client_metadata": labels}
EMBEDDING_FIELDS: Final = words("model input encoding_format dimensions user")
SERVICE_TIERS: Final = (None, "auto", "default")
BATCH_TIER: Final = "flex"
CHAT_TOOLS: Final = frozenset({"function", "custom"})
RESPONSE_TOOLS: Final = frozenset({"function", "custom", "local_shell", "namespace"})
SWITCHES: Final = {"web_search": 'switch it off in the client (in Codex: web_search = "disabled" in config.toml)'}
"""How clients that have a hosted tool on by default go without it."""
MAXIMA: Final = ("max_completion_tokens", "max_tokens")
"""OpenAI's own API wants the newer name; compatible servers may know the older alone."""
OPENAI_TYPE: Final = "OpenAI"


def chat(provider: Provider, payload: Body, rules: Rules) -> Call:
    """Bound a chat completion."""
    model = find_model(provider, payload, rules)
    batch = _asks_for_batch(model, payload)
    names = unknown(payload.fields, CHAT_FIELDS | provider.allow_fields, CHAT_FREE)
    if rules.strict:
        faults = Faults()
        faults.add_unknown(names, "chat/completions")
        _check_tools(sequence(payload, "tools"), faults)
        _finish_check(provider, payload, faults, batch=batch)
    asked = [number(payload, name, least=1) for name in MAXIMA]
    # The client's own field, alone: servers refuse both at once, and some of them one of the two.
    fields = tuple(name for name, value in zip(MAXIMA, asked, strict=True) if value is not None)
    if not fields:
        fields = MAXIMA[:1] if provider.type == OPENAI_TYPE else MAXIMA[1:]
    stream = flag(payload, "stream")
    hide_usage = stream and ask_for_usage(payload)
    call = Call(
        operation="chat",
        resource_type="llm",
        provider=provider,
        model=model,
        payload=payload,
        usage_shape="openai",
        input_bound=0,
        output_fields=fields,
        choices=number(payload, "n", least=1, most=CHOICES_MAX) or 1,
        stream=stream,
        hide_usage=hide_usage,
        batch=batch,
    )
    _bound_chat(call, rules, known=not names)
    set_output_maximum(call, asked, rules)
    return call


def _bound_chat(call: Call, rules: Rules, *, known: bool) -> None:
    provider, payload, model = call.provider, call.payload, call.model
    messages = sequence(payload, "messages")
    seen, files = images.in_chat(messages), images.files_in_chat(messages)
    schemas = ("tools", "functions", "response_format")
    bound, covered = text_bound(provider, payload, model, seen, len(messages), *schemas)
    bounded = (
        known
        and covered
        and all(map(inline.chat_message, messages))
        and all(map(inline.chat_tool, sequence(payload, "tools")))
        and all(map(inline.chat_function, sequence(payload, "functions")))
    )
    bound += sum(map(_calls_growth, messages)) if bounded else 0
    if bounded and files.count:
        call.files, call.beside_files = files.found, bound - files.size
    whole = bounded and not files.count
    call.input_bound = input_bound(bound, whole=whole, name="messages", provider=provider, model=model, rules=rules)


def _calls_growth(message: dict[str, Any]) -> int:
    """Some servers read the arguments of earlier calls, and write them anew as their template says."""
    calls = [call.get("function") for call in message.get("tool_calls") or ()]
    return sum(growth(call.get("arguments")) for call in (*calls, message.get("function_call")) if call)


def _check_tools(tools: list[Any], faults: Faults, *, at_the_clients: frozenset[str] = CHAT_TOOLS) -> None:
    """Note tools that run at the provider's: they cost what the meter cannot bound."""
    for index, tool in enumerate(tools):
        kind = tool.get("type") if isinstance(tool, dict) else None
        if kind == "namespace" and kind in at_the_clients:
            _check_tools(tool["tools"] if isinstance(tool.get("tools"), list) else [], faults)
        elif kind not in at_the_clients:
            hint = f": {SWITCHES[kind]}" if isinstance(kind, str) and kind in SWITCHES else ""
            faults.add(
                "tools",
                f"tools[{index}]: hosted tool {str(kind)[:64]!r} costs what the meter cannot bound; "
                f"under a budget only tools that run at the client's are let through{hint}",
            )


def _asks_for_batch(model: Model, payload: Body) -> bool:
    """Say whether a call asks for slow processing and its model has a price for that."""
    return payload.get("service_tier") == BATCH_TIER and model.price is not None and bool(model.price.batch)


def _finish_check(provider: Provider, payload: Body, faults: Faults, *, batch: bool) -> None:
    """Hold the call to the list price, and refuse it where anything is at fault. Raises InvalidCallError."""
    if not batch and payload.get("service_tier") not in SERVICE_TIERS:
        faults.add(
            "service_tier",
            "service_tier: under a budget only the default tier is let through, and flex where the model has a batch "
            "price: the others are billed at other prices",
        )
    faults.check()
    if not batch and provider.type == OPENAI_TYPE:
        # Another tier, or a project's own default, is billed otherwise.
        payload.set("service_tier", "default")


def ask_for_usage(payload: Body) -> bool:
    """Have the stream say its usage; True where the client did not ask for that."""
    options = payload.get("stream_options")
    if options is None:
        options = {}
    if not isinstance(options, dict):
        raise InvalidCallError("stream_options: must be an object", param="stream_options")
    if options.get("include_usage") is True:
        return False
    payload.set("stream_options", {**options, "include_usage": True})
    return True


def responses(provider: Provider, payload: Body, rules: Rules) -> Call:
    """Bound a response."""
    model = find_model(provider, payload, rules)
    batch = _asks_for_batch(model, payload)
    names = unknown(payload.fields, RESPONSES_FIELDS | provider.allow_fields, RESPONSES_FREE)
    if rules.strict:
        faults = Faults()
        faults.add_unknown(names, "responses")
        _check_tools(sequence(payload, "tools"), faults, at_the_clients=RESPONSE_TOOLS)
        for item in payload.get("input") if isinstance(payload.get("input"), list) else ():
            if isinstance(item, dict) and isinstance(item.get("tools"), list):
                _check_tools(item["tools"], faults, at_the_clients=RESPONSE_TOOLS)
        _finish_check(provider, payload, faults, batch=batch)
    call = Call(
        operation="chat",
        resource_type="llm",
        provider=provider,
        model=model,
        payload=payload,
        usage_shape="responses",
        input_bound=_response_input(provider, payload, model, rules, known=not names),
        output_fields=("max_output_tokens",),
        stream=flag(payload, "stream"),
        batch=batch,
    )
    set_output_maximum(call, [number(payload, "max_output_tokens", least=1)], rules)
    return call


def _response_input(provider: Provider, payload: Body, model: Model, rules: Rules, *, known: bool) -> int:
    given = payload.get("input")
    items = given if isinstance(given, list) else []
    bound, covered = text_bound(provider, payload, model, images.in_items(items), len(items) + 2, "tools", "text")
    # What the server stored is not in the request; what this meter saw of it bounds it.
    previous = payload.get("previous_response_id")
    stored = rules.stored.get(f"{provider.name}/{previous}")
    whole = (
        known
        and covered
        and (not previous or stored is not None)
        and (given is None or isinstance(given, str | list))
        and all(map(inline.response_item, items))
        and isinstance(payload.get("instructions") or "", str)
        and all(map(inline.response_tool, sequence(payload, "tools")))
    )
    bound += sum(map(_item_growth, items)) + (stored or 0) if whole else 0
    return input_bound(bound, whole=whole, name="input", provider=provider, model=model, rules=rules)


def _item_growth(item: dict[str, Any]) -> int:
    """What a server writes anew of an item: arguments, actions, and tools that came late."""
    tools = item.get("tools")
    return growth(item.get("arguments")) + growth(item.get("action")) + (schema_growth(tools) if tools else 0)


def embeddings(provider: Provider, payload: Body, rules: Rules) -> Call:
    """Bound an embedding: input alone. Token ids, too, are at least a byte each, and so is every text's end marker."""
    model = find_model(provider, payload, rules)
    names = unknown(payload.fields, EMBEDDING_FIELDS | provider.allow_fields, {})
    if rules.strict:
        faults = Faults()
        faults.add_unknown(names, "embeddings")
        faults.check()
    given = payload.get("input")
    texts = len(given) if isinstance(given, list) else 1
    return Call(
        operation="embeddings",
        resource_type="embedding",
        provider=provider,
        model=model,
        payload=payload,
        usage_shape="embeddings",
        input_bound=texts_bound(payload, "input", texts, model, known=not names, strict=rules.strict),
    )


def texts_bound(payload: Body, name: str, texts: int, model: Model, *, known: bool, strict: bool) -> int:
    """Give the most tokens of a request whose field `name` is so many texts, or token ids. Raises InvalidCallError.

    Where it is something else, or not all fields are known, each may fill the context window.
    """
    plain = inline.embedding_input(payload.get(name))
    if strict and not plain:
        raise InvalidCallError(
            f"{name}: under a budget the meter lets through only texts and token ids, one or a list of them",
            code="unsupported_parameter",
            param=name,
        )
    bound = input_tokens_bound(payload.text_bytes(), texts)
    return bound if plain and known else max(bound, (model.context_window or DEFAULT_CONTEXT_WINDOW) * texts)


def error_body(code: str, message: str, status: int, param: str | None) -> dict[str, Any]:
    """Give a refusal in OpenAI's shape."""
    kind = code if code in ("insufficient_quota", "rate_limit_exceeded") else "invalid_request_error"
    if code == BUDGET_IN_USE:
        kind = "rate_limit_exceeded"
    if status >= 500:
        kind = "server_error"
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}
