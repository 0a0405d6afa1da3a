"""Forty runs under load while everything is killed in turn: nothing is overspent, lost or run twice.

In production mode: PostgreSQL in the cluster, two ledgers, two operators. What is spent is counted by the provider.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from decimal import Decimal
from typing import Any

from kubernetes import client

from almoner_core.contract import LABEL_EXECUTION_UID
from almoner_dev.cluster import Cluster
from tests.support import production
from tests.support.installed import ENDED, SYSTEM, UNREACHED, kubectl
from tests.support.polling import until
from tests.support.restricted import RESTRICTED

RUNS = 40
CALLS = 5
AT_ONCE = 6
METERS = 3
"""So many are killed, so that one at least is in mid-call."""
NAMESPACE = "killing"
SECONDS = 600.0
KILL_SECONDS = 180.0
ONE = Decimal("0.00025")
"""A call: 37 tokens in at 2 dollars a million, 11 out at 16."""
MAX_COST = Decimal("0.01")
VERIFY = ("exec", "-n", SYSTEM, "deployment/almoner-ledger", "--", "almoner", "ledger", "verify")
AGENT = f"""
import http.client
run, told = os.environ["ALMONER_EXECUTION"], []
for number in range({CALLS}):
    for again in range(600):
        # The number of the try is part of the text: each request to the provider has one of its own.
        try:
            status, said = chat(run + " " + str(number) + " " + str(again))
        except (OSError, http.client.HTTPException):
            status, said = 0, "the meter does not answer"
        if status == 200:
            told.append(number)
            break
        print(number, again, status, said, flush=True)
        time.sleep(0.5)
answer(told)
"""


def manifests() -> list[dict[str, Any]]:
    """A provider, a quota, an agent, and the runs."""
    quota = {"hard": {"executions": AT_ONCE}, "budget": {"amount": "1.00"}}
    agent = production.agent(AGENT, maxCost=str(MAX_COST))
    runs = [(f"run-{number:02}", {"agentRef": {"name": "caller"}}) for number in range(RUNS)]
    return [
        {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE, "labels": RESTRICTED}},
        *production.provider(NAMESPACE, "provider-key"),
        production.manifest(NAMESPACE, "ResourceQuota", "team", quota),
        production.manifest(NAMESPACE, "Agent", "caller", agent),
        *(production.manifest(NAMESPACE, "Execution", name, spec) for name, spec in runs),
    ]


class Batch:
    """The runs under way, and what can be killed."""

    def __init__(self, node: Cluster, api: Any) -> None:
        self.node = node
        self.core = client.CoreV1Api(api)
        self.leases = client.CoordinationV1Api(api)
        self.custom = client.CustomObjectsApi(api)
        self.pods: dict[str, set[str]] = {}
        """The uids of the pods seen of each run."""

    def executions(self) -> list[dict[str, Any]]:
        found = self.custom.list_namespaced_custom_object("almoner.dev", "v1alpha1", NAMESPACE, "executions")
        return list(found["items"])

    def statuses(self) -> dict[str, dict[str, Any]]:
        return {item["metadata"]["name"]: item.get("status") or {} for item in self.executions()}

    def ended(self) -> int:
        for pod in self.core.list_namespaced_pod(NAMESPACE).items:
            self.pods.setdefault(pod.metadata.labels[LABEL_EXECUTION_UID], set()).add(pod.metadata.uid)
        return sum(status.get("phase") in ENDED for status in self.statuses().values())

    def wait_ended(self, count: int, what: str) -> None:
        try:
            until(lambda: self.ended() >= count, SECONDS, what, retry_on=UNREACHED)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.describe()}") from error

    def describe(self) -> str:
        phases = Counter(status.get("phase") for status in self.statuses().values())
        said = [kubectl(self.node.kubeconfig, "get", "pods", "-A", "-o", "wide")]
        for part in ("almoner-operator", "almoner-ledger"):
            words = ("logs", "-n", SYSTEM, "-l", f"app.kubernetes.io/name={part}", "--tail=25", "--prefix")
            said.append(kubectl(self.node.kubeconfig, *words))
        return "\n".join([str(phases), *said])

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
            words = [text.split() for text in texts - seen if text.startswith(f"{NAMESPACE}/")]
            seen.update(texts)
            asked = {run for run, number, _ in words if int(number) < CALLS - 2}
            about = [each["metadata"] for each in self.executions()]
            uids = {each["uid"] for each in about if f"{NAMESPACE}/{each['name']}" in asked}
            pods = self.core.list_namespaced_pod(NAMESPACE, field_selector="status.phase=Running").items
            return next((pod for pod in pods if pod.metadata.labels[LABEL_EXECUTION_UID] in uids), None)

        for _ in range(METERS):
            pod = until(calling, KILL_SECONDS, "a runner in mid-call", retry_on=UNREACHED)
            production.kill_container(self.node, pod, pod.spec.init_containers[0].name)


def test_forty_runs_while_everything_is_killed_in_turn(production_node: Cluster, production_api: Any) -> None:
    node, batch = production_node, Batch(production_node, production_api)
    documents = {"apiVersion": "v1", "kind": "List", "items": manifests()}
    kubectl(node.kubeconfig, "apply", "-f", "-", given=json.dumps(documents))
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
    until(
        lambda: all(each.get("usage", {}).get("cost") for each in batch.statuses().values()), KILL_SECONDS, "all costs"
    )
    judge(batch)


def judge(batch: Batch) -> None:
    """Nothing is lost, run twice or overspent, and provider, ledger and statuses agree."""
    kubeconfig = batch.node.kubeconfig
    statuses = batch.statuses()
    assert Counter(status["phase"] for status in statuses.values()) == {"Succeeded": RUNS}, batch.describe()
    assert [name for name, status in statuses.items() if len(status["attempts"]) != 1] == []
    assert [uids for uids in batch.pods.values() if len(uids) != 1] == []
    assert all(json.loads(status["output"]) == list(range(CALLS)) for status in statuses.values())

    asked = [text for text in production.provider_requests(kubeconfig) if text.startswith(f"{NAMESPACE}/")]
    assert len(set(asked)) == len(asked), "a call was sent twice"
    entries = production.records(kubeconfig, NAMESPACE)
    calls = [each for each in entries if each["resource_type"] != "compute"]
    outcomes = Counter(each["outcome"] for each in calls)
    # The provider's own count. What a killed meter had sent is charged as what it may have cost.
    assert sum(outcomes.values()) == len(asked)
    assert 1 <= outcomes["estimated"] <= METERS, outcomes
    assert outcomes["ok"] == len(asked) - outcomes["estimated"] >= RUNS * CALLS
    assert all(Decimal(each["cost_usd"]) == ONE for each in calls if each["outcome"] == "ok")
    assert all(Decimal(each["cost_usd"]) >= ONE for each in calls)
    assert all(Decimal(status["usage"]["cost"]) <= MAX_COST for status in statuses.values())
    spent = sum(Decimal(each["cost_usd"]) for each in entries)
    assert sum(Decimal(status["usage"]["cost"]) for status in statuses.values()) == spent <= 1
    assert kubectl(kubeconfig, *VERIFY).startswith("every invariant holds")
