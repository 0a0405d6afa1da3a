"""Rates as the operator hands them over, names them at admission, and shows them."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any

import pytest

from almoner_core.api.agent import AgentSpec
from almoner_core.api.model_provider import ModelProviderSpec
from almoner_core.api.resource_quota import Rates
from almoner_core.wire import AccountKey, AccountKind, AccountState, Dimension
from almoner_operator import rates
from almoner_operator.rates import RateBook, RatesNotReadyError, RateState
from almoner_operator.records import ProviderRecord, QuotaRecord, parse_provider, parse_quota

TOKENS, TOOL_CALLS, REQUESTS = Dimension.TOKENS, Dimension.TOOL_CALLS, Dimension.REQUESTS
NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


def meta(name: str, generation: int = 1) -> dict[str, Any]:
    return {
        "name": name,
        "namespace": "team",
        "uid": f"uid-{name}",
        "resourceVersion": "1",
        "generation": generation,
        "creationTimestamp": "2026-01-01T00:00:00Z",
    }


def quota(**given: int) -> QuotaRecord:
    return parse_quota({"metadata": meta("q"), "spec": {"rates": given}})


def provider(name: str, acknowledged: int = 1, **limits: int) -> ProviderRecord:
    spec: dict[str, Any] = {"type": "OpenAICompatible", "baseURL": "http://model:8000/v1"}
    if limits:
        spec["rateLimits"] = limits
    record = parse_provider({"metadata": meta(name), "spec": spec})
    record.acknowledged = acknowledged
    return record


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (None, []),
        ({}, []),
        ({"tokensPerMinute": 100}, [(TOKENS, 100, 60, 100)]),
        (
            {"tokensPerMinute": 100, "tokensPerHour": 3000, "tokenBurst": 500},
            [(TOKENS, 100, 60, 500), (TOKENS, 3000, 3600, 500)],
        ),
        (
            {"toolCallsPerMinute": 5, "toolCallsPerHour": 50, "requestsPerMinute": 7},
            [(TOOL_CALLS, 5, 60, 5), (TOOL_CALLS, 50, 3600, 50), (REQUESTS, 7, 60, 7)],
        ),
    ],
)
def test_a_quotas_rates_are_buckets(given: dict[str, int] | None, expected: list[tuple[Any, ...]]) -> None:
    spec = Rates.model_validate(given) if given is not None else None
    made = [(each.dimension, each.amount, each.per_seconds, each.capacity) for each in rates.of_quota(spec)]
    assert made == expected
    assert all((dimension, seconds) in rates.NAMES for dimension, _, seconds, _ in made)


def test_a_providers_rates_are_an_account_of_its_own() -> None:
    record = provider("openai", requestsPerMinute=60, tokensPerMinute=90_000)
    limits = rates.provider_limits(record, rates.provider_key("team", "openai"), 7)
    assert (limits.key.kind, limits.key.quota, limits.generation) == (AccountKind.PROVIDER, "openai", 7)
    assert [(each.dimension, each.capacity) for each in limits.rates] == [(TOKENS, 90_000), (REQUESTS, 60)]
    assert (limits.limits, limits.enforced) == ({}, True)
    assert rates.provider_limits(None, limits.key, 8).rates == []


def agent(*names: str) -> AgentSpec:
    choices = [{"provider": name, "name": "model"} for name in names]
    model = {**choices[0], "fallbacks": choices[1:]}
    return AgentSpec.model_validate({"type": "Research", "model": model})


def test_an_attempt_names_the_rates_of_its_providers_and_fallbacks() -> None:
    known = {
        "a": provider("a", requestsPerMinute=1),
        "b": provider("b"),
        "c": provider("c", tokensPerMinute=1),
        "other": provider("other", requestsPerMinute=1),
    }
    named = (AccountKey(namespace="team", quota="q"),)
    keys = rates.accounts_for(agent("a", "b", "c", "a", "gone"), known, named)
    assert [(key.kind, key.quota) for key in keys] == [
        (AccountKind.QUOTA, "q"),
        (AccountKind.PROVIDER, "a"),
        (AccountKind.PROVIDER, "c"),
    ]
    assert rates.accounts_for(None, known, named) == list(named)


def test_nothing_is_admitted_before_the_ledger_has_a_providers_rates() -> None:
    with pytest.raises(RatesNotReadyError, match="ModelProvider a"):
        rates.accounts_for(agent("a"), {"a": provider("a", acknowledged=-1, requestsPerMinute=1)}, ())
    assert rates.accounts_for(agent("a"), {"a": provider("a", acknowledged=-1)}, ()) == []


def told(
    dimension: Dimension, seconds: int, limit: int, missing: int, full_in: int, *, subject: str = ""
) -> AccountState:
    return AccountState(
        key=AccountKey(namespace="team", quota="q", subject=subject),
        dimension=dimension,
        generation=1,
        enforced=True,
        limit=limit,
        spent=missing,
        reserved=0,
        resets_in_seconds=full_in,
        rate_seconds=seconds,
    )


def test_the_status_shows_what_is_missing_and_when_it_is_full() -> None:
    book = RateBook()
    book.take(told(TOKENS, 60, 200, 150, 45), NOW)
    book.take(told(REQUESTS, 60, 10, 0, 0), NOW)
    book.take(told(TOOL_CALLS, 3600, 5, 5, 3600), NOW)  # not in the spec any more
    record = quota(tokensPerMinute=200, requestsPerMinute=10)
    tokens, requests = book.statuses(record, NOW)
    assert (tokens.name, tokens.limit, tokens.used, tokens.remaining, tokens.percent) == (
        "tokensPerMinute",
        "200",
        "150",
        "50",
        75,
    )
    assert tokens.reset_time == NOW + timedelta(seconds=45)
    assert (requests.name, requests.used, requests.reset_time) == ("requestsPerMinute", "0", None)
    assert book.full_at(record, NOW) == NOW + timedelta(seconds=45)
    # Nobody tells of a bucket that refills: it is reckoned.
    (later, _) = book.statuses(record, NOW + timedelta(seconds=15))
    assert (later.used, later.percent) == ("100", 50)
    (full, _) = book.statuses(record, NOW + timedelta(seconds=45))
    assert (full.used, full.remaining, full.reset_time) == ("0", "200", None)
    assert book.full_at(record, NOW + timedelta(seconds=45)) is None
    book.forget("team", "q")
    assert book.statuses(record, NOW) == []


def test_each_owner_has_a_bucket_of_their_own_in_the_status() -> None:
    book = RateBook()
    for owner, missing in (("bob", 3), ("alice", 12)):
        book.take(told(REQUESTS, 60, 10, missing, 18, subject=owner), NOW)
    rows = book.statuses(quota(requestsPerMinute=10), NOW)
    assert [(row.subject, row.used, row.remaining, row.percent) for row in rows] == [
        ("alice", "12", "0", 120),
        ("bob", "3", "7", 30),
    ]


def test_what_is_missing_is_never_understated() -> None:
    state = RateState(limit=10, missing=1, seen=NOW, full_at=NOW + timedelta(seconds=10))
    assert state.missing_at(NOW + timedelta(seconds=9)) == 1
    assert state.missing_at(NOW - timedelta(seconds=5)) == 1
    assert state.missing_at(NOW + timedelta(seconds=10)) == 0


def test_rates_and_providers_do_not_pass_for_a_budget() -> None:
    taken: list[AccountState] = []
    woken: list[bool] = []
    cache: Any = SimpleNamespace(
        take_account=lambda state, _: taken.append(state), quotas_changed=set(), wake=lambda: woken.append(True)
    )
    book = RateBook()
    rate = told(TOKENS, 60, 200, 150, 45)
    of_provider = rate.model_copy(update={"key": rates.provider_key("team", "q")})
    window = rate.model_copy(update={"rate_seconds": None})
    for state in (rate, of_provider, window):
        rates.take_account(cache, book, state, NOW)
    assert taken == [window]
    assert cache.quotas_changed == {("team", "q")}
    assert woken
    assert len(book.statuses(quota(tokensPerMinute=200), NOW)) == 1


def test_a_providers_schema_has_no_other_rates() -> None:
    """of_provider reads them one by one: a new field must not be forgotten there."""
    limits = ModelProviderSpec.model_fields["rate_limits"].annotation
    assert "ProviderRateLimits" in str(limits)
    from almoner_core.api.model_provider import ProviderRateLimits

    assert set(ProviderRateLimits.model_fields) == {"requests_per_minute", "tokens_per_minute"}
    assert set(Rates.model_fields) == {
        "tokens_per_minute",
        "tokens_per_hour",
        "token_burst",
        "tool_calls_per_minute",
        "tool_calls_per_hour",
        "requests_per_minute",
    }
