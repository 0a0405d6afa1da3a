"""Machine time inside the simulation: the operator's real charging, the meter's real word on it, and a kubelet.

Role: what a pod costs by the second is held and charged by the operator's own code over what the world knows of pods;
the kubelet asks the pod's meter whether it is paid, and ends the pod where that says no, or nothing, three times in a
row, and kills what does not end in its grace period. Boundary: whether every second was paid is the oracle's to say.
"""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Final, cast

from almoner_core import wire
from almoner_core.compute import ComputePrices, Machine
from almoner_core.identity import allotment_id
from almoner_core.wire import Dimension
from almoner_dev.simulate.pausing import outside
from almoner_operator.compute import MachineTime
from almoner_operator.errors import LedgerError
from almoner_operator.machines import PROBE_FAILURES, ComputeSettings
from almoner_operator.records import Pod as PodRecord
from almoner_operator.records import Run as RunRecord
from almoner_operator.records import parse_run
from almoner_operator.scheduling.model import Stop

if TYPE_CHECKING:
    from almoner_dev.simulate.operators import OperatorClient, Run
    from almoner_dev.simulate.pods import Pod
    from almoner_dev.simulate.world import World

KIND: Final = "Execution"
GRACE_S: Final = 60
MACHINE: Final = Machine(cpu=1000)
NANOS_PER_SECOND: Final = 20_000
SETTINGS: Final = ComputeSettings(
    # 25 seconds cost about what a call costs here.
    ComputePrices(cpu_hour=NANOS_PER_SECOND * 3600),
    interval_seconds=20,
    outage_seconds=30,
    probe_seconds=2,
)
END_S: Final = SETTINGS.end_seconds(GRACE_S)


def asked() -> dict[str, Any]:
    """Give what an allotment is opened with besides, for a pod that costs machine time."""
    hold = SETTINGS.prices.hold(MACHINE, SETTINGS.ahead(GRACE_S))
    return {"compute": {Dimension.USD: hold}, "machine": SETTINGS.terms(MACHINE, GRACE_S)}


class Charging:
    """The part of an operator that charges machine time. It follows runs between `watch` and `finish`."""

    def __init__(self, world: World, client: OperatorClient) -> None:
        self._client = client
        self._runs: dict[str, RunRecord] = {}
        self._pods: dict[str, Pod] = {}
        cache = SimpleNamespace(runs=self._runs, pods=SimpleNamespace(of=self._pod_of))
        context = SimpleNamespace(settings=SimpleNamespace(compute=SETTINGS), cache=cache, ledger=client)
        self.time = MachineTime(cast("Any", context), clock=world.now_s)
        self.time.stop = self._stop
        self._world = world

    async def adopt(self) -> None:
        """Take over what the ledger has, however long that takes."""
        while True:
            try:
                async for view in self._client.open_allotments():
                    if view.purpose is wire.Purpose.COMPUTE:
                        self.time.adopt(view)
                return
            except LedgerError:
                await self._world.sleep(1.0)

    def watch(self, run: Run, pod: Pod) -> None:
        """Charge a run's pod from now on."""
        self._pods[run.uid] = pod
        self._runs[run.uid] = _record(run, pod)

    async def finish(self, run: Run, pod: Pod) -> None:
        """Charge what is left of an attempt that is over, as long as it takes."""
        self._runs.pop(run.uid, None)
        await self.time.finish(run.allotment, _pod_record(pod))

    async def give_up(self, view: wire.AllotmentView, pod: Pod | None) -> None:
        """Charge what is left of an attempt that nobody drives any more."""
        own = allotment_id(view.execution.uid, view.execution.attempt)
        await self.time.finish(own, None if pod is None else _pod_record(pod))

    def _pod_of(self, run: RunRecord) -> PodRecord | None:
        pod = self._pods.get(run.key.uid)
        return None if pod is None or pod.began_s is None else _pod_record(pod)

    def _stop(self, decided: Stop) -> None:
        self._world.faults.note("machine_time_stopped")
        self._pods[decided.key.uid].terminate()


class Kubelet:
    """Keeps one pod to what is paid for, and to its grace period, whoever else is there."""

    def __init__(self, world: World, pod: Pod) -> None:
        self._world, self._pod = world, pod
        self._task = outside(self._watch(), name=f"kubelet of {pod.name}")

    def stop(self) -> None:
        """Look no more."""
        self._task.cancel()

    async def _watch(self) -> None:
        pod, failures = self._pod, 0
        while not pod.ended.is_set() and not pod.terminating and failures < PROBE_FAILURES:
            await self._world.sleep(SETTINGS.probe_seconds)
            failures = failures + 1 if pod.attempt.agent_began_s is not None and not pod.is_paid() else 0
        if not pod.ended.is_set() and not pod.terminating:
            self._world.faults.note("node_ended_unpaid_pod")
            pod.terminate()
        try:
            async with asyncio.timeout(GRACE_S * self._world.pace):
                await pod.ended.wait()
        except TimeoutError:
            self._world.faults.note("killed_after_grace")
            pod.kill()


def _record(run: Run, pod: Pod) -> RunRecord:
    attempt = {"number": run.attempt, "pod": pod.name, "podUID": pod.uid, "allotment": run.allotment}
    found = parse_run(
        KIND,
        {
            "metadata": {
                "name": run.name,
                "namespace": "team",
                "uid": run.uid,
                "resourceVersion": "1",
                "generation": 1,
            },
            "spec": {"agentRef": {"name": run.agent}, "input": {"text": "simulated"}},
            "status": {"phase": "Running", "attempts": [{**attempt, "outcome": "Running"}]},
        },
    )
    assert isinstance(found, RunRecord)
    return found


def _pod_record(pod: Pod) -> PodRecord:
    """What the API server has of a pod. Of a lost one it has no end."""
    state: dict[str, Any] = {"running": {}}
    if pod.ended.is_set() and pod.ended_s is not None and not pod.lost:
        state = {"terminated": {"finishedAt": _moment(pod.ended_s), "exitCode": 0}}
    raw = {
        "metadata": {"name": pod.name, "namespace": "team", "uid": pod.uid},
        "spec": {
            "nodeName": "node",
            "terminationGracePeriodSeconds": GRACE_S,
            "containers": [{"name": "agent", "resources": {"requests": {"cpu": f"{MACHINE.cpu}m"}}}],
        },
        "status": {
            **({"startTime": _moment(pod.began_s)} if pod.began_s is not None else {}),
            "containerStatuses": [{"name": "agent", "state": state}],
        },
    }
    return cast("PodRecord", SimpleNamespace(raw=raw))


def _moment(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat()
