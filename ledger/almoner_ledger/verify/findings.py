"""What an audit finds, and what its checks share."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from almoner_core.wire import Dimension
from almoner_ledger.schema import records

AMOUNTS: Final[dict[Dimension, sa.Column[int]]] = {
    Dimension.USD: records.c.cost_nanos,
    Dimension.TOKENS: records.c.total_tokens,
    Dimension.TOOL_CALLS: records.c.tool_calls,
    Dimension.REQUESTS: records.c.requests,
}
"""What an entry posts to accounts, by dimension; an unknown cost is null, and no part of a sum."""


@dataclass(frozen=True, slots=True)
class Violation:
    """One invariant that does not hold: which, where, and what was found."""

    invariant: str
    subject: str
    found: str


@dataclass(frozen=True, slots=True)
class Audit:
    """What an audit found.

    `excess` lists what providers billed above holds: allowed, but worth knowing. `head` is the newest seal, as
    NUMBER:DIGEST.
    """

    violations: list[Violation]
    excess: list[dict[str, Any]]
    counts: dict[str, int]
    head: str = ""


Check = Callable[[Connection], Iterator[Violation]]
"""Looks at one invariant (or a few that one query answers) in the transaction of the connection; changes nothing."""


def total(column: Any) -> Any:
    """The sum of a column, 0 of nothing; BIGINT, where PostgreSQL would give NUMERIC."""
    return sa.cast(sa.func.coalesce(sa.func.sum(column), 0), sa.BigInteger)
