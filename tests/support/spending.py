"""Spends money on a running stack's books without a meter: what a run would have posted, straight into its database."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any, Self

from almoner_core import wire
from almoner_core.usage import Outcome, UsageRecord
from almoner_core.wire import AccountKey, Dimension
from almoner_ledger.store import Database, Store, Verb, command
from tests.support.books import new_id

POD_UID = "somebody"


class Spender:
    """Runs of nobody's, under accounts that the operator has made. `clock`: the ledger's, in Unix milliseconds."""

    def __init__(self, database: str, clock: Callable[[], int] | None = None) -> None:
        self._database = Database(database, patience_seconds=20)
        self._store = Store(self._database, clock=clock)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._database.dispose()

    def spend(self, namespace: str, quotas: Sequence[str], nanos: int, *, subject: str = "") -> None:
        """Open, spend to the last nano-dollar, and return."""
        allotment, run = new_id(), new_id()
        execution = wire.ExecutionRef(
            namespace=namespace, name="somebody", uid=run, attempt=1, agent="agent", owner=subject or namespace
        )
        keys = [AccountKey(namespace=namespace, quota=quota, subject=subject) for quota in quotas]
        record = UsageRecord(
            id=new_id(),
            sequence=1,
            provider="local",
            model="small",
            operation="chat",
            cost_nanos=nanos,
            price_version="test",
            started_unix_ms=0,
            duration_ms=1,
            outcome=Outcome.OK,
            requests=1,
        )
        usd = {Dimension.USD: nanos}
        self._do(
            Verb.OPEN,
            wire.OpenAllotment(
                operation_id=new_id(), allotment=allotment, execution=execution, pod="pod", accounts=keys, need=usd
            ),
        )
        self._do(Verb.BIND, wire.BindAllotment(operation_id=new_id(), allotment=allotment, pod_uid=POD_UID))
        self._do(Verb.ACTIVATE, wire.Activate(operation_id=new_id()), allotment=allotment, pod_uid=POD_UID)
        posted = wire.PostRecords(operation_id=new_id(), records=[record])
        self._do(Verb.POST, posted, allotment=allotment, pod_uid=POD_UID)
        settled = {**usd, Dimension.REQUESTS: 1}
        last = wire.Return(operation_id=new_id(), last_sequence=1, settled=settled, final=True)
        self._do(Verb.RETURN, last, allotment=allotment, pod_uid=POD_UID)

    def _do(self, verb: Verb, body: wire.WireModel, **more: Any) -> None:
        (answer,) = self._store.execute([command(verb, body, **more)])
        assert isinstance(answer, wire.WireModel), answer
