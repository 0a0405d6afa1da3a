"""Rates: buckets are within bounds, every rate in force has its own, and no attempt is owed more than was debited."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Final

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from almoner_core.rates import LEVEL_MOST
from almoner_ledger import schema
from almoner_ledger.verify.findings import Check, Violation

BucketKey = tuple[str, str, int]


def buckets_within_bounds(connection: Connection) -> Iterator[Violation]:
    """A bucket is never overfull, and never gave back more than was taken."""
    table = schema.buckets
    overfull = table.c.level > table.c.capacity * 1000 * table.c.per_seconds
    wrong = sa.or_(overfull, table.c.refunded < 0, table.c.refunded > table.c.debited)
    for row in connection.execute(sa.select(table).where(wrong)):
        found = f"level {row.level}, capacity {row.capacity}, debited {row.debited}, refunded {row.refunded}"
        yield Violation("buckets-within-bounds", _name(row.account_id, row.dimension, row.per_seconds), found)


def rates_have_buckets(connection: Connection) -> Iterator[Violation]:
    """Every rate of an account has a bucket of its amount and capacity."""
    accounts, table = schema.accounts, schema.buckets
    kept: dict[BucketKey, tuple[int, int]] = {
        (row.account_id, row.dimension, row.per_seconds): (row.amount, row.capacity)
        for row in connection.execute(sa.select(table))
    }
    for account in connection.execute(sa.select(accounts.c.id, accounts.c.rates).where(accounts.c.rates != "[]")):
        for rate in json.loads(account.rates):
            key = (account.id, rate["dimension"], rate["per_seconds"])
            if kept.get(key) != (rate["amount"], rate["capacity"]):
                found = f"the account says {rate['amount']} and {rate['capacity']}, the bucket {kept.get(key)}"
                yield Violation("rates-have-buckets", _name(*key), found)


def debits_outstanding(connection: Connection) -> Iterator[Violation]:
    """What open attempts have debited and neither settled nor refunded was debited; closed ones are owed nothing."""
    table, buckets = schema.allotments, schema.buckets
    owed: dict[BucketKey, int] = {}
    query = sa.select(table.c.id, table.c.state, table.c.debits).where(table.c.debits != "{}")
    for row in connection.execute(query):
        if row.state in ("void", "closed"):
            yield Violation("debits-outstanding", f"allotment {row.id} ({row.state})", row.debits)
        for name, amounts in json.loads(row.debits).items():
            account, _, seconds = name.partition("/")
            for dimension, amount in amounts.items():
                key = (account, dimension, int(seconds))
                owed[key] = owed.get(key, 0) + amount
    for bucket in connection.execute(sa.select(buckets)):
        key = (bucket.account_id, bucket.dimension, bucket.per_seconds)
        amount = owed.pop(key, 0)
        if amount > bucket.debited - bucket.refunded and bucket.debited < LEVEL_MOST:
            found = f"attempts are owed {amount}, debited {bucket.debited}, refunded {bucket.refunded}"
            yield Violation("debits-outstanding", _name(*key), found)
    for key, amount in owed.items():
        yield Violation("debits-outstanding", _name(*key), f"attempts are owed {amount} of a bucket that is not there")


def _name(account: str, dimension: str, per_seconds: int) -> str:
    return f"{account} {dimension} per {per_seconds} s"


CHECKS: Final[tuple[Check, ...]] = (buckets_within_bounds, rates_have_buckets, debits_outstanding)
