"""The table of frameworks: it drives the tests behind the meter and docs/frameworks.md.

Role: one entry a framework: its packages, the dialects it speaks, what it has no notion of, what is to be set or
switched off. Boundary: data alone; how they are installed is in install.py, what is run lies in tests/frameworks.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final


class Language(StrEnum):
    """In what a client is written."""

    PYTHON = "Python"
    NODE = "Node.js"


class Api(StrEnum):
    """The API that a client calls."""

    CHAT = "chat"
    RESPONSES = "responses"
    MESSAGES = "messages"


class Scenario(StrEnum):
    """What is tried with each client."""

    PLAIN = "plain"
    """One question, one answer."""
    STREAMED = "streamed"
    """The same as a stream."""
    TOOLS = "tools"
    """The model calls a function of the user's, and answers with its result."""
    STRUCTURED = "structured"
    """An answer as an object by a schema."""
    IMAGE = "image"
    """A question with a small picture."""
    PARALLEL = "parallel"
    """16 questions at once."""
    LIMITED = "limited"
    """The provider refuses the first request with 429 and `retry-after`."""
    SPENT = "spent"
    """The budget is spent before the call: it ends at once."""


SCENARIOS: Final = tuple(Scenario)


@dataclass(frozen=True, slots=True)
class Framework:
    """One framework.

    `lacks`: scenarios that it has no notion of with an API, and the reason. `notes`: what a user has to know or set.
    `refused`: what it asks for that the meter refuses or that would go past it, and how that is switched off.
    `spent_calls_max`: calls that it makes at most once the budget is spent.
    """

    name: str
    title: str
    language: Language
    packages: tuple[str, ...]
    apis: tuple[Api, ...]
    notes: str = ""
    refused: str = ""
    lacks: Mapping[tuple[Api, Scenario], str] = field(default_factory=dict)
    spent_calls_max: int = 1

    def known(self, api: Api) -> tuple[Scenario, ...]:
        """What it has a notion of with this API."""
        return tuple(each for each in SCENARIOS if (api, each) not in self.lacks)


_PY, _JS = Language.PYTHON, Language.NODE
_CHAT, _RESPONSES, _MESSAGES = Api.CHAT, Api.RESPONSES, Api.MESSAGES
_BOTH = (_CHAT, _MESSAGES)
_LANGCHAIN_JS = ("@langchain/core", "@langchain/openai", "@langchain/anthropic", "zod")
_CLAUDE = (
    "Takes its model from `ANTHROPIC_MODEL`, which is set. Where it thinks, its output maximum is hardly above its "
    "budget of thoughts, so that the meter cannot lower it: a call needs room for 32,000 tokens of output."
)
_CLAUDE_REFUSED = (
    "its own traffic beside the model's: `CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC` is set. `WebSearch` is Anthropic's "
    "tool: disallow it."
)
_COSTS = "LiteLLM fetches its table of models unless `LITELLM_LOCAL_MODEL_COST_MAP` is set: it is."

FRAMEWORKS: Final = (
    Framework(
        "openai",
        "OpenAI SDK",
        _PY,
        ("openai",),
        (_CHAT, _RESPONSES),
        notes="Waits for a provider that says `retry-after`, and stops at once where the budget is spent.",
        refused="tools that OpenAI runs, conversations, batches and files: give functions of your own instead.",
    ),
    Framework(
        "anthropic",
        "Anthropic SDK",
        _PY,
        ("anthropic",),
        (_MESSAGES,),
        notes="The tool runner goes on without a thread by itself once the meter has said that there are none.",
        refused="tools that Anthropic runs, such as `web_search`: give tools of your own instead.",
    ),
    Framework(
        "openai-agents",
        "OpenAI Agents SDK",
        _PY,
        ("openai-agents",),
        (_RESPONSES, _CHAT),
        notes="Takes its model from `OPENAI_DEFAULT_MODEL`, which is set.",
        refused="traces, which would go to OpenAI: `OPENAI_AGENTS_DISABLE_TRACING` is set. Tools that OpenAI "
        "runs (`WebSearchTool`, `FileSearchTool`, ...) are refused: leave them out.",
    ),
    Framework(
        "langchain",
        "LangChain",
        _PY,
        ("langchain", "langchain-openai", "langchain-anthropic"),
        _BOTH,
        refused="LangSmith's traces, where you set `LANGSMITH_TRACING`: leave it out.",
    ),
    Framework("langgraph", "LangGraph", _PY, ("langgraph", "langchain-openai", "langchain-anthropic"), _BOTH),
    Framework(
        "llama-index",
        "LlamaIndex",
        _PY,
        # Its package for Claude does not say so, and fails with a later one.
        ("llama-index-core", "llama-index-llms-openai", "llama-index-llms-anthropic", "anthropic<1"),
        _BOTH,
        notes="Reads `OPENAI_API_BASE`, which is set. Its package for Claude needs `anthropic<1`.",
        spent_calls_max=3,
    ),
    Framework(
        "crewai",
        "CrewAI",
        _PY,
        ("crewai[anthropic]",),
        _BOTH,
        notes="A crew tries a failed task three times, and OpenAI's calls three times each.",
        refused="telemetry: `CREWAI_DISABLE_TELEMETRY` is set. Planning and memory call OpenAI's "
        "models by default: name models of your provider.",
        spent_calls_max=9,
    ),
    Framework("ag2", "AG2", _PY, ("ag2[openai,anthropic]",), _BOTH),
    Framework(
        "autogen",
        "AutoGen",
        _PY,
        # Its client of Claude does not say so, and fails with a later one.
        ("autogen-agentchat", "autogen-ext[openai,anthropic]", "anthropic<1"),
        _BOTH,
        notes="Give `model_info` for models that it does not know. Its client of Claude needs `anthropic<1`, "
        "and has no structured output.",
        lacks={(_MESSAGES, Scenario.STRUCTURED): "its client of Claude refuses it"},
    ),
    Framework(
        "smolagents",
        "smolagents",
        _PY,
        ("smolagents[openai,litellm]",),
        _BOTH,
        notes="Sleeps for minutes after a 429: `retry=False` of a model, as in the test, leaves that to the SDK. "
        + _COSTS,
    ),
    Framework(
        "pydantic-ai",
        "Pydantic AI",
        _PY,
        ("pydantic-ai-slim[openai,anthropic]",),
        (_CHAT, _RESPONSES, _MESSAGES),
        refused="tools that the provider runs: leave them out.",
    ),
    Framework(
        "instructor",
        "Instructor",
        _PY,
        ("instructor", "openai", "anthropic"),
        _BOTH,
        lacks=dict.fromkeys(((api, Scenario.TOOLS) for api in _BOTH), "it asks for objects alone"),
    ),
    Framework("dspy", "DSPy", _PY, ("dspy",), _BOTH, notes=_COSTS),
    Framework(
        "haystack",
        "Haystack",
        _PY,
        ("haystack-ai", "anthropic-haystack"),
        _BOTH,
        refused="telemetry: `HAYSTACK_TELEMETRY_ENABLED=False` is set.",
    ),
    Framework(
        "semantic-kernel",
        "Semantic Kernel",
        _PY,
        ("semantic-kernel[anthropic]",),
        _BOTH,
        lacks={
            (_MESSAGES, Scenario.IMAGE): "its connector of Claude leaves images out",
            (_MESSAGES, Scenario.STRUCTURED): "its connector of Claude has no schema for answers",
        },
    ),
    Framework(
        "strands",
        "Strands Agents",
        _PY,
        ("strands-agents[openai,anthropic]",),
        _BOTH,
        notes="Tries six times, for two minutes, after OpenAI's 429: `Agent(retry_strategy=None)` ends it at once.",
        spent_calls_max=6,
    ),
    Framework(
        "agno",
        "Agno",
        _PY,
        ("agno", "openai", "anthropic"),
        _BOTH,
        notes="Gives an error as the answer's text, so that a run may succeed with it: look at the answer's `status`.",
        refused="telemetry: `AGNO_TELEMETRY=false` is set.",
    ),
    Framework(
        "litellm",
        "LiteLLM",
        _PY,
        ("litellm",),
        (_CHAT, _RESPONSES, _MESSAGES),
        notes=_COSTS,
    ),
    Framework(
        "mistralai",
        "Mistral SDK",
        _PY,
        ("mistralai",),
        (_CHAT,),
        notes='Reads no address from the environment: `Mistral(server_url=os.environ["ALMONER_METER_URL"] + '
        '"/openai")`.',
    ),
    Framework(
        "claude-agent-sdk",
        "Claude Agent SDK",
        _PY,
        ("claude-agent-sdk",),
        (_MESSAGES,),
        notes=_CLAUDE,
        refused=_CLAUDE_REFUSED,
    ),
    Framework("openai-js", "OpenAI SDK", _JS, ("openai", "zod"), (_CHAT, _RESPONSES)),
    Framework("anthropic-js", "Anthropic SDK", _JS, ("@anthropic-ai/sdk", "zod"), (_MESSAGES,)),
    Framework(
        "openai-agents-js",
        "OpenAI Agents SDK",
        _JS,
        ("@openai/agents", "zod"),
        (_RESPONSES,),
        notes="Takes its model from `OPENAI_DEFAULT_MODEL`, which is set.",
        refused="traces, which would go to OpenAI: `OPENAI_AGENTS_DISABLE_TRACING` is set.",
    ),
    Framework("langchain-js", "LangChain.js", _JS, ("langchain", *_LANGCHAIN_JS), _BOTH),
    Framework("langgraph-js", "LangGraph.js", _JS, ("@langchain/langgraph", *_LANGCHAIN_JS), _BOTH),
    Framework(
        "vercel-ai",
        "Vercel AI SDK",
        _JS,
        ("ai", "@ai-sdk/openai", "@ai-sdk/anthropic", "zod"),
        (_RESPONSES, _CHAT, _MESSAGES),
        notes="Tries three times after OpenAI's 429: `maxRetries: 0` ends it at once.",
        spent_calls_max=3,
    ),
    Framework(
        "claude-code",
        "Claude Code",
        _JS,
        ("@anthropic-ai/claude-code",),
        (_MESSAGES,),
        notes=_CLAUDE,
        refused=_CLAUDE_REFUSED,
    ),
    Framework(
        "codex",
        "Codex",
        _JS,
        ("@openai/codex",),
        (_RESPONSES,),
        notes="Reads its address from its configuration alone: `model_providers.almoner` with `base_url` (that of "
        '`OPENAI_BASE_URL`), `env_key = "OPENAI_API_KEY"` and `wire_api = "responses"`, and `model_provider = '
        '"almoner"`.',
        refused='Web search: `web_search = "disabled"`. Analytics and its catalogue of plugins go past the meter: '
        "`analytics.enabled = false`, `features.plugins = false`.",
        lacks={(_RESPONSES, Scenario.STREAMED): "`codex exec` prints an answer whole"},
    ),
)

QUICK: Final = (
    ("openai", _RESPONSES),
    ("anthropic", _MESSAGES),
    ("openai-agents", _RESPONSES),
    ("langchain", _MESSAGES),
    ("pydantic-ai", _CHAT),
    ("litellm", _CHAT),
    ("vercel-ai", _MESSAGES),
    ("claude-code", _MESSAGES),
)
"""The clients of `make test`: those that most others are built on, and one that is no library."""
QUICK_SCENARIOS: Final = (Scenario.PLAIN, Scenario.STREAMED, Scenario.TOOLS, Scenario.SPENT)
