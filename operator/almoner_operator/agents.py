"""Whether an Agent or a ModelProvider can be used, and what limits govern a run: pure functions over cached facts.

What is missing becomes a reason and a message that names the field and the fix. What the operator could not look at
(a Secret behind 403 or 503) is not taken for good: it becomes a reason of its own, and nothing runs with it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import NamedTuple, TypeVar

from almoner_core.agent_checks import Checked, first_problem
from almoner_core.api.agent import (
    AgentReason,
    AgentSpec,
    AgentType,
    Limits,
    ModelChoice,
    ModelProviderKind,
    Tool,
    ToolProviderKind,
)
from almoner_core.api.base import SecretKeyReference
from almoner_core.api.model_provider import ModelProviderSpec, ProviderReason, ProviderType
from almoner_core.api.runner import Runner
from almoner_core.api.tool_provider import ToolProviderSpec
from almoner_core.contract import LABEL_AGENT_READABLE, LABEL_PROVIDER_KEY, METER_USER, Dialect
from almoner_core.money import Money
from almoner_core.price_data import listed_as
from almoner_operator import pod_options
from almoner_operator.cluster_providers import Asker, is_cluster_wide, not_allowed
from almoner_operator.pods import reserved_env
from almoner_operator.providers import dialects_of

_MODELS_NAMED_MAX = 5
_NEEDS_KEY = frozenset({ProviderType.OPENAI, ProviderType.ANTHROPIC})

Comparable = TypeVar("Comparable", int, Money)


@dataclass(frozen=True, slots=True)
class SecretFacts:
    """What is known of a Secret: whether agents may read it; its keys, None where they are not known.

    `unknown` says why the operator could not look at it, with the HTTP status; nothing else is known then. `forbidden`:
    since it has not the right to. `provider_key`: its label says that it holds keys of cluster-scoped providers.
    """

    agent_readable: bool = False
    keys: frozenset[str] | None = None
    unknown: str = ""
    forbidden: bool = False
    provider_key: bool = False


@dataclass(frozen=True, slots=True)
class ProviderFacts:
    """A ModelProvider of the agent's namespace, or a ClusterModelProvider."""

    spec: ModelProviderSpec
    ready: bool = True
    message: str = ""
    """Why it is not ready."""


@dataclass(frozen=True, slots=True)
class ToolProviderFacts:
    """A ToolProvider of the agent's namespace, or a ClusterToolProvider."""

    spec: ToolProviderSpec
    ready: bool = True
    message: str = ""
    """Why it is not ready."""

    def has_price(self, tool: str) -> bool:
        """Whether calls of a tool have a price here."""
        return any(price.tool == tool for price in self.spec.prices)


@dataclass(frozen=True, slots=True)
class AgentFacts:
    """What surrounds an agent in its namespace.

    Providers are by key (`provider_key`), `secrets` by name, those that do not exist left out. `has_price` says whether
    a model of a provider (by key) has a price. `budgeted`: a quota with an enforced budget can govern it. `checked`:
    the spec's own first problem, where somebody looked for it already. `namespace` and `name` are the agent's own.
    """

    providers: Mapping[str, ProviderFacts] = field(default_factory=dict)
    tool_providers: Mapping[str, ToolProviderFacts] = field(default_factory=dict)
    secrets: Mapping[str, SecretFacts] = field(default_factory=dict)
    has_price: Callable[[str, str], bool] = lambda _provider, _model: True
    budgeted: bool = False
    checked: Checked | None = None
    namespace: str = ""
    name: str = ""


class AgentVerdict(NamedTuple):
    """Whether an Agent can be used (`reason` READY), and why not."""

    reason: AgentReason
    message: str


class ProviderVerdict(NamedTuple):
    """Whether a ModelProvider can be used (`reason` READY), why not, and whether agents could walk past the meter."""

    reason: ProviderReason
    message: str
    bypassable: bool


def agent_verdict(spec: AgentSpec, facts: AgentFacts) -> AgentVerdict:
    """Judge an Agent: itself, its providers, models, prices, Secrets, and the teeth of its type, in order."""
    for verdict in (
        _runner_verdict(spec.runner),
        _spec_verdict(spec, facts),
        *(_model_verdict(path, choice, facts, spec.type) for path, choice in _choices(spec)),
        _dialect_verdict(spec, facts),
        *(_tool_verdict(f"spec.tools[{index}]", tool, facts, spec.type) for index, tool in enumerate(spec.tools)),
        runner_secrets_verdict(spec.runner, facts),
        _deployment_verdict(spec, facts),
    ):
        if verdict is not None:
            return verdict
    return AgentVerdict(AgentReason.READY, "everything that the agent needs is there")


def _choices(spec: AgentSpec) -> list[tuple[str, ModelChoice]]:
    """The models that an agent may call, with the path of the field that names each."""
    fallbacks = [(f"spec.model.fallbacks[{index}]", choice) for index, choice in enumerate(spec.model.fallbacks)]
    return [("spec.model", spec.model), *fallbacks]


def _runner_verdict(runner: Runner) -> AgentVerdict | None:
    name = reserved_env(runner.env)
    if name is not None:
        text = f"spec.runner.env: {name} is set by the runner: remove it, or give it another name"
        return AgentVerdict(AgentReason.INVALID_SPEC, text)
    if runner.run_as_user == METER_USER:
        text = f"spec.runner.runAsUser: {METER_USER} is the meter's own user: choose another"
        return AgentVerdict(AgentReason.INVALID_SPEC, text)
    problem = pod_options.problem(runner)
    return None if problem is None else AgentVerdict(AgentReason.INVALID_SPEC, f"spec.runner.{problem}")


def _spec_verdict(spec: AgentSpec, facts: AgentFacts) -> AgentVerdict | None:
    problem = first_problem(spec) if facts.checked is None else facts.checked.problem
    return None if problem is None else AgentVerdict(AgentReason(problem.kind.value), f"spec.{problem}")


def _dialect_verdict(spec: AgentSpec, facts: AgentFacts) -> AgentVerdict | None:
    """The loop speaks the dialect that the spec names, else the provider's first."""
    provider = facts.providers.get(spec.model.provider_key)
    if provider is None or spec.runner.image is not None:
        return None
    spoken, wanted = dialects_of(provider.spec), spec.model.api
    if wanted is not None and wanted.value not in {dialect.value for dialect in spoken}:
        text = f"spec.model.api: {_named(spec.model)} speaks {', '.join(spoken)}, not {wanted}"
        return AgentVerdict(AgentReason.INVALID_SPEC, text)
    if (wanted or spoken[0]).value == Dialect.ANTHROPIC.value and spec.model.settings.seed is not None:
        text = "spec.model.settings.seed: Anthropic's API has no seed: remove it"
        return AgentVerdict(AgentReason.INVALID_SPEC, text)
    return None


def _named(choice: ModelChoice) -> str:
    return f"{choice.provider_kind} {choice.provider}"


def _model_verdict(path: str, choice: ModelChoice, facts: AgentFacts, type_: AgentType) -> AgentVerdict | None:
    provider, named = facts.providers.get(choice.provider_key), _named(choice)
    if provider is None:
        place = "in this namespace" if choice.provider_kind is ModelProviderKind.MODEL_PROVIDER else "in this cluster"
        return AgentVerdict(AgentReason.PROVIDER_NOT_FOUND, f"{path}.provider: {named} does not exist {place}")
    if text := not_allowed(named, provider.spec, Asker(facts.namespace, facts.name, type_)):
        return AgentVerdict(AgentReason.PROVIDER_NOT_ALLOWED, f"{path}.provider: {text}")
    if not provider.ready:
        text = f"{path}.provider: {named} is not ready: {provider.message}"
        return AgentVerdict(AgentReason.PROVIDER_NOT_READY, text)
    allowed = [model.name for model in provider.spec.models]
    if allowed and listed_as(provider.spec, choice.name) is None:
        listed = ", ".join(allowed[:_MODELS_NAMED_MAX]) + (", ..." if len(allowed) > _MODELS_NAMED_MAX else "")
        text = f"{path}.name: {named} does not list {choice.name}; it lists {listed}"
        return AgentVerdict(AgentReason.MODEL_NOT_ALLOWED, text)
    if not facts.has_price(choice.provider_key, choice.name):
        text = (
            f"{path}.name: no price is known for {choice.name}, so no budget could bound it: "
            f"add it to spec.prices of {named}"
        )
        return AgentVerdict(AgentReason.MODEL_UNPRICED, text)
    return None


def _tool_verdict(path: str, tool: Tool, facts: AgentFacts, type_: AgentType) -> AgentVerdict | None:
    if tool.provider_key is None:
        return None
    kind = tool.provider_kind or ToolProviderKind.TOOL_PROVIDER
    provider, named = facts.tool_providers.get(tool.provider_key), f"{kind} {tool.provider}"
    if provider is None:
        place = "in this namespace" if kind is ToolProviderKind.TOOL_PROVIDER else "in this cluster"
        return AgentVerdict(AgentReason.TOOL_PROVIDER_NOT_FOUND, f"{path}.provider: {named} does not exist {place}")
    if text := not_allowed(named, provider.spec, Asker(facts.namespace, facts.name, type_)):
        return AgentVerdict(AgentReason.PROVIDER_NOT_ALLOWED, f"{path}.provider: {text}")
    if not provider.ready:
        text = f"{path}.provider: {named} is not ready: {provider.message}"
        return AgentVerdict(AgentReason.TOOL_PROVIDER_NOT_READY, text)
    if not provider.has_price(tool.name):
        text = (
            f"{path}.name: no price is known for {tool.name}, so no budget could bound it: "
            f"add it to spec.prices of {named}"
        )
        return AgentVerdict(AgentReason.TOOL_UNPRICED, text)
    return None


def runner_secrets_verdict(runner: Runner, facts: AgentFacts, path: str = "spec.runner") -> AgentVerdict | None:
    """Judge the Secrets that a runner names, wherever it names them; None where all may be read."""
    specs: list[ModelProviderSpec | ToolProviderSpec] = [each.spec for each in facts.providers.values()]
    specs += [each.spec for each in facts.tool_providers.values()]
    # Those of cluster-scoped providers lie elsewhere, and are known by their label.
    taken = {each.credentials.name for each in specs if each.credentials is not None and not is_cluster_wide(each)}
    for place, name, key in secret_references(runner):
        where = f"{path}.{place}: Secret {name}"
        secret = facts.secrets.get(name)
        if name in taken or (secret is not None and secret.provider_key):
            text = f"{where} holds a provider's key, which no agent may read"
            return AgentVerdict(AgentReason.SECRET_NOT_READABLE, text)
        if secret is not None and not secret.unknown and not secret.agent_readable:
            text = f'{where} lacks the label {LABEL_AGENT_READABLE}: "true"'
            return AgentVerdict(AgentReason.SECRET_NOT_READABLE, text)
        problem = secret_problem(where, key, secret)
        if problem is not None:
            return AgentVerdict(AgentReason(problem[0].value), problem[1])
    return None


def secret_references(runner: Runner) -> Iterator[tuple[str, str, str | None]]:
    """Yield every Secret that a runner names: the place below runner, its name, and the key, None for all keys."""
    for variable in runner.env:
        reference = variable.value_from.secret_key_ref if variable.value_from else None
        if reference is not None:
            yield f"env {variable.name}", reference.name, reference.key
    for volume in runner.volumes:
        if volume.secret is not None:
            yield f"volumes {volume.name}", volume.secret.secret_name, None
    for secret in runner.image_pull_secrets:
        yield "imagePullSecrets", secret.name, None


class SecretProblem(StrEnum):
    """What is wrong with a Secret that somebody names; a reason of every kind that names one."""

    NOT_FOUND = "SecretNotFound"
    UNKNOWN = "SecretUnknown"
    FORBIDDEN = "SecretForbidden"
    NOT_LABELLED = "SecretNotLabelled"


def secret_problem(
    where: str, key: str | None, secret: SecretFacts | None, place: str = "this namespace"
) -> tuple[SecretProblem, str] | None:
    """Say what is wrong with a Secret (None: there is none), or with the key that is asked of it; None: nothing."""
    if secret is None:
        return SecretProblem.NOT_FOUND, f"{where} does not exist in {place}"
    if secret.forbidden:
        return SecretProblem.FORBIDDEN, f"{where} may not be looked at ({secret.unknown}): grant the operator get"
    if secret.unknown:
        return SecretProblem.UNKNOWN, f"{where} cannot be looked at now ({secret.unknown}); looking again"
    if key is not None and secret.keys is not None and key not in secret.keys:
        return SecretProblem.NOT_FOUND, f"{where} has no key {key}"
    return None


def credentials_problem(
    credentials: SecretKeyReference | None, secrets: Mapping[str, SecretFacts], *, cluster: bool = False
) -> tuple[SecretProblem, str] | None:
    """Say what is wrong with a provider's credentials; None: nothing. `cluster`: of a cluster-scoped one."""
    if credentials is None:
        return None
    where, secret = f"spec.credentials: Secret {credentials.name}", secrets.get(credentials.name)
    if not cluster:
        return secret_problem(where, credentials.key, secret)
    if secret is not None and not secret.unknown and not secret.provider_key:
        text = f'{where} lacks the label {LABEL_PROVIDER_KEY}: "true", by which it may be handed to meters'
        return SecretProblem.NOT_LABELLED, text
    return secret_problem(where, credentials.key, secret, "Almoner's own namespace")


def _deployment_verdict(spec: AgentSpec, facts: AgentFacts) -> AgentVerdict | None:
    """A RealDeployment must declare its safety, be bounded in money, and have no way past the meter."""
    if spec.type is not AgentType.REAL_DEPLOYMENT:
        return None
    text = ""
    if spec.safety is None:
        text = "spec.safety: a RealDeployment must declare it"
    elif spec.limits.max_cost is None and not spec.safety.budget_enforced:
        text = (
            "spec.safety.budgetEnforced: a RealDeployment without limits.maxCost must assert that a hard budget "
            "governs it: set it to true"
        )
    elif spec.limits.max_cost is None and not facts.budgeted:
        text = (
            "spec.limits.maxCost: a RealDeployment needs a hard budget: set it, or create a ResourceQuota with an "
            "enforced budget that selects this agent"
        )
    else:
        for path, choice in _choices(spec):
            provider = facts.providers.get(choice.provider_key)
            if provider is not None and is_bypassable(provider.spec):
                text = (
                    f"{path}.provider: {_named(choice)} asks for no credential, so the agent could "
                    "call it past the meter: a RealDeployment may not use it"
                )
                break
    return AgentVerdict(AgentReason.UNSAFE_DEPLOYMENT, text) if text else None


def is_bypassable(spec: ModelProviderSpec) -> bool:
    """Whether agent code could call the model server past the meter: it asks for no credential."""
    return spec.credentials is None


def provider_verdict(spec: ModelProviderSpec, secrets: Mapping[str, SecretFacts]) -> ProviderVerdict:
    """Judge a ModelProvider or ClusterModelProvider."""
    bypassable = is_bypassable(spec)
    credentials = spec.credentials
    if credentials is None and spec.type in _NEEDS_KEY:
        text = f"spec.credentials: a provider of type {spec.type} needs a key: name the Secret and its key"
        return ProviderVerdict(ProviderReason.CREDENTIALS_MISSING, text, bypassable)
    problem = credentials_problem(credentials, secrets, cluster=is_cluster_wide(spec))
    if problem is not None:
        return ProviderVerdict(ProviderReason(problem[0].value), problem[1], bypassable)
    return ProviderVerdict(ProviderReason.READY, "the provider can be used", bypassable)


def effective_limits(agent: Limits, own: Limits, own_timeout_seconds: int | None = None) -> Limits:
    """Tighten: each limit is the smaller of the agent's and the execution's own."""
    return Limits(
        max_turns=_tighter(agent.max_turns, own.max_turns),
        max_cost=_tighter(agent.max_cost, own.max_cost),
        max_tokens=_tighter(agent.max_tokens, own.max_tokens),
        max_tool_calls=_tighter(agent.max_tool_calls, own.max_tool_calls),
        timeout_seconds=_tighter(_tighter(agent.timeout_seconds, own.timeout_seconds), own_timeout_seconds),
    )


def _tighter(first: Comparable | None, second: Comparable | None) -> Comparable | None:
    """The smaller of two limits; None is no limit."""
    if first is None or second is None:
        return second if first is None else first
    return min(first, second)
