"""The chart and deploy/: what they make is taken by a real API server, and what is wrong in values is said by name."""

from __future__ import annotations

import json
import secrets
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from kubernetes import client, config

from almoner_dev import binaries, chart, gotools
from almoner_dev.controlplane import ControlPlane
from almoner_ledger import cli as ledger
from almoner_operator.__main__ import parser as operator_parser
from almoner_operator.certificate_keeper import dns_names
from tests.conftest import missing

ROOT = Path(__file__).resolve().parents[2]
CHART = ROOT / chart.CHART
PRODUCTION = (
    "ledger.database.existingSecret=books",
    "ledger.database.ownerKey=owner",
    "ledger.database.role=almoner_ledger",
    "ledger.replicas=3",
    "ledger.autoscaling.enabled=true",
    "operator.settings.require-budget=Quota",
    "operator.settings.lease-seconds=20",
    "ledger.settings.lease-seconds=90",
    "image.registry=images.example.com/tools/",
    "image.pullSecrets={pull}",
    "networkPolicy.runnerNamespaces={team-a,team-b}",
    "networkPolicy.metricsFrom[0].namespaceSelector.matchLabels.team=monitoring",
    "networkPolicy.readersFrom[0].namespaceSelector.matchLabels.team=ingress",
    "monitoring.dashboard.enabled=true",
    "operator.priorityClassName=system-cluster-critical",
    "operator.nodeSelector.pool=system",
    "ledger.tolerations[0].operator=Exists",
)
MOUNTED_CA = {"ledger_certificate_secret": "", "ledger_ca_file": "/etc/almoner/tls/ca.crt"}
POSTGRES = "ledger.database.existingSecret=books"
PROMETHEUS = ("monitoring.serviceMonitor.enabled=true", "monitoring.rules.enabled=true")
Json = dict[str, Any]


@pytest.fixture(scope="module")
def helm() -> Path:
    try:
        return gotools.path("helm")
    except gotools.ToolMissing as error:
        missing(error)


@pytest.fixture(scope="module")
def plane() -> Iterator[ControlPlane]:
    """A control plane of this file's own: a release has the definitions of the whole cluster."""
    made = ControlPlane(with_scheduler=False)
    try:
        made.start()
    except binaries.BinariesMissing as error:
        missing(error)
    with made:
        yield made


def run(helm: Path, *arguments: str | Path, plane: ControlPlane | None = None) -> subprocess.CompletedProcess[str]:
    where = ["--kubeconfig", str(plane.kubeconfig)] if plane is not None else []
    return subprocess.run([helm, *arguments, *where], capture_output=True, text=True, timeout=120, check=False)


def sets(*values: str) -> list[str]:
    return [part for value in values for part in ("--set", value)]


def rendered(helm: Path, *values: str) -> list[Json]:
    done = run(helm, "template", "almoner", CHART, "--namespace", chart.SYSTEM, *sets(*values))
    assert done.returncode == 0, done.stderr
    return [each for each in yaml.safe_load_all(done.stdout) if each]


def find(documents: list[Json], kind: str, name: str) -> Json:
    (found,) = [each for each in documents if (each["kind"], each["metadata"]["name"]) == (kind, name)]
    return found


@pytest.mark.parametrize("values", [(), PRODUCTION, (*PRODUCTION, *PROMETHEUS)], ids=["trial", "production", "all"])
def test_it_has_nothing_to_object_to(helm: Path, values: tuple[str, ...]) -> None:
    done = run(helm, "lint", "--strict", CHART, *sets(*values))
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ("operator.replica=2", "additional properties 'replica' not allowed"),
        ("operator.replicas=0", "/operator/replicas"),
        ("operator.replicas=two", "/operator/replicas"),
        ("operator.settings.lease-second=20", "additional properties 'lease-second' not allowed"),
        ("operator.settings.require-budget=Sometimes", "/operator/settings/require-budget"),
        ("operator.settings.ledger-url=http://elsewhere", "additional properties 'ledger-url' not allowed"),
        ("ledger.settings.database=sqlite:////x", "additional properties 'database' not allowed"),
        ("ledger.storage.size=much", "/ledger/storage/size"),
        ("image.pullPolicy=Sometimes", "/image/pullPolicy"),
        ("image.registry=images.example.com", "/image/registry"),
        ("ledger.replicas=2", "ledger.database.existingSecret"),
        ("ledger.autoscaling.enabled=true", "ledger.database.existingSecret"),
        ("ledger.database.ownerKey=owner", "ledger.database.role"),
        (
            f"{POSTGRES},ledger.replicas=3,ledger.autoscaling.enabled=true,ledger.autoscaling.maxReplicas=2",
            "ledger.autoscaling.maxReplicas: it is 2, below ledger.replicas (3)",
        ),
        ("networkPolicy.runnerNamespaces=team", "/networkPolicy/runnerNamespaces"),
        ("tls.mode=sometimes", "/tls/mode"),
        ("tls.mode=certManager", "tls.issuerRef.name"),
        ("tls.mode=existingSecret", "tls.existingSecret: name the Secret"),
        ("tls.existingSecret=mine", "tls.existingSecret: it is used with tls.mode=existingSecret alone"),
        ("operator.settings.ledger-ca-file=/x", "additional properties 'ledger-ca-file' not allowed"),
        ("ledger.settings.tls-dir=/x", "additional properties 'tls-dir' not allowed"),
        ("monitoring.rules.enable=true", "additional properties 'enable' not allowed"),
    ],
)
def test_a_wrong_value_is_refused_by_name(helm: Path, value: str, says: str) -> None:
    done = run(helm, "template", CHART, *sets(value))
    assert done.returncode != 0
    assert says in done.stderr


def test_a_too_old_kubernetes_is_refused_before_anything_is_installed(helm: Path) -> None:
    done = run(helm, "template", CHART, "--kube-version", "v1.29.9")
    assert done.returncode != 0
    assert "requires kubeVersion: >=1.30.0-0 which is incompatible with Kubernetes v1.29.9" in done.stderr


def test_every_option_in_the_pods_is_one_of_the_programs(helm: Path) -> None:
    documents = rendered(helm, *PRODUCTION)
    (operator,) = find(documents, "Deployment", "almoner-operator")["spec"]["template"]["spec"]["containers"]
    parsed = operator_parser().parse_args(operator["args"])
    assert parsed.lease_seconds == 20
    assert parsed.require_budget == "Quota"
    assert parsed.image_pull_secrets == "pull"
    assert parsed.runner_image == "images.example.com/tools/almoner-runner:0.1.0"
    pod = find(documents, "Deployment", "almoner-ledger")["spec"]["template"]["spec"]
    (served,), (migrating,) = pod["containers"], pod["initContainers"]
    parsed = ledger_arguments([*served["command"][1:], *served["args"]])
    assert parsed.lease_seconds == 90
    assert parsed.no_migrate
    assert parsed.operator_user == [f"system:serviceaccount:{chart.SYSTEM}:almoner-operator"]
    assert ledger_arguments(migrating["command"][1:]).grant_to == "almoner_ledger"


@pytest.mark.parametrize(
    ("values", "secret", "trusts"),
    [
        ((), "almoner-ledger-tls", {"ledger_certificate_secret": "almoner-ledger-tls", "ledger_ca_file": None}),
        (("tls.mode=existingSecret", "tls.existingSecret=mine"), "mine", MOUNTED_CA),
        (("tls.mode=certManager", "tls.issuerRef.name=authority"), "almoner-ledger-tls", MOUNTED_CA),
        (("tls.mode=none",), None, {"ledger_certificate_secret": "", "ledger_ca_file": None}),
    ],
    ids=["selfSigned", "existingSecret", "certManager", "none"],
)
def test_who_serves_the_certificate_and_who_trusts_it(
    helm: Path, values: tuple[str, ...], secret: str | None, trusts: Json
) -> None:
    documents = rendered(helm, *values)
    operator = find(documents, "Deployment", "almoner-operator")["spec"]["template"]["spec"]
    ledger_pod = find(documents, "Deployment", "almoner-ledger")["spec"]["template"]["spec"]
    asking = operator_parser().parse_args(operator["containers"][0]["args"])
    scheme = "https" if secret else "http"
    assert asking.ledger_url == f"{scheme}://almoner-ledger.{chart.SYSTEM}.svc:8780"
    assert {name: getattr(asking, name) for name in trusts} == trusts
    (served,) = ledger_pod["containers"]
    serving = ledger_arguments([*served["command"][1:], *served["args"]])
    assert serving.tls_dir == (Path("/etc/almoner/tls") if secret else None)
    for probe in ("livenessProbe", "readinessProbe"):
        assert served[probe]["httpGet"].get("scheme", "HTTP") == scheme.upper()
    if secret is None:
        return
    (volume,) = [each["secret"] for each in ledger_pod["volumes"] if "secret" in each]
    # The authority's key stays out of the pod that every agent can speak to.
    assert (volume["secretName"], {item["key"] for item in volume["items"]}) == (secret, {"tls.crt", "tls.key"})
    mounted = {each["secret"]["secretName"] for each in operator["volumes"] if "secret" in each}
    assert mounted == ({secret} if trusts["ledger_ca_file"] else set())
    if "tls.mode=certManager" in values:
        made = find(documents, "Certificate", "almoner-ledger")["spec"]
        assert made["dnsNames"] == dns_names(chart.SYSTEM)
        assert (made["secretName"], made["issuerRef"]["name"]) == (secret, "authority")


def test_where_runners_find_dns_and_providers_is_a_setting(helm: Path) -> None:
    def egress(*values: str) -> list[Json]:
        documents = rendered(helm, "networkPolicy.runnerNamespaces={team}", *values)
        (policy,) = [
            each
            for each in documents
            if (each["kind"], each["metadata"]["name"]) == ("NetworkPolicy", "almoner-runners")
        ]
        return list(policy["spec"]["egress"])

    dns, ledger_, providers = egress()
    assert dns["to"] == [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "kube-system"}}}]
    assert {port["port"] for port in dns["ports"]} == {53}
    assert [block["ipBlock"]["cidr"] for block in providers["to"]] == ["0.0.0.0/0", "::/0"]
    cache = "networkPolicy.dns[0].to[0].ipBlock.cidr=169.254.20.10/32"
    assert egress(cache) == [{"to": [{"ipBlock": {"cidr": "169.254.20.10/32"}}]}, ledger_, providers]


def test_who_else_reaches_the_ledgers_api(helm: Path) -> None:
    def ports(*values: str) -> dict[int, list[Json]]:
        policy = find(rendered(helm, *values), "NetworkPolicy", "almoner-ledger")
        return {rule["ports"][0]["port"]: rule["from"] for rule in policy["spec"]["ingress"][1:]}

    assert ports() == {}
    ingress = {"namespaceSelector": {"matchLabels": {"team": "ingress"}}}
    assert ports("networkPolicy.readersFrom[0].namespaceSelector.matchLabels.team=ingress") == {8780: [ingress]}


def ledger_arguments(arguments: list[str]) -> Any:
    import argparse

    parser = argparse.ArgumentParser()
    ledger.add_arguments(parser)
    return parser.parse_args(arguments)


def test_the_settings_in_the_schema_are_the_programs_options() -> None:
    properties = chart.schema()["properties"]
    settings = properties["operator"]["properties"]["settings"]["properties"]
    assert {"require-budget", "namespaces", "compute-price-cpu-hour", "log-format"} <= settings.keys()
    assert not settings.keys() & chart.OPERATORS_OWN
    assert {"reading-seconds", "lease-seconds", "log-level"} <= properties["ledger"]["properties"]["settings"][
        "properties"
    ].keys()


def test_every_value_is_documented_and_in_the_schema() -> None:
    values = (CHART / "values.yaml").read_text()
    documented = {name for name, _, text in chart.documented(values) if text}

    def leaves(value: Any, schema: Json, path: str) -> Iterator[str]:
        if path in documented or not isinstance(value, dict):
            yield path
            return
        for name, inner in value.items():
            yield from leaves(inner, schema["properties"][name], f"{path}.{name}".lstrip("."))

    found = set(leaves(yaml.safe_load(values), chart.schema(), ""))
    assert found == documented


@pytest.mark.parametrize("values", [(), PRODUCTION], ids=["trial", "production"])
def test_the_api_server_takes_every_object(helm: Path, plane: ControlPlane, values: tuple[str, ...]) -> None:
    api = config.new_client_from_config(str(plane.kubeconfig))
    core = client.CoreV1Api(api)
    for name in (chart.SYSTEM, "team-a", "team-b"):
        if not any(each.metadata.name == name for each in core.list_namespace().items):
            restricted = {
                "pod-security.kubernetes.io/enforce": "restricted",
                "pod-security.kubernetes.io/warn": "restricted",
            }
            core.create_namespace({"metadata": {"name": name, "labels": restricted}})
    documents = "---\n".join(yaml.safe_dump(each) for each in rendered(helm, *values))
    said = kubectl(plane, "apply", "--server-side", "--dry-run=server", "-f", "-", given=documents)
    assert "restricted" not in said.stderr  # Pod Security has nothing to warn of.
    assert said.stdout.count("serverside-applied") == len(rendered(helm, *values))


def kubectl(plane: ControlPlane, *arguments: str, given: str | None = None) -> subprocess.CompletedProcess[str]:
    command = [str(binaries.find(["kubectl"]).path("kubectl")), f"--kubeconfig={plane.kubeconfig}", *arguments]
    done = subprocess.run(command, input=given, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    return done


def test_a_release_is_installed_upgraded_rolled_back_and_uninstalled(helm: Path, plane: ControlPlane) -> None:
    namespace = f"install-{secrets.token_hex(3)}"
    release = ["--namespace", namespace]

    def done(*arguments: str | Path) -> str:
        result = run(helm, *arguments, *release, plane=plane)
        assert result.returncode == 0, result.stderr
        return result.stdout

    said = done("install", "almoner", CHART, "--create-namespace")
    assert "helm test almoner" in said
    api = config.new_client_from_config(str(plane.kubeconfig))
    client.CoreV1Api(api).create_namespace({"metadata": {"name": f"{namespace}-team"}})
    quota = (
        said.split("kubectl apply -f - <<'END'\n")[1]
        .split("\nEND")[0]
        .replace("namespace: team", f"namespace: {namespace}-team")
    )
    kubectl(plane, "apply", "-f", "-", given=quota)  # What NOTES tell to do next.
    apps = client.AppsV1Api(api)
    done("upgrade", "almoner", CHART, *sets("operator.replicas=3", "operator.settings.require-budget=Quota"))
    operator = apps.read_namespaced_deployment("almoner-operator", namespace)
    assert operator.spec.replicas == 3
    assert "--require-budget=Quota" in operator.spec.template.spec.containers[0].args
    assert f"--own-namespace={namespace}" in operator.spec.template.spec.containers[0].args
    done("rollback", "almoner", "1")
    assert apps.read_namespaced_deployment("almoner-operator", namespace).spec.replicas == 2
    done("uninstall", "almoner")
    assert not apps.list_namespaced_deployment(namespace).items
    # The definitions, and so everybody's objects, and the books stay.
    objects = client.CustomObjectsApi(api).list_namespaced_custom_object(
        "almoner.dev", "v1alpha1", f"{namespace}-team", "resourcequotas"
    )
    assert [each["metadata"]["name"] for each in objects["items"]] == ["team"]
    claims = client.CoreV1Api(api).list_namespaced_persistent_volume_claim(namespace).items
    assert [each.metadata.name for each in claims] == ["almoner-ledger"]


def test_deploy_is_the_chart_with_its_defaults(helm: Path, plane: ControlPlane) -> None:
    assert (ROOT / "deploy" / "almoner.yaml").read_text() == chart.without_helm(chart.render(ROOT)), (
        "write it anew: python -m almoner_dev.chart"
    )
    made = kubectl(plane, "kustomize", str(ROOT / "deploy")).stdout
    kinds = {(each["kind"], each["metadata"]["name"]) for each in yaml.safe_load_all(made)}
    whole = {(each["kind"], each["metadata"]["name"]) for each in rendered(helm)}
    assert kinds - whole == {("Namespace", chart.SYSTEM)}
    assert whole - kinds == {("Pod", "almoner-test")}


def test_the_roles_are_those_of_deploy(helm: Path) -> None:
    documents = {(each["kind"], each["metadata"]["name"]): each for each in rendered(helm)}
    for each in yaml.safe_load_all((ROOT / "deploy" / "rbac.yaml").read_text()):
        if each["kind"] != "Namespace":
            assert json.dumps(documents[each["kind"], each["metadata"]["name"]], sort_keys=True) == json.dumps(
                each, sort_keys=True
            )
