"""Rates on the books: token buckets debited before a call, refunded after it, with their account's lock held.

Role: a bucket's row is loaded, changed and written together with its account, whose row lock covers it. An enforced
account's rates are debited by `extend`, all or nothing; what a watched account's calls used is counted when their
records are posted, and refuses nobody. `Allotment.debits` keeps, bucket by bucket, what an attempt has debited and
neither settled nor refunded: more than that is never refunded, and use beyond it takes the bucket into debt, since
posting never fails. At the close what is outstanding is forgotten, unrefunded.

A rate that is taken out of an account binds nobody; its row stays, so that putting it back in refills nothing.
Boundary: the arithmetic is `almoner_core.rates`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from almoner_core.rates import SLICE_MS, Bucket, representable, slice_calls
from almoner_core.usage import UsageRecord
from almoner_core.wire import AccountKind as WireKind
from almoner_core.wire import (
    AccountLimits,
    AccountState,
    Dimension,
    ErrorCode,
    Extend,
    RateInForce,
    RateLimit,
    Refusal,
)
from almoner_ledger import schema
from almoner_ledger.errors import LedgerError, invalid
from almoner_ledger.store import bulk
from almoner_ledger.store.state import Account, AccountKind, Allotment, BucketKey, BucketRow, amounts_of

if TYPE_CHECKING:
    from almoner_ledger.store.books import Books


# --- rows -------------------------------------------------------------------------------------------------------------


def load(books: Books, updates: Iterable[tuple[str, AccountLimits]]) -> None:
    """Load the buckets of the accounts in hand, whose locks are held; no query where no rate is in force."""
    wanted = {account.id for account in books.accounts.values() if account.rates}
    wanted.update(account for account, update in updates if update.rates)
    wanted.update(name.partition("/")[0] for each in books.allotments.values() for name in each.debits)
    if wanted:
        table = schema.buckets
        for row in books.connection.execute(sa.select(table).where(table.c.account_id.in_(sorted(wanted)))):
            made = _row_of(row)
            books.buckets[made.key] = made


def _row_of(row: Any) -> BucketRow:
    bucket = Bucket(
        amount=row.amount,
        per_seconds=row.per_seconds,
        capacity=row.capacity,
        level=row.level,
        refilled_ms=row.refilled_ms,
        debited=row.debited,
        refunded=row.refunded,
    )
    return BucketRow((row.account_id, Dimension(row.dimension), row.per_seconds), bucket)


def flush(books: Books, writer: bulk.Writer) -> None:
    """Write the buckets that changed."""
    rows = [books.buckets[key] for key in sorted(books.buckets)]
    writer.insert(schema.buckets, [_values(each) for each in rows if each.new])
    writer.update(schema.buckets, [_values(each) for each in rows if each.dirty and not each.new])


def _values(row: BucketRow) -> dict[str, Any]:
    bucket = row.bucket
    return {
        "account_id": row.key[0],
        "dimension": row.key[1].value,
        "per_seconds": row.key[2],
        "amount": bucket.amount,
        "capacity": bucket.capacity,
        "level": bucket.level,
        "refilled_ms": bucket.refilled_ms,
        "debited": bucket.debited,
        "refunded": bucket.refunded,
    }


def _changed(books: Books, row: BucketRow) -> None:
    row.dirty = True
    if books.accounts[row.key[0]].kind is AccountKind.QUOTA:
        books.changed.add(("account", row.key[0]))


# --- limits -----------------------------------------------------------------------------------------------------------


def check_update(update: AccountLimits) -> None:
    """Refuse rates that cannot be kept. Raises LedgerError."""
    if update.key.kind is WireKind.PROVIDER and (update.limits or update.max_per_execution or update.max_per_request):
        raise invalid("limits", "a provider's account has rates alone")
    seen: set[tuple[Dimension, int]] = set()
    for index, rate in enumerate(update.rates):
        if (rate.dimension, rate.per_seconds) in seen:
            raise invalid(f"rates.{index}", f"{rate.dimension.value} per {rate.per_seconds} s has a rate already")
        seen.add((rate.dimension, rate.per_seconds))
        if not representable(rate.capacity, rate.per_seconds):
            raise invalid(f"rates.{index}.capacity", f"{rate.capacity} per {rate.per_seconds} s is too large")


def update(books: Books, account: Account, limits: AccountLimits) -> None:
    """Put an account's new rates in force; call it while `account.enforced` is still what it was.

    A new rate begins full, a changed one keeps what is missing. Where watching becomes enforcing, the debt is dropped.
    """
    account.rates = tuple(limits.rates)
    for rate in account.rates:
        key = (account.id, rate.dimension, rate.per_seconds)
        row = books.buckets.get(key)
        if row is None:
            bucket = Bucket.full(rate.amount, rate.per_seconds, rate.capacity, books.now_ms)
            books.buckets[key] = BucketRow(key, bucket, new=True)
            continue
        row.bucket.refill(books.now_ms)
        row.bucket.change(rate.amount, rate.capacity)
        if limits.enforced and not account.enforced:
            row.bucket.forgive()
        row.dirty = True


def states(account: Account, rows: Mapping[BucketKey, BucketRow], now_ms: int) -> list[AccountState]:
    """State of an account's rates as the wire has it."""
    found = []
    for rate in account.rates:
        row = rows.get((account.id, rate.dimension, rate.per_seconds))
        if row is None:
            continue
        row.bucket.refill(now_ms)
        found.append(
            AccountState(
                key=account.key,
                dimension=rate.dimension,
                generation=account.generation,
                enforced=account.enforced,
                limit=row.bucket.capacity,
                spent=row.bucket.missing,
                reserved=0,
                resets_in_seconds=_seconds(row.bucket.full_in_ms()),
                rate_seconds=rate.per_seconds,
            )
        )
    return found


def read_states(connection: Connection, accounts: Iterable[Account], now_ms: int) -> list[AccountState]:
    """State of the rates of accounts, read without a lock."""
    with_rates = [account for account in accounts if account.rates]
    if not with_rates:
        return []
    table = schema.buckets
    query = sa.select(table).where(table.c.account_id.in_([account.id for account in with_rates]))
    rows = {made.key: made for made in map(_row_of, connection.execute(query))}
    return [state for account in with_rates for state in states(account, rows, now_ms)]


# --- before a call ----------------------------------------------------------------------------------------------------


def in_force(books: Books, allotment: Allotment) -> list[RateInForce]:
    """The rates that an allotment's calls must be debited from."""
    found = []
    for account in _accounts(books, allotment):
        if account.enforced:
            provider = account.name if account.kind is AccountKind.PROVIDER else ""
            found += [
                RateInForce(
                    dimension=rate.dimension,
                    provider=provider,
                    amount=rate.amount,
                    per_seconds=rate.per_seconds,
                    capacity=rate.capacity,
                )
                for rate in account.rates
            ]
    return found


def told(books: Books, allotment: Allotment, *, debiting: bool = False) -> list[RateInForce] | None:
    """What an answer says of the rates: None where there are none and the meter does not think there are."""
    return in_force(books, allotment) or ([] if debiting else None)


def _accounts(books: Books, allotment: Allotment) -> Iterator[Account]:
    return (books.accounts[account] for account in allotment.tracked if books.accounts[account].rates)


def _counting(books: Books, allotment: Allotment, provider: str) -> Iterator[tuple[Account, RateLimit, BucketRow]]:
    """The rates that count a call to a provider (empty: none), refilled to now."""
    for account in _accounts(books, allotment):
        if account.kind is AccountKind.PROVIDER and account.name != provider:
            continue
        for rate in account.rates:
            row = books.buckets[account.id, rate.dimension, rate.per_seconds]
            row.bucket.refill(books.now_ms)
            yield account, rate, row


def _enforced(books: Books, allotment: Allotment, body: Extend) -> list[tuple[Account, BucketRow, int]]:
    return [
        (account, row, amount)
        for account, rate, row in _counting(books, allotment, body.provider)
        if account.enforced and (amount := body.debit.get(rate.dimension, 0))
    ]


def check(books: Books, allotment: Allotment, body: Extend) -> None:
    """Refuse a debit that some rate has no room for, changing nothing. Raises LedgerError `insufficient`.

    The refusal names the rate that takes longest; one that never will comes first.
    """
    if not body.debit:
        return
    worst: tuple[float, Account, BucketRow, int] | None = None
    for account, row, amount in _enforced(books, allotment, body):
        wait = row.bucket.wait_ms(amount)
        length = float("inf") if wait is None else wait
        if length > 0 and (worst is None or length > worst[0]):
            worst = (length, account, row, amount)
    if worst is not None:
        raise _refused(*worst[1:])


def _refused(account: Account, row: BucketRow, amount: int) -> LedgerError:
    bucket, dimension = row.bucket, row.key[1]
    wait = bucket.wait_ms(amount)
    when = "never: that is above its capacity" if wait is None else f"in {wait} ms"
    left = max(0, bucket.capacity - bucket.missing)
    return LedgerError(
        ErrorCode.INSUFFICIENT,
        f"{account.label}: {amount} {dimension.value} asked at once, {left} of {bucket.capacity} are there "
        f"({bucket.amount} every {bucket.per_seconds} s); enough {when}",
        field=dimension.value,
        refusal=Refusal(
            account=account.label,
            dimension=dimension,
            limit=bucket.capacity,
            spent=bucket.missing,
            reserved=0,
            needed=amount,
            retry_after_seconds=None if wait is None else _seconds(wait),
            rate_seconds=bucket.per_seconds,
            retry_after_ms=wait,
        ),
    )


def debit(books: Books, allotment: Allotment, body: Extend) -> tuple[dict[Dimension, int], int]:
    """Debit every rate that counts the call, with a slice for calls like it where the buckets are large enough.

    Gives what was debited, and for how many milliseconds the slice is good. Call it only after `check`.
    """
    if not body.debit:
        return {}, 0
    counting = _enforced(books, allotment, body)
    holders = max((account.holders for account, _, _ in counting), default=1)
    calls = 1 + slice_calls(((row.bucket, amount) for _, row, amount in counting), holders)
    for _, row, amount in counting:
        row.bucket.force(amount * calls)
        _owe(allotment, row, amount * calls)
        _changed(books, row)
    return {dimension: amount * calls for dimension, amount in body.debit.items()}, SLICE_MS if calls > 1 else 0


# --- after a call -----------------------------------------------------------------------------------------------------


def settle(
    books: Books,
    allotment: Allotment,
    records: Iterable[UsageRecord],
    refunds: Mapping[str, Mapping[Dimension, int]],
) -> None:
    """Settle what an attempt's records used, then put back what its meter did not use. Never fails.

    What is refunded is at most what is outstanding. Nothing is asked of what was closed: that is forgotten.
    """
    if not allotment.open or not (allotment.debits or any(True for _ in _accounts(books, allotment))):
        return
    used: dict[str, dict[Dimension, int]] = {}
    for record in records:
        sums = used.setdefault(record.provider, {})
        for dimension, amount in amounts_of(record).items():
            sums[dimension] = sums.get(dimension, 0) + amount
    for provider, sums in used.items():
        for row, counts in _touched(books, allotment, provider):
            _use(books, allotment, row, sums.get(row.key[1], 0), counts=counts)
    for provider, amounts in refunds.items():
        for row, _ in _touched(books, allotment, provider):
            _put_back(books, allotment, row, amounts.get(row.key[1], 0))


def _touched(books: Books, allotment: Allotment, provider: str) -> list[tuple[BucketRow, bool]]:
    """The buckets that calls to a provider are settled with, and whether they count now (or did when debited)."""
    found = {row.key: (row, True) for _, _, row in _counting(books, allotment, provider)}
    for name, amounts in allotment.debits.items():
        account, _, seconds = name.partition("/")
        if books.accounts[account].kind is AccountKind.PROVIDER and books.accounts[account].name != provider:
            continue
        for dimension in amounts:
            row = books.buckets.get((account, dimension, int(seconds)))
            if row is not None and row.key not in found:
                row.bucket.refill(books.now_ms)
                found[row.key] = (row, False)
    return list(found.values())


def _use(books: Books, allotment: Allotment, row: BucketRow, amount: int, *, counts: bool) -> None:
    covered = min(amount, _owed(allotment, row))
    if covered:
        _owe(allotment, row, -covered)
    if counts and amount > covered:
        row.bucket.force(amount - covered)
        _changed(books, row)


def _put_back(books: Books, allotment: Allotment, row: BucketRow, amount: int) -> None:
    amount = min(amount, _owed(allotment, row))
    if amount:
        _owe(allotment, row, -amount)
        row.bucket.refund(amount)
        _changed(books, row)


def _owed(allotment: Allotment, row: BucketRow) -> int:
    return allotment.debits.get(row.name, {}).get(row.key[1], 0)


def _owe(allotment: Allotment, row: BucketRow, amount: int) -> None:
    owed = allotment.debits.setdefault(row.name, {})
    left = owed.get(row.key[1], 0) + amount
    if left:
        owed[row.key[1]] = left
        return
    owed.pop(row.key[1], None)
    if not owed:
        del allotment.debits[row.name]


def _seconds(milliseconds: int) -> int:
    return -(-milliseconds // 1000)
