"""Limits are handed over quota by quota: one that the ledger refuses is not in force, and all others are."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest

from almoner_core import wire
from almoner_core.api.resource_quota import QuotaReason
from almoner_core.wire import ErrorCode
from almoner_operator.accounts import Accounts
from almoner_operator.cache import Cache
from almoner_operator.errors import LedgerError, LedgerUnavailableError
from almoner_operator.rates import RateBook
from almoner_operator.scheduling.model import Requests


class RefusingLedger:
    """Takes limits, but for quotas and providers that the test wants refused: in the answer, or the whole batch."""

    epoch = 1

    def __init__(self, refuse: Sequence[str], *, whole: bool = False) -> None:
        self.refuse, self.whole = set(refuse), whole
        self.away = False
        self.taken: dict[str, wire.AccountLimits] = {}
        self.subjects: set[tuple[str, str]] = set()

    async def update_accounts(
        self, accounts: Sequence[wire.AccountLimits], *, operation_id: str
    ) -> wire.AccountsAnswer:
        del operation_id
        if self.away:
            raise LedgerUnavailableError(ErrorCode.UNAVAILABLE, "away")
        bad = [index for index, each in enumerate(accounts) if each.key.quota in self.refuse]
        if bad and self.whole:
            raise LedgerError(ErrorCode.INVALID, "accounts.0.rates: no", field="accounts.0.rates")
        self.taken |= {each.key.quota: each for index, each in enumerate(accounts) if index not in bad}
        self.subjects |= {(each.key.quota, each.key.subject) for each in accounts}
        error = wire.Error(code=ErrorCode.INVALID, message="rates: no", field="rates")
        return wire.AccountsAnswer(
            accounts=[], refused=[wire.RefusedAccount(index=index, error=error) for index in bad]
        )


class World:
    """An operator's accounts over a cache and the ledger above; nothing is written to Kubernetes."""

    def __init__(self, ledger: RefusingLedger) -> None:
        self.ledger = ledger
        self.cache = Cache(meter=Requests(), wake=lambda: None)
        nothing = SimpleNamespace(tell=lambda *_, **__: None, mark=lambda *_, **__: None)
        context: Any = SimpleNamespace(
            cache=self.cache, ledger=ledger, rates=RateBook(), events=nothing, writer=nothing
        )
        self.accounts = Accounts(context)

    def quota(self, name: str, zone: str = "UTC", version: int = 1, **more: Any) -> None:
        spec = {"budget": {"amount": "1.00", "timeZone": zone}, **more}
        self.cache.observe_quota(None, {"metadata": meta(name, version), "spec": spec, "status": {}})

    def provider(self, name: str) -> None:
        spec = {
            "type": "OpenAICompatible",
            "baseURL": "http://127.0.0.1:9/v1",
            "models": [{"name": "small", "contextWindow": 2048}],
            "rateLimits": {"requestsPerMinute": 5},
        }
        self.cache.observe_provider(None, {"metadata": meta(name), "spec": spec, "status": {}})

    def sync(self) -> None:
        asyncio.run(self.accounts.sync())

    def reasons(self) -> dict[str, QuotaReason]:
        return {name: record.reason for name, record in self.cache.space("ns").quotas.items()}

    def message(self, name: str) -> str:
        return self.cache.space("ns").quotas[name].message

    def admits(self) -> set[str]:
        return {each.name for each in self.cache.snapshot().namespaces["ns"].quotas if each.ready}


def meta(name: str, version: int = 1) -> dict[str, Any]:
    return {
        "name": name,
        "namespace": "ns",
        "uid": f"uid-{name}",
        "resourceVersion": str(version),
        "generation": version,
        "creationTimestamp": "2026-01-02T03:00:00Z",
    }


@pytest.mark.parametrize("whole", [False, True])
def test_one_quota_that_the_ledger_refuses_keeps_no_other_back(whole: bool) -> None:
    world = World(RefusingLedger(["bad"], whole=whole))
    for name in ("a", "bad", "c"):
        world.quota(name)
    world.provider("local")
    world.sync()
    assert world.reasons() == {
        "a": QuotaReason.IN_FORCE,
        "bad": QuotaReason.INVALID_SPEC,
        "c": QuotaReason.IN_FORCE,
    }
    assert "spec.rates" in world.message("bad")
    assert world.admits() == {"a", "c"}
    assert "local" in world.ledger.taken, "the providers' rates are reached"
    assert world.cache.quotas_changed == set(), "it is not asked for ever"
    world.ledger.refuse.clear()
    world.quota("bad", version=2)
    world.sync()
    assert world.admits() == {"a", "bad", "c"}


@pytest.mark.parametrize("zone", ["Europe/Berlim", "US/Pacific-New", "GMT+1", "UTC+2", "europe/berlin"])
def test_a_bad_time_zone_is_found_before_the_ledger_is_asked(zone: str) -> None:
    world = World(RefusingLedger([]))
    world.quota("bad", zone)
    world.quota("good", "Europe/Berlin")
    world.sync()
    assert world.reasons() == {"bad": QuotaReason.INVALID_SPEC, "good": QuotaReason.IN_FORCE}
    assert "spec.budget.timeZone" in world.message("bad")
    assert zone in world.message("bad")
    assert set(world.ledger.taken) == {"good"}


def test_a_provider_whose_rates_are_refused_keeps_no_other_back() -> None:
    world = World(RefusingLedger(["bad"]))
    world.provider("bad")
    world.provider("good")
    world.sync()
    providers = world.cache.space("ns").providers
    assert {name: record.acknowledged for name, record in providers.items()} == {"bad": -1, "good": 1}
    assert "rates: no" in providers["bad"].rates_problem
    world.ledger.taken.clear()
    world.sync()
    assert world.ledger.taken == {}, "nothing is asked again"


def test_what_a_ledger_that_is_away_did_not_get_is_handed_over_later() -> None:
    world = World(RefusingLedger([]))
    world.quota("gone")
    world.sync()
    world.quota("new")
    world.cache.observe_quota("DELETED", {"metadata": meta("gone", 2)})
    world.ledger.away = True
    with pytest.raises(LedgerUnavailableError):
        world.sync()
    assert world.reasons() == {"new": QuotaReason.LEDGER_UNAVAILABLE}
    world.ledger.away = False
    world.sync()
    assert world.reasons() == {"new": QuotaReason.IN_FORCE}
    assert world.ledger.taken["gone"].limits == {}, "a deleted quota's limits are lifted, however late"


def test_per_owner_has_accounts_for_the_owners_that_it_names_alone() -> None:
    world = World(RefusingLedger([]))
    world.quota("each", scope={"perOwner": True, "owners": ["ann", "bob"]})
    # As it may be stored from before the schema asked for owners.
    world.quota("anybody", scope={"perOwner": True})
    for owner in ("ann", "carl"):
        spec = {"agentRef": {"name": "agent"}, "input": {"text": "hi"}, "owner": owner}
        world.cache.observe_run("Execution", None, {"metadata": meta(owner), "spec": spec, "status": {}})
    world.sync()
    assert world.ledger.subjects == {("each", "ann"), ("each", "bob")}
    assert world.reasons() == {"each": QuotaReason.IN_FORCE, "anybody": QuotaReason.INVALID_SPEC}
    assert "spec.scope.owners" in world.message("anybody")
    assert world.admits() == {"each"}
