"""What people ask over HTTP: usage, executions, entries, costs.

Role: reads the parameters, and keeps questions from getting into the meters' way: few run at once, some wait, more are
sent away, and none runs for long. Boundary: HTTP is the service's, SQL is that of `history`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Final, TypeVar

from aiohttp import web
from multidict import MultiMapping
from sqlalchemy.engine import Connection

from almoner_core.configuration import KINDS
from almoner_core.wire import PAGE_ITEMS_MAX, Costs, ErrorCode, UsageBy, WireModel
from almoner_ledger.errors import LedgerError, invalid
from almoner_ledger.history import asking, configuration, entries, executions, reading, usage
from almoner_ledger.history.asking import By, Question
from almoner_ledger.parsing import integer
from almoner_ledger.readers import Reading, Resource
from almoner_ledger.store import Store

T = TypeVar("T")

AT_ONCE: Final = 2
WAITING_MAX: Final = 32
COSTS_BY: Final = ("agent", "owner", "model", "day", "namespace", "provider", "resource_type", "execution")


class People:
    """Answers questions about the past, from one event loop."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._turn = asyncio.Semaphore(AT_ONCE)
        self._waiting = 0
        self._answers: Mapping[str, Callable[[MultiMapping[str], Reading], Awaitable[WireModel]]] = {
            "/v1/usage": self._usage,
            "/v1/executions": self._executions,
            "/v1/records": self._records,
            "/v1/costs": self._costs,
            "/v1/audit/changes": self._changes,
        }

    async def answer(self, path: str, request: web.Request, reading: Reading) -> WireModel:
        """Answer a call of a route whose parameters are known ones. Raises LedgerError."""
        return await self._answers[path](request.query, reading)

    async def _read(self, query: Callable[[Connection], T]) -> T:
        if self._waiting >= WAITING_MAX:
            raise LedgerError(ErrorCode.UNAVAILABLE, "too many questions are waiting; ask again")
        self._waiting += 1
        try:
            async with self._turn:
                return await asyncio.to_thread(reading.read, self._store.database, query)
        finally:
            self._waiting -= 1

    async def _usage(self, query: MultiMapping[str], reading: Reading) -> WireModel:
        question = await _permitted(query, asking.OF_USAGE, reading)
        limit = _limit(query)
        grouping = usage.Grouping(
            by=asking.read_by(_once(query, "by") or "agent"),
            order=_once(query, "order"),
            limit=limit,
            after=_once(query, "after"),
        )
        return await self._read(lambda connection: usage.usage(connection, question, grouping))

    async def _executions(self, query: MultiMapping[str], reading: Reading) -> WireModel:
        question = await _permitted(query, asking.OF_EXECUTIONS, reading)
        limit, after = _limit(query), _once(query, "after")
        return await self._read(lambda connection: executions.executions(connection, question, limit, after))

    async def _records(self, query: MultiMapping[str], reading: Reading) -> WireModel:
        question = await _permitted(query, asking.OF_USAGE, reading)
        limit, after = _limit(query), _once(query, "after")
        return await self._read(lambda connection: entries.page(connection, question, limit, after))

    async def _costs(self, query: MultiMapping[str], reading: Reading) -> WireModel:
        by = _once(query, "by") or "agent"
        if by not in COSTS_BY:
            raise invalid("by", f"write one of {', '.join(COSTS_BY)}")
        question = await _permitted(query, (), reading)
        grouping = usage.Grouping(by=(UsageBy(by),), limit=_limit(query))
        found = await self._read(lambda connection: usage.usage(connection, question, grouping))
        return Costs(
            by=by, columns=found.columns, rows=found.rows, totals=found.totals, truncated=found.next is not None
        )

    async def _changes(self, query: MultiMapping[str], reading: Reading) -> WireModel:
        question = _question(query, asking.OF_CHANGES)
        limit, after = _limit(query), _once(query, "after")
        for kind in configuration.kinds_of(question):
            await reading.demand(Resource(KINDS[kind]), question.namespaces())
        return await self._read(lambda connection: configuration.changes(connection, question, limit, after))


async def _permitted(query: MultiMapping[str], filters: tuple[By, ...], reading: Reading) -> Question:
    """Read a question that its asker may ask. Raises LedgerError."""
    question = _question(query, filters)
    await reading.demand(Resource.EXECUTIONS, question.namespaces())
    return question


def _question(query: MultiMapping[str], filters: tuple[By, ...]) -> Question:
    return Question(
        asking.read_filters({by: query.getall(by.value, []) for by in filters}),
        asking.read_times(_once(query, "from"), _once(query, "to")),
    )


def _once(query: MultiMapping[str], name: str) -> str | None:
    values = query.getall(name, [])
    if len(values) > 1:
        raise invalid(name, "it is given more than once")
    return values[0] if values else None


def _limit(query: MultiMapping[str]) -> int:
    _once(query, "limit")
    return max(1, integer(query, "limit", 500, PAGE_ITEMS_MAX))
