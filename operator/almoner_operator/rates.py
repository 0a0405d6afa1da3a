"""Rates of ResourceQuotas and ModelProviders: as the ledger takes them, and how they stand for the status.

Role: a quota's rates go with its limits (accounts.py). A ModelProvider's go as an account of their own, which every
run of an agent that may call the provider names when its allotment is opened; until the ledger has acknowledged them,
no such run is admitted: limits fail closed. Boundary: the hand-over is `Accounts`' business; nothing here waits.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Final

from almoner_core import wire
from almoner_core.api.agent import AgentSpec
from almoner_core.api.resource_quota import LimitStatus, Rates
from almoner_core.wire import AccountKey, AccountKind, AccountState, Dimension, RateLimit
from almoner_operator.records import ProviderRecord, QuotaRecord

if TYPE_CHECKING:
    from almoner_operator.cache import Cache

MINUTE: Final = 60
HOUR: Final = 3600
NAMES: Final[Mapping[tuple[Dimension, int], str]] = {
    (Dimension.TOKENS, MINUTE): "tokensPerMinute",
    (Dimension.TOKENS, HOUR): "tokensPerHour",
    (Dimension.TOOL_CALLS, MINUTE): "toolCallsPerMinute",
    (Dimension.TOOL_CALLS, HOUR): "toolCallsPerHour",
    (Dimension.REQUESTS, MINUTE): "requestsPerMinute",
}
"""How the status calls them: as the spec does."""


# --- limits -----------------------------------------------------------------------------------------------------------


def of_quota(rates: Rates | None) -> list[RateLimit]:
    """Give a quota's rates; tokenBurst is how many tokens may go at once, else what comes in a minute (an hour)."""
    if rates is None:
        return []
    asked = (
        (Dimension.TOKENS, MINUTE, rates.tokens_per_minute, rates.token_burst),
        (Dimension.TOKENS, HOUR, rates.tokens_per_hour, rates.token_burst),
        (Dimension.TOOL_CALLS, MINUTE, rates.tool_calls_per_minute, None),
        (Dimension.TOOL_CALLS, HOUR, rates.tool_calls_per_hour, None),
        (Dimension.REQUESTS, MINUTE, rates.requests_per_minute, None),
    )
    return [_limit(*each) for each in asked if each[2] is not None]


def _limit(dimension: Dimension, per_seconds: int, amount: int | None, burst: int | None) -> RateLimit:
    assert amount is not None
    return RateLimit(dimension=dimension, amount=amount, per_seconds=per_seconds, capacity=burst or amount)


def of_provider(record: ProviderRecord | None) -> list[RateLimit]:
    """Give a provider's rates, over all runs of its namespace, or of the cluster."""
    limits = record.spec.rate_limits if record is not None and record.spec is not None else None
    if limits is None:
        return []
    asked = ((Dimension.TOKENS, limits.tokens_per_minute), (Dimension.REQUESTS, limits.requests_per_minute))
    return [_limit(dimension, MINUTE, amount, None) for dimension, amount in asked if amount is not None]


def provider_key(namespace: str, name: str) -> AccountKey:
    """Give the key of a provider's account; `namespace` is empty for a ClusterModelProvider's."""
    return AccountKey(kind=AccountKind.PROVIDER, namespace=namespace or wire.WHOLE_CLUSTER, quota=name)


def provider_limits(record: ProviderRecord | None, key: AccountKey, generation: int) -> wire.AccountLimits:
    """Give a provider's limits as the ledger takes them; of one that is gone, none."""
    return wire.AccountLimits(key=key, generation=generation, rates=of_provider(record))


# --- admission --------------------------------------------------------------------------------------------------------


class RatesNotReadyError(Exception):
    """The ledger does not have a provider's rates yet."""


def accounts_for(
    agent: AgentSpec | None, providers: Mapping[str, ProviderRecord], named: tuple[AccountKey, ...]
) -> list[AccountKey]:
    """Give the accounts of an attempt: the quotas' (`named`), and those of the providers that its agent may call.

    Raises RatesNotReadyError where the ledger does not have a provider's rates yet.
    """
    keys = list(named)
    choices = (agent.model, *agent.model.fallbacks) if agent is not None else ()
    for provider in dict.fromkeys(choice.provider_key for choice in choices):
        record = providers.get(provider)
        if record is None or not of_provider(record):
            continue
        if record.acknowledged != record.generation:
            refused = record.rates_problem if record.rates_refused_at == record.generation else ""
            why = refused or "the ledger does not have its rateLimits yet"
            raise RatesNotReadyError(f"{record.kind} {record.name}: {why}")
        keys.append(provider_key(record.namespace, record.name))
    return keys


# --- status -----------------------------------------------------------------------------------------------------------

StateKey = tuple[str, Dimension, int]


@dataclass(frozen=True, slots=True)
class RateState:
    """A bucket as the ledger last told: what was missing at `seen`, and when it is full if nobody takes more."""

    limit: int
    missing: int
    seen: datetime
    full_at: datetime

    def missing_at(self, now: datetime) -> int:
        """Give what is missing now, if nobody took more since; rounded up."""
        if now >= self.full_at or self.full_at <= self.seen:
            return 0
        left, whole = self.full_at - max(now, self.seen), self.full_at - self.seen
        return -(-self.missing * (left // timedelta(milliseconds=1)) // max(1, whole // timedelta(milliseconds=1)))


class RateBook:
    """How the rates of all quotas stand, by namespace and quota."""

    def __init__(self) -> None:
        self._states: dict[tuple[str, str], dict[StateKey, RateState]] = {}

    def take(self, state: AccountState, now: datetime) -> None:
        """Take in what the ledger tells of one rate."""
        assert state.rate_seconds is not None
        known = self._states.setdefault((state.key.namespace, state.key.quota), {})
        known[state.key.subject, state.dimension, state.rate_seconds] = RateState(
            limit=state.limit or 0,
            missing=state.spent,
            seen=now,
            full_at=now + timedelta(seconds=state.resets_in_seconds or 0),
        )

    def forget(self, namespace: str, quota: str) -> None:
        """Drop what is known of a quota that was deleted."""
        self._states.pop((namespace, quota), None)

    def _of(self, record: QuotaRecord) -> Iterator[tuple[str, str, RateState]]:
        """The rates that the spec has now, by subject and name."""
        asked = of_quota(record.spec.rates) if record.spec is not None else []
        known = self._states.get((record.namespace, record.name), {})
        for subject in sorted({key[0] for key in known}):
            for rate in asked:
                state = known.get((subject, rate.dimension, rate.per_seconds))
                if state is not None:
                    yield subject, NAMES[rate.dimension, rate.per_seconds], state

    def statuses(self, record: QuotaRecord, now: datetime) -> list[LimitStatus]:
        """Give how a quota's rates stand: `used` is what is missing from the bucket, `resetTime` when it is full."""
        return [_status(subject, name, state, now) for subject, name, state in self._of(record)]

    def full_at(self, record: QuotaRecord, now: datetime) -> datetime | None:
        """Give when the next of a quota's buckets is full again; None where all are."""
        return min((state.full_at for _, _, state in self._of(record) if state.missing_at(now)), default=None)


def _status(subject: str, name: str, state: RateState, now: datetime) -> LimitStatus:
    used = state.missing_at(now)
    return LimitStatus(
        name=name,
        subject=subject or None,
        limit=str(state.limit),
        used=str(used),
        remaining=str(max(0, state.limit - used)),
        percent=used * 100 // state.limit if state.limit else 100,
        reset_time=state.full_at.replace(microsecond=0) if used else None,
    )


def take_account(cache: Cache, book: RateBook, state: AccountState, now: datetime) -> None:
    """Take in what the ledger tells of an account: a window's balance, or a rate. Providers' rates show nowhere."""
    if state.key.kind is not AccountKind.QUOTA:
        return
    if state.rate_seconds is None:
        cache.take_account(state, now)
        return
    book.take(state, now)
    cache.quotas_changed.add((state.key.namespace, state.key.quota))
    cache.wake()
