"""Runs one schedule in virtual time: replicas in this process, over a real database, and the verdict.

Role: puts loop, clock, faults, replicas and world together, lives the schedule, then audits. Boundary: everything that
is decided is decided in the parts.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import hashlib
import logging
import random
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from sqlalchemy.engine import Connection

from almoner_dev.postgres import Postgres
from almoner_dev.simulate.clockwork import Clock, Ids, StalledError, VirtualLoop, installed
from almoner_dev.simulate.databases import Source, scratch
from almoner_dev.simulate.faults import Faults
from almoner_dev.simulate.network import Exchange, Network
from almoner_dev.simulate.replica import Replica, Site, without_waiting
from almoner_dev.simulate.report import Result
from almoner_dev.simulate.world import World
from almoner_ledger.auth import Caller
from almoner_ledger.store import Database, queries
from almoner_ledger.verify import audit

REPLICAS: Final = 3


class _Server:
    """The database server: killed before the statement that the seed says, out of reach or out of room for a while."""

    def __init__(self, postgres: Postgres | None, faults: Faults, loop: asyncio.AbstractEventLoop) -> None:
        self._postgres, self._faults, self._loop = postgres, faults, loop
        self._statements: int | None = None
        self._away_until = self._full_until = 0.0

    @property
    def full(self) -> bool:
        return self._loop.time() < self._full_until

    @property
    def away(self) -> bool:
        return self._loop.time() < self._away_until

    def strike(self) -> None:
        if self._statements is None or self._postgres is None:
            return
        self._statements -= 1
        if self._statements <= 0:
            self._statements = None
            self._faults.note("database_killed")
            self._postgres.kill()
            self._postgres.start()

    async def kill(self) -> None:
        chance = self._faults.chance
        if self._postgres is not None and chance.random() < 0.6:
            self._statements = chance.randint(1, 40)
        else:
            self._faults.note("database_away")
            self._away_until = self._loop.time() + chance.uniform(0.5, 40.0)

    async def fill(self) -> None:
        """Leave no room on its disk for a while."""
        self._faults.note("database_full")
        self._full_until = self._loop.time() + self._faults.chance.choice((2.0, 20.0, 90.0))

    def mend(self) -> None:
        self._statements = None
        self._away_until = self._full_until = 0.0


class _Ledger:
    """The ledger's replicas: killed, standing still, or all away for a while, and started again."""

    def __init__(self, replicas: list[Replica], server: _Server, chance: random.Random, faults: Faults) -> None:
        self._replicas, self._server, self._chance, self._faults = replicas, server, chance, faults
        self._loop = asyncio.get_running_loop()
        self._away_until = 0.0

    async def revive(self) -> None:
        for replica in self._replicas:
            if not replica.up:
                await replica.start()

    async def revive_always(self) -> None:
        """Start again what has died, after a while: mostly one replica serves, sometimes none."""
        chance = self._faults.chance
        while True:
            await asyncio.sleep(chance.uniform(0.2, 6.0))
            dead = [replica for replica in self._replicas if not replica.up]
            if dead and self._loop.time() >= self._away_until:
                await chance.choice(dead).start()

    async def kill_one(self) -> None:
        self._faults.note("replica_killed")
        self._chance.choice(self._replicas).kill()

    async def pause_one(self, seconds: float) -> None:
        standing = [each.process for each in self._replicas if each.up and not each.process.paused]
        if standing:
            process = self._chance.choice(standing)
            process.pause()
            self._loop.call_later(seconds, process.resume)

    async def leave(self, seconds: float) -> None:
        self._away_until = self._loop.time() + seconds
        for replica in self._replicas:
            replica.kill()

    async def mend(self) -> None:
        self._server.mend()
        self._away_until = 0.0
        await self.revive()


class _Errors(logging.Handler):
    """Collects what the ledger logs as an error: it never should, whatever goes wrong around it."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.found: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        text = f"the ledger logged: {record.getMessage()}"
        if record.exc_info is not None and (error := record.exc_info[1]) is not None:
            last = traceback.extract_tb(error.__traceback__)[-1]
            text += f": {error!r:.600} ({Path(last.filename).name}:{last.lineno})"
        if text not in self.found:
            self.found.append(text)


def run(seed: int, source: Source) -> Result:
    """Live one schedule on a fresh database and judge it."""
    result = Result(seed, source.name)
    began = time.perf_counter()
    gc.collect()
    with scratch() as folder, source.fresh() as database, quiet_logs() as errors, without_waiting():
        loop = VirtualLoop()
        try:
            asyncio.set_event_loop(loop)
            loop.run_until_complete(_live(seed, database, source.postgres, Path(folder), result))
        except StalledError as error:
            result.violations.append(f"stalled: {error}")
        finally:
            end_loop(loop)
        result.violations += errors.found[:20]
    result.seconds = time.perf_counter() - began
    return result


def end_loop(loop: VirtualLoop) -> None:
    """Cancel what is left and close the loop."""
    tasks = asyncio.all_tasks(loop)
    for task in tasks:
        task.cancel()
    if tasks:
        loop.run_until_complete(asyncio.wait(tasks))
        for task in tasks:
            if not task.cancelled():
                task.exception()
    asyncio.set_event_loop(None)
    loop.close()


@contextlib.contextmanager
def quiet_logs() -> Iterator[_Errors]:
    """Keep what is logged off the terminal, and collect the ledger's errors."""
    errors = _Errors()
    ledger, meter, operator = (logging.getLogger(f"almoner_{name}") for name in ("ledger", "runner", "operator"))
    noisy = (ledger, meter, operator, logging.getLogger("alembic"), logging.getLogger("asyncio"))
    before = [(each, each.propagate, each.level) for each in noisy]
    for each in noisy:
        each.propagate = False
        each.setLevel(logging.ERROR)
    ledger.addHandler(errors)
    silent = logging.NullHandler()
    for each in noisy:
        each.addHandler(silent)
    try:
        yield errors
    finally:
        ledger.removeHandler(errors)
        for each, propagate, level in before:
            each.propagate = propagate
            each.setLevel(level)
            each.removeHandler(silent)


async def _live(seed: int, database: Database, postgres: Postgres | None, folder: Path, result: Result) -> None:
    chance = random.Random(f"world {seed}")
    loop = asyncio.get_running_loop()
    clock = Clock(loop)
    faults = Faults.drawn(random.Random(f"faults {seed}"))
    ids = Ids(random.Random(f"ids {seed}"))
    server = _Server(postgres, faults, loop)
    tokens: dict[str, Caller] = {}
    site = Site(database.engine, clock, faults, server, _Tokens(tokens))
    replicas = [Replica(f"ledger-{number}", site) for number in range(REPLICAS)]
    ledger = _Ledger(replicas, server, chance, faults)
    network = Network(replicas, faults, random.Random(f"network {seed}"))
    trace = hashlib.sha256()

    def heard(exchange: Exchange) -> None:
        operation = (exchange.body or {}).get("operation_id")
        trace.update(f"{clock.elapsed:.6f} {exchange.method} {exchange.path} {exchange.status} {operation}\n".encode())

    network.heard.append(heard)
    world = World(
        chance=chance,
        faults=faults,
        network=network,
        ids=ids,
        folder=folder,
        tokens=tokens,
        jump=clock.jump,
        kill_replica=ledger.kill_one,
        kill_database=server.kill,
        fill_database=server.fill,
        mend=ledger.mend,
        pause_replica=ledger.pause_one,
        ledger_away=ledger.leave,
        now_s=lambda: clock.true_ms() / 1000,
    )
    with installed(clock, ids, f"jitter {seed}"):
        await ledger.revive()
        reviving = asyncio.create_task(ledger.revive_always())
        await world.live()
        reviving.cancel()
        for replica in replicas:
            await replica.stop()
    judge(world, database, result)
    result.virtual_seconds = clock.elapsed
    result.trace = trace.hexdigest()


def judge(world: World, database: Database, result: Result) -> None:
    """Ask oracle and audit, and write down what they found."""
    audited = database.read(audit)
    found = database.read(world.oracle.judge)
    result.violations += database.read(lambda connection: feed_problems(world, connection))
    result.overspent, result.lost = found.overspent, found.lost
    result.violations += found.problems
    result.violations += [f"{each.invariant}: {each.subject}: {each.found}" for each in audited.violations]
    bills = world.oracle.bills.values()
    result.calls = len(bills)
    result.billed_nanos = sum(bill.billed["usd"] for bill in bills)
    result.excess_nanos = sum(max(0, bill.billed["usd"] - bill.bound["usd"]) for bill in bills)
    result.operations = world.network.messages
    result.faults = world.faults.happened


def feed_problems(world: World, connection: Connection) -> list[str]:
    """Say where the last leader, who followed the feed from its beginning, was told something else than is so."""
    if world.leader is None:
        return ["nobody ever led"]
    uids = [run.uid for run in world.runs]
    stored = {totals.uid: totals for totals in queries.execution_totals(connection, uids)}
    return [
        f"{run.name}: the feed told {told and told.totals}, the ledger has {stored[run.uid].totals}"
        for run in world.runs
        if run.uid in stored and ((told := world.leader.totals.get(run.uid)) is None or told != stored[run.uid])
    ]


class _Tokens(dict[str, Caller]):
    """Static tokens, looked up as the authenticator does: by their fingerprint."""

    def __init__(self, tokens: dict[str, Caller]) -> None:
        super().__init__()
        self._tokens = tokens
        self._known: dict[str, Caller] = {}

    def get(self, key: str, default: Any = None) -> Any:
        """Look up the caller of a token's fingerprint."""
        if len(self._known) != len(self._tokens):
            self._known = {hashlib.sha256(token.encode()).hexdigest(): each for token, each in self._tokens.items()}
        return self._known.get(key, default)
