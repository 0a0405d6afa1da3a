"""What the operator notes of quotas and providers, and how it tells the ledger: in order, bounded, each on its own."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from types import SimpleNamespace
from typing import Any

import pytest

from almoner_core import wire
from almoner_core.configuration import digest
from almoner_operator import configuration_recorder
from almoner_operator.configuration_log import BATCH, ConfigurationLog
from almoner_operator.configuration_recorder import OF_ONE_MAX, Recorder
from almoner_operator.errors import LedgerUnavailableError


def quota(amount: Any, generation: int = 1, version: int | None = None, **metadata: Any) -> dict[str, Any]:
    named = {"namespace": "team-a", "name": "quota", "uid": "u", "generation": generation}
    return {
        "metadata": {**named, "resourceVersion": str(version or generation), **metadata},
        "spec": {"budget": {"amount": amount}},
    }


class Ledger:
    """A ledger that compares as the true one does."""

    def __init__(self) -> None:
        self.specs: dict[str, wire.ObservedObject] = {}
        self.told: list[tuple[str, str | None]] = []
        self.messages: list[int] = []
        self.away = False
        self.refuses: set[str] = set()
        self.heard = asyncio.Event()

    async def observe(self, objects: Sequence[wire.ObservedObject], *, operation_id: str) -> wire.Observed:
        assert len(operation_id) == 36
        if self.away:
            raise LedgerUnavailableError("unavailable", "away")
        self.messages.append(len(objects))
        self.heard.set()
        refused = []
        for index, each in enumerate(objects):
            if each.uid in self.refuses:
                error = wire.Error(code=wire.ErrorCode.INVALID, message="no")
                refused.append(wire.RefusedObject(index=index, error=error))
                continue
            self.told.append((each.uid, each.spec))
            self.specs[each.uid] = each
        return wire.Observed(changes=len(objects), refused=refused)

    async def known_configuration(self) -> AsyncIterator[wire.KnownObject]:
        if self.away:
            raise LedgerUnavailableError("unavailable", "away")
        for each in [*self.specs.values()]:
            if each.spec is not None:
                named = each.model_dump(include={"kind", "namespace", "name", "uid", "generation"})
                yield wire.KnownObject(**named, digest=digest(each.spec))


class Operator:
    """An operator that has just begun to lead."""

    def __init__(self, ledger: Ledger, *, namespaces: tuple[str, ...] = ()) -> None:
        self.recorder = Recorder()
        context: Any = SimpleNamespace(
            cache=SimpleNamespace(configuration=self.recorder),
            ledger=ledger,
            settings=SimpleNamespace(namespaces=namespaces),
        )
        self.log = ConfigurationLog(context)

    def take(self, event: str | None, raw: dict[str, Any], kind: str = "ResourceQuota") -> None:
        self.recorder.take(kind, event, raw)

    def tell(self) -> None:
        """Tell all there is."""

        async def all_of_it() -> None:
            await self.log._compare()
            while await self.log.tell():
                pass

        asyncio.run(all_of_it())


def amounts(ledger: Ledger) -> list[str | None]:
    return [None if spec is None else spec.split('"')[5] for _, spec in ledger.told]


def test_every_generation_is_told_in_its_order_and_a_status_is_nothing() -> None:
    ledger = Ledger()
    operator = Operator(ledger)
    operator.take(None, quota("5"))
    operator.take("MODIFIED", quota("5", 1, version=7))
    operator.take("MODIFIED", quota("9", 2, version=8))
    operator.take("MODIFIED", quota("5", 3, version=9))
    operator.tell()
    operator.take("MODIFIED", quota("5", 3, version=12))
    operator.take("DELETED", quota("5", 3, version=13))
    operator.tell()
    assert amounts(ledger) == ["5", "9", "5", None]


def test_what_is_the_clusters_is_looked_after_whatever_namespaces_are_served() -> None:
    ledger = Ledger()
    operator = Operator(ledger, namespaces=("a",))
    operator.take(None, quota("5", uid="whole", namespace=None), "ClusterModelProvider")
    operator.tell()
    assert [(each.kind, each.namespace) for each in ledger.specs.values()] == [("ClusterModelProvider", "")]
    Operator(ledger, namespaces=("a",)).tell()
    assert [uid for uid, spec in ledger.told if spec is None] == ["whole"]


def test_an_event_from_before_is_nothing_and_a_list_is_believed() -> None:
    ledger = Ledger()
    operator = Operator(ledger)
    operator.take(None, quota("5", 3, version=30))
    operator.take("MODIFIED", quota("1", 2, version=20))
    operator.tell()
    operator.take(None, quota("1", 2, version=20))
    operator.tell()
    operator.take(None, quota("7", 2, version=21))
    operator.tell()
    assert amounts(ledger) == ["5", "1", "7"]


def test_the_next_leader_tells_what_changed_meanwhile_and_what_is_gone() -> None:
    ledger = Ledger()
    first = Operator(ledger)
    for uid in ("kept", "changed", "deleted", "elsewhere"):
        first.take(None, quota("5", uid=uid, namespace="b" if uid == "elsewhere" else "a"))
    first.tell()
    ledger.told.clear()
    second = Operator(ledger, namespaces=("a",))
    second.take(None, quota("5", uid="kept", namespace="a"))
    second.take(None, quota("9", 2, uid="changed", namespace="a"))
    second.tell()
    assert {uid: spec for uid, spec in ledger.told if spec is None} == {"deleted": None}
    assert [uid for uid, _ in ledger.told] == ["changed", "deleted"]


def test_what_is_not_told_while_the_ledger_is_away_is_told_later() -> None:
    ledger = Ledger()
    operator = Operator(ledger)
    operator.take(None, quota("5"))
    ledger.away = True
    for _ in range(2):
        with pytest.raises(LedgerUnavailableError):
            operator.tell()
    operator.take("MODIFIED", quota("9", 2))
    ledger.away = False
    operator.tell()
    assert amounts(ledger) == ["5", "9"]


def test_one_that_cannot_be_told_and_one_that_is_refused_keep_no_other_back() -> None:
    ledger = Ledger()
    ledger.refuses = {"refused"}
    operator = Operator(ledger)
    operator.take(None, quota("1", uid="one"))
    operator.take(None, quota("1", uid="x" * 99))
    operator.take(None, quota("1", uid="refused"))
    operator.take(None, quota("1", uid="two"))
    operator.tell()
    assert [uid for uid, _ in ledger.told] == ["one", "two"]
    operator.tell()
    assert len(ledger.messages) == 1


def test_many_objects_and_large_ones_go_in_several_messages() -> None:
    ledger = Ledger()
    operator = Operator(ledger)
    for number in range(50):
        operator.take(None, quota("x" * 60_000 if number < 20 else "1", uid=f"u{number}"))
    operator.tell()
    assert len(ledger.specs) == 50
    assert max(ledger.messages) <= BATCH
    assert ledger.messages[0] < BATCH


def test_what_is_pending_is_bounded_and_the_newest_of_each_object_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(configuration_recorder, "PENDING_MAX", 40)
    ledger = Ledger()
    operator = Operator(ledger)
    for generation in range(1, 31):
        operator.take("MODIFIED", quota(str(generation), generation, uid="busy"))
    assert len(operator.recorder.pending(99)) == OF_ONE_MAX
    for generation in (1, 2, 3):
        for number in range(30):
            operator.take("MODIFIED", quota(str(generation), generation, uid=f"u{number}"))
    assert len(operator.recorder.pending(999)) <= 40 + 31
    operator.tell()
    assert len(ledger.specs) == 31
    assert {spec.spec for uid, spec in ledger.specs.items() if uid != "busy"} == {'{"budget":{"amount":"3"}}'}
    assert ledger.specs["busy"].spec == '{"budget":{"amount":"30"}}'


def test_it_goes_on_when_there_is_news() -> None:
    ledger = Ledger()
    operator = Operator(ledger)

    async def work() -> None:
        running = asyncio.create_task(operator.log.run())
        async with asyncio.timeout(10):
            for generation in (1, 2):
                operator.take("MODIFIED", quota(str(generation), generation))
                await ledger.heard.wait()
                ledger.heard.clear()
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running

    asyncio.run(work())
    assert amounts(ledger) == ["1", "2"]
