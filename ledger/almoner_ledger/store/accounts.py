"""Accounts: the limits that the operator sets, what a quota puts on one execution, and their state for the wire."""

from __future__ import annotations

from collections.abc import Iterable

from almoner_core.time_zones import zone
from almoner_core.wire import (
    AccountLimits,
    AccountsAnswer,
    AccountState,
    Dimension,
    Epoch,
    ErrorCode,
    FiredAlert,
    RefusedAccount,
)
from almoner_ledger.errors import LedgerError, invalid
from almoner_ledger.store import alerts, calendars, rates
from almoner_ledger.store.books import Books
from almoner_ledger.store.commands import Command
from almoner_ledger.store.state import Account, AccountKind, Window, quota_account_id


def take_epoch(books: Books, command: Command) -> Epoch:
    """Give a new leader the next epoch."""
    books.epoch += 1
    books.epoch_holder = command.body.holder
    books.epoch_dirty = True
    books.mutations += 1
    return Epoch(epoch=books.epoch)


def check_epoch(books: Books, command: Command) -> None:
    """Refuse an operator that another one has superseded."""
    if command.epoch is None or command.epoch == books.epoch:
        return
    if command.epoch > books.epoch:
        raise invalid("epoch", f"{command.epoch} was never given out; the current one is {books.epoch}")
    raise LedgerError(
        ErrorCode.STALE_EPOCH,
        f"epoch: {command.epoch} is over; {books.epoch_holder} leads with {books.epoch}",
        field="epoch",
    )


def update_accounts(books: Books, command: Command) -> AccountsAnswer:
    """Put new limits in force, each account's on their own. An account that is not known is made."""
    updates: list[AccountLimits] = command.body.accounts
    refused: list[RefusedAccount] = []
    seen: set[str] = set()
    fit: list[AccountLimits] = []
    for index, update in enumerate(updates):
        try:
            _check(books, update, seen)
        except LedgerError as error:
            refused.append(RefusedAccount(index=index, error=error.to_wire()))
        else:
            fit.append(update)
    books.mutations += 1
    states: list[AccountState] = []
    for update in fit:
        states.extend(_apply(books, update))
    return AccountsAnswer(accounts=states, refused=refused)


def _check(books: Books, update: AccountLimits, seen: set[str]) -> None:
    key = quota_account_id(update.key)
    if key in seen:
        raise invalid("key", "the same account is named twice in one update")
    seen.add(key)
    try:
        zone(update.time_zone)
    except ValueError as error:
        raise invalid("time_zone", str(error)) from error
    rates.check_update(update)
    known = books.accounts.get(key)
    if known is not None and update.generation < known.generation:
        raise LedgerError(
            ErrorCode.STALE_GENERATION,
            f"generation: {known.label} is at generation {known.generation} already, not {update.generation}",
            field="generation",
        )


def _apply(books: Books, update: AccountLimits) -> list[AccountState]:
    key = quota_account_id(update.key)
    account = books.accounts.get(key)
    if account is None:
        account = Account(
            id=key,
            kind=AccountKind(update.key.kind.value),
            namespace=update.key.namespace,
            name=update.key.quota,
            subject=update.key.subject,
            new=True,
        )
        books.accounts[key] = account
    before, calendar = set(account.limits), (account.period, account.time_zone)
    rates.update(books, account, update)
    account.generation = update.generation
    account.enforced = update.enforced
    account.period = update.period
    account.time_zone = update.time_zone
    account.limits = dict(update.limits)
    account.max_per_execution = dict(update.max_per_execution)
    account.max_per_request = dict(update.max_per_request)
    account.alert_thresholds = tuple(sorted(set(update.alert_thresholds_percent)))
    account.dirty = True
    if calendar != (account.period, account.time_zone) and not account.new:
        calendars.change(books, account)
    alerts.changed(books, account)
    books.changed.add(("account", account.id))
    states = []
    for dimension in Dimension:
        if dimension in account.limits or dimension in before:
            window = books.current_window(account, dimension)
            window.set_limit(account.limits.get(dimension), enforced=account.enforced)
            if dimension in account.limits:
                states.append(account_state(account, window, books.now))
    return [*states, *rates.states(account, books.buckets, books.now_ms)]


def account_state(account: Account, window: Window, now: int, fired: Iterable[FiredAlert] = ()) -> AccountState:
    """One account's window as the wire has it."""
    return AccountState(
        key=account.key,
        dimension=window.dimension,
        generation=account.generation,
        enforced=window.enforced,
        limit=window.limit,
        spent=window.spent,
        reserved=window.reserved,
        excess=window.excess,
        resets_in_seconds=seconds_left(window, now),
        alerts=list(fired),
    )


def seconds_left(window: Window, now: int) -> int | None:
    """Seconds to the window's end; None where it never ends."""
    return None if window.ends_at is None else max(0, window.ends_at - now)


def smallest(parts: Iterable[dict[Dimension, int]]) -> dict[Dimension, int]:
    """The least amount in every dimension that any part names."""
    least: dict[Dimension, int] = {}
    for part in parts:
        for dimension, amount in part.items():
            least[dimension] = min(amount, least.get(dimension, amount))
    return least


def execution_limits(own: Account, quotas: Iterable[Account]) -> dict[Dimension, int]:
    """What one execution may use over all its attempts: its own limits and every enforced quota's cap for it."""
    return smallest([own.limits, *(quota.max_per_execution for quota in quotas if quota.enforced)])
