"""The same world in real time: several real ledger processes on one PostgreSQL, killed with SIGKILL.

Role: what virtual time cannot show: transactions that truly run at once, connections that truly break, processes that
truly die. Pods and operator are the simulated ones, over HTTP, at a quickened pace. Not in here: clock jumps, leases
that run out (a minute is a minute), and nodes that are only unreachable; a vanished node is known to be gone.
Boundary: real time is not replayed to the letter: the seed gives the same work and the same kinds of faults.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import signal
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Final

import aiohttp

from almoner_dev import processes
from almoner_dev.ledger_environment import ledger_environment
from almoner_dev.postgres import Postgres
from almoner_dev.processes import Child
from almoner_dev.simulate.clockwork import Ids
from almoner_dev.simulate.databases import Source, scratch
from almoner_dev.simulate.faults import Faults
from almoner_dev.simulate.network import Answer, Network
from almoner_dev.simulate.report import Result
from almoner_dev.simulate.schedule import judge, quiet_logs
from almoner_dev.simulate.world import OPERATOR_TOKEN, World
from almoner_ledger.store import Database

REPLICAS: Final = 3
PACE: Final = 0.05
PODS_MAX: Final = 64
PAUSE_S_MAX: Final = 4.0
READY_S: Final = 60.0
LOOPBACK: Final = "127.0.0.1"


class ProcessDoor:
    """One replica as a process."""

    def __init__(self, name: str, url: str, arguments: list[str], folder: Path) -> None:
        self.name = name
        self.up = False
        self._folder = folder
        self._port = processes.free_port(LOOPBACK)
        self._url = f"http://{LOOPBACK}:{self._port}"
        self._database = url
        self._arguments = [*arguments, "--listen", f"{LOOPBACK}:{self._port}"]
        self._session: aiohttp.ClientSession | None = None
        self._child: Child | None = None

    async def start(self) -> None:
        """Start the process and wait until it serves. Raises ProcessError."""
        if self._session is None:
            self._session = aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=60))
        argv = [sys.executable, "-m", "almoner_ledger", "serve", *self._arguments]
        self._child = await asyncio.to_thread(
            processes.start,
            self.name,
            argv,
            log_path=self._folder / f"{self.name}.log",
            env=ledger_environment(self._database),
        )
        deadline = time.monotonic() + READY_S
        while not await self._ready():
            if not self._child.running() or time.monotonic() > deadline:
                raise self._child.failure("the ledger does not serve")
            await asyncio.sleep(0.05)
        self.up = True

    async def _ready(self) -> bool:
        assert self._session is not None
        try:
            async with self._session.get(f"{self._url}/readyz") as answer:
                return answer.status == 200
        except aiohttp.ClientError:
            return False

    def kill(self) -> None:
        """Kill it with SIGKILL."""
        self.up = False
        if self._child is not None:
            self._child.kill()

    def pause(self) -> None:
        """Stop it with SIGSTOP, until `resume`."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Let it go on, if it is there."""
        self._signal(signal.SIGCONT)

    def _signal(self, number: signal.Signals) -> None:
        if self._child is not None and self._child.running():
            os.kill(self._child.pid, number)

    async def stop(self) -> None:
        """Stop it in order."""
        self.up = False
        self.resume()
        if self._child is not None:
            await asyncio.to_thread(self._child.stop)
        if self._session is not None:
            await self._session.close()

    async def handle(self, method: str, path: str, token: str, body: bytes) -> Answer:
        """Answer one request. Raises ConnectionError."""
        assert self._session is not None
        headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
        try:
            async with self._session.request(
                method, self._url + path, data=body or None, headers=headers, allow_redirects=False
            ) as answer:
                return answer.status, await answer.read()
        except (aiohttp.ClientError, TimeoutError) as error:
            raise ConnectionError(str(error)) from error


class _PodIds(Ids):
    """UUIDs of pods, drawn before, because the ledger reads its static tokens when it starts."""

    def __init__(self, chance: random.Random) -> None:
        super().__init__(chance)
        self.made = [Ids.__call__(self) for _ in range(PODS_MAX)]
        self._next = iter(self.made)

    def __call__(self) -> str:
        """Give the next one. Raises StopIteration past PODS_MAX."""
        return next(self._next)


def run(seed: int, source: Source) -> Result:
    """Live one schedule in real time and judge it."""
    assert source.postgres is not None, "several replicas need PostgreSQL"
    result = Result(seed, f"{source.name} processes")
    began = time.perf_counter()
    with scratch() as folder, source.fresh() as database, quiet_logs() as errors:
        asyncio.run(_live(seed, database, source.postgres, Path(folder), result))
        result.violations += errors.found[:20]
    result.seconds = time.perf_counter() - began
    return result


def _faults(seed: int) -> Faults:
    faults = Faults.drawn(random.Random(f"faults {seed}"))
    faults.delay_longest_s = 1.0
    faults.clock_jumps_every_s = faults.meter_cut_off_every_s = 0.0
    # Meters and operators live in this very process: nothing can stop them alone, and their disk is this machine's.
    faults.process_paused_every_s = faults.disk_full_every_s = faults.ledger_away_every_s = 0.0
    faults.database_full_every_s = 0.0
    # Every schedule of this kind kills ledgers and the database: that is what it is for.
    faults.replica_killed_every_s = 30.0
    faults.database_killed_every_s = 80.0
    return faults


async def _left_out(*_: float) -> None:
    raise AssertionError("its rate is 0 where time is real and the disk is this machine's")


async def _live(seed: int, database: Database, postgres: Postgres, folder: Path, result: Result) -> None:
    chance, faults = random.Random(f"world {seed}"), _faults(seed)
    ids = _PodIds(random.Random(f"ids {seed}"))
    url = database.engine.url.render_as_string(hide_password=False)
    began = time.monotonic()
    async with _replicas(folder, url, ids.made) as doors:
        network = Network(doors, faults, random.Random(f"network {seed}"))
        # Nobody waits ten real seconds for a message that is lost.
        network.silences = False

        async def kill_replica() -> None:
            up = [door for door in doors if door.up]
            if len(up) > 1:
                faults.note("replica_killed")
                door = chance.choice(up)
                door.kill()
                await door.start()

        async def pause_replica(seconds: float) -> None:
            up = [door for door in doors if door.up]
            if len(up) > 1:
                door = chance.choice(up)
                door.pause()
                asyncio.get_running_loop().call_later(min(seconds, PAUSE_S_MAX), door.resume)

        async def kill_database() -> None:
            faults.note("database_killed")
            await asyncio.to_thread(_again, postgres)

        async def mend() -> None:
            for door in doors:
                if not door.up:
                    door.kill()
                    await door.start()

        world = World(
            chance=chance,
            faults=faults,
            network=network,
            ids=ids,
            folder=folder,
            tokens={},
            jump=lambda _seconds: None,
            kill_replica=kill_replica,
            kill_database=kill_database,
            fill_database=_left_out,
            mend=mend,
            pause_replica=pause_replica,
            ledger_away=_left_out,
            now_s=time.time,
            pace=PACE,
            nodes_known=True,
        )
        await world.live()
    judge(world, database, result)
    result.virtual_seconds = time.monotonic() - began


def _again(postgres: Postgres) -> None:
    postgres.kill()
    postgres.start()


@contextlib.asynccontextmanager
async def _replicas(folder: Path, url: str, pods: list[str]) -> AsyncIterator[list[ProcessDoor]]:
    entries: list[dict[str, str]] = [{"token": OPERATOR_TOKEN, "role": "operator", "name": "operator"}]
    entries += [{"token": f"meter-{uid}", "role": "meter", "pod_uid": uid} for uid in pods]
    path = folder / "tokens.json"
    path.touch(mode=0o600)
    path.write_text(json.dumps(entries))
    arguments = ["--static-tokens", str(path)]
    doors = [ProcessDoor(f"ledger-{number}", url, arguments, folder) for number in range(REPLICAS)]
    try:
        await asyncio.gather(*(door.start() for door in doors))
        yield doors
    finally:
        for door in doors:
            await door.stop()
