"""`almoner ledger verify`: audits the invariants of the books on a live database, and names each violation.

Role: recomputes what the rows claim, in one transaction that sees one state (REPEATABLE READ on PostgreSQL). The checks
are plain SQL over sums, so that a million records take seconds. Boundary: repairs nothing. A new check is a function in
a module of its subject, listed in that module's CHECKS; a new module's CHECKS are added to the list below.
"""

from __future__ import annotations

import functools
import json
import sys
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from almoner_ledger import schema, sealing
from almoner_ledger.database import Database
from almoner_ledger.verify import (
    alerts,
    balances,
    compute,
    configuration,
    corrections,
    entries,
    guards,
    life,
    rates,
    seals,
)
from almoner_ledger.verify.findings import Audit, Check, Violation, total

__all__ = ["CHECKS", "Audit", "Check", "Violation", "audit", "report"]

VIOLATIONS_MAX: Final = 1000

CHECKS: Final[tuple[Check, ...]] = (
    *alerts.CHECKS,
    *balances.CHECKS,
    *compute.CHECKS,
    *configuration.CHECKS,
    *corrections.CHECKS,
    *life.CHECKS,
    *entries.CHECKS,
    *rates.CHECKS,
    *seals.CHECKS,
    *guards.CHECKS,
)


def audit(connection: Connection, expected: Mapping[int, str] | None = None) -> Audit:
    """Check every invariant, and that the chain has the seals `expected` (digests by number).

    At most VIOLATIONS_MAX are named.
    """
    violations: list[Violation] = []
    heads: Check = functools.partial(seals.expected_heads, expected=expected or {})
    for check in (*CHECKS, heads):
        for violation in check(connection):
            if len(violations) >= VIOLATIONS_MAX:
                break
            violations.append(violation)
    counts = {
        table.name: int(connection.execute(sa.select(sa.func.count()).select_from(table)).scalar_one())
        for table in (schema.accounts, schema.windows, schema.allotments, schema.holds, schema.records)
    }
    return Audit(violations, _excess(connection), counts, str(sealing.head(connection)))


def report(database: Database, *, as_json: bool, expected: Mapping[int, str] | None = None) -> int:
    """Audit, write what was found to standard output, and give the exit code: 1 where an invariant does not hold."""
    found = database.snapshot(lambda connection: audit(connection, expected))
    if as_json:
        sys.stdout.write(json.dumps({"ok": not found.violations, **asdict(found)}, indent=2) + "\n")
        return 1 if found.violations else 0
    for violation in found.violations:
        sys.stdout.write(f"VIOLATION {violation.invariant}: {violation.subject}: {violation.found}\n")
    for each in found.excess:
        billed = each["excess"] - each["corrected"]
        causes = [f"{billed} billed above a hold"] * bool(billed) + [f"{each['corrected']} by corrections"] * bool(
            each["corrected"]
        )
        sys.stdout.write(f"excess: {each['account']} {each['dimension']}: {', '.join(causes)}\n")
    counted = ", ".join(f"{count} {name}" for name, count in found.counts.items())
    verdict = f"{len(found.violations)} violations" if found.violations else "every invariant holds"
    sealed = "nothing is sealed yet" if found.head == str(sealing.Head()) else f"newest seal {found.head}"
    sys.stdout.write(f"{verdict}: {counted}; {sealed}\n")
    return 1 if found.violations else 0


def _excess(connection: Connection) -> list[dict[str, Any]]:
    windows, accounts, holds = schema.windows, schema.accounts, schema.holds
    same = [windows.c[name] == holds.c[name] for name in ("account_id", "dimension", "period", "starts_at")]
    # What corrections lifted above the limit; the rest providers billed above holds.
    corrected = sa.select(total(holds.c.excess_corrected)).where(*same).scalar_subquery()
    query = (
        sa.select(
            accounts.c.kind,
            accounts.c.namespace,
            accounts.c.name,
            accounts.c.subject,
            windows,
            corrected.label("corrected"),
        )
        .join(accounts, accounts.c.id == windows.c.account_id)
        .where(windows.c.excess > 0)
        .order_by(windows.c.excess.desc())
        .limit(100)
    )
    return [
        {
            "account": "/".join(part for part in (row.kind, row.namespace, row.name, row.subject) if part),
            "dimension": row.dimension,
            "starts_at": row.starts_at,
            "excess": row.excess,
            "corrected": row.corrected,
        }
        for row in connection.execute(query)
    ]
