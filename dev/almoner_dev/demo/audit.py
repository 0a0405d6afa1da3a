"""The demo's audit: whether books, statuses and limits agree, to the nano-dollar.

Role: read the sums of entries from the ledger's own database file, compare them with every object's status, and look at
every limited account for overspending. Boundary: reads the SQLite file with the standard library, on purpose: the audit
shares no code with what it audits. The ledger's own `almoner ledger verify` runs beside it.
"""

from __future__ import annotations

import sqlite3
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from almoner_core.money import Money
from almoner_dev.demo.observe import Picture
from almoner_dev.ledger_environment import ledger_environment

VERIFY_SECONDS_MAX: Final = 60


@dataclass(frozen=True, slots=True)
class Sum:
    """Sums of one execution's entries in the ledger."""

    cost_nanos: int
    tokens: int
    unknown: int  # entries of unknown cost


@dataclass(frozen=True, slots=True)
class Account:
    """One limited account of money, as the ledger has it. Nano-dollars."""

    name: str
    limit: int
    spent: int
    reserved: int
    excess: int


@dataclass(slots=True)
class Audit:
    """What the audit found. `problems` is empty where everything agrees."""

    ledger: Money = field(default_factory=Money.zero)
    statuses: Money = field(default_factory=Money.zero)
    problems: list[str] = field(default_factory=list)
    verify: str = ""

    @property
    def passed(self) -> bool:
        """Whether nothing was found."""
        return not self.problems


def read_sums(database: Path) -> dict[str, Sum]:
    """Give the sums of all entries by the uid of their execution."""
    rows = _query(
        database,
        "SELECT a.execution_uid, COALESCE(SUM(r.cost_nanos), 0), COALESCE(SUM(r.input_tokens + r.output_tokens), 0), "
        "SUM(r.cost_nanos IS NULL) FROM records r JOIN allotments a ON a.id = r.allotment_id GROUP BY a.execution_uid",
    )
    return {str(uid): Sum(int(cost), int(tokens), int(unknown)) for uid, cost, tokens, unknown in rows}


def read_accounts(database: Path) -> list[Account]:
    """Give every account of money that has a limit, quotas' and executions'."""
    rows = _query(
        database,
        'SELECT a.kind, a.namespace, a.name, a.subject, w."limit", w.spent, w.reserved, w.excess FROM windows w '
        "JOIN accounts a ON a.id = w.account_id WHERE w.dimension = 'usd' AND w.\"limit\" IS NOT NULL ORDER BY 1, 2, 3",
    )
    return [
        Account(f"{kind} {'/'.join(part for part in (namespace, name, subject) if part)}", *map(int, amounts))
        for kind, namespace, name, subject, *amounts in rows
    ]


def _query(database: Path, statement: str) -> list[tuple[Any, ...]]:
    connection = sqlite3.connect(f"file:{database}?mode=ro", uri=True, timeout=10)
    try:
        return list(connection.execute(statement))
    finally:
        connection.close()


def compare(picture: Picture, sums: dict[str, Sum], accounts: Sequence[Account]) -> Audit:
    """Compare every status with the ledger's sum, and every account with its limit."""
    audit = Audit(
        ledger=Money(sum(item.cost_nanos for item in sums.values())),
        statuses=picture.spent,
    )
    for work in picture.work:
        booked = sums.get(work.uid, Sum(0, 0, 0))
        usage = work.status.usage
        if usage.cost.nanos != booked.cost_nanos:
            audit.problems.append(
                f"{work.name}: its status says ${usage.cost}, the ledger's entries sum to ${Money(booked.cost_nanos)}"
            )
        if usage.tokens.total != booked.tokens:
            audit.problems.append(
                f"{work.name}: its status says {usage.tokens.total} tokens, the ledger's entries {booked.tokens}"
            )
        if usage.unpriced_records != booked.unknown:
            audit.problems.append(
                f"{work.name}: {usage.unpriced_records} entries of unknown cost in its status, {booked.unknown} booked"
            )
    known = {work.uid for work in picture.work}
    audit.problems.extend(
        f"execution {uid}: the ledger has ${Money(item.cost_nanos)} for it, and no object is there"
        for uid, item in sums.items()
        if uid not in known
    )
    for account in accounts:
        if account.spent > account.limit or account.excess:
            audit.problems.append(
                f"{account.name}: ${Money(account.spent)} spent of ${Money(account.limit)}, "
                f"${Money(account.excess)} in excess"
            )
        if account.reserved:
            audit.problems.append(f"{account.name}: ${Money(account.reserved)} still held after everything has ended")
    audit.problems.extend(_quota_problems(picture, {account.name: account for account in accounts}))
    return audit


def _quota_problems(picture: Picture, accounts: Mapping[str, Account]) -> list[str]:
    """Compare every quota's status with its account; of counts nothing may be in use any more."""
    problems: list[str] = []
    for quota in picture.quotas:
        for limit in quota.limits:
            account = accounts.get("/".join(filter(None, (f"quota {quota.namespace}", quota.name, limit.subject))))
            if limit.name != "budget":
                if limit.used != "0":
                    problems.append(f"{quota.name}: its status says {limit.used} {limit.name} in use, and none is")
            elif account is None or Money.parse(limit.used).nanos != account.spent:
                booked = "has no such account" if account is None else f"has ${Money(account.spent)}"
                problems.append(f"{quota.name}: its status says ${limit.used} spent, the ledger {booked}")
    return problems


def verify(database: str) -> tuple[bool, str]:
    """Run `almoner ledger verify`; give whether it passed and what it said."""
    ended = subprocess.run(
        [sys.executable, "-m", "almoner_cli.main", "ledger", "verify"],
        env=ledger_environment(database),
        capture_output=True,
        text=True,
        timeout=VERIFY_SECONDS_MAX,
        check=False,
        stdin=subprocess.DEVNULL,
    )
    return ended.returncode == 0, (ended.stdout + ended.stderr).strip()
