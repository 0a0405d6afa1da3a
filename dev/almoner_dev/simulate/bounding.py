"""One schedule of parsing and bounding: generated bodies through the real meter to a provider that counts.

Role: the meter's app, dialects, holds, books, spool and forwarder are the real ones; the provider charges a token a
byte of what it receives, tools once more, and everything that a request names and does not hold, up to the context
window. The oracle is this provider's bill: no call is billed above its bound, no account above its limit, nothing is
charged that was not sent, and a sound request is not refused. Boundary: one account that is granted from in memory, no
faults of the ledger; those are the business of `schedule`.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import hashlib
import json
import random
import time
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final

from multidict import CIMultiDict

from almoner_core.pricing import TokenCounts, cost_nanos
from almoner_dev.simulate.bodies import LONG_CONTEXT, MODEL, PATHS, Drawer, Drawn, stored_tokens
from almoner_dev.simulate.clockwork import Clock, Ids, StalledError, VirtualLoop, installed
from almoner_dev.simulate.databases import scratch
from almoner_dev.simulate.report import Result
from almoner_dev.simulate.schedule import end_loop, quiet_logs
from almoner_runner.meter.app import App
from almoner_runner.meter.books import Books
from almoner_runner.meter.config import Card, Config, Model, Provider, Tier
from almoner_runner.meter.dialect import Call
from almoner_runner.meter.forward import Forwarder
from almoner_runner.meter.holds import Holds, Try
from almoner_runner.meter.keys import Keys
from almoner_runner.meter.ledger import LedgerClient, LedgerError, Secret
from almoner_runner.meter.progress import Progress
from almoner_runner.meter.spool import Spool

CARD: Final = Card(
    version="simulated",
    tiers=(Tier(input=1_000_000_000, cached_input=100_000_000, cache_write=1_250_000_000, output=2_000_000_000),),
)
WINDOW: Final = 6_000
LONG_WINDOW: Final = 1_000_000
PROVIDER: Final = Provider(
    name="provider",
    type="OpenAICompatible",
    base_url="http://provider/v1",
    dialects=("OpenAI", "Anthropic"),
    models={MODEL: Model(MODEL, price=CARD, context_window=WINDOW)},
)
CLOSE_S: Final = 8.0
PROBLEMS_MAX: Final = 20

_bound: contextvars.ContextVar[int] = contextvars.ContextVar("bound")


class Account(LedgerClient):
    """A ledger of one account in memory, in place of HTTP: it grants what is there, and takes records once."""

    def __init__(self, limit: int, chance: random.Random) -> None:
        super().__init__("http://ledger", "allotment", Secret(None), None)  # type: ignore[arg-type] # no session: nobody asks it
        self.limit = limit
        self.most = {"usd": chance.randint(1_500_000, limit)} if chance.random() < 0.3 else {}
        self.spent = self.held = 0
        self.records: dict[int, dict[str, Any]] = {}
        self.messages = 0
        self._chance = chance

    async def exchange(
        self, method: str, verb: str, body: dict[str, Any] | None = None, *, seconds: float = 0.0
    ) -> dict[str, Any]:
        """Answer as the ledger would. Raises LedgerError: insufficient."""
        del method, seconds
        if verb.startswith("signals"):
            await asyncio.sleep(20.0)
            return {"lease_seconds": 60}
        self.messages += 1
        await asyncio.sleep(self._chance.uniform(0.0, 0.01))
        answer = getattr(self, f"_{verb}")(body or {})
        return {"held": {"usd": self.held}, **answer}

    def _activate(self, _body: dict[str, Any]) -> dict[str, Any]:
        return {
            "limited": ["usd"],
            "max_per_request": self.most,
            "lease_seconds": 60,
            "next_sequence": 1,
            "settled": {},
            "activation": 1,
        }

    def _extend(self, body: dict[str, Any]) -> dict[str, Any]:
        room = self.limit - self.spent - self.held
        need = body["need"].get("usd", 0)
        if need > room:
            refusal = {"account": "team/budget", "dimension": "usd", "limit": self.limit, "needed": need}
            raise LedgerError("insufficient", "", {**refusal, "spent": self.spent, "reserved": self.held})
        granted = max(need, min(body["want"].get("usd", 0), room))
        self.held += granted
        return {"granted": {"usd": granted}}

    def _records(self, body: dict[str, Any]) -> dict[str, Any]:
        for record in body["records"]:
            if record["sequence"] not in self.records:
                self.records[record["sequence"]] = record
                self.spent += record["cost_nanos"]
                self.held -= min(self.held, record["cost_nanos"])
        return {"last_sequence": body["records"][-1]["sequence"]}

    def _return(self, body: dict[str, Any]) -> dict[str, Any]:
        self.held -= self.held if body["final"] else body["amounts"].get("usd", 0)
        return {"state": "closed" if body["final"] else "active"}


class WatchedHolds(Holds):
    """The real holds; what is held for a call is told to whoever bills it."""

    async def begin(self, call: Call) -> Try:
        """Hold, and remember the bound for the provider."""
        tried = await super().begin(call)
        _bound.set(call.bound()["usd"])
        return tried


class CountingProvider:
    """Stands for the HTTP session to a provider: charges what it receives, and judges."""

    def __init__(self, chance: random.Random, result: Result) -> None:
        self._chance = chance
        self._result = result
        self.bills: list[int] = []
        self.unknown = 0  # calls of which the meter does not learn what they cost
        self.received = hashlib.sha256()

    @contextlib.asynccontextmanager
    async def post(self, url: str, *, data: bytes, headers: Mapping[str, str], **_: Any) -> AsyncIterator[Any]:
        """Take one request and answer it."""
        self.received.update(data)
        long_context = LONG_CONTEXT in headers.get("anthropic-beta", "")
        tokens = self._count(data, LONG_WINDOW if long_context else WINDOW)
        billed = cost_nanos(CARD, tokens)
        self.bills.append(billed)
        bound = _bound.get()
        if billed > bound:
            self._result.overspent["usd"] = self._result.overspent.get("usd", 0) + billed - bound
            problem(self._result, f"billed {billed} where {bound} were held: {data[:300]!r}")
        await asyncio.sleep(self._chance.uniform(0.0, 3.0))
        body = self._answer(url, tokens)
        if self._chance.random() < 0.1:
            self.unknown += 1
            body = b"{}"
        chunks = once(body)
        yield SimpleNamespace(
            status=200,
            content_type="application/json",
            headers={},
            content=SimpleNamespace(iter_any=lambda: chunks),
        )

    def _count(self, data: bytes, window: int) -> TokenCounts:
        try:
            request = json.loads(data.decode(), object_pairs_hook=self._object, parse_constant=self._constant)
            json.dumps(request, ensure_ascii=False).encode()  # half a surrogate pair is no text
        except (ValueError, RecursionError) as error:
            problem(self._result, f"the provider cannot read what it got: {error}: {data[:300]!r}")
            return TokenCounts(input=len(data))
        inside = len(data) + len(json.dumps(request.get("tools", ""))) - 2
        named = stored_tokens(request)
        given = max(inside, min(window, inside + named)) if named else inside
        most = max(request.get(name) or 0 for name in ("max_tokens", "max_completion_tokens", "max_output_tokens"))
        taken = most * (request.get("n") or 1)
        if self._chance.random() < 0.3:
            taken = self._chance.randint(0, taken)
        return TokenCounts(input=given, cache_write=given if self._chance.random() < 0.3 else 0, output=taken)

    def _object(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len(dict(pairs)) != len(pairs):
            raise ValueError("a key is given twice")
        return dict(pairs)

    def _constant(self, text: str) -> Any:
        raise ValueError(f"{text} is no JSON")

    def _answer(self, url: str, tokens: TokenCounts) -> bytes:
        if url.endswith("/messages"):
            plain = tokens.input - tokens.cache_write
            usage = {"input_tokens": plain, "cache_creation_input_tokens": tokens.cache_write}
            return json.dumps({"usage": {**usage, "output_tokens": tokens.output}}).encode()
        prompt, completion = ("input", "output") if url.endswith("/responses") else ("prompt", "completion")
        details = {"cache_write_tokens": tokens.cache_write}
        usage = {f"{prompt}_tokens": tokens.input, f"{completion}_tokens": tokens.output}
        return json.dumps({"usage": {**usage, f"{prompt}_tokens_details": details}}).encode()


async def once(body: bytes) -> AsyncIterator[bytes]:
    """Give an answer in one piece."""
    yield body


def problem(result: Result, text: str) -> None:
    """Note what may not be."""
    if len(result.violations) < PROBLEMS_MAX:
        result.violations.append(text)


def run(seed: int) -> Result:
    """Live one schedule and judge it."""
    result = Result(seed, "bodies")
    began = time.perf_counter()
    with scratch() as folder, quiet_logs():
        loop = VirtualLoop()
        try:
            asyncio.set_event_loop(loop)
            loop.run_until_complete(_live(seed, Path(folder), result))
        except StalledError as error:
            result.violations.append(f"stalled: {error}")
        finally:
            end_loop(loop)
    result.seconds = time.perf_counter() - began
    return result


async def _live(seed: int, folder: Path, result: Result) -> None:
    chance = random.Random(f"bodies {seed}")
    clock = Clock(asyncio.get_running_loop())
    with installed(clock, Ids(random.Random(f"ids {seed}")), f"jitter {seed}"):
        account = Account(chance.randint(2_000_000, 60_000_000), chance)
        spool = Spool(folder, "allotment")
        books = Books(account, spool)
        await books.activate(spool.open())
        provider = CountingProvider(chance, result)
        holds = WatchedHolds(books)
        keys = Keys(_config(), folder, account)
        app = App(_config(), holds, Forwarder(provider, holds), Progress(account), keys)  # type: ignore[arg-type]
        background = asyncio.create_task(books.run())
        drawer = Drawer(chance, chance.choice((0.0, 0.005, 0.05)))
        calls = chance.randint(5, 40)
        await asyncio.gather(*(_agent(app, drawer, calls, result) for _ in range(chance.choice((1, 1, 3)))))
        background.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await background
        if not await books.close(CLOSE_S):
            problem(result, "the meter could not close its books")
        spool.close()
    _judge(account, provider, result)
    result.virtual_seconds = clock.elapsed
    result.trace = provider.received.hexdigest()


def _config() -> Config:
    return Config(
        execution_namespace="team",
        execution_name="run",
        execution_uid="uid",
        attempt=1,
        agent="agent",
        owner="alice",
        allotment="allotment",
        ledger_url="http://ledger",
        providers=(PROVIDER,),
    )


async def _agent(app: App, drawer: Drawer, calls: int, result: Result) -> None:
    for _ in range(calls):
        drawn = drawer.draw()
        try:
            answer = await app.handle(_Request(drawn))  # type: ignore[arg-type]
        except Exception as error:  # noqa: BLE001 - whatever it is, the agent would see a 500
            problem(result, f"{drawn.route}: {type(error).__name__}: {error}: {drawn.content[:300]!r}")
            continue
        result.faults[f"answered_{answer.status}"] += 1
        if answer.status not in (200, 400, 402, 429) or (answer.status == 400 and drawn.sound):
            problem(result, f"{drawn.route}: HTTP {answer.status}: {answer.body!r}: {drawn.content[:300]!r}")  # type: ignore[attr-defined]


class _Request:
    """What the meter's app uses of an HTTP request."""

    method: Final = "POST"
    query_string: Final = ""
    transport: Final = SimpleNamespace(is_closing=lambda: False, write=lambda _: None)

    def __init__(self, drawn: Drawn) -> None:
        self.path = PATHS[drawn.route]
        self.headers = CIMultiDict(("anthropic-beta", line) for line in drawn.betas)
        self.content_length = len(drawn.content)
        self.content = self
        self._content = drawn.content

    async def iter_any(self) -> AsyncIterator[bytes]:
        """Give the body, in two pieces."""
        half = len(self._content) // 2
        yield self._content[:half]
        yield self._content[half:]


def _judge(account: Account, provider: CountingProvider, result: Result) -> None:
    billed = sum(provider.bills)
    if billed > account.limit:
        result.overspent["usd"] = result.overspent.get("usd", 0) + billed - account.limit
        problem(result, f"billed {billed} of {account.limit}")
    made = [record for record in account.records.values() if record["requests"]]
    if len(made) != len(provider.bills):
        problem(result, f"{len(provider.bills)} calls reached the provider, {len(made)} are charged")
    exact = sum(record["cost_nanos"] for record in made)
    if exact < billed or (exact != billed and not provider.unknown):
        problem(result, f"the ledger has {exact}, the provider billed {billed}")
    result.calls = len(provider.bills)
    result.billed_nanos = billed
    result.operations = account.messages
