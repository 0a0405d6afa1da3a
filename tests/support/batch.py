"""Runs under load on a real node in production mode, and what must hold of them when all is over.

The provider is scripted, answers slowly, and keeps its own count; each call's text names the run, the call and the try.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from decimal import Decimal
from typing import Any

from kubernetes import client

from almoner_core.contract import LABEL_EXECUTION_UID
from almoner_dev.cluster import Cluster
from tests.support import production
from tests.support.installed import ENDED, SYSTEM, UNREACHED, kubectl
from tests.support.polling import until
from tests.support.restricted import RESTRICTED

CALLS = 5
SECONDS = 600.0
COST_SECONDS = 180.0
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


class Batch:
    """The runs of one namespace."""

    def __init__(self, node: Cluster, api: Any, namespace: str) -> None:
        self.node = node
        self.namespace = namespace
        self.core = client.CoreV1Api(api)
        self.custom = client.CustomObjectsApi(api)
        self.pods: dict[str, set[str]] = {}
        """The uids of the pods seen of each run."""

    def prepare(self, at_once: int) -> None:
        """Make the namespace with a provider, a quota and an agent that calls five times."""
        quota = {"hard": {"executions": at_once}, "budget": {"amount": "1.00"}}
        agent = production.agent(AGENT, maxCost=str(MAX_COST))
        self._apply(
            {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": self.namespace, "labels": RESTRICTED}},
            *production.provider(self.namespace, "provider-key"),
            production.manifest(self.namespace, "ResourceQuota", "team", quota),
            production.manifest(self.namespace, "Agent", "caller", agent),
        )

    def start(self, names: Iterable[str]) -> None:
        """Create runs of that agent."""
        spec = {"agentRef": {"name": "caller"}}
        self._apply(*(production.manifest(self.namespace, "Execution", name, spec) for name in names))

    def _apply(self, *documents: dict[str, Any]) -> None:
        given = json.dumps({"apiVersion": "v1", "kind": "List", "items": documents})
        kubectl(self.node.kubeconfig, "apply", "-f", "-", given=given)

    def executions(self) -> list[dict[str, Any]]:
        """Every run as the API server has it."""
        found = self.custom.list_namespaced_custom_object("almoner.dev", "v1alpha1", self.namespace, "executions")
        return list(found["items"])

    def statuses(self) -> dict[str, dict[str, Any]]:
        """Every run's status by its name."""
        return {item["metadata"]["name"]: item.get("status") or {} for item in self.executions()}

    def ended(self) -> int:
        """How many have ended; notes the pods of all."""
        for pod in self.core.list_namespaced_pod(self.namespace).items:
            self.pods.setdefault(pod.metadata.labels[LABEL_EXECUTION_UID], set()).add(pod.metadata.uid)
        return sum(status.get("phase") in ENDED for status in self.statuses().values())

    def wait_ended(self, count: int, what: str) -> None:
        """Wait until so many have ended; a failure shows every part's log."""
        try:
            until(lambda: self.ended() >= count, SECONDS, what, retry_on=UNREACHED)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.describe()}") from error

    def wait_costs(self) -> None:
        """Wait until the cost of all that ended is known."""
        until(
            lambda: all(each.get("usage", {}).get("cost") for each in self.statuses().values()),
            COST_SECONDS,
            "all costs",
            retry_on=UNREACHED,
        )

    def describe(self) -> str:
        """What every part said, for a failure."""
        phases = Counter(status.get("phase") for status in self.statuses().values())
        said = [kubectl(self.node.kubeconfig, "get", "pods", "-A", "-o", "wide")]
        for part in ("almoner-operator", "almoner-ledger"):
            words = ("logs", "-n", SYSTEM, "-l", f"app.kubernetes.io/name={part}", "--tail=25", "--prefix")
            said.append(kubectl(self.node.kubeconfig, *words))
        return "\n".join([str(phases), *said])


def judge(batch: Batch, runs: int, killed: int = 0) -> None:
    """Nothing is lost, run twice or overspent, and provider, ledger and statuses agree.

    `killed` meters ended in mid-call, one of them at least: what those calls may have cost is charged.
    """
    kubeconfig = batch.node.kubeconfig
    statuses = batch.statuses()
    assert Counter(status["phase"] for status in statuses.values()) == {"Succeeded": runs}, batch.describe()
    assert [name for name, status in statuses.items() if len(status["attempts"]) != 1] == []
    assert [uids for uids in batch.pods.values() if len(uids) != 1] == []
    assert all(json.loads(status["output"]) == list(range(CALLS)) for status in statuses.values())

    asked = [text for text in production.provider_requests(kubeconfig) if text.startswith(f"{batch.namespace}/")]
    assert len(set(asked)) == len(asked), "a call was sent twice"
    entries = production.records(kubeconfig, batch.namespace)
    calls = [each for each in entries if each["resource_type"] != "compute"]
    outcomes = Counter(each["outcome"] for each in calls)
    # The provider's own count.
    assert sum(outcomes.values()) == len(asked)
    assert min(1, killed) <= outcomes["estimated"] <= killed, outcomes
    assert outcomes["ok"] == len(asked) - outcomes["estimated"] >= runs * CALLS
    assert all(Decimal(each["cost_usd"]) == ONE for each in calls if each["outcome"] == "ok")
    assert all(Decimal(each["cost_usd"]) >= ONE for each in calls)
    assert all(Decimal(status["usage"]["cost"]) <= MAX_COST for status in statuses.values())
    spent = sum(Decimal(each["cost_usd"]) for each in entries)
    assert sum(Decimal(status["usage"]["cost"]) for status in statuses.values()) == spent <= 1
    assert kubectl(kubeconfig, *VERIFY).startswith("every invariant holds")
