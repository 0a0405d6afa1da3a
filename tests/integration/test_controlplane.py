from __future__ import annotations

import base64
import json
import os
import secrets
import shutil
import signal
import ssl
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from kubernetes import client
from kubernetes.client.exceptions import ApiException

from almoner_dev.controlplane import ControlPlane
from almoner_dev.processes import ProcessError, ProcessId
from tests.support.polling import until

SECONDS = 60.0


@pytest.fixture(scope="module")
def bare(control_plane: ControlPlane) -> Iterator[ControlPlane]:
    """A second one beside the session's, without controllers and scheduler, free to be broken."""
    assert control_plane.url
    with ControlPlane(with_controller_manager=False, with_scheduler=False, bind_addresses=["127.0.0.2"]) as plane:
        yield plane


def kubectl(plane: ControlPlane, *arguments: str) -> str:
    assert plane.binaries is not None
    program = shutil.which("kubectl") or str(plane.binaries.path("kubectl"))
    command = [program, "--kubeconfig", str(plane.kubeconfig), *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout


def get(plane: ControlPlane, path: str, *, token: str | None, at: str | None = None) -> int:
    url = (plane.url if at is None else plane.url_at(at)) + path
    headers = {} if token is None else {"Authorization": f"Bearer {token}"}
    context = ssl.create_default_context(cafile=str(plane.ca_file))
    try:
        with urllib.request.urlopen(
            urllib.request.Request(url, headers=headers), context=context, timeout=10
        ) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code


def test_kubectl_works_with_the_kubeconfig_that_only_its_owner_can_read(control_plane: ControlPlane) -> None:
    assert control_plane.kubeconfig.stat().st_mode & 0o777 == 0o600
    assert json.loads(kubectl(control_plane, "version", "-o", "json"))["serverVersion"]["gitVersion"].startswith(
        "v1.34."
    )
    assert "default" in kubectl(control_plane, "get", "namespaces", "-o", "name")


def test_it_knows_its_administrator_and_nobody_else(control_plane: ControlPlane) -> None:
    assert get(control_plane, "/api/v1/secrets", token=control_plane.token) == 200
    assert get(control_plane, "/api/v1/secrets", token="forged") == 401
    assert get(control_plane, "/api/v1/secrets", token=None) == 403


def test_a_projected_token_is_valid_for_its_audience_alone_and_has_no_rights(
    control_plane: ControlPlane, kubernetes_api: Any, namespace: str
) -> None:
    core, authentication = client.CoreV1Api(kubernetes_api), client.AuthenticationV1Api(kubernetes_api)
    request = {"spec": {"audiences": ["almoner-ledger"], "expirationSeconds": 600}}
    token = core.create_namespaced_service_account_token("default", namespace, request).status.token

    def review(audience: str) -> Any:
        return authentication.create_token_review({"spec": {"token": token, "audiences": [audience]}}).status

    accepted = review("almoner-ledger")
    assert accepted.authenticated
    assert accepted.user.username == f"system:serviceaccount:{namespace}:default"
    assert not review("somebody-else").authenticated
    assert get(control_plane, "/api/v1/secrets", token=token) == 401

    claims = json.loads(base64.urlsafe_b64decode(token.split(".")[1] + "=="))
    assert claims["iss"] == control_plane.service_account_issuer == "https://kubernetes.default.svc"
    own = core.create_namespaced_service_account_token("default", namespace, {"spec": {}}).status.token
    assert get(control_plane, f"/api/v1/namespaces/{namespace}/secrets", token=own) == 403


def test_what_is_owned_goes_with_its_owner(kubernetes_api: Any, namespace: str) -> None:
    core = client.CoreV1Api(kubernetes_api)
    owner = core.create_namespaced_config_map(namespace, {"metadata": {"name": "owner"}})
    reference = {"apiVersion": "v1", "kind": "ConfigMap", "name": "owner", "uid": owner.metadata.uid}
    core.create_namespaced_config_map(namespace, {"metadata": {"name": "owned", "ownerReferences": [reference]}})
    core.delete_namespaced_config_map("owner", namespace)
    until(
        lambda: "owned" not in {each.metadata.name for each in core.list_namespaced_config_map(namespace).items},
        SECONDS,
        "the garbage collector to delete the owned object",
    )


def test_a_namespace_gets_the_authority_and_goes_when_deleted(kubernetes_api: Any, control_plane: ControlPlane) -> None:
    core = client.CoreV1Api(kubernetes_api)
    core.create_namespace({"metadata": {"name": "comes-and-goes"}})
    until(
        lambda: (
            core.read_namespaced_config_map("kube-root-ca.crt", "comes-and-goes").data["ca.crt"]
            == control_plane.ca_file.read_text()
        ),
        SECONDS,
        "the authority's certificate in the namespace",
        retry_on=(ApiException,),
    )
    core.delete_namespace("comes-and-goes")
    until(
        lambda: "comes-and-goes" not in {each.metadata.name for each in core.list_namespace().items},
        SECONDS,
        "the namespace to go",
    )


def test_the_scheduler_places_a_pod_on_a_node(kubernetes_api: Any, namespace: str) -> None:
    core = client.CoreV1Api(kubernetes_api)
    labels = {"almoner-test": namespace}
    core.create_node({"metadata": {"name": f"node-{namespace}", "labels": labels}})
    try:
        status = {
            "capacity": {"cpu": "2", "memory": "4Gi", "pods": "10"},
            "conditions": [{"type": "Ready", "status": "True", "reason": "Test", "message": "a node by name only"}],
        }
        core.patch_node_status(f"node-{namespace}", {"status": status})
        pod = {
            "metadata": {"name": "placed"},
            "spec": {
                "nodeSelector": labels,
                "tolerations": [{"operator": "Exists"}],
                "containers": [{"name": "main", "image": "none"}],
            },
        }
        core.create_namespaced_pod(namespace, pod)
        node = until(
            lambda: core.read_namespaced_pod("placed", namespace).spec.node_name, SECONDS, "the pod to be placed"
        )
        assert node == f"node-{namespace}"
    finally:
        core.delete_node(f"node-{namespace}")


def test_several_run_side_by_side(control_plane: ControlPlane, bare: ControlPlane) -> None:
    assert control_plane.url != bare.url
    assert set(control_plane.children) == {"etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler"}
    assert set(bare.children) == {"etcd", "kube-apiserver", "relay 127.0.0.2"}
    kubectl(bare, "create", "configmap", "only-here")
    assert "only-here" in kubectl(bare, "get", "configmaps", "-o", "name")
    assert "only-here" not in kubectl(control_plane, "get", "configmaps", "-o", "name")
    assert get(bare, "/readyz", token=control_plane.token) == 401


def test_without_controllers_pods_need_no_service_account(bare: ControlPlane) -> None:
    kubectl(bare, "run", "lonely", "--image=none", "--restart=Never")
    assert "pod/lonely" in kubectl(bare, "get", "pods", "-o", "name")


def test_it_answers_on_further_addresses_with_a_certificate_for_them_and_on_no_other(bare: ControlPlane) -> None:
    assert get(bare, "/readyz", token=bare.token, at="127.0.0.2") == 200
    assert bare.listen_on("127.0.0.3") == f"https://127.0.0.3:{bare.port}"
    assert get(bare, "/readyz", token=bare.token, at="127.0.0.3") == 200
    with pytest.raises(urllib.error.URLError, match="refused"):
        get(bare, "/readyz", token=bare.token, at="127.0.0.4")
    document = yaml.safe_load(bare.kubeconfig_text(address="127.0.0.3", token="another"))
    assert document["clusters"][0]["cluster"]["server"] == bare.url_at("127.0.0.3")
    assert document["users"][0]["user"] == {"token": "another"}


ASK_FROM_POD = """
import ssl, sys, urllib.request
url, token, ca = sys.argv[1:]
request = urllib.request.Request(url + "/readyz", headers={"Authorization": "Bearer " + token})
print(urllib.request.urlopen(request, context=ssl.create_default_context(cafile=ca), timeout=10).read().decode())
"""


@pytest.fixture
def pod_network() -> Iterator[tuple[str, str]]:
    """A network namespace behind a bridge, as a pod has it; gives its name and the bridge's address."""
    if os.geteuid() != 0 or shutil.which("ip") is None:
        pytest.skip("making a network namespace needs root and iproute2")
    tag = secrets.token_hex(3)
    prefix = f"10.{200 + secrets.randbelow(50)}.{secrets.randbelow(256)}"
    setup = [
        f"link add alm{tag} type bridge",
        f"addr add {prefix}.1/24 dev alm{tag}",
        f"link set alm{tag} up",
        f"netns add alm{tag}",
        f"link add alm{tag}h type veth peer name eth0 netns alm{tag}",
        f"link set alm{tag}h master alm{tag} up",
        f"-n alm{tag} addr add {prefix}.2/24 dev eth0",
        f"-n alm{tag} link set eth0 up",
    ]
    try:
        for line in setup:
            subprocess.run(["ip", *line.split()], check=True, capture_output=True)
        yield f"alm{tag}", f"{prefix}.1"
    finally:
        subprocess.run(["ip", "netns", "delete", f"alm{tag}"], check=False)
        subprocess.run(["ip", "link", "delete", f"alm{tag}"], check=False)


def test_a_pod_reaches_it_through_the_bridge_of_the_node(bare: ControlPlane, pod_network: tuple[str, str]) -> None:
    network, address = pod_network
    url = bare.listen_on(address)
    command = ["ip", "netns", "exec", network, sys.executable, "-c", ASK_FROM_POD, url, bare.token, str(bare.ca_file)]
    assert subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout == "ok\n"


def test_an_address_that_is_not_here_is_an_error(bare: ControlPlane) -> None:
    plane = ControlPlane(with_controller_manager=False, with_scheduler=False, bind_addresses=["192.0.2.1"])
    with pytest.raises(ProcessError, match=r"relay 192\.0\.2\.1"):
        plane.start()
    with pytest.raises(ValueError, match="not-an-address"):
        ControlPlane(bind_addresses=["not-an-address"])


@pytest.mark.parametrize("component", ["kube-apiserver", "etcd"])
def test_it_comes_back_with_its_data_after_a_component_was_killed(bare: ControlPlane, component: str) -> None:
    url = bare.url
    kubectl(bare, "create", "configmap", f"before-{component}")
    bare.kill(component)
    assert not bare.children[component].running()
    bare.restart(component)
    assert bare.url == url
    until(
        lambda: f"before-{component}" in kubectl(bare, "get", "configmaps", "-o", "name"),
        SECONDS,
        "the API server to read from etcd again",
        retry_on=(subprocess.CalledProcessError,),
    )


def test_a_component_that_does_not_start_shows_the_end_of_its_log() -> None:
    plane = ControlPlane(apiserver_args=["--no-such-flag"])
    with pytest.raises(ProcessError, match=r"(?s)kube-apiserver: ended.*unknown flag: --no-such-flag"):
        plane.start()
    assert not plane.children
    assert not plane.directory.exists()


def test_stopping_leaves_nothing_behind_and_may_be_repeated() -> None:
    plane = ControlPlane(with_controller_manager=False, with_scheduler=False)
    thread = threading.Thread(target=plane.start)
    thread.start()
    thread.join()
    children = dict(plane.children)
    assert get(plane, "/readyz", token=plane.token) == 200
    plane.stop()
    plane.stop()
    assert not any(child.running() for child in children.values())
    assert not plane.directory.exists()


START = """
import sys
from almoner_dev.controlplane import ControlPlane
plane = ControlPlane(on_start=lambda child: print(child.pid, child.identity.started, flush=True))
plane.start()
print("ready", flush=True)
sys.stdin.read()
"""


@pytest.mark.parametrize("moment", ["starting", "ready"])
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_nothing_outlives_the_process_that_started_it(tmp_path: Path, moment: str, number: signal.Signals) -> None:
    parent = subprocess.Popen(
        [sys.executable, "-c", START],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "TMPDIR": str(tmp_path)},
    )
    assert parent.stdout is not None
    children: list[ProcessId] = []
    for line in parent.stdout:
        if line == "ready\n":
            break
        pid, _, started = line.strip().partition(" ")
        children.append(ProcessId(int(pid), started))
        if moment == "starting" and len(children) == 2:
            break
    assert len(children) == (2 if moment == "starting" else 4)
    parent.send_signal(number)
    parent.communicate(timeout=60)
    until(lambda: not any(child.alive() for child in children), SECONDS, "the children to be gone")
    if number == signal.SIGINT:
        assert list(tmp_path.glob("almoner-controlplane-*")) == []


def run_cli(state: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "almoner_dev", *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=180,
        env={**os.environ, "XDG_STATE_HOME": str(state)},
    )


def test_up_status_and_down_from_the_command_line(tmp_path: Path) -> None:
    try:
        up = run_cli(tmp_path, "up", "--without-controller-manager", "--without-scheduler")
        assert up.returncode == 0, up.stderr
        assert "is up at https://127.0.0.1:" in up.stderr
        kubeconfig = next(
            line.removeprefix("export KUBECONFIG=") for line in up.stdout.splitlines() if "KUBECONFIG" in line
        )
        again = run_cli(tmp_path, "up")
        assert (again.returncode, again.stdout) == (0, up.stdout)
        assert "is up already" in again.stderr

        status = run_cli(tmp_path, "status", "-o", "json")
        assert status.returncode == 0
        (environment,) = json.loads(status.stdout)
        assert environment["kubeconfig"] == kubeconfig
        assert {each["name"]: each["running"] for each in environment["processes"]} == {
            "etcd": True,
            "kube-apiserver": True,
        }
        pids = {each["name"]: each["pid"] for each in environment["processes"]}

        os.kill(pids["etcd"], signal.SIGKILL)
        until(lambda: run_cli(tmp_path, "status").returncode == 3, SECONDS, "status to say that etcd ended")
        assert "ended, see" in run_cli(tmp_path, "status").stdout
        repaired = run_cli(tmp_path, "up", "--without-controller-manager", "--without-scheduler")
        assert repaired.returncode == 0, repaired.stderr
        assert "etcd ended; stopping the rest and starting again on the same data" in repaired.stderr
    finally:
        down = run_cli(tmp_path, "down")
    assert down.returncode == 0, down.stderr
    assert "stopped kube-apiserver, etcd" in down.stderr
    assert not Path(kubeconfig).exists()
    assert run_cli(tmp_path, "status").stdout == "nothing is up\n"
    assert "is not up" in run_cli(tmp_path, "down").stderr
