"""Alerts of quotas: what the ledger says has fired becomes status, condition, event and metric.

Role: the ledger fires each threshold once per window; here each firing is told once, also across restarts, because the
quota's status says what was told already. What fired stands until its window ends; the ledger's first words after a
start may come before it has told of alerts, so nothing is taken back before that.

PURE: no I/O and no clock.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Final

from almoner_core.api.resource_quota import BudgetAlertReason, QuotaAlert
from almoner_core.money import Money
from almoner_core.wire import AccountState
from almoner_operator.scheduling.model import Account

ALERTS_MAX: Final = 1024
# The window's end is reckoned from seconds that are left, on two clocks; the shortest window is an hour.
_SAME_WINDOW: Final = timedelta(minutes=5)

Identity = tuple[str, int, datetime]


def account_of(state: AccountState, resets_at: datetime | None) -> Account:
    """Give a window's balance, with what fired in it, as the scheduler and the quota's status see it."""
    return Account(
        limit=state.limit,
        spent=state.spent,
        reserved=state.reserved,
        resets_at=resets_at,
        alerts=tuple((alert.percent, alert.fired_unix_ms) for alert in state.alerts),
    )


def identity(alert: QuotaAlert) -> Identity:
    """What tells one firing from another: subject, percent, and when it fired."""
    return (alert.subject or "", alert.percent, alert.time)


def standing(previous: Iterable[QuotaAlert], accounts: Mapping[str, Account], now: datetime) -> list[QuotaAlert]:
    """Give what has fired in the windows that hold now, by subject and percent.

    `accounts` are the quota's money accounts with a limit, by subject, as far as the ledger has told of them.
    """
    found: dict[tuple[str, int], QuotaAlert] = {}
    for old in previous:
        account = accounts.get(old.subject or "")
        over = old.reset_time is not None and old.reset_time <= now
        if not over and (account is None or _same_window(account.resets_at, old.reset_time)):
            found[old.subject or "", old.percent] = old
    for subject, account in accounts.items():
        for percent, fired_ms in account.alerts:
            fired = datetime.fromtimestamp(fired_ms // 1000, UTC)
            known = found.get((subject, percent))
            if known is None or known.time != fired:
                found[subject, percent] = QuotaAlert(
                    percent=percent,
                    subject=subject or None,
                    time=fired,
                    reset_time=account.resets_at.replace(microsecond=0) if account.resets_at is not None else None,
                )
    return [found[key] for key in sorted(found)][:ALERTS_MAX]


def _same_window(first: datetime | None, second: datetime | None) -> bool:
    if first is None or second is None:
        # The end of a window that has just begun may not be known yet; one that is over was sorted out before.
        return first is None
    return abs(first - second) < _SAME_WINDOW


def fresh(alerts: Iterable[QuotaAlert], previous: Iterable[QuotaAlert]) -> list[QuotaAlert]:
    """Give what was not told yet."""
    told = {identity(alert) for alert in previous}
    return [alert for alert in alerts if identity(alert) not in told]


def holds(alert: QuotaAlert, account: Account | None) -> bool:
    """Whether a threshold that fired is reached now: a limit may have been raised, or a cost corrected, since then.

    Until the ledger has told of the account, what fired is believed.
    """
    return account is None or account.limit is None or account.spent * 100 >= alert.percent * account.limit


def note(alert: QuotaAlert, account: Account | None) -> str:
    """Say an alert for people, with the numbers as they are now."""
    whose = f" of owner {alert.subject}" if alert.subject else ""
    threshold = f"{alert.percent} % of the budget{whose}"
    if not holds(alert, account):
        return f"{threshold} was reached at {_time(alert.time)}; now {_spent(account)}"
    text = f"{threshold} is reached"
    if said := _spent(account):
        text += f": {said}"
    if alert.reset_time is not None:
        text += f"; resets at {_time(alert.reset_time)}"
    return text


def _spent(account: Account | None) -> str:
    if account is None or account.limit is None:
        return ""
    return f"{Money(account.spent)} of {Money(account.limit)} USD is spent"


def _time(moment: datetime) -> str:
    return f"{moment.astimezone(UTC):%Y-%m-%dT%H:%M:%SZ}"


def condition(
    alerts: Iterable[QuotaAlert], accounts: Mapping[str, Account], thresholds: Iterable[int]
) -> tuple[bool, BudgetAlertReason, str] | None:
    """Give the condition BudgetAlert (whether it holds, reason, message); None where there is nothing to watch.

    It is about now: of what fired in this window, only what is still reached and still asked for counts.
    """
    asked = set(thresholds)
    if not asked:
        return None
    fired = [alert for alert in alerts if alert.percent in asked]
    reached = [alert for alert in fired if holds(alert, accounts.get(alert.subject or ""))]
    highest = max(reached, key=_rank, default=None)
    if highest is not None:
        return True, BudgetAlertReason.THRESHOLD_REACHED, note(highest, accounts.get(highest.subject or ""))
    text = f"less than {min(asked)} % of the budget is spent"
    past = max(fired, key=_rank, default=None)
    if past is not None:
        text = note(past, accounts.get(past.subject or ""))
    elif said := _spent(accounts.get("")):
        text += f": {said.removesuffix(' is spent')}"
    return False, BudgetAlertReason.BELOW_THRESHOLDS, text


def _rank(alert: QuotaAlert) -> tuple[int, datetime]:
    return alert.percent, alert.time
