"""The operator on a real API server with a real ledger; a simulated node says what pods do."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from kubernetes import client

from almoner_dev.simnode import SimulatedNode
from almoner_dev.stack import Stack
from tests.support.cluster import Cluster, open_allotments, verify_ledger

HOLD = {"executions": 1}


def when(text: str) -> datetime:
    return datetime.fromisoformat(text)


def test_an_execution_goes_from_apply_to_succeeded_with_its_conditions(cluster: Cluster, stack: Stack) -> None:
    cluster.world()
    cluster.execution("one")
    status = cluster.wait_phase("one", "Succeeded")
    conditions = {each["type"]: each["status"] for each in status["conditions"]}
    assert conditions["Complete"] == conditions["Ready"] == conditions["Admitted"] == "True"
    assert conditions["Reconciling"] == conditions["Stalled"] == conditions["Failed"] == "False"
    (attempt,) = status["attempts"]
    assert attempt["number"] == 1
    assert attempt["outcome"] == "Succeeded"
    (pod,) = cluster.pods_of("one")
    assert attempt["pod"] == pod.metadata.name
    assert attempt["podUID"] == pod.metadata.uid
    agent = cluster.get("Agent", "agent")
    assert status["agent"]["uid"] == agent["metadata"]["uid"]
    assert status["owner"] == cluster.namespace
    cluster.wait(
        lambda: (cluster.status("agent", "Agent").get("executions") or {}).get("succeeded") == 1, "the agent's count"
    )
    assert not [each for each in open_allotments(stack) if each["execution"]["namespace"] == cluster.namespace]


def test_a_full_quota_makes_the_next_wait_and_says_why(cluster: Cluster) -> None:
    cluster.world()
    cluster.agent("forever")
    cluster.wait_ready("Agent", "forever")
    cluster.quota("team", hard=HOLD)
    cluster.execution("first", agent="forever")
    cluster.wait_phase("first", "Running")
    cluster.execution("second")
    condition = cluster.wait_reason("second", "WaitingForQuota")
    assert "ResourceQuota team" in condition["message"]
    assert "1 of 1" in condition["message"]
    status = cluster.status("second")
    assert status["phase"] == "Queued"
    assert status["queue"]["position"] == 1
    assert status["quotas"] == ["team"]
    quota = cluster.wait(
        lambda: (s := cluster.status("team", "ResourceQuota")).get("pending") == 1 and s, "the quota's use"
    )
    assert quota["running"] == 1
    assert quota["limits"][0] == {
        "name": "executions",
        "limit": "1",
        "used": "1",
        "reserved": "0",
        "remaining": "0",
        "percent": 100,
    }
    cluster.patch("Execution", "first", {"cancel": True})
    cluster.wait_phase("first", "Cancelled")
    cluster.wait_phase("second", "Succeeded")


def test_what_waits_is_admitted_by_priority_then_age(cluster: Cluster, simulated: SimulatedNode) -> None:
    cluster.world()
    cluster.agent("run-300")
    cluster.agent("forever")
    cluster.wait_ready("Agent", "run-300")
    cluster.wait_ready("Agent", "forever")
    cluster.quota("team", hard=HOLD)
    cluster.execution("blocker", agent="forever")
    cluster.wait_phase("blocker", "Running")
    for name, priority in (("low", 2), ("middle-old", 5), ("middle-new", 5), ("high", 9)):
        cluster.execution(name, agent="run-300", priority=priority)
        cluster.wait_reason(name, "WaitingForQuota")
    cluster.patch("Execution", "blocker", {"cancel": True})
    order = ["high", "middle-old", "middle-new", "low"]
    started = [when(cluster.wait_phase(name, "Succeeded")["attempts"][0]["admittedTime"]) for name in order]
    assert started == sorted(started)


def test_without_any_budget_nothing_is_admitted(cluster: Cluster) -> None:
    cluster.world()
    cluster.execution("free", max_cost=None)
    cluster.wait_reason("free", "NoBudget")
    assert not cluster.pods()
    cluster.quota("money", budget={"amount": "1.00"})
    cluster.wait_phase("free", "Succeeded")


def test_a_budget_without_room_makes_wait_with_the_numbers(cluster: Cluster) -> None:
    cluster.world()
    cluster.quota("money", budget={"amount": "0.000000001"})
    cluster.execution("poor", max_cost=None)
    condition = cluster.wait_reason("poor", "BudgetExhausted")
    assert "money" in condition["message"]
    assert not cluster.pods()
    cluster.patch("ResourceQuota", "money", {"budget": {"amount": "1.00"}})
    cluster.wait_phase("poor", "Succeeded")
    cluster.wait(
        lambda: (
            [(each["name"], each["limit"]) for each in cluster.status("money", "ResourceQuota")["limits"]]
            == [("budget", "1.00")]
        ),
        "the new limit in the status",
    )


def test_an_agent_may_come_later(cluster: Cluster) -> None:
    cluster.execution("early")
    cluster.wait_reason("early", "AgentNotFound")
    cluster.world()
    cluster.wait_phase("early", "Succeeded")


def test_what_an_agent_lacks_is_a_condition(cluster: Cluster) -> None:
    cluster.agent()
    cluster.wait_ready("Agent", "agent", "ProviderNotFound")
    cluster.execution("one")
    cluster.wait_reason("one", "ProviderNotReady")
    cluster.provider(priced=False)
    condition = cluster.wait_ready("Agent", "agent", "ModelUnpriced")
    assert "small" in condition["message"]
    cluster.patch(
        "ModelProvider",
        "local",
        {"prices": [{"model": "small", "inputPerMillion": "1.00", "outputPerMillion": "2.00"}]},
    )
    cluster.wait_ready("Agent", "agent")
    cluster.wait_phase("one", "Succeeded")


def test_a_provider_without_its_secret_is_not_ready_until_it_is_there(cluster: Cluster) -> None:
    cluster.provider(credentials={"name": "keys", "key": "key"})
    condition = cluster.wait_ready("ModelProvider", "local", "SecretNotFound")
    assert "keys" in condition["message"]


def test_cancel_ends_a_waiting_and_a_running_one_for_good(cluster: Cluster, stack: Stack) -> None:
    cluster.world()
    cluster.agent("forever")
    cluster.wait_ready("Agent", "forever")
    cluster.quota("team", hard=HOLD)
    cluster.execution("running", agent="forever")
    cluster.wait_phase("running", "Running")
    cluster.execution("waiting")
    cluster.wait_reason("waiting", "WaitingForQuota")
    cluster.patch("Execution", "waiting", {"cancel": True})
    status = cluster.wait_phase("waiting", "Cancelled")
    assert not status.get("attempts")
    cluster.patch("Execution", "running", {"cancel": True})
    status = cluster.wait_phase("running", "Cancelled")
    assert status["attempts"][0]["outcome"] == "Cancelled"
    cluster.patch("Execution", "running", {"cancel": False})
    cluster.execution("after")
    cluster.wait_phase("after", "Succeeded")
    assert cluster.status("running")["phase"] == "Cancelled"
    verify_ledger(stack)


def test_suspend_stops_a_running_one_and_resume_runs_it_again(cluster: Cluster) -> None:
    cluster.world()
    cluster.agent("run-1000")
    cluster.wait_ready("Agent", "run-1000")
    cluster.execution("one", agent="run-1000")
    cluster.wait_phase("one", "Running")
    cluster.patch("Execution", "one", {"suspend": True})
    cluster.wait(lambda: cluster.condition("Execution", "one", "Suspended").get("status") == "True", "it is suspended")
    assert cluster.status("one")["attempts"][0]["outcome"] == "Suspended"
    cluster.patch("Execution", "one", {"suspend": False})
    status = cluster.wait_phase("one", "Succeeded")
    assert [each["outcome"] for each in status["attempts"]] == ["Suspended", "Succeeded"]


def test_a_failed_attempt_is_retried_after_its_backoff_then_final(cluster: Cluster, stack: Stack) -> None:
    cluster.provider()
    cluster.agent("fail-3")
    cluster.wait_ready("Agent", "fail-3")
    cluster.execution("one", agent="fail-3", retry={"limit": 1, "backoffSeconds": 1, "backoffMaxSeconds": 1})
    status = cluster.wait_phase("one", "Failed")
    first, second = status["attempts"]
    assert first["reason"] == second["reason"] == "AgentFailed"
    assert first["exitCode"] == 3
    assert "it broke" in first["message"]
    waited = when(second["admittedTime"]) - when(first["finishTime"])
    assert waited.total_seconds() >= 0.7
    assert cluster.condition("Execution", "one", "Failed")["reason"] == "AgentFailed"
    assert len(cluster.pods_of("one")) == 2
    verify_ledger(stack)


def test_the_event_of_a_failure_is_there_however_long_it_is_in_bytes(cluster: Cluster) -> None:
    """C30: the API server takes 1,024 bytes of a note; and it refuses a name that is cut before a dot."""
    cluster.world()
    cluster.agent("fail-1")
    cluster.wait_ready("Agent", "fail-1")
    name = f"{'e' * 199}.long"
    cluster.execution(name, agent="fail-1", retry={"limit": 0})
    cluster.wait_phase(name, "Failed")

    def notes() -> list[str]:
        events = client.EventsV1Api(cluster.api).list_namespaced_event(cluster.namespace).items
        return [each.note for each in events if each.reason == "AgentFailed" and each.regarding.name == name]

    (note,) = cluster.wait(notes, "the event")
    assert note.startswith("exit code 1: 坏坏")
    assert note.endswith("坏…")
    assert 1024 - 3 < len(note.encode()) <= 1024


def test_what_must_not_be_retried_is_not(cluster: Cluster) -> None:
    cluster.provider()
    cluster.agent("fail-65")
    cluster.wait_ready("Agent", "fail-65")
    cluster.execution("one", agent="fail-65", retry={"limit": 3, "backoffSeconds": 1})
    status = cluster.wait_phase("one", "Failed")
    assert [each["reason"] for each in status["attempts"]] == ["GuardrailTripped"]


def test_a_timeout_stops_the_pod_and_fails_it(cluster: Cluster) -> None:
    cluster.provider()
    cluster.agent("forever")
    cluster.wait_ready("Agent", "forever")
    cluster.execution("one", agent="forever", timeoutSeconds=2)
    status = cluster.wait_phase("one", "Failed")
    assert status["attempts"][0]["reason"] == "Timeout"
    assert cluster.condition("Execution", "one", "Failed")["reason"] == "Timeout"


def test_ttl_deletes_the_finished_but_not_what_gitops_tracks(cluster: Cluster) -> None:
    cluster.world()
    cluster.execution("short", ttlSecondsAfterFinished=1)
    cluster.create(
        "Execution",
        "tracked",
        {
            "agentRef": {"name": "agent"},
            "input": {"text": "x"},
            "limits": {"maxCost": "1.00"},
            "ttlSecondsAfterFinished": 0,
        },
        annotations={"argocd.argoproj.io/tracking-id": "app:almoner.dev/Execution:x/tracked"},
    )
    cluster.wait_phase("tracked", "Succeeded")
    cluster.wait(lambda: not cluster.exists("Execution", "short"), "its deletion after the TTL")
    assert cluster.exists("Execution", "tracked")


def test_deleting_a_running_one_gives_its_money_and_quota_back(cluster: Cluster, stack: Stack) -> None:
    cluster.world()
    cluster.agent("forever")
    cluster.wait_ready("Agent", "forever")
    cluster.quota("team", hard=HOLD, budget={"amount": "1.00"})
    cluster.execution("one", agent="forever")
    cluster.wait_phase("one", "Running")
    cluster.delete("Execution", "one")
    cluster.execution("two")
    cluster.wait_phase("two", "Succeeded")
    cluster.wait(
        lambda: not [each for each in open_allotments(stack) if each["execution"]["namespace"] == cluster.namespace],
        "its allotment to be given back",
    )
    cluster.wait(
        lambda: cluster.status("team", "ResourceQuota")["limits"][-1]["reserved"] == "0.00", "nothing to be reserved"
    )
    verify_ledger(stack)


def test_a_pod_that_no_node_takes_gives_its_quota_back_and_tries_again(cluster: Cluster) -> None:
    cluster.world()
    cluster.agent("nowhere")
    cluster.wait_ready("Agent", "nowhere")
    cluster.quota("team", hard=HOLD)
    cluster.execution("stuck", agent="nowhere")
    cluster.wait_phase("stuck", "Admitted")
    cluster.execution("next")
    cluster.wait_phase("next", "Succeeded")
    status = cluster.status("stuck")
    assert status["attempts"][0]["reason"] == "Unschedulable"
    assert "Insufficient memory" in status["attempts"][0]["message"]
    assert status["phase"] == "Queued"


def test_a_quota_that_cannot_be_enforced_admits_nothing(cluster: Cluster) -> None:
    cluster.world()
    cluster.create("ResourceQuota", "volumes", {"hard": {"storage": "1Gi"}, "enforcement": "Monitor"})
    condition = cluster.wait_ready("ResourceQuota", "volumes", "NotSupported")
    assert "storage" in condition["message"]
    cluster.execution("one")
    cluster.wait_reason("one", "QuotaNotReady")
    cluster.delete("ResourceQuota", "volumes")
    cluster.wait_phase("one", "Succeeded")


def test_per_owner_opens_an_account_for_each_owner(cluster: Cluster) -> None:
    cluster.world()
    cluster.agent("forever")
    cluster.wait_ready("Agent", "forever")
    cluster.quota("each", scope={"perOwner": True, "owners": ["ann", "bob"]}, hard=HOLD, budget={"amount": "0.50"})
    for owner in ("ann", "bob"):
        cluster.execution(f"first-{owner}", agent="forever", owner=owner, max_cost=None)
    for owner in ("ann", "bob"):
        cluster.wait_phase(f"first-{owner}", "Running")
    cluster.execution("second-ann", owner="ann", max_cost=None)
    cluster.wait_reason("second-ann", "WaitingForQuota")

    def subjects() -> set[Any]:
        limits = cluster.status("each", "ResourceQuota").get("limits") or []
        return {(each["name"], each["subject"]) for each in limits}

    cluster.wait(
        lambda: subjects() >= {("budget", "ann"), ("budget", "bob"), ("executions", "ann")}, "both owners' accounts"
    )
    # Whoever invents an owner gets no budget of its own by that.
    cluster.execution("invented", owner="carl", max_cost=None)
    cluster.wait_reason("invented", "NoBudget")
    assert not any(subject == "carl" for _, subject in subjects())


def test_a_more_important_one_preempts_and_the_victim_runs_again(cluster: Cluster) -> None:
    cluster.world()
    cluster.agent("run-2000")
    cluster.wait_ready("Agent", "run-2000")
    cluster.quota("team", hard=HOLD)
    cluster.execution("victim", agent="run-2000", priority=2, preemptible=True)
    cluster.wait_phase("victim", "Running")
    cluster.execution("urgent", priority=9)
    cluster.wait_phase("urgent", "Succeeded")
    status = cluster.wait_phase("victim", "Succeeded")
    assert [each["outcome"] for each in status["attempts"]] == ["Preempted", "Succeeded"]


def test_a_change_of_the_agent_does_not_change_what_was_pinned(cluster: Cluster) -> None:
    cluster.provider()
    cluster.agent("fail-9", instructions="first")
    cluster.wait_ready("Agent", "fail-9")
    cluster.execution("one", agent="fail-9", retry={"limit": 1, "backoffSeconds": 2, "backoffMaxSeconds": 2})
    cluster.wait(lambda: cluster.status("one").get("agent"), "it is pinned")
    pinned = cluster.status("one")["agent"]
    cluster.patch("Agent", "fail-9", {"instructions": "second"})
    status = cluster.wait_phase("one", "Failed")
    assert len(status["attempts"]) == 2
    assert status["agent"] == pinned
    pods = cluster.pods_of("one")
    assert len(pods) == 2
    specs = [env.value for pod in pods for env in pod.spec.containers[0].env or [] if env.name == "ALMONER_AGENT_SPEC"]
    assert len(specs) == 2
    assert all("first" in each for each in specs)


def test_a_training_job_runs_to_its_end(cluster: Cluster) -> None:
    cluster.world()
    cluster.create(
        "TrainingJob",
        "job",
        {"agentRef": {"name": "agent"}, "steps": 10, "limits": {"maxCost": "1.00"}, "hyperparameters": {"rate": "0.1"}},
    )
    status = cluster.wait_phase("job", "Succeeded", kind="TrainingJob")
    assert status["attempts"][0]["outcome"] == "Succeeded"


def test_a_job_may_only_read_secrets_that_agents_may_read(cluster: Cluster) -> None:
    cluster.core.create_namespaced_secret(cluster.namespace, {"metadata": {"name": "mine"}, "stringData": {"key": "x"}})
    reference = {"name": "TOKEN", "valueFrom": {"secretKeyRef": {"name": "mine", "key": "key"}}}
    runner = {"image": "trainer", "command": ["true"], "env": [reference]}
    cluster.create("TrainingJob", "job", {"runner": runner, "limits": {"maxCost": "1.00"}})

    def reason() -> str:
        return str(cluster.condition("TrainingJob", "job", "Admitted").get("message", ""))

    cluster.wait(lambda: "lacks the label" in reason(), "why it waits")
    assert not cluster.pods()
    label = {"metadata": {"labels": {"almoner.dev/agent-readable": "true"}}}
    cluster.core.patch_namespaced_secret("mine", cluster.namespace, label)
    cluster.wait_phase("job", "Succeeded", kind="TrainingJob", seconds=40)


def test_a_runners_options_reach_its_pod_and_its_secrets_obey_the_one_rule(cluster: Cluster) -> None:
    cluster.provider()
    cluster.core.create_namespaced_secret(cluster.namespace, {"metadata": {"name": "crm"}, "stringData": {"key": "x"}})
    cluster.agent(
        "options",
        runner={
            "tolerations": [{"key": "gpu", "operator": "Exists"}],
            "labels": {"example.com/team": "a"},
            "volumes": [{"name": "crm", "secret": {"secretName": "crm"}}],
            "volumeMounts": [{"name": "crm", "mountPath": "/etc/crm", "readOnly": True}],
        },
    )
    message = cluster.wait_ready("Agent", "options", "SecretNotReadable")["message"]
    assert message.startswith("spec.runner.volumes crm: Secret crm lacks the label")
    cluster.core.patch_namespaced_secret(
        "crm", cluster.namespace, {"metadata": {"labels": {"almoner.dev/agent-readable": "true"}}}
    )
    cluster.wait_ready("Agent", "options", seconds=90)
    cluster.execution("one", agent="options")
    cluster.wait_phase("one", "Succeeded")
    (pod,) = cluster.pods_of("one")
    assert "gpu" in {each.key for each in pod.spec.tolerations}
    assert pod.metadata.labels["example.com/team"] == "a"
    (agent,) = pod.spec.containers
    assert [each.mount_path for each in agent.volume_mounts if each.name == "user-crm"] == ["/etc/crm"]
    assert not [each for each in pod.spec.init_containers[0].volume_mounts if each.name.startswith("user-")]
