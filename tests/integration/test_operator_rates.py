"""Rates from manifests to the ledger and back: quotas' and providers', on a real API server with a real ledger."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa

from almoner_dev.stack import Stack
from almoner_ledger import schema
from almoner_ledger.store.state import AccountKind, account_id
from tests.support.cluster import Cluster, verify_ledger


def rows(stack: Stack, query: sa.Select[Any]) -> list[Any]:
    engine = sa.create_engine(stack.database)
    try:
        with engine.connect() as connection:
            return list(connection.execute(query))
    finally:
        engine.dispose()


def buckets(stack: Stack, account: str) -> dict[tuple[str, int], tuple[int, int]]:
    """Amount and capacity of an account's rates, by dimension and seconds."""
    table = schema.buckets
    return {
        (row.dimension, row.per_seconds): (row.amount, row.capacity)
        for row in rows(stack, sa.select(table).where(table.c.account_id == account))
    }


def tracked(stack: Stack, cluster: Cluster, name: str) -> str:
    """The accounts that an execution's allotment falls under, as the ledger has them."""
    table = schema.allotments
    query = sa.select(table.c.tracked).where(table.c.namespace == cluster.namespace, table.c.name == name)
    return str(rows(stack, query)[0].tracked)


def test_a_quotas_rates_are_in_force_and_in_its_status(cluster: Cluster, stack: Stack) -> None:
    cluster.world()
    cluster.quota("pace", rates={"tokensPerMinute": 1000, "tokenBurst": 5000, "toolCallsPerHour": 7})
    account = account_id(AccountKind.QUOTA, cluster.namespace, "pace")
    assert buckets(stack, account) == {("tokens", 60): (1000, 5000), ("tool_calls", 3600): (7, 7)}
    cluster.execution("one")
    cluster.wait_phase("one", "Succeeded")
    assert account in tracked(stack, cluster, "one")

    def shown() -> dict[str, Any]:
        limits = cluster.status("pace", "ResourceQuota").get("limits") or []
        return {each["name"]: (each["limit"], each["used"], each["remaining"], each["percent"]) for each in limits}

    expected = {"tokensPerMinute": ("5000", "0", "5000", 0), "toolCallsPerHour": ("7", "0", "7", 0)}
    cluster.wait(lambda: shown().items() >= expected.items(), "the rates in the status")
    cluster.patch("ResourceQuota", "pace", {"rates": {"tokensPerMinute": 2000, "tokenBurst": None}})
    cluster.wait(lambda: buckets(stack, account)[("tokens", 60)] == (2000, 2000), "the changed rate in the ledger")
    cluster.wait(lambda: shown().get("tokensPerMinute") == ("2000", "0", "2000", 0), "the changed rate in the status")
    verify_ledger(stack)


def test_a_providers_rates_bind_the_runs_that_may_call_it(cluster: Cluster, stack: Stack) -> None:
    cluster.provider(rateLimits={"requestsPerMinute": 30})
    cluster.provider("spare", rateLimits={"tokensPerMinute": 9000})
    cluster.agent()
    cluster.agent("other", model={"provider": "spare", "name": "small"})
    for name, agent in (("one", "agent"), ("another", "other")):
        cluster.wait_ready("Agent", agent)
        cluster.execution(name, agent=agent)
        cluster.wait_phase(name, "Succeeded")
    local, spare = (account_id(AccountKind.PROVIDER, cluster.namespace, name) for name in ("local", "spare"))
    assert buckets(stack, local) == {("requests", 60): (30, 30)}
    assert buckets(stack, spare) == {("tokens", 60): (9000, 9000)}
    assert local in tracked(stack, cluster, "one")
    assert spare not in tracked(stack, cluster, "one")
    assert spare in tracked(stack, cluster, "another")
    cluster.patch("ModelProvider", "local", {"rateLimits": None})
    query = sa.select(schema.accounts.c.rates).where(schema.accounts.c.id == local)
    cluster.wait(lambda: rows(stack, query)[0].rates == "[]", "the provider's rates to be taken back")
    cluster.execution("two")
    cluster.wait_phase("two", "Succeeded")
    assert local not in tracked(stack, cluster, "two")
    cluster.delete("ModelProvider", "spare")
    query = sa.select(schema.accounts.c.rates).where(schema.accounts.c.id == spare)
    cluster.wait(lambda: rows(stack, query)[0].rates == "[]", "the deleted provider's rates to be taken back")
    verify_ledger(stack)
