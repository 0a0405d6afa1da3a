"""Forty runs under load while everything is killed in turn: nothing is overspent, lost or run twice.

In production mode: PostgreSQL in the cluster, two ledgers, two operators. What is spent is counted by the provider.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from kubernetes import client

from almoner_core.contract import LABEL_EXECUTION_UID
from almoner_dev.cluster import Cluster
from tests.support import production
from tests.support.batch import CALLS, Batch, judge
from tests.support.installed import SYSTEM, UNREACHED
from tests.support.polling import until

RUNS = 40
AT_ONCE = 6
METERS = 3
"""So many are killed, so that one at least is in mid-call."""
KILL_SECONDS = 180.0


class Killing(Batch):
    """What can be killed while the runs are under way."""

    def __init__(self, node: Cluster, api: Any, namespace: str) -> None:
        super().__init__(node, api, namespace)
        self.leases = client.CoordinationV1Api(api)

    def part(self, name: str) -> list[Any]:
        selector = f"app.kubernetes.io/name={name}"
        return list(self.core.list_namespaced_pod(SYSTEM, label_selector=selector).items)

    def component(self, name: str) -> None:
        self.node.kill(name)
        self.node.restart(name)

    def leader(self) -> None:
        (lease,) = [each for each in self.leases.list_namespaced_lease(SYSTEM).items if each.spec.holder_identity]
        pods = self.part("almoner-operator")
        assert len(pods) == 2
        (pod,) = [each for each in pods if lease.spec.holder_identity.startswith(each.metadata.name)]
        production.kill_container(self.node, pod, "operator")

    def ledger(self) -> None:
        pods = self.part("almoner-ledger")
        assert len(pods) == 2
        production.kill_container(self.node, pods[0], "ledger")

    def postgres(self) -> None:
        production.kill_container(self.node, self.core.read_namespaced_pod("postgres-0", SYSTEM), "postgres")

    def runners(self) -> None:
        """Kill meters while their agents wait for an answer: what the calls may have cost is charged."""
        seen = set(production.provider_requests(self.node.kubeconfig))

        def calling() -> Any:
            # A call that was not there a moment ago is still under way, and its run has calls enough before it.
            texts = set(production.provider_requests(self.node.kubeconfig))
            words = [text.split() for text in texts - seen if text.startswith(f"{self.namespace}/")]
            seen.update(texts)
            asked = {run for run, number, _ in words if int(number) < CALLS - 2}
            about = [each["metadata"] for each in self.executions()]
            uids = {each["uid"] for each in about if f"{self.namespace}/{each['name']}" in asked}
            pods = self.core.list_namespaced_pod(self.namespace, field_selector="status.phase=Running").items
            return next((pod for pod in pods if pod.metadata.labels[LABEL_EXECUTION_UID] in uids), None)

        for _ in range(METERS):
            pod = until(calling, KILL_SECONDS, "a runner in mid-call", retry_on=UNREACHED)
            production.kill_container(self.node, pod, pod.spec.init_containers[0].name)


def test_forty_runs_while_everything_is_killed_in_turn(production_node: Cluster, production_api: Any) -> None:
    batch = Killing(production_node, production_api, "killing")
    batch.prepare(AT_ONCE)
    batch.start(f"run-{number:02}" for number in range(RUNS))
    kills: list[tuple[str, Callable[[], None]]] = [
        ("kubelet", lambda: batch.component("kubelet")),
        ("the operator that leads", batch.leader),
        ("a ledger", batch.ledger),
        ("meters in mid-call", batch.runners),
        ("PostgreSQL", batch.postgres),
        ("containerd", lambda: batch.component("containerd")),
        ("the API server", lambda: batch.component("kube-apiserver")),
    ]
    for done, (what, kill) in enumerate(kills):
        batch.wait_ended(1 + 4 * done, f"runs to end before {what} is killed")
        assert batch.ended() < RUNS, f"{what} would be killed when all is over"
        kill()
    batch.wait_ended(RUNS, "all runs to end")
    batch.wait_costs()
    judge(batch, RUNS, killed=METERS)
