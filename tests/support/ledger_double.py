"""A ledger of one account in memory that speaks wire.py: for the meter's own tests, which look into the books.

It reads every message with the wire's own models, so that a meter that writes JSON by hand is held to the contract. It
can be made to fail: away (no answer), slow, or losing an answer after having acted.
"""

from __future__ import annotations

import asyncio
import threading
from typing import Any, Self

from aiohttp import web

from almoner_core import wire
from almoner_core.usage import UsageRecord


class LedgerDouble:
    """One allotment over one account. Amounts by dimension; `limits` absent: not limited."""

    def __init__(self, limits: dict[str, int], *, first: dict[str, int] | None = None) -> None:
        self.limits = limits
        self.records: dict[int, UsageRecord] = {}
        self.held = {d: (first or {}).get(d, 0) for d in limits}
        self.granted = dict(self.held)
        self.max_per_request: dict[str, int] = {}
        self.lease_seconds = 60
        self.paid_seconds: int | None = None  # for how long machine time is paid
        self.window_ends_in: int | None = None
        self.bound = True
        self.cancel = False
        self.recall = False
        self.state = "offered"
        self.output: str | None = None
        self.progress: list[wire.PostProgress] = []
        self.final: wire.Return | None = None
        self.calls: list[str] = []
        self.tokens: set[str] = set()
        self.away = False
        self.asked_in_vain: list[str] = []
        """What was asked while it was away."""
        self.lose_answers = 0
        self.chunk: int | None = None  # grants beyond `need` are at most this; None: all of `want`
        self._answers: dict[str, Any] = {}
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self.url = ""

    # --- books --------------------------------------------------------------------------------------------------------

    def used(self) -> dict[str, int]:
        """What all records add up to, by dimension."""
        total = {"usd": 0, "tokens": 0, "tool_calls": 0, "requests": 0}
        for record in self.records.values():
            total["usd"] += record.cost_nanos or 0
            total["tokens"] += record.tokens.input + record.tokens.output
            total["tool_calls"] += record.tool_calls
            total["requests"] += record.requests
        return total

    def left(self, dimension: str) -> int:
        """What nobody has spent or holds."""
        return self.limits[dimension] - self.used()[dimension] - self.held[dimension]

    def _extend(self, ask: wire.Extend) -> dict[str, Any]:
        need = {str(d): n for d, n in ask.need.items()}
        want = {str(d): n for d, n in ask.want.items()}
        for dimension, amount in need.items():
            if dimension in self.limits and amount > self.left(dimension):
                raise RefusedError(
                    wire.Refusal(
                        account="team/budget",
                        dimension=wire.Dimension(dimension),
                        limit=self.limits[dimension],
                        spent=self.used()[dimension],
                        reserved=self.held[dimension],
                        needed=amount,
                    )
                )
        granted = {}
        for dimension in self.limits:
            least, most = need.get(dimension, 0), max(want.get(dimension, 0), need.get(dimension, 0))
            chunk = most if self.chunk is None else min(most, self.chunk)
            granted[dimension] = max(least, min(chunk, max(0, self.left(dimension))))
            self.held[dimension] += granted[dimension]
            self.granted[dimension] += granted[dimension]
        return {"granted": granted, "held": self.held, "window_ends_in_seconds": self.window_ends_in}

    def _post(self, post: wire.PostRecords) -> dict[str, Any]:
        for record in post.records:
            known = self.records.get(record.sequence)
            assert known is None or known == record, f"record {record.sequence} posted twice with other content"
            if known is None:
                before = self.used()
                self.records[record.sequence] = record
                after = self.used()
                for dimension in self.held:
                    self.held[dimension] = max(0, self.held[dimension] - (after[dimension] - before[dimension]))
        last = 0
        while last + 1 in self.records:
            last += 1
        return {"last_sequence": last, "held": self.held, "frozen": False}

    def _return(self, give: wire.Return) -> dict[str, Any]:
        if give.final:
            self.final = give
            self.state = "closed"
            self.held = dict.fromkeys(self.held, 0)
        for dimension, amount in give.amounts.items():
            if not give.final and dimension in self.held:
                assert amount <= self.held[dimension], "more came back than was held"
                self.held[dimension] -= amount
        return {"state": self.state, "held": self.held}

    def _activate(self) -> dict[str, Any]:
        self.state = "active"
        return {
            "limited": list(self.limits),
            "held": self.held,
            "remaining": {d: self.left(d) for d in self.limits},
            "max_per_request": self.max_per_request,
            "lease_seconds": self.lease_seconds,
            "window_ends_in_seconds": self.window_ends_in,
            "next_sequence": max(self.records, default=0) + 1,
            "settled": self.used(),
            "paid_seconds": self.paid_seconds,
        }

    # --- HTTP ---------------------------------------------------------------------------------------------------------

    async def _handle(self, request: web.Request) -> web.StreamResponse:  # noqa: C901 - one case a verb
        verb = request.match_info["verb"]
        if self.away:
            self.asked_in_vain.append(verb)
            assert request.transport is not None
            request.transport.abort()
            return web.Response(status=503)
        self.calls.append(verb)
        self.tokens.add(request.headers.get("authorization", ""))
        if verb == "signals":
            asked = request.query.get("paid") == "1"
            return await self._signals(float(request.query.get("timeout_seconds", "0")), asked=asked)
        data = await request.read()
        operation = ""
        try:
            answer: dict[str, Any] = {}
            match verb:
                case "activate":
                    operation = wire.Activate.model_validate_json(data).operation_id
                    if not self.bound:
                        return _error(409, "not_bound", "the operator has not bound the pod yet")
                    if self.state in ("void", "closed"):
                        return _error(409, "wrong_state", f"the allotment is {self.state}")
                    answer = self._once(operation, self._activate)
                case "extend":
                    ask = wire.Extend.model_validate_json(data)
                    operation = ask.operation_id
                    answer = self._once(operation, lambda: self._extend(ask))
                case "records":
                    post = wire.PostRecords.model_validate_json(data)
                    answer = self._once(post.operation_id, lambda: self._post(post))
                case "return":
                    give = wire.Return.model_validate_json(data)
                    answer = self._once(give.operation_id, lambda: self._return(give))
                case "output":
                    self.output = wire.PutOutput.model_validate_json(data).content
                case "progress":
                    if self.state in ("void", "closed"):
                        return _error(409, "wrong_state", f"the allotment is {self.state} and cannot make progress")
                    self.progress.append(wire.PostProgress.model_validate_json(data))
        except RefusedError as error:
            return _error(409, "insufficient", "no room", error.refusal)
        except ValueError as error:
            return _error(400, "invalid", str(error)[:500])
        if self.lose_answers > 0:
            self.lose_answers -= 1
            assert request.transport is not None
            request.transport.abort()
        return web.json_response(answer)

    def _once(self, operation: str, act: Any) -> Any:
        if operation not in self._answers:
            answer = act()
            self._answers[operation] = {**answer, "held": dict(self.held)}
        return self._answers[operation]

    def _quiet(self) -> bool:
        return not (self.cancel or self.recall or self.away)

    async def _signals(self, seconds: float, *, asked: bool) -> web.Response:
        deadline = self._loop.time() + seconds
        while self._quiet() and self._loop.time() < deadline:  # noqa: ASYNC110 - tests set plain attributes
            await asyncio.sleep(0.02)
        paid = {"paid_seconds": self.paid_seconds} if asked else {}
        told = {"recall": self.recall, "cancel": self.cancel, "lease_seconds": self.lease_seconds, **paid}
        return web.json_response(told)

    async def _start(self) -> None:
        app = web.Application(client_max_size=4 * 1024 * 1024)
        app.router.add_route("*", "/v1/allotments/{id}/{verb}", self._handle)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        self.url = f"http://127.0.0.1:{self._runner.addresses[0][1]}"

    def __enter__(self) -> Self:
        self._thread.start()
        asyncio.run_coroutine_threadsafe(self._start(), self._loop).result(10)
        return self

    def __exit__(self, *args: object) -> None:
        asyncio.run_coroutine_threadsafe(self._runner.cleanup(), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(5)
        self._loop.close()


class RefusedError(Exception):
    """An account has no room."""

    def __init__(self, refusal: wire.Refusal) -> None:
        super().__init__(refusal.account)
        self.refusal = refusal


def _error(status: int, code: str, message: str, refusal: wire.Refusal | None = None) -> web.Response:
    body: dict[str, Any] = {"error": {"code": code, "message": message, "field": None}}
    if refusal is not None:
        body["error"]["refusal"] = refusal.model_dump(mode="json")
    return web.json_response(body, status=status)
