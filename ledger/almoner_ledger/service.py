"""The HTTP service: routes to commands and queries, callers to roles, errors to bodies.

Role: thin. Bodies are validated strictly, callers judged, commands handed to the batcher, queries run in a thread; long
polls wait. Boundary: decides nothing about money.
"""

from __future__ import annotations

import asyncio
import functools
import json
import logging
import time
from collections.abc import Awaitable, Callable
from typing import Any, Final, TypeVar

import prometheus_client
from aiohttp import web
from sqlalchemy.engine import Connection

from almoner_core import wire
from almoner_core.wire import ErrorAnswer, ErrorCode, WireModel
from almoner_ledger import metrics
from almoner_ledger.auth import Authenticator, Caller, Role
from almoner_ledger.batching import Batcher, ChangeWatch
from almoner_ledger.database import DatabaseUnavailableError
from almoner_ledger.doors import Turns
from almoner_ledger.errors import LedgerError, invalid
from almoner_ledger.parsing import Batch, integer, known_only, parse_batch, parse_body, read_body, without_nul
from almoner_ledger.people import People
from almoner_ledger.provider_keys import ProviderKeys, check_private
from almoner_ledger.readers import Readers, Reading, Resource
from almoner_ledger.routes import ROUTES, Route, openapi
from almoner_ledger.signals import SignalWatch, Sweeper
from almoner_ledger.store import Answer, Store, Verb, command, configuration, granted_keys, queries

log = logging.getLogger(__name__)

T = TypeVar("T")
VERBS: Final[dict[str, Verb]] = {
    "/v1/epochs": Verb.TAKE_EPOCH,
    "/v1/accounts:update": Verb.UPDATE_ACCOUNTS,
    "/v1/allotments:open": Verb.OPEN,
    "/v1/allotments:bind": Verb.BIND,
    "/v1/allotments:void": Verb.VOID,
    "/v1/allotments:close": Verb.CLOSE,
    "/v1/allotments:accrue": Verb.ACCRUE,
    "/v1/allotments/{id}/activate": Verb.ACTIVATE,
    "/v1/allotments/{id}/extend": Verb.EXTEND,
    "/v1/allotments/{id}/records": Verb.POST,
    "/v1/allotments/{id}/return": Verb.RETURN,
    "/v1/allotments/{id}/output": Verb.OUTPUT,
    "/v1/allotments/{id}/progress": Verb.PROGRESS,
}
ITEMS: Final[dict[type[WireModel], type[WireModel]]] = {
    wire.OpenBatch: wire.OpenAllotment,
    wire.BindBatch: wire.BindAllotment,
    wire.CloseBatch: wire.CloseAllotment,
    wire.AccrueBatch: wire.AccrueAllotment,
}
NO_ALLOTMENT: Final = "00000000-0000-0000-0000-000000000000"
"""Stands in the answer to an item that named none."""
READY_SECONDS: Final = 2.0
JSON: Final = "application/json"
METRICS: Final = "/metrics"
READING: Final = "reading"
"""Where a request for reading keeps what its caller was permitted."""


class Service:
    """The ledger's HTTP application over a store."""

    def __init__(
        self,
        store: Store,
        authenticator: Authenticator,
        *,
        version: str = "0",
        with_metrics: bool = True,
        readers: Readers | None = None,
        keys: ProviderKeys | None = None,
    ) -> None:
        self.store = store
        self.readers = readers if readers is not None else Readers(None)
        self.keys = keys if keys is not None else ProviderKeys(None)
        self._with_metrics = with_metrics
        self.authenticator = authenticator
        self.version = version
        self.people = People(store)
        self.turns = Turns()
        self._probe: asyncio.Task[None] | None = None

    def application(self) -> web.Application:
        """Make the application; its start-up and clean-up start and stop the writer."""
        app = web.Application(client_max_size=0)
        app.cleanup_ctx.append(self._running)
        for route in ROUTES:
            if route.path == METRICS and not self._with_metrics:
                continue
            app.router.add_route(route.method, route.path, functools.partial(self._serve, route))
        # What fits no route is refused by name as well.
        app.router.add_route("*", "/{rest:.*}", self._unknown)
        return app

    def metrics_application(self) -> web.Application:
        """Make an application of /metrics alone, for a port that agents do not reach."""
        app = web.Application(client_max_size=0)
        route = next(each for each in ROUTES if each.path == METRICS)
        app.router.add_route(route.method, route.path, functools.partial(self._serve, route))
        return app

    async def _running(self, _: web.Application) -> Any:
        self.batcher = Batcher(self.store)
        self.watch = ChangeWatch(self.store, self.batcher)
        self.signals = SignalWatch(self.store, self.batcher)
        self.sweeper = Sweeper(self.store, self.batcher)
        self.stopping = asyncio.Event()
        self.batcher.start()
        self.watch.start()
        self.signals.start()
        self.sweeper.start()
        yield
        self.stopping.set()
        await self.sweeper.close()
        await self.signals.close()
        await self.watch.close()
        await self.batcher.close()
        await self.readers.close()
        await self.keys.close()
        await self.authenticator.close()

    # -- around every call -----------------------------------------------------------------------------

    async def _serve(self, route: Route, request: web.Request) -> web.StreamResponse:
        started = time.perf_counter()
        code = "ok"
        try:
            caller = await self._caller(route, request)
            _refuse_nul(request)
            handler: Callable[[Route, web.Request, Caller | None], Awaitable[web.Response]] = getattr(
                self, f"_{route.handler}"
            )
            with self.turns.turn(caller, long_poll=route.long_poll):
                response = await handler(route, request, caller)
            _permitted(route, request)
        except LedgerError as error:
            code = error.code.value
            response = _error(error)
        except DatabaseUnavailableError as error:
            code = ErrorCode.UNAVAILABLE.value
            response = _error(LedgerError(ErrorCode.UNAVAILABLE, f"the database does not answer: {error}"))
        except (asyncio.CancelledError, ConnectionError):
            raise
        except Exception:
            log.exception("%s %s failed", route.method, route.path)
            code = ErrorCode.UNAVAILABLE.value
            response = _error(LedgerError(ErrorCode.UNAVAILABLE, "the ledger failed and logged why; retry"))
        metrics.REQUESTS.labels(route.path, code).inc()
        if not route.long_poll:
            metrics.REQUEST_SECONDS.labels(route.path).observe(time.perf_counter() - started)
        return response

    async def _caller(self, route: Route, request: web.Request) -> Caller | None:
        if route.role is None:
            return None
        reads = route.role is Role.READER
        caller = await self.authenticator.caller(request.headers.get("Authorization"), reading=reads)
        if route.role not in caller.roles:
            raise LedgerError(ErrorCode.FORBIDDEN, f"{caller.name or 'the caller'} has not the role {route.role.value}")
        if reads:
            request[READING] = Reading(self.readers, caller)
        return caller

    async def _unknown(self, request: web.Request) -> web.Response:
        return _error(LedgerError(ErrorCode.NOT_FOUND, f"no call {request.method} {request.path[:128]}"))

    async def _read(self, query: Callable[[Connection], T]) -> T:
        return await asyncio.to_thread(self.store.read, query)

    # -- mutations -------------------------------------------------------------------------------------

    async def _command(self, route: Route, request: web.Request, caller: Caller | None) -> web.Response:
        assert route.body is not None
        body = await read_body(request, route.body_bytes_max)
        verb = VERBS[route.path]
        if verb is Verb.OUTPUT:
            # Text that an agent wrote may hold NUL, which PostgreSQL's text cannot: it is replaced, not refused.
            body = without_nul(body)
        message = parse_body(body, route.body)
        allotment = request.match_info.get("id")
        if allotment is not None and len(allotment) != 36:
            raise invalid("id", "write the allotment's id")
        made = command(
            verb,
            message,
            allotment=allotment,
            epoch=getattr(message, "epoch", None),
            pod_uid=caller.pod_uid if caller is not None and route.role is Role.METER else None,
        )
        return _answer(await self.batcher.submit(made))

    async def _batch(self, route: Route, request: web.Request, _: Caller | None) -> web.Response:
        assert route.body is not None
        verb = VERBS[route.path]
        batch: Batch[Any] = parse_batch(
            await read_body(request, route.body_bytes_max), route.body, "items", ITEMS[route.body]
        )
        found: dict[int, tuple[str, Answer]] = {
            place: (batch.allotments.get(place, NO_ALLOTMENT), error) for place, error in batch.errors.items()
        }
        if batch.message is not None:
            items, epoch = batch.message.items, batch.message.epoch
            answers = await self.batcher.submit_all([command(verb, item, epoch=epoch) for item in items])
            for place, item, answer in zip(batch.places, items, answers, strict=True):
                # A leader that is not one any more learns it at once, not item by item.
                if isinstance(answer, LedgerError) and answer.code in (ErrorCode.STALE_EPOCH, ErrorCode.UNAVAILABLE):
                    raise answer
                found[place] = (item.allotment, answer)
        ordered = [found[place] for place in sorted(found)]
        if verb is Verb.OPEN:
            return _answer(wire.OpenAnswers(answers=[_opened(*each) for each in ordered]))
        return _answer(wire.BatchAnswer(answers=[_item(*each) for each in ordered]))

    async def _update_accounts(self, route: Route, request: web.Request, _: Caller | None) -> web.Response:
        body = await read_body(request, route.body_bytes_max)
        batch = parse_batch(body, wire.UpdateAccounts, "accounts", wire.AccountLimits)
        accounts: list[wire.AccountState] = []
        refused = [wire.RefusedAccount(index=place, error=error.to_wire()) for place, error in batch.errors.items()]
        if batch.message is not None:
            made = command(Verb.UPDATE_ACCOUNTS, batch.message, epoch=batch.message.epoch)
            answer = await self.batcher.submit(made)
            assert isinstance(answer, wire.AccountsAnswer)
            accounts = answer.accounts
            refused += [each.model_copy(update={"index": batch.places[each.index]}) for each in answer.refused]
        refused.sort(key=lambda each: each.index)
        return _answer(wire.AccountsAnswer(accounts=accounts, refused=refused))

    async def _observe(self, route: Route, request: web.Request, _: Caller | None) -> web.Response:
        body = await read_body(request, route.body_bytes_max)
        batch = parse_batch(body, wire.ObserveObjects, "objects", wire.ObservedObject)
        refused = [wire.RefusedObject(index=place, error=error.to_wire()) for place, error in batch.errors.items()]
        changes = 0
        if batch.message is not None:
            answer = await self.batcher.submit(command(Verb.OBSERVE, batch.message, epoch=batch.message.epoch))
            assert isinstance(answer, wire.Observed)
            changes = answer.changes
            refused += [each.model_copy(update={"index": batch.places[each.index]}) for each in answer.refused]
        refused.sort(key=lambda each: each.index)
        return _answer(wire.Observed(changes=changes, refused=refused))

    # -- queries ---------------------------------------------------------------------------------------

    async def _known_configuration(self, route: Route, request: web.Request, _: Caller | None) -> web.Response:
        _known(route, request)
        after, limit = request.query.get("after", ""), max(1, integer(request.query, "limit", 500, 1000))
        return _answer(await self._read(lambda c: configuration.known(c, after[:64], limit)))

    async def _list_allotments(self, route: Route, request: web.Request, _: Caller | None) -> web.Response:
        query = request.query
        _known(route, request)
        if query.get("state", "open") != "open":
            raise invalid("state", "only state=open is listed")
        after, limit = query.get("after", ""), max(1, integer(query, "limit", 500, 1000))
        return _answer(await self._read(lambda c: queries.open_allotments(c, self.store.now_ms(c), after[:36], limit)))

    async def _changes(self, route: Route, request: web.Request, _: Caller | None) -> web.Response:
        query = request.query
        _known(route, request)
        after = integer(query, "after", 0, wire.BIGINT_MAX)
        limit = max(1, integer(query, "limit", 500, 1000))
        deadline = time.monotonic() + integer(query, "timeout_seconds", 0, 55)
        while True:
            found = await self._read(lambda c: queries.changes(c, self.store.now_ms(c), after, limit))
            left = deadline - time.monotonic()
            if found.executions or found.agents or found.accounts or left <= 0 or self.stopping.is_set():
                return _answer(found)
            with metrics.LONG_POLLS.track_inprogress():
                await self.watch.wait(found.after, left)

    async def _signals(self, route: Route, request: web.Request, caller: Caller | None) -> web.Response:
        _known(route, request)
        assert caller is not None
        seconds = integer(request.query, "timeout_seconds", 0, 55)
        with metrics.LONG_POLLS.track_inprogress():
            waited = self.signals.wait(
                request.match_info["id"], caller.pod_uid or "", seconds, paid=bool(integer(request.query, "paid", 0, 1))
            )
            return _answer(await waited)

    async def _keys(self, route: Route, request: web.Request, caller: Caller | None) -> web.Response:
        check_private(request.transport)
        assert caller is not None
        pod_uid, allotment = caller.pod_uid or "", request.match_info["id"]
        self.keys.pace(pod_uid)
        asked = parse_body(await read_body(request, route.body_bytes_max), wire.AskKeys)
        granted = await self._read(lambda c: granted_keys.of(c, allotment, pod_uid))
        response = _answer(await self.keys.hand_over(allotment, granted, asked.providers))
        response.headers["Cache-Control"] = "no-store"
        return response

    async def _ask(self, route: Route, request: web.Request, _: Caller | None) -> web.Response:
        _known(route, request)
        return _answer(await self.people.answer(route.path, request, request[READING]))

    async def _output(self, route: Route, request: web.Request, __: Caller | None) -> web.Response:
        _known(route, request)
        uid, reading = request.match_info["uid"][:64], request[READING]
        namespaces = request.query.getall("namespace", [])
        if namespaces:
            await reading.demand(Resource.EXECUTIONS, namespaces)
        namespace = await self._read(lambda c: queries.namespace_of(c, uid))
        if not namespaces:
            await reading.demand_of_object(Resource.EXECUTIONS, namespace)
        elif namespace not in namespaces:
            raise LedgerError(ErrorCode.NOT_FOUND, "uid: no output of that execution is known there", field="uid")
        text = await self._read(lambda c: queries.output(c, uid))
        return web.Response(text=text, content_type="text/plain", charset="utf-8")

    # -- for machines ----------------------------------------------------------------------------------

    async def _healthz(self, _: Route, __: web.Request, ___: Caller | None) -> web.Response:
        return web.Response(text="ok\n")

    async def _readyz(self, _: Route, __: web.Request, ___: Caller | None) -> web.Response:
        if self.stopping.is_set():
            raise LedgerError(ErrorCode.UNAVAILABLE, "shutting down")
        # One at a time, however many ask: it may take longer than anybody waits.
        if self._probe is None or self._probe.done():
            self._probe = asyncio.create_task(asyncio.to_thread(self._check), name="ledger-probe")
            # Whoever asked may be gone when it fails.
            self._probe.add_done_callback(lambda probe: None if probe.cancelled() else probe.exception())
        ended, _pending = await asyncio.wait({self._probe}, timeout=READY_SECONDS)
        if not ended:
            raise LedgerError(ErrorCode.UNAVAILABLE, "the database does not answer")
        await self._probe
        return web.Response(text="ok\n")

    def _check(self) -> None:
        self.store.database.check_writable()
        self.store.read(queries.last_change)

    async def _metrics(self, _: Route, __: web.Request, ___: Caller | None) -> web.Response:
        return web.Response(body=prometheus_client.generate_latest(), content_type="text/plain")

    async def _openapi(self, _: Route, __: web.Request, ___: Caller | None) -> web.Response:
        return web.Response(text=_openapi_text(self.version), content_type=JSON)


@functools.cache
def _openapi_text(version: str) -> str:
    return json.dumps(openapi(version))


def _refuse_nul(request: web.Request) -> None:
    """Refuse NUL in what names something: PostgreSQL would refuse the whole query, which asks for others as well."""
    for name, value in (*request.match_info.items(), *request.query.items()):
        if "\0" in name or "\0" in value:
            raise invalid(name.replace("\0", "?")[:64], "the character NUL is not allowed")


def _permitted(route: Route, request: web.Request) -> None:
    """Hold back an answer to people where nobody asked whether they may read it: a call that forgets tells nothing."""
    if route.role is Role.READER and not request[READING].permitted:
        raise RuntimeError("it was answered without asking whether the caller may read that")


def _known(route: Route, request: web.Request) -> None:
    known_only(request.query, {each.name for each in route.parameters})


def _answer(answer: Answer) -> web.Response:
    assert isinstance(answer, WireModel)
    return web.Response(text=answer.model_dump_json(), content_type=JSON)


def _error(error: LedgerError) -> web.Response:
    response = web.Response(
        status=error.status, text=ErrorAnswer(error=error.to_wire()).model_dump_json(), content_type=JSON
    )
    if error.code is ErrorCode.UNAVAILABLE:
        response.headers["Retry-After"] = "1"
    if error.code is ErrorCode.TOO_LARGE:
        # The rest of the body is not read.
        response.force_close()
    return response


def _opened(allotment: str, answer: Answer) -> wire.OpenAnswer:
    if isinstance(answer, LedgerError):
        return wire.OpenAnswer(allotment=allotment, error=answer.to_wire())
    assert isinstance(answer, wire.OpenAnswer)
    return answer


def _item(allotment: str, answer: Answer) -> wire.ItemAnswer:
    if isinstance(answer, LedgerError):
        return wire.ItemAnswer(allotment=allotment, error=answer.to_wire())
    assert isinstance(answer, wire.ItemAnswer)
    return answer
