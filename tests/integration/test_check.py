"""`almoner check` against a real API server: what is in order, and a sentence with the fix for each thing that is not.

No controller and no node are there: what they would say of Deployments, pods and claims is written as they say it.
"""

from __future__ import annotations

import json
import secrets
import subprocess
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml
from kubernetes import client, config

from almoner_cli.main import main
from almoner_core.api.registry import KINDS
from almoner_dev import binaries, chart, gotools
from almoner_dev.cache import KUBERNETES_VERSION
from almoner_dev.controlplane import ControlPlane
from almoner_operator import certificates
from tests.conftest import missing

ROOT = Path(__file__).resolve().parents[2]
SYSTEM = chart.SYSTEM
Json = dict[str, Any]


class Place:
    """An API server with the chart on it, as a cluster in which all is well would have it."""

    def __init__(self, plane: ControlPlane) -> None:
        self.plane = plane
        self.api = config.new_client_from_config(str(plane.kubeconfig))
        self.core = client.CoreV1Api(self.api)
        self.apps = client.AppsV1Api(self.api)
        self.objects = client.CustomObjectsApi(self.api)

    def kubectl(self, *arguments: str, given: str | None = None) -> str:
        command = [str(binaries.find(["kubectl"]).path("kubectl")), f"--kubeconfig={self.plane.kubeconfig}", *arguments]
        done = subprocess.run(command, input=given, capture_output=True, text=True, check=False, timeout=120)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def apply(self, *documents: Json) -> None:
        text = "---\n".join(yaml.safe_dump(each) for each in documents)
        self.kubectl("apply", "--server-side", "--force-conflicts", "-f", "-", given=text)

    def ready(self, name: str, count: int | None = None) -> None:
        """Say of a Deployment what its controller would: so many pods are ready, all by default."""
        wanted = self.apps.read_namespaced_deployment(name, SYSTEM).spec.replicas
        count = wanted if count is None else count
        status = {"replicas": wanted, "readyReplicas": count, "availableReplicas": count}
        self.apps.patch_namespaced_deployment_status(name, SYSTEM, {"status": status})

    def lease(self, renewed: datetime) -> None:
        spec = {
            "holderIdentity": "almoner-operator-1",
            "leaseDurationSeconds": 15,
            "renewTime": renewed.isoformat(timespec="microseconds").replace("+00:00", "Z"),
        }
        self.apply(
            {
                "apiVersion": "coordination.k8s.io/v1",
                "kind": "Lease",
                "metadata": {"name": "almoner-operator", "namespace": SYSTEM},
                "spec": spec,
            }
        )

    def settle(self) -> None:
        """Bring everything to where all is well."""
        for name in ("almoner-operator", "almoner-ledger"):
            self.ready(name)
        self.lease(datetime.now(UTC))
        self.certificate()
        bound = {"status": {"phase": "Bound"}}
        self.core.patch_namespaced_persistent_volume_claim_status("almoner-ledger", SYSTEM, bound)

    def certificate(self) -> None:
        """The Secret that the operator makes."""
        content = certificates.renewed({}, [f"almoner-ledger.{SYSTEM}.svc"], datetime.now(UTC))
        about = {"name": "almoner-ledger-tls", "namespace": SYSTEM}
        self.apply({"apiVersion": "v1", "kind": "Secret", "metadata": about, "stringData": content})

    def pod(self, part: str, status: Json) -> str:
        """A pod of a part, whose kubelet says this of it; gives its name."""
        name = f"{part}-{secrets.token_hex(3)}"
        body = {
            "metadata": {"name": name, "labels": {"app.kubernetes.io/name": part}},
            "spec": {"serviceAccountName": part, "containers": [{"name": "one", "image": "one"}]},
        }
        self.core.create_namespaced_pod(SYSTEM, body)
        self.core.patch_namespaced_pod_status(name, SYSTEM, {"status": status})
        return name


@pytest.fixture(scope="module")
def rendered() -> list[Json]:
    try:
        return [each for each in yaml.safe_load_all(chart.render(ROOT)) if each]
    except gotools.ToolMissing as error:
        missing(error)


@pytest.fixture(scope="module")
def place(rendered: list[Json], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    plane = ControlPlane(with_controller_manager=False, with_scheduler=False)
    try:
        plane.start()
    except binaries.BinariesMissing as error:
        missing(error)
    with plane:
        made = Place(plane)
        made.kubectl("create", "namespace", SYSTEM)
        made.kubectl("create", "namespace", "team")
        made.apply(*(each for each in rendered if "helm.sh/hook" not in (each["metadata"].get("annotations") or {})))
        made.kubectl("wait", "--for=condition=Established", "crd", "-l", "app.kubernetes.io/part-of=almoner")
        yield made
        made.api.close()


@pytest.fixture
def well(place: Place) -> Place:
    """All is well, to begin with."""
    place.settle()
    return place


class Found:
    """What `almoner check -o json` found."""

    def __init__(self, code: int, text: str) -> None:
        self.code = code
        self.findings: list[dict[str, str]] = json.loads(text)["findings"]

    def bad(self) -> list[dict[str, str]]:
        return [each for each in self.findings if each["level"] == "failed"]

    def only(self) -> dict[str, str]:
        """The one thing that has failed."""
        assert self.code == 1
        (one,) = self.bad()
        assert one["fix"]
        return one

    def of(self, about: str, level: str) -> list[dict[str, str]]:
        return [each for each in self.findings if (each["about"], each["level"]) == (about, level)]


@pytest.fixture
def check(place: Place, capsys: pytest.CaptureFixture[str]) -> Any:
    def run(*arguments: str) -> Found:
        code = main(["check", "--kubeconfig", str(place.plane.kubeconfig), "-o", "json", *arguments])
        return Found(code, capsys.readouterr().out)

    return run


def test_where_all_is_well_it_says_so(well: Place, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "--kubeconfig", str(well.plane.kubeconfig)]) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[-1] == "all is well"
    assert {line.split()[0] for line in said[:-1]} == {"ok"}
    assert [line.split()[1].rstrip(":") for line in said[:-1]] == [
        "Kubernetes",
        "definitions",
        "operator",
        "operator",
        "ledger",
        "database",
        "certificate",
        "versions",
        "rights",
        "providers",
        "objects",
        "policies",
    ]


def test_in_another_namespace_it_is_not_installed(well: Place, check: Any) -> None:
    found = check("--namespace", "team")
    assert found.code == 1
    (operator,) = found.of("operator", "failed")
    assert operator["says"] == "there is no Deployment almoner-operator in namespace team"
    assert "helm upgrade --install almoner" in operator["fix"]
    assert "--namespace" in operator["fix"]
    rights = [each["says"] for each in found.of("rights", "failed")]
    assert any(
        says.startswith("service account team/almoner-operator may not get agents.almoner.dev") for says in rights
    )


def test_a_definition_of_another_version_is_named(well: Place, check: Any, rendered: list[Json]) -> None:
    name = "agents.almoner.dev"
    definitions = client.ApiextensionsV1Api(well.api)
    (own,) = [each for each in rendered if each["metadata"]["name"] == name]
    older = json.loads(json.dumps(own))
    del older["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]["description"]
    definitions.replace_custom_resource_definition(name, versioned(well, older))
    try:
        said = check().only()
        assert said["says"].startswith(f"{name} (agents) is of another version than this command")
        assert "kubectl apply --server-side -f crds/" in said["fix"]
    finally:
        definitions.replace_custom_resource_definition(name, versioned(well, own))
    assert check().code == 0


def versioned(place: Place, definition: Json) -> Json:
    """The definition, to replace the one that is there now."""
    there = client.ApiextensionsV1Api(place.api).read_custom_resource_definition(definition["metadata"]["name"])
    metadata = {**definition["metadata"], "resourceVersion": there.metadata.resource_version}
    return {**definition, "metadata": metadata}


def test_a_missing_right_is_named(well: Place, check: Any, rendered: list[Json]) -> None:
    (role,) = [
        each for each in rendered if (each["kind"], each["metadata"]["name"]) == ("ClusterRole", "almoner-operator")
    ]
    less = json.loads(json.dumps(role))
    (rule,) = [each for each in less["rules"] if each["resources"] == ["configmaps", "secrets"]]
    rule["resources"] = ["configmaps"]
    well.apply(less)
    try:
        said = check().only()
        assert said["says"] == "service account almoner-system/almoner-operator may not get secrets"
        assert "kubectl apply -f deploy/rbac.yaml" in said["fix"]
    finally:
        well.apply(role)
    assert check().code == 0


@pytest.mark.parametrize(
    ("status", "says", "fix"),
    [
        pytest.param(
            {"containerStatuses": [{"waiting": {"reason": "ImagePullBackOff", "message": "Back-off pulling image"}}]},
            "ImagePullBackOff: Back-off pulling image",
            "set image.registry, image.operator.tag and image.pullSecrets",
            id="image",
        ),
        pytest.param(
            {
                "containerStatuses": [
                    {"waiting": {"reason": "CreateContainerConfigError", "message": 'secret "books" not found'}}
                ]
            },
            'CreateContainerConfigError: secret "books" not found',
            "create the Secret or key that it names",
            id="secret",
        ),
        pytest.param(
            {
                "conditions": [
                    {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "0/3 nodes"}
                ]
            },
            "no node takes pod",
            "give it room",
            id="no node",
        ),
        pytest.param(
            {"containerStatuses": [{"running": {"startedAt": "2026-01-01T00:00:00Z"}}]},
            "is not ready",
            "NetworkPolicy",
            id="not ready",
        ),
        pytest.param(
            {"containerStatuses": [{"waiting": {"reason": "CrashLoopBackOff", "message": "back-off"}}]},
            "container one ends again and again",
            "the database's URL is right",
            id="ends",
        ),
    ],
)
def test_what_keeps_the_ledger_from_being_ready_is_said(
    well: Place, check: Any, status: Json, says: str, fix: str
) -> None:
    made = {
        "phase": "Pending",
        "conditions": status.get("conditions", []),
        "containerStatuses": [
            {"name": "one", "image": "one", "imageID": "", "ready": False, "restartCount": 0, "state": state}
            for state in status.get("containerStatuses", [])
        ],
    }
    name = well.pod("almoner-ledger", made)
    well.ready("almoner-ledger", 0)
    try:
        said = check().only()
        assert said["about"] == "ledger"
        assert said["says"].startswith("0 of 1 ready: ")
        assert says in said["says"]
        assert name in said["says"]
        assert fix in said["fix"]
    finally:
        well.core.delete_namespaced_pod(name, SYSTEM, grace_period_seconds=0)


def test_where_nobody_leads_it_is_said(well: Place, check: Any) -> None:
    well.lease(datetime.now(UTC) - timedelta(minutes=10))
    said = check().only()
    assert said["says"].startswith("none leads: almoner-operator-1 did, and was last heard ")
    assert "Lease almoner-operator" in said["fix"]


def test_parts_of_different_versions_are_said(well: Place, check: Any) -> None:
    image = {"spec": {"template": {"spec": {"containers": [{"name": "ledger", "image": "almoner-operator:0.0.9"}]}}}}
    well.apps.patch_namespaced_deployment("almoner-ledger", SYSTEM, image)
    try:
        said = check().only()
        assert said["about"] == "versions"
        assert "almoner-ledger: 0.1.0, image almoner-operator:0.0.9" in said["says"]
    finally:
        image["spec"]["template"]["spec"]["containers"][0]["image"] = "almoner-operator:0.1.0"
        well.apps.patch_namespaced_deployment("almoner-ledger", SYSTEM, image)


def test_the_databases_secret_must_have_the_key(well: Place, check: Any) -> None:
    def url(source: Json) -> None:
        change = {"name": "ALMONER_LEDGER_DATABASE", **source}
        container = {"name": "ledger", "env": [change]}
        well.apps.patch_namespaced_deployment(
            "almoner-ledger", SYSTEM, {"spec": {"template": {"spec": {"containers": [container]}}}}
        )

    url({"value": None, "valueFrom": {"secretKeyRef": {"name": "books", "key": "url"}}})
    try:
        said = check().only()
        assert said["says"] == "there is no Secret almoner-system/books, which should hold the database's URL"
        assert said["fix"].startswith("kubectl create secret generic books --namespace almoner-system")
        well.kubectl(
            "create", "secret", "generic", "books", "-n", SYSTEM, "--from-literal=uri=postgresql://u:hidden@h/x"
        )
        found = check()
        assert found.only()["says"].endswith("has no key url, which should hold the database's URL; its keys: uri")
        assert "hidden" not in json.dumps(found.findings)
        well.kubectl("patch", "secret", "books", "-n", SYSTEM, "--patch", '{"stringData": {"url": "postgresql://h/x"}}')
        assert check().code == 0
    finally:
        url({"value": "sqlite:////data/ledger.db", "valueFrom": None})


def test_the_ledgers_certificate_must_be_there_and_good(well: Place, check: Any) -> None:
    """The contents are judged in tests/unit/test_check_certificate.py; no value of a key is shown."""
    name = "almoner-ledger-tls"
    well.kubectl("delete", "secret", name, "-n", SYSTEM)
    try:
        said = check().only()
        assert said["says"] == f"there is no Secret {SYSTEM}/{name}, which should hold the ledger's certificate"
        assert said["fix"].startswith("the operator makes it within minutes of its start")
        well.kubectl("create", "secret", "generic", name, "-n", SYSTEM, "--from-literal=tls.key=hidden")
        found = check()
        assert found.only()["says"] == f"Secret {SYSTEM}/{name} has no tls.crt and no ca.crt"
        assert "hidden" not in json.dumps(found.findings)
    finally:
        well.certificate()
    assert check().code == 0


def provider(name: str, **spec: Any) -> Json:
    return {
        "apiVersion": "almoner.dev/v1alpha1",
        "kind": "ModelProvider",
        "metadata": {"name": name, "namespace": "team"},
        "spec": spec,
    }


def test_a_secret_that_a_provider_names_must_have_the_key(well: Place, check: Any) -> None:
    well.apply(provider("openai", type="OpenAI", credentials={"name": "keys", "key": "openai"}))
    try:
        said = check().only()
        assert said["says"] == "there is no Secret team/keys, which should hold the key of ModelProvider openai"
        assert said["fix"] == "kubectl create secret generic keys --namespace team --from-literal=openai=..."
        well.kubectl("create", "secret", "generic", "keys", "-n", "team", "--from-literal=anthropic=x")
        assert "has no key openai" in check().only()["says"]
        well.kubectl("patch", "secret", "keys", "-n", "team", "--patch", '{"stringData": {"openai": "x"}}')
        assert check().code == 0
    finally:
        well.kubectl("delete", "modelprovider", "openai", "-n", "team")


def test_what_is_being_deleted_is_not_judged(well: Place, check: Any) -> None:
    """Seen in a cluster: a namespace's Secret went before the provider that names it. Here a namespace never goes."""
    well.kubectl("create", "namespace", "going")
    leaving = provider("openai", type="OpenAI", credentials={"name": "gone", "key": "openai"})
    leaving["metadata"]["namespace"] = "going"
    well.apply(leaving)
    assert "going/gone" in check().only()["says"]
    try:
        well.kubectl("delete", "namespace", "going", "--wait=false")
        assert check().code == 0
    finally:
        well.kubectl("delete", "modelprovider", "openai", "-n", "going")


def test_what_is_not_ready_and_what_can_be_walked_past_are_hints(well: Place, check: Any) -> None:
    well.apply(provider("local", type="OpenAICompatible", baseURL="http://model:8080/v1"))
    moment = "2026-01-01T00:00:00Z"
    conditions = [
        {
            "type": "Ready",
            "status": "False",
            "reason": "InvalidSpec",
            "message": "spec.x",
            "lastTransitionTime": moment,
        },
        {
            "type": "Bypassable",
            "status": "True",
            "reason": "NoCredentials",
            "message": "none",
            "lastTransitionTime": moment,
        },
    ]
    well.objects.patch_namespaced_custom_object_status(
        "almoner.dev", "v1alpha1", "team", "modelproviders", "local", {"status": {"conditions": conditions}}
    )
    try:
        found = check()
        assert found.code == 0
        (object_,) = found.of("objects", "warning")
        assert object_["says"] == "ModelProvider team/local is not Ready: InvalidSpec: spec.x"
        (policy,) = found.of("policies", "warning")
        assert policy["says"].startswith("agents can call team/local past the meter")
        assert "networkPolicy.runnerNamespaces" in policy["fix"]
    finally:
        well.kubectl("delete", "modelprovider", "local", "-n", "team")


def test_who_may_not_look_is_told_what_was_not_looked_at(
    well: Place, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    well.apply({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "nobody", "namespace": "team"}})
    token = well.kubectl("create", "token", "nobody", "-n", "team").strip()
    document = yaml.safe_load(well.plane.kubeconfig.read_text())
    document["users"] = [{"name": document["users"][0]["name"], "user": {"token": token}}]
    kubeconfig = tmp_path / "kubeconfig"
    kubeconfig.write_text(yaml.safe_dump(document))
    kubeconfig.chmod(0o600)
    assert main(["check", "--kubeconfig", str(kubeconfig), "-o", "json"]) == 3
    found = Found(3, capsys.readouterr().out)
    assert {each["level"] for each in found.findings} == {"ok", "unknown"}
    assert main(["check", "--kubeconfig", str(kubeconfig)]) == 3
    assert capsys.readouterr().out.splitlines()[-1].endswith("could not be looked at")
    assert main(["status", "--kubeconfig", str(kubeconfig)]) == 0
    assert capsys.readouterr().out.count("may not be looked at") == 10
    (rights,) = found.of("rights", "unknown")
    assert rights["says"] == "not looked at: this kubeconfig may not create subjectaccessreviews"
    assert "administrator" in rights["fix"]


def test_a_cluster_that_does_not_answer_is_said_at_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    kubeconfig = tmp_path / "kubeconfig"
    assert main(["check", "--kubeconfig", str(kubeconfig)]) == 2
    assert "give --kubeconfig FILE" in capsys.readouterr().err
    kubeconfig.write_text(
        yaml.safe_dump(
            {
                "apiVersion": "v1",
                "kind": "Config",
                "current-context": "x",
                "clusters": [{"name": "x", "cluster": {"server": "http://127.0.0.1:1"}}],
                "contexts": [{"name": "x", "context": {"cluster": "x", "user": "x"}}],
                "users": [{"name": "x", "user": {}}],
            }
        )
    )
    assert main(["check", "--kubeconfig", str(kubeconfig)]) == 2
    said = capsys.readouterr().err
    assert said.startswith("almoner check: the API server http://127.0.0.1:1 does not answer: ")
    assert "Traceback" not in said


def test_what_belongs_to_almoner_is_found_by_its_label(place: Place) -> None:
    """The definitions are removed by it: docs/install.md."""
    label = "app.kubernetes.io/part-of=almoner"
    said = place.kubectl("delete", "crd", "-l", label, "--dry-run=server", "-o", "name").split()
    assert len(said) == len(KINDS)
    assert "customresourcedefinition.apiextensions.k8s.io/agents.almoner.dev" in said


def test_status_counts_what_there_is(well: Place, capsys: pytest.CaptureFixture[str]) -> None:
    def said() -> list[str]:
        assert main(["status", "--kubeconfig", str(well.plane.kubeconfig)]) == 0
        return [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]

    assert said() == [
        f"Kubernetes {KUBERNETES_VERSION}",
        "almoner-operator 0.1.0, 2 of 2 ready",
        "almoner-ledger 0.1.0, 1 of 1 ready",
        "executions none",
        "training jobs none",
        "agents 0, 0 of them not Ready",
        "quotas 0, 0 of them not Ready",
        "model providers 0, 0 of them not Ready",
        "tool providers 0, 0 of them not Ready",
        "cluster model providers 0, 0 of them not Ready",
        "cluster tool providers 0, 0 of them not Ready",
    ]
    runs = [
        {
            "apiVersion": "almoner.dev/v1alpha1",
            "kind": "Execution",
            "metadata": {"name": name, "namespace": "team"},
            "spec": {"agentRef": {"name": "agent"}, "input": {"text": "hi"}},
        }
        for name in ("one", "two", "three")
    ]
    well.apply(*runs)
    try:
        for name in ("one", "two"):
            well.objects.patch_namespaced_custom_object_status(
                "almoner.dev", "v1alpha1", "team", "executions", name, {"status": {"phase": "Queued"}}
            )
        assert "executions 1 New, 2 Queued" in said()
        assert main(["status", "--kubeconfig", str(well.plane.kubeconfig), "-n", "team", "-o", "json"]) == 0
        found = json.loads(capsys.readouterr().out)
        assert found["parts"] == {"almoner-operator": "not installed", "almoner-ledger": "not installed"}
        assert found["runs"]["executions"] == {"New": 1, "Queued": 2}
    finally:
        well.kubectl("delete", "executions", "--all", "-n", "team")
