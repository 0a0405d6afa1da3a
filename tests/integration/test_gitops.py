"""What GitOps tools do to a cluster, with the operator running: apply again, wait for health, mark what they own."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from kubernetes import client

from almoner_dev import binaries, gotools
from almoner_dev.controlplane import ControlPlane
from almoner_dev.simnode import SimulatedNode
from almoner_dev.stack import Stack
from tests.conftest import missing
from tests.support.cluster import GROUP, PLURALS, VERSION, Cluster, Json, open_allotments, verify_ledger

ROOT = Path(__file__).resolve().parents[2]
API_VERSION = f"{GROUP}/{VERSION}"
ARGO = "argocd-controller"


@pytest.fixture(scope="module")
def kubectl() -> Path:
    try:
        return Path(binaries.find(["kubectl"]).path("kubectl"))
    except binaries.BinariesMissing as error:
        missing(error)


@pytest.fixture(scope="module")
def health() -> Path:
    try:
        return gotools.path("health")
    except gotools.ToolMissing as error:
        missing(error)


def kstatus(tool: Path, found: Json) -> str:
    question = json.dumps({"object": found}) + "\n"
    done = subprocess.run([tool], input=question, capture_output=True, text=True, timeout=60, check=True)
    answer: Json = json.loads(done.stdout)
    return str(answer["kstatus"])


def wait_current(cluster: Cluster, tool: Path, kind: str, name: str) -> None:
    cluster.wait(lambda: kstatus(tool, cluster.get(kind, name)) == "Current", f"{kind} {name} to be Current")


def apply(plane: ControlPlane, kubectl: Path, documents: list[Json], *arguments: str) -> str:
    """Apply by server-side apply as Argo CD does; gives what kubectl says."""
    how = ("apply", "--server-side", f"--field-manager={ARGO}", *arguments, "-f", "-")
    done = subprocess.run(
        [str(kubectl), "--kubeconfig", str(plane.kubeconfig), *how],
        input=yaml.safe_dump_all(documents),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def examples(namespace: str) -> Iterator[Json]:
    """Every example, in one namespace."""
    for path in sorted((ROOT / "examples").rglob("*.yaml")):
        for document in yaml.safe_load_all(path.read_text()):
            if document is None or document["kind"] == "Namespace":
                continue
            document["metadata"]["namespace"] = namespace
            yield document


def look(cluster: Cluster, document: Json) -> Json:
    """An object as it is stored, but for its status."""
    name, kind = document["metadata"]["name"], document["kind"]
    if document["apiVersion"] == API_VERSION:
        return cluster.get(kind, name)
    read = cluster.core.read_namespaced_secret if kind == "Secret" else cluster.core.read_namespaced_config_map
    found: Json = cluster.api.sanitize_for_serialization(read(name, cluster.namespace))
    return found


def managed_by(found: Json, manager: str) -> list[Json]:
    fields = found["metadata"]["managedFields"]
    return [each for each in fields if each["manager"] == manager]


def settled(cluster: Cluster, documents: list[Json]) -> bool:
    """Whether the operator has looked at all of them, and none is on its way."""
    for document in documents:
        if document["apiVersion"] != API_VERSION:
            continue
        found = cluster.get(document["kind"], document["metadata"]["name"])
        status = found["status"]
        if status["observedGeneration"] != found["metadata"]["generation"]:
            return False
        if document["kind"] in ("Execution", "TrainingJob") and status["phase"] in ("Pending", "Admitted", "Running"):
            return False
    return True


def test_applying_every_example_again_changes_nothing(
    cluster: Cluster, bare_plane: ControlPlane, kubectl: Path
) -> None:
    named: dict[tuple[str, str], Json] = {}
    for document in examples(cluster.namespace):
        named[document["kind"], document["metadata"]["name"]] = document
    documents = list(named.values())
    cluster.adopt(documents)
    assert {each["kind"] for each in documents} >= set(PLURALS)
    apply(bare_plane, kubectl, documents)
    cluster.wait(lambda: settled(cluster, documents), "the operator to have looked at all of them")

    def moved_by_applying_again() -> list[str]:
        before = [look(cluster, each) for each in documents]
        said = apply(bare_plane, kubectl, documents)
        assert said.count("serverside-applied") == len(documents)
        moved = []
        for was, document in zip(before, documents, strict=True):
            name = f"{document['kind']} {document['metadata']['name']}"
            now = look(cluster, document)
            assert managed_by(now, ARGO) == managed_by(was, ARGO), name
            (mine,) = managed_by(now, ARGO)
            assert "f:status" not in mine["fieldsV1"], name
            assert now["metadata"].get("generation") == was["metadata"].get("generation"), name
            assert now.get("spec") == was.get("spec"), name
            # A place in the queue may move by itself.
            queued = now.get("status", {}).get("phase") == "Queued"
            if not queued and now["metadata"]["resourceVersion"] != was["metadata"]["resourceVersion"]:
                moved.append(name)
        return moved

    # The operator may still have something to write, such as what an agent's runs have cost: but at last nothing moves.
    cluster.wait(lambda: not moved_by_applying_again(), "a time when applying again changes nothing")


def test_a_diff_of_what_was_applied_is_empty_after_the_run(
    cluster: Cluster, bare_plane: ControlPlane, kubectl: Path
) -> None:
    """What Argo CD calls synced: a dry run gives what is there."""
    cluster.world()
    document = {
        "apiVersion": API_VERSION,
        "kind": "Execution",
        "metadata": {"name": "one", "namespace": cluster.namespace, "annotations": {"team": "red"}},
        "spec": {"agentRef": {"name": "agent"}, "input": {"text": "hello"}, "limits": {"maxCost": "1.00"}},
    }
    apply(bare_plane, kubectl, [document])
    cluster.wait_phase("one", "Succeeded")
    before = cluster.get("Execution", "one")
    said = apply(bare_plane, kubectl, [document], "--dry-run=server", "-o", "yaml", "--show-managed-fields")
    assert yaml.safe_load(said) == before


def test_kstatus_waits_for_the_operator_and_believes_an_end_whose_spec_is_changed(
    cluster: Cluster, stack: Stack, health: Path
) -> None:
    cluster.world()
    stack.stop_operator()
    kinds: dict[str, Json] = {
        "Execution": {"agentRef": {"name": "agent"}, "input": {"text": "hello"}, "limits": {"maxCost": "1.00"}},
        "TrainingJob": {"agentRef": {"name": "agent"}, "limits": {"maxCost": "1.00"}},
        "Agent": {"type": "Simulation", "model": {"provider": "local", "name": "small"}},
        "ResourceQuota": {"hard": {"executions": 5}},
        "ModelProvider": {"type": "OpenAICompatible", "baseURL": "http://127.0.0.1:9/v1"},
        "ToolProvider": {"type": "DuckDuckGo", "prices": [{"tool": "web_search", "perCall": "0.01"}]},
    }
    assert set(kinds) == set(PLURALS)
    for kind, spec in kinds.items():
        made = cluster.create(kind, "new", spec)
        assert kstatus(health, cluster.get(kind, "new")) == kstatus(health, made) == "InProgress", kind
    stack.start_operator()
    for kind in kinds:
        wait_current(cluster, health, kind, "new")
    for kind in ("Execution", "TrainingJob"):
        before = cluster.get(kind, "new")
        assert cluster.patch(kind, "new", {"priority": 9})["metadata"]["generation"] == 2
        wait_current(cluster, health, kind, "new")
        after = cluster.get(kind, "new")["status"]
        assert {each["observedGeneration"] for each in after["conditions"]} == {2}
        for field in ("phase", "completionTime", "attempts", "output"):
            assert after.get(field) == before["status"].get(field), f"{kind} {field}"


def test_a_pod_has_none_of_the_marks_by_which_argo_prunes(
    cluster: Cluster, stack: Stack, simulated: SimulatedNode
) -> None:
    cluster.world()
    cluster.agent("forever")
    marks: Json = {
        "labels": {"app.kubernetes.io/instance": "agents", "argocd.argoproj.io/instance": "agents", "team": "red"},
        "annotations": {"argocd.argoproj.io/tracking-id": f"agents:{GROUP}/Execution:team/one", "note": "mine"},
    }
    cluster.wait_ready("Agent", "forever")
    spec: Json = {"agentRef": {"name": "forever"}, "input": {"text": "hello"}, "limits": {"maxCost": "1.00"}}
    cluster.create("Execution", "one", spec, **marks)
    cluster.wait_phase("one", "Running")
    (pod,) = cluster.pods_of("one")
    told: dict[str, Any] = {**pod.metadata.labels, **(pod.metadata.annotations or {})}
    assert not set(told) & {*marks["labels"], *marks["annotations"]}
    (owner,) = pod.metadata.owner_references
    assert (owner.kind, owner.name, owner.controller) == ("Execution", "one", True), "so that Argo CD shows it below"
    revisions = client.AppsV1Api(cluster.api).list_namespaced_controller_revision(cluster.namespace).items
    assert revisions
    assert all(each.metadata.owner_references for each in revisions)
    cluster.patch("Execution", "one", {"cancel": True})
    cluster.wait_phase("one", "Cancelled")


def stored(found: Json, **metadata: Any) -> Json:
    """What a tool creates anew from an object that it has read: everything but its status and what is the server's."""
    kept = {
        key: found["metadata"][key]
        for key in ("name", "namespace", "annotations", "labels")
        if key in found["metadata"]
    }
    return {**{key: found[key] for key in ("apiVersion", "kind", "spec")}, "metadata": {**kept, **metadata}}


def create(cluster: Cluster, document: Json) -> Json:
    where = (GROUP, VERSION, document["metadata"]["namespace"], PLURALS[document["kind"]])
    made: Json = cluster.custom.create_namespaced_custom_object(*where, document)
    return made


def wait_restored(cluster: Cluster, kind: str, name: str) -> None:
    cluster.wait(lambda: cluster.condition(kind, name, "Admitted").get("reason") == "Restored", f"{name} to wait")


def annotate(cluster: Cluster, kind: str, name: str, **annotations: str | None) -> None:
    body = {"metadata": {"annotations": {"almoner.dev/uid": None, **annotations}}}
    cluster.custom.patch_namespaced_custom_object(GROUP, VERSION, cluster.namespace, PLURALS[kind], name, body)


def started(simulated: SimulatedNode, cluster: Cluster) -> int:
    return sum(name.startswith(f"{cluster.namespace}/") for name in simulated.started)


@pytest.mark.parametrize("kind", ["Execution", "TrainingJob"])
def test_what_has_run_and_comes_back_from_a_copy_waits_until_somebody_says_that_it_is_to_run(
    cluster: Cluster, stack: Stack, simulated: SimulatedNode, kind: str
) -> None:
    cluster.world()
    spec: Json = {"agentRef": {"name": "agent"}, "limits": {"maxCost": "1.00"}}
    if kind == "Execution":
        spec["input"] = {"text": "hello"}
    uid = cluster.create(kind, "one", spec)["metadata"]["uid"]
    cluster.wait_phase("one", "Succeeded", kind=kind)
    found = cluster.get(kind, "one")
    assert found["metadata"]["annotations"] == {"almoner.dev/uid": uid}
    cluster.delete(kind, "one")
    cluster.wait(lambda: not cluster.exists(kind, "one"), "it to be gone")
    for name in ("one", "renamed", "resumed"):
        create(cluster, stored(found, name=name))
        wait_restored(cluster, kind, name)
    assert "remove the annotation almoner.dev/uid" in cluster.condition(kind, "one", "Ready")["message"]
    assert cluster.condition(kind, "one", "Suspended")["status"] == "True"
    stack.restart_operator()
    cluster.create(kind, "another", spec)
    cluster.wait_phase("another", "Succeeded", kind=kind)
    assert cluster.condition(kind, "one", "Admitted")["reason"] == "Restored", "and it waits for the next operator too"
    assert started(simulated, cluster) == 2
    annotate(cluster, kind, "renamed")
    cluster.patch(kind, "resumed", {"suspend": True})
    cluster.wait(lambda: cluster.condition(kind, "resumed", "Admitted")["reason"] == "Suspended", "it to be suspended")
    cluster.patch(kind, "resumed", {"suspend": False})
    for name in ("renamed", "resumed"):
        cluster.wait_phase(name, "Succeeded", kind=kind)
    again = cluster.get(kind, "renamed")["metadata"]
    assert again["annotations"] == {"almoner.dev/uid": again["uid"]}
    assert started(simulated, cluster) == 4
    assert cluster.condition(kind, "one", "Admitted")["reason"] == "Restored"


def test_without_the_right_to_mark_it_nothing_runs_and_the_message_says_so(
    cluster: Cluster, simulated: SimulatedNode
) -> None:
    cluster.world()
    rbac = client.RbacAuthorizationV1Api(cluster.api)
    role = rbac.read_cluster_role("almoner-operator")
    lesser = cluster.api.sanitize_for_serialization(role)
    for rule in lesser["rules"]:
        if rule["resources"] == ["executions", "trainingjobs"]:
            rule["verbs"].remove("patch")
    try:
        rbac.patch_cluster_role("almoner-operator", {"rules": lesser["rules"]})
        cluster.execution("one")
        cluster.wait(lambda: "cannot patch" in (cluster.status("one").get("message") or ""), "what it lacks to be said")
        assert not started(simulated, cluster)
    finally:
        rbac.patch_cluster_role("almoner-operator", {"rules": cluster.api.sanitize_for_serialization(role)["rules"]})
    cluster.wait_phase("one", "Succeeded")
    made = cluster.get("Execution", "one")["metadata"]
    assert made["annotations"] == {"almoner.dev/uid": made["uid"]}


def test_what_waited_when_it_was_copied_and_has_run_since_waits_as_a_copy(
    cluster: Cluster, simulated: SimulatedNode
) -> None:
    cluster.world()
    cluster.quota("none", hard={"executions": 0})
    cluster.execution("one")
    cluster.wait_reason("one", "WaitingForQuota")
    copy = stored(cluster.get("Execution", "one"))
    cluster.patch("ResourceQuota", "none", {"hard": {"executions": 5}})
    cluster.wait_phase("one", "Succeeded")
    cluster.delete("Execution", "one")
    cluster.wait(lambda: not cluster.exists("Execution", "one"), "it to be gone")
    create(cluster, copy)
    cluster.wait_reason("one", "Restored")
    cluster.execution("next")
    cluster.wait_phase("next", "Succeeded")
    assert started(simulated, cluster) == 2


def test_deleting_and_creating_anew_from_its_manifest_is_a_new_order_and_the_books_agree(
    cluster: Cluster, stack: Stack, simulated: SimulatedNode, bare_plane: ControlPlane, kubectl: Path
) -> None:
    """What a person means by `kubectl delete` and `apply`; the attempt that ran is given back once, and once alone."""
    cluster.world()
    cluster.agent("forever")
    cluster.wait_ready("Agent", "forever")
    document = {
        "apiVersion": API_VERSION,
        "kind": "Execution",
        "metadata": {"name": "one", "namespace": cluster.namespace},
        "spec": {"agentRef": {"name": "forever"}, "input": {"text": "hello"}, "limits": {"maxCost": "1.00"}},
    }
    apply(bare_plane, kubectl, [document])
    cluster.wait_phase("one", "Running")
    cluster.delete("Execution", "one")
    cluster.wait(lambda: not cluster.exists("Execution", "one"), "it to be gone")
    apply(bare_plane, kubectl, [document])
    cluster.wait_phase("one", "Running")
    cluster.patch("Execution", "one", {"cancel": True})
    (attempt,) = cluster.wait_phase("one", "Cancelled")["attempts"]
    assert attempt["number"] == 1
    assert started(simulated, cluster) == 2
    cluster.wait(lambda: not open_allotments(stack), "all money to be given back")
    verify_ledger(stack)


def copy_books(source: Path, target: Path) -> None:
    for old in target.glob("ledger.db*"):
        old.unlink()
    for file in source.glob("ledger.db*"):
        shutil.copy(file, target)


def held(cluster: Cluster) -> str:
    """What the quota's status says is held of its budget."""
    limits = cluster.get("ResourceQuota", "money")["status"]["limits"]
    return next(str(each.get("reserved", "0")) for each in limits if each["name"] == "budget")


def test_with_an_older_ledger_nothing_runs_twice_and_the_next_runs(
    cluster: Cluster, stack: Stack, simulated: SimulatedNode, tmp_path: Path
) -> None:
    """The ledger is restored from a backup, and the cluster is not."""
    cluster.world()
    cluster.agent("forever")
    cluster.wait_ready("Agent", "forever")
    cluster.quota("money", budget={"amount": "100.00", "period": "Total"})
    nothing = held(cluster)
    stack.kill_ledger()
    copy_books(stack.directory, tmp_path)
    stack.start_ledger()
    names = ("one", "two", "three")
    for name in names:
        cluster.execution(name)
    before = [cluster.wait_phase(name, "Succeeded") for name in names]
    cluster.execution("run", agent="forever")
    cluster.wait_phase("run", "Running")
    cluster.wait(lambda: held(cluster) != nothing, "what is held to be told")
    stack.kill_ledger()
    copy_books(tmp_path, stack.directory)
    stack.start_ledger()
    cluster.execution("next", agent="forever")
    cluster.wait_phase("next", "Running")
    for name in ("run", "next"):
        cluster.patch("Execution", name, {"cancel": True})
        (attempt,) = cluster.wait_phase(name, "Cancelled")["attempts"]
        assert attempt["number"] == 1
    assert [cluster.status(name) for name in names] == before
    assert started(simulated, cluster) == 5
    # The operator was ahead of these books, and hears of them all the same.
    cluster.wait(lambda: held(cluster) == nothing, "that nothing is held any more to be told")
    assert not open_allotments(stack)
    verify_ledger(stack)
