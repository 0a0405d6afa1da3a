"""The operator's charging of machine time against the real books: what it does when things go wrong."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import AsyncMock, MagicMock

import pytest
import sqlalchemy as sa

from almoner_core import wire
from almoner_core.api.execution import AttemptOutcome, FailureReason
from almoner_core.compute import ComputePrices, Machine
from almoner_core.identity import allotment_id, compute_allotment_id, pod_name
from almoner_core.wire import ErrorCode
from almoner_ledger import schema
from almoner_ledger.errors import LedgerError as Refused
from almoner_ledger.store import Verb, command, queries, recall
from almoner_ledger.store.commands import Cover
from almoner_operator.attempts import AttemptEnd
from almoner_operator.cache import Cache
from almoner_operator.compute import SEEN_SECONDS, MachineTime
from almoner_operator.context import now
from almoner_operator.errors import LedgerError, LedgerUnavailableError
from almoner_operator.log_tails import LogTails
from almoner_operator.machines import PROBE_FAILURES, ComputeSettings
from almoner_operator.news import DELETED
from almoner_operator.pods import RunnerSettings
from almoner_operator.records import Run, parse_pod
from almoner_operator.scheduling.model import EXECUTION, Requests, Stop, StopCause
from almoner_operator.settle import Settler
from almoner_runner.meter.machine import MachineTime as MeterTime
from tests.support.books import DOLLAR, USD, Books, Clock

Json = dict[str, Any]
UID = "8c7e1a52-1111-4222-8333-444455556666"
ALLOTMENT = allotment_id(UID, 1)
POD = pod_name("run", UID, 1)
START = 1_800_000_000
# A dollar a second for its core: ten seconds an interval; 5 s of grace and 7 s until it is told, and a margin of 15 s.
SETTINGS = ComputeSettings(
    ComputePrices.parse("3600", None, None), interval_seconds=10, outage_seconds=0, probe_seconds=1
)
END = 5 + 3 * 1 + 2 * 2
AHEAD = 10 + END + 15


class Ledger:
    """The operator's client, straight to the store. `away` counts the exchanges whose answers are lost."""

    def __init__(self, books: Books) -> None:
        self.books = books
        self.epoch = books.epoch
        self.away = 0
        self.lose = False
        self.heard = books.store.read(books.store.now_ms) - self.moment
        self.asked: list[wire.AccrueAllotment] = []

    async def accrue(self, item: wire.AccrueAllotment) -> wire.ItemAnswer:
        self.asked.append(item)
        if self.away and not self.lose:
            self.away -= 1
            raise LedgerUnavailableError(ErrorCode.UNAVAILABLE, "away")
        answer = self.books.run_all([command(Verb.ACCRUE, item, epoch=self.epoch)])[0]
        if self.away:
            self.away -= 1
            raise LedgerUnavailableError(ErrorCode.UNAVAILABLE, "the answer is lost")
        if isinstance(answer, Refused):
            raise LedgerError(answer.code, answer.message)
        assert isinstance(answer, wire.ItemAnswer)
        assert answer.now_unix_ms is not None
        self.heard = answer.now_unix_ms - self.moment
        return answer

    async def close(self, item: wire.CloseAllotment) -> wire.ItemAnswer:
        answer = self.books.run_all([command(Verb.CLOSE, item, epoch=self.epoch)])[0]
        assert isinstance(answer, wire.ItemAnswer)
        return answer

    @property
    def moment(self) -> int:
        assert self.books.clock is not None
        return self.books.clock.now * 1000

    def now_ms(self) -> int:
        """The ledger's clock as it was heard last: it may have jumped since."""
        return self.moment + self.heard

    async def open_allotments(self) -> AsyncIterator[wire.AllotmentView]:
        page = self.books.store.read(lambda c: queries.open_allotments(c, self.books.store.now_ms(c), "", 100))
        for view in page.allotments:
            yield view


class Site:
    """One run whose pod started at START, an operator that charges for it, and the clock that both go by."""

    def __init__(self, books: Books, clock: Clock, budget: int) -> None:
        self.books, self.clock = books, clock
        clock.now = START
        books.limits(limits={USD: budget * DOLLAR})
        self.ledger = Ledger(books)
        self.cache = Cache(meter=Requests(), wake=lambda: None)
        self.stops: list[Stop] = []
        self.versions = itertools.count(1)
        books.open(
            uid=UID,
            allotment=ALLOTMENT,
            need={},
            compute={USD: SETTINGS.prices.hold(self.pod_machine(), AHEAD)},
            machine=SETTINGS.terms(self.pod_machine(), 5),
        )
        books.bind(ALLOTMENT)
        self.cache.observe_run(EXECUTION, None, self.raw_run())
        self.see_pod()
        self.machines = self.operator()
        self.machines.opened(ALLOTMENT)

    @staticmethod
    def pod_machine() -> Any:
        from almoner_core.compute import Machine

        return Machine(cpu=1000)

    def operator(self) -> MachineTime:
        runner = RunnerSettings(image="image", ledger_url="http://ledger")
        context: Any = SimpleNamespace(
            settings=SimpleNamespace(compute=SETTINGS, runner=runner), cache=self.cache, ledger=self.ledger
        )
        made = MachineTime(context, clock=lambda: float(self.clock.now))
        made.stop = self.stops.append
        return made

    async def takes_over(self) -> None:
        """Another operator leads, and looks at what the ledger has."""
        self.books.epoch = self.ledger.epoch = self.books.take_epoch()
        self.machines = self.operator()
        async for view in self.ledger.open_allotments():
            if view.purpose is wire.Purpose.COMPUTE:
                assert self.machines.adopt(view) == ALLOTMENT

    @staticmethod
    def raw_run() -> Json:
        admission = {"cpuMilli": 1000, "graceSeconds": 5}
        attempt = {
            "number": 1,
            "pod": POD,
            "podUID": "pod-uid",
            "allotment": ALLOTMENT,
            "outcome": "Running",
            "admission": admission,
        }
        return {
            "metadata": {"name": "run", "namespace": "team", "uid": UID, "resourceVersion": "1", "generation": 1},
            "spec": {"agentRef": {"name": "agent"}, "input": {"text": "hi"}},
            "status": {"phase": "Running", "attempts": [attempt]},
        }

    def see_pod(self, *, finished: int | None = None, gone: bool = False) -> None:
        state: Json = {"running": {"startedAt": moment(START)}}
        if finished is not None:
            state = {"terminated": {"exitCode": 0, "finishedAt": moment(START + finished)}}
        raw = {
            "metadata": {
                "name": POD,
                "namespace": "team",
                "uid": "pod-uid",
                "resourceVersion": str(next(self.versions)),
                "ownerReferences": [{"kind": "Execution", "name": "run", "uid": UID, "controller": True}],
                "labels": {"almoner.dev/execution-uid": UID, "almoner.dev/attempt": "1"},
            },
            "spec": {
                "nodeName": "node",
                "terminationGracePeriodSeconds": 5,
                "containers": [{"name": "agent", "resources": {"requests": {"cpu": "1"}}}],
            },
            "status": {"startTime": moment(START), "containerStatuses": [{"name": "agent", "state": state}]},
        }
        pod = parse_pod(raw)
        assert pod is not None
        self.cache.pods.observe(pod, DELETED if gone else "MODIFIED")

    @property
    def run(self) -> Run:
        return self.cache.runs[UID]

    async def at(self, seconds: int) -> None:
        """Look at the pod so long after its start."""
        self.clock.now = START + seconds
        await self.machines.round()

    async def ends(self, seconds: int) -> bool:
        self.clock.now = START + seconds
        return await self.machines.finish_run(self.run)

    @property
    def charged(self) -> list[tuple[int, int]]:
        """The stretches for which cpu was charged, in seconds after the start."""
        table = schema.records
        query = sa.select(table.c.started_ms, table.c.duration_ms).where(table.c.model == "cpu")
        rows = self.books.store.read(lambda connection: connection.execute(query.order_by(table.c.started_ms)).all())
        return [(row.started_ms // 1000 - START, (row.started_ms + row.duration_ms) // 1000 - START) for row in rows]

    @property
    def held(self) -> int:
        return self.books.state().reserved


def moment(seconds: int) -> str:
    from datetime import UTC, datetime

    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


@pytest.fixture
def site(books: Books, clock: Clock) -> Site:
    return Site(books, clock, 100)


async def test_a_running_pod_is_charged_by_the_interval_and_held_ahead(site: Site) -> None:
    await site.at(11)
    assert site.charged == []
    await site.at(12)
    assert site.charged == [(0, 10)], "the last two seconds are not charged before the pod's end could be seen"
    assert site.held == pytest.approx(AHEAD * DOLLAR, abs=30)
    await site.at(21)
    await site.at(25)
    assert site.charged == [(0, 10), (10, 23)]
    site.see_pod(finished=24)
    await site.at(30)
    assert len(site.charged) == 2, "what has ended is the end's business"
    assert await site.ends(31)
    assert site.charged == [(0, 10), (10, 23), (23, 24)]
    assert (site.held, site.books.state().spent) == (0, 24 * DOLLAR)
    assert not await site.ends(40), "the end is charged once"
    assert site.stops == []


async def test_a_ledger_that_is_away_is_asked_the_same_again(site: Site) -> None:
    site.ledger.away = 2
    for second in (12, 13, 14):
        await site.at(second)
    assert site.charged == [(0, 10)]
    assert len({item.operation_id for item in site.ledger.asked}) == 1
    site.ledger.away, site.ledger.lose = 1, True
    await site.at(24)
    await site.at(25)
    assert site.charged == [(0, 10), (10, 22)]
    assert site.books.state().spent == 22 * DOLLAR


@pytest.mark.parametrize("lose", [False, True])
async def test_the_last_stretch_is_charged_once_the_ledger_is_back(site: Site, lose: bool) -> None:
    await site.at(12)
    site.ledger.away, site.ledger.lose = 3, lose
    site.machines.retry_seconds = 0.01
    await site.at(22)  # Not answered either.
    site.see_pod(finished=25)
    assert await site.ends(27)
    assert site.charged == [(0, 10), (10, 20), (20, 25)]
    assert (site.books.state().spent, site.held) == (25 * DOLLAR, 0)


async def test_an_operator_that_takes_over_goes_on_where_the_ledger_is(site: Site) -> None:
    await site.at(12)
    site.ledger.away, site.ledger.lose = 1, True
    await site.at(22)  # Charged, and the operator dies before it learns that.
    await site.takes_over()
    await site.at(23)
    assert site.charged == [(0, 10), (10, 20)]
    await site.at(32)
    site.see_pod(finished=33)
    assert await site.ends(34)
    assert site.charged == [(0, 10), (10, 20), (20, 30), (30, 33)]


async def test_two_operators_never_charge_one_second_twice(site: Site) -> None:
    """One that was cut off and does not know yet is refused; one that knows less than the ledger learns it."""
    await site.at(12)
    behind = site.operator()
    behind.opened(ALLOTMENT)  # As if nothing was charged yet.
    site.machines = behind
    await site.at(25)
    assert site.charged == [(0, 10)]
    await site.at(26)
    assert site.charged == [(0, 10), (10, 24)]


async def test_a_pod_whose_machine_time_is_refused_is_stopped_while_its_end_is_paid_for(
    books: Books, clock: Clock
) -> None:
    site = Site(books, clock, 52)
    for second in range(12, 30):
        await site.at(second)
        assert site.stops == [], "it is paid for until second 47"
    await site.at(30)
    (stop,) = site.stops
    assert stop.cause is StopCause.EXHAUSTED
    assert stop.message == (
        "its machine time cannot be paid for any longer: team/quota has 32.00 USD of 52.00 left, "
        "and 37.000000024 must be held ahead"
    )
    site.run.stop = stop.cause
    await site.at(31)
    site.see_pod(finished=42)
    assert await site.ends(43)
    state = books.state()
    assert (state.spent, state.excess, state.reserved) == (42 * DOLLAR, 0, 0)
    assert len(site.stops) == 1


async def test_what_others_may_return_is_waited_for_as_long_as_the_end_is_paid_for(books: Books, clock: Clock) -> None:
    site = Site(books, clock, 70)
    other = books.active(need={USD: 30 * DOLLAR})
    await site.at(12)
    assert site.stops == [], "the other may return what it holds"
    assert books.state().reserved < 60 * DOLLAR
    books.give_back(other, 0, {USD: 0}, {USD: 25 * DOLLAR})
    await site.at(14)
    assert site.held == pytest.approx((AHEAD + 5) * DOLLAR, abs=30)
    books.extend(other, {USD: 15 * DOLLAR})
    for second in range(22, 40):
        await site.at(second)
        if site.stops:
            break
    # Held was from second 10 until 47: what its end takes and 5 s more are left of it.
    assert second == 47 - END - 5
    assert books.state().excess == 0


@pytest.mark.parametrize(("gave_up", "end"), [(50, 47), (35, 35)])
async def test_a_pod_that_vanished_is_charged_until_it_was_given_up_at_most_what_was_held(
    site: Site, gave_up: int, end: int
) -> None:
    await site.at(12)
    site.see_pod(gone=True)
    assert await site.ends(gave_up)
    assert site.charged == [(0, 10), (10, end)]
    assert (site.held, site.books.state().excess) == (0, 0)


async def test_a_pod_that_vanished_while_no_operator_looked_had_what_it_was_admitted_with(site: Site) -> None:
    await site.at(12)
    await site.takes_over()
    site.cache.drop_pods(UID)
    attempt = site.run.status.attempts[-1].model_copy(update={"start_time": _datetime(START)})
    site.run.status = site.run.status.model_copy(update={"attempts": [attempt]})
    assert await site.ends(20)
    # No Agent is known any more: what it was admitted with is in its status.
    assert site.charged == [(0, 10), (10, 20)]
    assert site.books.state().spent == 20 * DOLLAR


def _datetime(seconds: int) -> Any:
    from datetime import UTC, datetime

    return datetime.fromtimestamp(seconds, UTC)


async def test_what_never_started_is_charged_nothing(books: Books, clock: Clock) -> None:
    site = Site(books, clock, 100)
    pod = site.cache.pods.of(site.run)
    assert pod is not None
    pod.raw["status"] = {}
    await site.at(100)
    assert not await site.ends(101)
    assert (site.charged, site.held) == ([], 0)
    state = sa.select(schema.allotments.c.state).where(schema.allotments.c.id == compute_allotment_id(ALLOTMENT))
    assert books.store.read(lambda connection: connection.execute(state).scalar_one()) == "void"


async def test_a_pod_whose_meter_never_spoke_is_charged_before_anything_is_given_back(site: Site) -> None:
    """Its agent's image could not be pulled, say: its node had it all the same, and nothing is excess."""
    writer, events = AsyncMock(), MagicMock()
    context: Any = SimpleNamespace(
        cache=site.cache, ledger=site.ledger, events=events, log_tails=LogTails(AsyncMock()), writer=writer, spawn=None
    )
    context.settings = SimpleNamespace(settle_seconds=0)
    site.see_pod(finished=7)
    site.clock.now = START + 9
    site.run.end = AttemptEnd(AttemptOutcome.FAILED, FailureReason.IMAGE_PULL_FAILED, "", finished=now())
    await Settler(context, site.machines)._settle(site.run)
    assert site.charged == [(0, 7)]
    state = site.books.state()
    assert (state.spent, state.reserved, state.excess) == (7 * DOLLAR, 0, 0)
    table = schema.allotments
    states = site.books.store.read(lambda c: dict(c.execute(sa.select(table.c.id, table.c.state)).all()))
    assert states == {ALLOTMENT: "void", compute_allotment_id(ALLOTMENT): "closed"}


async def test_what_the_ledger_has_closed_is_charged_no_more(site: Site) -> None:
    site.books.end(ALLOTMENT)
    await site.at(12)
    await site.at(24)
    assert site.charged == []
    assert len(site.ledger.asked) == 1


async def test_a_long_absence_is_charged_a_day_at_a_time(books: Books, clock: Clock) -> None:
    site = Site(books, clock, 500_000)
    await site.at(200_000)
    assert site.charged == [(0, AHEAD)], "no more than what is held"
    await site.at(200_001)
    assert site.charged[1:] == [(AHEAD, AHEAD + 86_400)], "what ran since was held for first"
    site.see_pod(finished=190_000)
    await site.ends(200_002)
    assert site.charged[2:] == [(AHEAD + 86_400, AHEAD + 172_800), (AHEAD + 172_800, 190_000)]
    assert (books.state().spent, books.state().excess) == (190_000 * DOLLAR, 0)


async def test_a_long_absence_that_nobody_can_pay_for_is_charged_as_far_as_it_was_held(
    books: Books, clock: Clock
) -> None:
    """Its node was to end it by then, and may have: of one that is not heard of nobody knows."""
    site = Site(books, clock, AHEAD + 5)
    for second in (1000, 1001, 1002):
        await site.at(second)
    assert site.charged == [(0, AHEAD)]
    assert [stop.cause for stop in site.stops][:1] == [StopCause.EXHAUSTED]
    assert (books.state().spent, books.state().excess) == (AHEAD * DOLLAR, 0)


# --- nobody acts --------------------------------------------------------------------------------------------------


class Node:
    """What is left when nobody acts: a meter, and a kubelet that asks it; a second at a time, by the books' clock."""

    def __init__(self, site: Site, folder: Path) -> None:
        self.site = site
        self.clock = site.clock
        self.meter = MeterTime(END, folder, lambda: float(self.clock.now))
        self.failures = 0
        self.ended: int | None = None
        ledger = site.books.store
        found = ledger.read(lambda c: queries.paid(c, [compute_allotment_id(ALLOTMENT)], ledger.now_ms(c)))
        self._tell(found[compute_allotment_id(ALLOTMENT)])

    def second(self, *, ledger: bool) -> None:
        """Pass a second. `ledger`: whether it answers."""
        self.clock.now += 1
        if ledger:
            self._asks()
        else:
            self.meter.unanswered()
        self.failures = self.failures + 1 if self.meter.deny() else 0
        if self.ended is None and self.failures == PROBE_FAILURES:
            # The agent takes the grace period that it is given, and the meter the rest.
            self.ended = self.clock.now - START + 5

    def _tell(self, paid: queries.Paid) -> None:
        self.meter.told(self.clock.now, paid.seconds, None if paid.span is None else paid.span.model_dump())

    def _asks(self) -> None:
        """As SignalWatch answers: told for how long it is paid, and more is held where the operator is late."""
        store, key = self.site.books.store, compute_allotment_id(ALLOTMENT)
        paid = store.read(lambda c: queries.paid(c, [key], store.now_ms(c)))[key]
        self._tell(paid)
        if paid.late:
            self.site.books.run_all([command(Verb.COVER, Cover(), allotment=key)])


@pytest.mark.parametrize("ledger", [True, False], ids=["operator away", "ledger away too"])
@pytest.mark.parametrize("budget", [60, 200, 599, 650, 100_000])
async def test_nothing_is_overspent_while_nobody_acts_for_ten_minutes(
    books: Books, clock: Clock, tmp_path: Path, budget: int, ledger: bool
) -> None:
    """A dollar a second. It was 1.32 of 0.60 dollars: the pod ran on, and the operator charged it afterwards."""
    site = Site(books, clock, budget)
    await site.at(12)
    node = Node(site, tmp_path)
    while clock.now < START + 612 and not (node.ended is not None and clock.now - START > node.ended):
        node.second(ledger=ledger)
        state = books.state()
        assert state.spent + state.reserved <= budget * DOLLAR
    room = budget - AHEAD if ledger else 0
    if node.ended is None:
        assert ledger
        assert room > 600, "it runs on where there is room to hold more"
        clock.now = START + 612
        node.ended = 612
    elif ledger:
        assert node.ended >= min(budget - AHEAD, 600), "not before there is no room"
        assert "no room in the budget" in node.meter.message
    else:
        assert node.ended <= 10 + AHEAD, "what was held was enough"
        assert "the ledger does not answer" in node.meter.message
    await site.takes_over()
    site.see_pod(finished=node.ended)
    assert await site.ends(node.ended + 100)
    state = books.state()
    assert state.spent == node.ended * DOLLAR, "and what was used is charged, to the second"
    assert (state.excess, state.reserved) == (0, 0)
    assert state.spent <= budget * DOLLAR


@pytest.mark.parametrize("jump", [-7200, -61, -5, 5, 61, 3600, 86_400])
async def test_a_databases_clock_that_jumps_ends_no_pod_that_can_be_paid(
    books: Books, clock: Clock, tmp_path: Path, jump: int
) -> None:
    """After a failover, say. Where it went back, no meter was told of more until the clock was where it had been."""
    site = Site(books, clock, 100_000)
    await site.at(2)
    node = Node(site, tmp_path)
    for second in range(3, 200):
        if second == 15:
            clock.jumped = jump
        node.second(ledger=True)
        assert not node.meter.over, second
        await site.at(second)
        assert node.meter.left <= AHEAD
    assert site.stops == []
    site.see_pod(finished=200)
    await site.ends(201)
    state = books.state()
    assert (state.spent, state.reserved, state.excess) == (200 * DOLLAR, 0, 0)


async def test_an_operator_that_is_away_for_a_restart_ends_no_pod(books: Books, clock: Clock, tmp_path: Path) -> None:
    """With the settings as they are when nobody changes them; the ledger is away as well."""
    settings = ComputeSettings()
    assert settings.outage_seconds >= 60
    left = settings.ahead(35) - settings.interval_seconds - SEEN_SECONDS  # just before it is charged again
    meter = MeterTime(settings.end_seconds(35), tmp_path, lambda: float(clock.now))
    meter.told(clock.now, left)
    clock.now += 30
    assert not meter.over
    clock.now += left
    assert meter.over


async def test_a_node_that_ended_a_pod_too_late_is_not_paid_for_that(site: Site, tmp_path: Path) -> None:
    """A kubelet that hung, say: what was never held is not charged."""
    await site.at(12)
    site.see_pod(finished=400)
    assert await site.ends(500)
    assert site.charged == [(0, 10), (10, 10 + AHEAD)]
    assert site.books.state().excess == 0


async def test_what_meters_hold_idle_is_taken_back_before_a_pod_is_stopped(books: Books, clock: Clock) -> None:
    """Its own meter's idle money too."""
    site = Site(books, clock, 80)
    books.activate(ALLOTMENT)
    books.extend(ALLOTMENT, {USD: 20 * DOLLAR})
    other = books.active(need={USD: 15 * DOLLAR})
    await site.at(12)
    assert site.stops == []
    store = books.store
    both = store.read(lambda c: recall.attention(c, [ALLOTMENT, other], store.now_ms(c)))
    assert all(each.recall_ms == clock.now * 1000 for each in both.values()), "both were asked to return what is idle"
    books.give_back(ALLOTMENT, 0, {USD: 0}, {USD: 20 * DOLLAR})
    books.give_back(other, 0, {USD: 0}, {USD: 15 * DOLLAR})
    for second in range(13, 40):
        await site.at(second)
    assert site.stops == [], "so it runs on"
    assert site.charged[-1] == (20, 30)


@pytest.mark.parametrize(("budget", "fits"), [(3 * AHEAD + 1, True), (3 * AHEAD - 1, False)])
async def test_what_the_cluster_adds_to_a_pod_is_held_before_it_runs(
    books: Books, clock: Clock, budget: int, fits: bool
) -> None:
    site = Site(books, clock, budget)
    error = await site.machines.reprice(ALLOTMENT, Machine(cpu=3000), 5)
    assert (error is None) is fits
    assert site.held == pytest.approx((3 if fits else 1) * AHEAD * DOLLAR, abs=30)
