"""A runner pod inside the simulation: the real meter's books, holds and spool, an agent that calls, a provider.

Role: lives through start, calls, kills (the meter comes back over the same spool), being cut off, and its end, which is
a last return, or none where its node vanishes with the spool. The provider decides what each call costs when it is
made, and tells the oracle, whatever the meter hears of it. Boundary: HTTP is left out, on both sides, and calls
are made with bounds as drawn: that bounds are true is `bounding`'s business.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import shutil
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, cast

from almoner_core.environment import METER_CONTAINER
from almoner_core.pricing import TokenCounts, cost_nanos
from almoner_dev.simulate.machines import END_S, Kubelet
from almoner_dev.simulate.network import MeterClient
from almoner_dev.simulate.oracle import Attempt, Bill
from almoner_dev.simulate.pausing import Process, outside
from almoner_runner.meter.body import read_body
from almoner_runner.meter.books import Books, BooksClosedError
from almoner_runner.meter.config import Card, Model, Provider, Tier
from almoner_runner.meter.dialect import Call
from almoner_runner.meter.holds import Holds, Try
from almoner_runner.meter.lastword import LastOutput, compose
from almoner_runner.meter.lifecycle import Meter
from almoner_runner.meter.refusals import RefusedError
from almoner_runner.meter.spool import Spool, SpoolError
from almoner_runner.meter.tools import ToolCall, free_tool

if TYPE_CHECKING:
    from almoner_dev.simulate.world import World

CARD: Final = Card(
    version="simulated",
    tiers=(Tier(input=1_000_000_000, cached_input=100_000_000, cache_write=1_250_000_000, output=2_000_000_000),),
)
MODEL: Final = Model("simulated", price=CARD)
PROVIDER: Final = Provider(
    name="provider", type="OpenAICompatible", base_url="", dialects=("OpenAI",), models={MODEL.name: MODEL}
)
REFUSALS_MAX: Final = 4


@dataclass(frozen=True, slots=True)
class Work:
    """What the agent of a pod does: so many calls, by so many at once, the share of tools among them."""

    calls: int
    at_once: int
    tools: float
    input_most: int
    output_most: int
    call_longest_s: float
    pause_longest_s: float


class Pod:
    """One pod. `ended` is set when its containers have terminated; a lost one says nothing any more."""

    def __init__(
        self,
        world: World,
        name: str,
        uid: str,
        attempt: Attempt,
        *,
        work: Work,
        start_s: float,
        costs_machine_time: bool = False,
    ) -> None:
        self.world, self.name, self.uid, self.attempt, self.work = world, name, uid, attempt, work
        self.token = f"meter-{uid}"
        self.folder: Path = world.folder / uid
        self.ended = asyncio.Event()
        self.lost = False
        self.unreachable = False
        self.failed = False
        self.calls_left = work.calls
        self.patience_s = world.chance.choice((8.0, 30.0))
        self._output = _drawn_output(world.chance)
        self._message: str | None = None
        self._chance = random.Random(world.chance.getrandbits(64))
        self._start_s = start_s
        self._terminating = asyncio.Event()
        self._client: MeterClient | None = None
        self._books: Books | None = None
        self._spool: Spool | None = None
        self._killed = False
        self.process = Process()
        self._tasks: dict[asyncio.Task[Any], None] = {}
        self.began_s: float | None = None
        """When its node took it (Unix seconds), and when its containers had ended."""
        self.ended_s: float | None = None
        self.costs_machine_time = costs_machine_time
        # Its node's, whoever asked for the pod.
        self._life = outside(self._live(), name=f"pod {name}")
        self._kubelet = Kubelet(world, self) if costs_machine_time else None

    # -- what the world does to it -------------------------------------------------------------------------

    @property
    def spending(self) -> bool:
        """Whether its meter runs."""
        return self._books is not None and not self.ended.is_set()

    @property
    def terminating(self) -> bool:
        """Whether it was asked to end."""
        return self._terminating.is_set()

    def is_paid(self) -> bool:
        """Ask its meter whether machine time is paid, as the kubelet does: one that does not answer says no."""
        books = self._books
        return books is not None and books.active and not self.process.paused and not books.machine.deny()

    def kill(self) -> None:
        """End its containers with SIGKILL: its grace period is over."""
        if self.ended.is_set() or self.lost:
            return
        self._die()
        self._life.cancel()
        self._message = None
        self.attempt.spool_lost = True
        self._has_ended()

    def _has_ended(self) -> None:
        self.ended_s = self.attempt.ended_s = self.world.now_s()
        self.ended.set()

    def terminate(self) -> None:
        """Ask it to end, as the kubelet does."""
        self._terminating.set()

    def kill_meter(self) -> None:
        """Kill the meter's process with SIGKILL; the kubelet starts it again over the same spool."""
        if self._books is None:
            return
        self.world.faults.note("meter_killed")
        self._die()

    def cut_off(self, seconds: float) -> None:
        """Cut the pod's network to the ledger for some time."""
        if self._client is not None:
            self.world.faults.note("meter_cut_off")
            client = self._client
            client.cut_off = True
            asyncio.get_running_loop().call_later(seconds, client.join)

    def vanish(self) -> None:
        """Take the node away, with the pod and its spool."""
        if self.ended.is_set() or self.lost:
            return
        self.world.faults.note("pod_vanished")
        self.lost = self.unreachable = True
        self.ended_s = self.attempt.ended_s = self.world.now_s()
        self.attempt.lost = True
        self.attempt.spool_lost = True
        self._die()
        self._life.cancel()
        shutil.rmtree(self.folder, ignore_errors=True)
        if self.world.nodes_known:
            self.ended.set()

    def answer_again(self) -> None:
        """Let the node answer the API server, unless it is gone meanwhile."""
        self.unreachable = self.lost

    def _die(self) -> None:
        """End everything of the meter's process at once; nothing reaches its spool any more."""
        spool, books = self._spool, self._books
        self._killed = True
        self.process.resume()
        if spool is not None:
            spool.path = self.folder / "nowhere" / "spool.jsonl"
            if spool._fd >= 0:  # noqa: SLF001 - a killed process closes its files
                if self._chance.random() < 0.2:
                    # It was about to write a try that never went out.
                    os.write(spool._fd, b'{"t":"hold","record":{"id":"torn')  # noqa: SLF001
                os.close(spool._fd)  # noqa: SLF001
                spool._fd = -1  # noqa: SLF001
        if books is not None and books._topping_up is not None:  # noqa: SLF001
            books._topping_up.cancel()  # noqa: SLF001
        for task in tuple(self._tasks):
            task.cancel()
        self._books = self._spool = self._client = None

    # -- its life ------------------------------------------------------------------------------------------

    async def _live(self) -> None:
        await self.world.sleep(self._start_s)
        self.began_s = self.attempt.began_s = self.world.now_s()
        while not self._terminating.is_set():
            self._killed, self._message = False, None
            with self.process.inside():
                process = self._spawn(self._process())
            await asyncio.wait((process,))
            error = None if process.cancelled() else process.exception()
            if not self._killed and not isinstance(error, SpoolError):
                if error is not None:
                    self.world.oracle.problem(f"pod {self.name}: {type(error).__name__}: {error}")
                break
            # The kubelet's back-off. A meter whose spool cannot be opened ends, and is started again too.
            await self.world.sleep(self._chance.uniform(0.5, 5.0))
        else:
            # Killed while it was to end, or its spool could not be opened again: the spool goes with the pod.
            self.attempt.spool_lost = True
        self._has_ended()

    def _spawn(self, work: Any) -> asyncio.Task[Any]:
        task = asyncio.create_task(work)
        self._tasks[task] = None
        task.add_done_callback(lambda ended: self._tasks.pop(ended, None))
        return task

    async def _process(self) -> None:
        """One life of the meter's process, as its lifecycle does it."""
        spool = Spool(self.folder, self.attempt.allotment)
        self._spool = None
        recovered = spool.open()
        self._spool = spool
        self._client = MeterClient(self.world.network, self.attempt.allotment, self.token)
        books = Books(self._client, spool, end_seconds=END_S if self.costs_machine_time else None)
        books.machine.recover()
        self._books = books
        try:
            await books.activate(recovered)
        except BooksClosedError:
            self.failed = True
            self.attempt.refused = True
            spool.close()
            return
        self.attempt.started = True
        if self.attempt.agent_began_s is None:
            self.attempt.agent_began_s = self.world.now_s()
        background = self._spawn(books.run())
        holds = Holds(books)
        agents = self._spawn(self._agents(holds))
        stopping = self._spawn(self._terminating.wait())
        await asyncio.wait((agents, stopping, background), return_when=asyncio.FIRST_COMPLETED)
        if background.done() and not background.cancelled() and background.exception() is not None:
            self.world.oracle.problem(f"pod {self.name}: background: {background.exception()!r}")
        holds.draining_from = books.now
        await asyncio.wait((agents,), timeout=20.0)
        for task in (agents, stopping, background):
            task.cancel()
        await asyncio.gather(agents, stopping, background, return_exceptions=True)
        await self._say_last(books)
        spool.close()

    async def _say_last(self, books: Books) -> None:
        """End as the meter does: the last word is written before the last exchanges, and again after them."""
        output = LastOutput(self._output, len(self._output.encode())) if self._output else LastOutput()
        # What a killed task of the agent left is settled with it; nothing is in flight any more.
        self._leave(books, output.unsent("the ledger was not reached"))
        stored, final = await asyncio.gather(
            Meter._put_output(cast("Meter", self), books, output, self.patience_s),  # noqa: SLF001 - the real one
            books.close(self.patience_s),
        )
        if books.rejected:
            self.world.oracle.problem(f"pod {self.name}: the ledger rejected {books.rejected} records")
        self._leave(books, stored, final=final)
        self.attempt.output = None if self._output is None or stored.stored else len(self._output)

    def _leave(self, books: Books, output: LastOutput, *, final: bool = False) -> None:
        """Write the termination message, where the kubelet picks it up."""
        spool = books.spool
        self._message = compose(spool.allotment, 1, spool, output, final=final, complete=True).decode()

    @property
    def status(self) -> dict[str, Any]:
        """What the API server has of the pod: its meter's last word is there once its containers have ended."""
        message = self._message if self.ended.is_set() and not self.lost else None
        ended = {"name": METER_CONTAINER, "state": {"terminated": {"message": message}}}
        return {"status": {"initContainerStatuses": [ended]}}

    async def _agents(self, holds: Holds) -> None:
        await asyncio.gather(*(self._agent(holds) for _ in range(self.work.at_once)))

    async def _agent(self, holds: Holds) -> None:
        refusals = 0
        while self.calls_left > 0 and refusals < REFUSALS_MAX:
            self.calls_left -= 1
            try:
                if self._chance.random() < self.work.tools:
                    await self._use_tool(holds)
                else:
                    await self._call(holds)
            except RefusedError as error:
                if error.code in ("draining", "allotment_closed", "cancelled", "allotment_frozen"):
                    return
                refusals += 1
                await self.world.sleep(min(error.retry_after or 1, 60))
            await self.world.sleep(self._chance.expovariate(4 / self.work.pause_longest_s))

    async def _use_tool(self, holds: Holds) -> None:
        tried = await holds.begin_tool(ToolCall(free_tool("calculator")))
        bill = self._bill(tried, TokenCounts(), {"tool_calls": 1})
        async with self._cut_off_settles(holds, tried):
            await self.world.sleep(self._chance.uniform(0.0, 0.5))
        holds.settle_tool(tried)
        bill.exact = self._written

    async def _call(self, holds: Holds) -> None:
        chance = self._chance
        call = Call(
            operation="chat",
            resource_type="llm",
            provider=PROVIDER,
            model=MODEL,
            payload=read_body(b"{}"),
            usage_shape="openai",
            input_bound=chance.randint(1, self.work.input_most),
            output_max=chance.randint(16, max(16, self.work.output_most)),
            output_fields=("max_tokens",),
        )
        tried = await holds.begin(call)
        faults = self.world.faults
        overbills = faults.strikes("overbills")
        billed = self._billed(call, overbills=overbills)
        fails, sent = faults.strikes("provider_errors"), chance.random() < 0.5
        bill = self._bill(tried, TokenCounts() if fails else billed, {"requests": int(sent or not fails)})
        async with self._cut_off_settles(holds, tried):
            await self._think()
        if fails:
            holds.settle(tried, "error", TokenCounts(), error="HTTP 500", requests=int(sent))
            bill.exact = self._written
        elif overbills or not faults.strikes("provider_silent"):
            holds.settle(tried, "ok", billed)
            bill.exact = self._written
        elif sent and billed.input <= call.input_bound:
            holds.settle_partly(tried, TokenCounts(input=billed.input), "the stream broke")
        else:
            holds.settle(tried, "error", None, error="the answer did not come")

    @contextlib.asynccontextmanager
    async def _cut_off_settles(self, holds: Holds, tried: Try) -> AsyncIterator[None]:
        """Settle a call that an orderly end of the meter cuts off, as the forwarder does; a killed one does nothing."""
        try:
            yield
        except asyncio.CancelledError:
            if not self._killed:
                holds.settle(tried, "cancelled", None, error="the call was cut off")
            raise

    async def _think(self) -> None:
        longest = self.work.call_longest_s
        seconds = min(self._chance.expovariate(5 / longest), longest)
        await self.world.sleep(seconds)

    def _billed(self, call: Call, *, overbills: bool) -> TokenCounts:
        chance = self._chance
        given = chance.randint(0, call.input_bound)
        taken = call.output_bound if chance.random() < 0.3 else chance.randint(0, call.output_bound)
        if overbills:
            taken = call.output_bound + chance.randint(1, 200)
        return TokenCounts(
            input=given, cached_input=chance.randint(0, given) if chance.random() < 0.3 else 0, output=taken
        )

    @property
    def _written(self) -> bool:
        """Whether what was settled just now is on the disk: a full one forgets it with the meter's process."""
        return self._spool is None or not self._spool.broken

    def _bill(self, tried: Try, tokens: TokenCounts, counts: dict[str, int]) -> Bill:
        nothing = tokens.total == 0
        billed = {
            "usd": 0 if nothing else cost_nanos(CARD, tokens),
            "tokens": tokens.total,
            "tool_calls": counts.get("tool_calls", 0),
            "requests": counts.get("requests", 0),
        }
        call = tried.call
        bound = dict.fromkeys(billed, 0) | (call.bound() if call is not None else {"tool_calls": 1})
        limited = self._books.allotment.limited if self._books is not None else ()
        bill = Bill(tried.record["id"], self.attempt.allotment, billed, bound, limited)
        self.world.oracle.bill(bill)
        return bill

    async def gone(self) -> None:
        """Wait until it has ended, or is lost; cancel what is left of it."""
        if not self.lost:
            await self.ended.wait()
        if self._kubelet is not None:
            self._kubelet.stop()
        self._life.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._life


def _drawn_output(chance: random.Random) -> str | None:
    """Draw an output: none, one that fits a termination message, or one that does not."""
    length = chance.choice((None, 40, 40, 20_000))
    return None if length is None else "".join(chance.choices("abc \n\u00e9", k=length))
