"""What a run asks for before it is admitted: machines, money for its first call, its own limits.

Role: the few numbers that the scheduler compares with quotas, and that the first allotment is opened with. Prices come
from almoner_core; a model without a known price bounds nothing, which the agent's condition says.

Boundary: no I/O, no clock.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from almoner_core.api.agent import AgentSpec, Limits
from almoner_core.api.execution import ExecutionInput, ExecutionSpec
from almoner_core.api.training_job import TrainingJobSpec
from almoner_core.compute import Machine
from almoner_core.contract import DEFAULT_MAX_OUTPUT_TOKENS, PriceCard
from almoner_core.money import Money
from almoner_core.price_data import price_card
from almoner_core.pricing import FirstCall, first_call_bound
from almoner_operator.additions import plus
from almoner_operator.agents import effective_limits
from almoner_operator.machines import ComputeSettings
from almoner_operator.pods import RunnerSettings
from almoner_operator.records import ProviderRecord, Run, runner_of
from almoner_operator.scheduling.model import NO_REQUESTS, Requests, requests_of

UNKNOWN_INPUT_BYTES: Final = 2048
"""Taken for an input that the operator does not read (a ConfigMap's); the meter bounds the real call."""
_cards: dict[tuple[str, str, str, int, str], PriceCard | None] = {}
_CARDS_MAX: Final = 4096


@dataclass(frozen=True, slots=True)
class Demand:
    """What an attempt asks for: machines, money ahead for its machine time, and its first call."""

    requests: Requests
    ahead: int
    first: FirstCall

    @property
    def need(self) -> int:
        """What the first allotment must be able to hold, in nano-dollars."""
        return self.first.need.get("usd", 0) + self.ahead


def demand_of(
    run: Run, agent: AgentSpec | None, providers: Mapping[str, ProviderRecord], meter: Requests, ahead_nanos: int
) -> Demand:
    """Work out what an attempt asks for: the same for the decision, the ledger's allotment and the meter."""
    return Demand(requests(run, agent, meter), ahead_nanos, first_call(run, agent, providers, ahead_nanos))


def limits_of(run: Run, agent: AgentSpec | None) -> Limits:
    """Give the limits that govern a run: the tighter of the agent's and its own."""
    if run.spec is None:
        return Limits()
    own_timeout = run.spec.timeout_seconds if isinstance(run.spec, ExecutionSpec) else run.spec.deadline_seconds
    return effective_limits(agent.limits if agent is not None else Limits(), run.spec.limits, own_timeout)


def max_cost(run: Run, agent: AgentSpec | None) -> int | None:
    """Give a run's own money limit in nano-dollars, None where it has none."""
    limit = limits_of(run, agent).max_cost
    return None if limit is None else limit.nanos


def used_up(run: Run, agent: AgentSpec | None, need: int) -> str:
    """Say which of a run's own limits has no room for another attempt, with the numbers; empty where all have.

    `need` is what the first allotment must hold. Only money can be short of a first attempt: its machine time's.
    """
    limits, usage = limits_of(run, agent), run.status.usage
    spent = usage.cost.nanos
    if limits.max_cost is not None and (spent + need > limits.max_cost.nanos or 0 < limits.max_cost.nanos <= spent):
        return (
            f"limits.maxCost has no room for another attempt: {usage.cost} of {limits.max_cost} USD spent, its start "
            f"needs {Money(need)}"
        )
    counts = (
        ("maxTokens", usage.tokens.total, limits.max_tokens),
        ("maxToolCalls", usage.tool_calls, limits.max_tool_calls),
    )
    for name, used, limit in counts:
        if limit is not None and 0 < limit <= used:
            return f"limits.{name} is used up: {used} of {limit}"
    return ""


def requests(run: Run, agent: AgentSpec | None, meter: Requests) -> Requests:
    """Give what its pod reserves. A quantity that is none counts as nothing here; the pod is refused later, by name."""
    try:
        return requests_of(runner_of(run, agent), meter)
    except ValueError:
        return meter


def card_for(provider: ProviderRecord, model: str) -> PriceCard | None:
    """Give what a model costs at a provider, None where that is unknown. Remembered by the provider's generation."""
    if provider.spec is None:
        return None
    key = (provider.namespace, provider.name, provider.uid, provider.generation, model)
    if key not in _cards:
        if len(_cards) >= _CARDS_MAX:
            _cards.clear()
        _cards[key] = price_card(provider.spec, provider.place, model, provider.generation)
    return _cards[key]


def grace_seconds(run: Run, agent: AgentSpec | None, runner: RunnerSettings) -> int:
    """Give how long its pod may take to end once it is told to."""
    return runner_of(run, agent).termination_grace_period_seconds + runner.meter_grace_seconds


def ahead(
    run: Run, agent: AgentSpec | None, runner: RunnerSettings, compute: ComputeSettings, added: Requests = NO_REQUESTS
) -> int:
    """Give what its machine time needs held before it starts, in nano-dollars."""
    return compute.prices.hold(machine(run, agent, runner, added), compute.ahead(grace_seconds(run, agent, runner)))


def machine(run: Run, agent: AgentSpec | None, runner: RunnerSettings, added: Requests = NO_REQUESTS) -> Machine:
    """Give what its pod requests, as machine time is priced; `added`: what the cluster adds to it."""
    asked = requests(run, agent, plus(runner.meter_requests, added))
    return Machine(cpu=asked.cpu, memory=asked.memory, gpu=asked.gpu)


def first_call(
    run: Run, agent: AgentSpec | None, providers: Mapping[str, ProviderRecord], machine_nanos: int = 0
) -> FirstCall:
    """Bound the first call of a run, capped by the run's own limits: what fits a cap cannot need more than it.

    `machine_nanos` of its money are for machine time.
    """
    if agent is None:
        return FirstCall(need={}, want={})
    provider = providers.get(agent.model.provider_key)
    card = card_for(provider, agent.model.name) if provider is not None else None
    schema = agent.output is not None
    bound = first_call_bound(
        card,
        text_bytes=len(agent.instructions.encode()) + input_bytes(run),
        max_output_tokens=agent.model.settings.max_output_tokens or DEFAULT_MAX_OUTPUT_TOKENS,
        tool_bytes=sum(512 for _ in agent.tools),
        schema=schema,
    )
    limits = limits_of(run, agent)
    caps: dict[str, int] = {}
    if limits.max_cost is not None:
        caps["usd"] = max(0, limits.max_cost.nanos - machine_nanos)
    if limits.max_tokens is not None:
        caps["tokens"] = limits.max_tokens
    return FirstCall(need=_capped(bound.need, caps), want=_capped(bound.want, caps))


def _capped(amounts: Mapping[str, int], caps: Mapping[str, int]) -> dict[str, int]:
    return {name: min(amount, caps.get(name, amount)) for name, amount in amounts.items()}


def input_bytes(run: Run) -> int:
    """Give the bytes of a run's input as JSON."""
    if isinstance(run.spec, TrainingJobSpec):
        return len(json.dumps(run.spec.hyperparameters or {}).encode())
    given = run.spec.input if run.spec is not None else ExecutionInput()
    if given.text is not None:
        return len(json.dumps(given.text).encode())
    if given.json_ is not None:
        return len(json.dumps(given.json_).encode())
    return UNKNOWN_INPUT_BYTES if given.config_map_key_ref is not None else 0
