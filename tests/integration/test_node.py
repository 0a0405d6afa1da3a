from __future__ import annotations

import os
import secrets
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from kubernetes import client
from kubernetes.client.exceptions import ApiException

from almoner_dev.controlplane import ControlPlane
from almoner_dev.node import ProcessNode
from tests.support.live_pods import Diary, Pods, condition, container, container_status, sidecar
from tests.support.polling import until

POD_IP = {"name": "POD_IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}}
SERVE = 'exec python -m http.server 8791 --bind "$POD_IP" --directory /usr/share'
SAY = 'python -c "$SAY"'
USER = {"runAsUser": 10001, "runAsGroup": 10001}


@pytest.fixture(scope="module", params=["namespaces", "none"])
def node(request: pytest.FixtureRequest, control_plane: ControlPlane) -> Iterator[ProcessNode]:
    if request.param == "namespaces" and os.geteuid() != 0:
        pytest.skip("isolation by namespaces needs root: NOT tested in this run")
    name = f"node-{request.param}-{secrets.token_hex(2)}"
    resources = {"nvidia.com/gpu": "1"}
    with ProcessNode(control_plane.kubeconfig, name, isolation=request.param, resources=resources) as running:
        assert running.isolation == request.param
        yield running


@pytest.fixture
def isolated(node: ProcessNode) -> ProcessNode:
    if node.isolation != "namespaces":
        pytest.skip("what this test asks for needs namespaces; this node runs without")
    return node


@pytest.fixture
def pods(kubernetes_api: Any, namespace: str, node: ProcessNode) -> Pods:
    found = Pods(kubernetes_api, namespace)
    create = found.create
    # Every pod of a test goes to the node under test, by way of the real scheduler.
    found.create = lambda *a, **k: create(*a, **{"node": node.name, **k})  # type: ignore[method-assign]
    return found


@pytest.fixture
def diary(node: ProcessNode) -> Iterator[Diary]:
    with Diary(node.host_address) as running:
        yield running


def test_a_sidecar_is_up_before_the_main_container_starts_and_ends_after_it(pods: Pods) -> None:
    probe = {"httpGet": {"path": "/", "port": 8791}, "periodSeconds": 1, "failureThreshold": 30}
    late = "sleep 0.5; " + SERVE
    meter = sidecar("meter", late, env=[POD_IP], startupProbe=probe)
    ask = "import urllib.request as u,os;print(u.urlopen('http://'+os.environ['POD_IP']+':8791/').status)"
    agent = container("agent", env=[POD_IP], command=["python", "-c", ask])
    pods.create("one", [agent], init=[meter])
    pod = pods.phase("one", "Succeeded", "Failed")
    assert pod["status"]["phase"] == "Succeeded"
    assert pods.log("one", "agent") == "200\n"
    ended = container_status(pod, "agent")["state"]["terminated"]
    assert (ended["exitCode"], ended["reason"]) == (0, "Completed")
    # The sidecar was told to end, and its exit code decides nothing.
    assert container_status(pod, "meter")["state"]["terminated"]["exitCode"] == 143
    assert condition(pod, "Initialized")["status"] == "True"
    assert condition(pod, "Ready") | {"lastTransitionTime": ""} == {
        "type": "Ready",
        "status": "False",
        "reason": "PodCompleted",
        "lastTransitionTime": "",
    }


def test_a_startup_probe_that_never_passes_holds_the_main_container_back(pods: Pods) -> None:
    probe = {"exec": {"command": ["false"]}, "periodSeconds": 1, "failureThreshold": 1}
    pods.create("held", [container("agent", "true")], init=[sidecar("meter", "sleep 600", startupProbe=probe)])
    until(lambda: container_status(pods.get("held"), "meter").get("restartCount", 0) >= 1, 30, "a restart")
    pod = pods.get("held")
    assert pod["status"]["phase"] == "Pending"
    assert condition(pod, "Initialized")["status"] == "False"
    assert "waiting" in container_status(pod, "agent")["state"]


def test_init_containers_run_in_order_and_share_volumes(pods: Pods) -> None:
    mounts = [{"name": "shared", "mountPath": "/data/shared"}]
    first = container("first", "echo one >> /data/shared/order", volumeMounts=mounts)
    second = container("second", "echo two >> /data/shared/order", volumeMounts=mounts)
    main = container("main", "cat /data/shared/order", volumeMounts=mounts)
    pods.create("ordered", [main], init=[first, second], volumes=[{"name": "shared", "emptyDir": {}}])
    pods.phase("ordered", "Succeeded")
    assert pods.log("ordered", "main") == "one\ntwo\n"


def test_a_failing_init_container_fails_the_pod_before_its_main_container(pods: Pods) -> None:
    pods.create("broken", [container("main", "true")], init=[container("first", "exit 3")])
    pod = pods.phase("broken", "Failed")
    assert container_status(pod, "first")["state"]["terminated"]["exitCode"] == 3
    assert "waiting" in container_status(pod, "main")["state"]


ENDS: dict[str, tuple[dict[str, Any], int, str, str]] = {
    # name: (container, exit code, reason, how the message begins)
    "message": ({"script": "echo -n said > /dev/termination-log; exit 4"}, 4, "Error", "said"),
    "silent": ({"script": "echo words; exit 5"}, 5, "Error", ""),
    "from-log": (
        {"script": "echo words; exit 5", "terminationMessagePolicy": "FallbackToLogsOnError"},
        5,
        "Error",
        "words\n",
    ),
    "own-path": ({"script": "echo -n x > /tmp/last", "terminationMessagePath": "/tmp/last"}, 0, "Completed", "x"),
    # Four dollars: Kubernetes makes one of every two.
    "signal": ({"script": "kill -9 $$$$"}, 137, "Error", ""),
    "missing": ({"command": ["no-such-program"]}, 128, "StartError", "cannot start 'no-such-program'"),
}


@pytest.mark.parametrize("name", ENDS)
def test_how_containers_end(pods: Pods, name: str) -> None:
    extra, code, reason, message = ENDS[name]
    pods.create(f"ends-{name}", [container("main", **extra)])
    pod = pods.phase(f"ends-{name}", "Succeeded", "Failed")
    assert pod["status"]["phase"] == ("Succeeded" if code == 0 else "Failed")
    ended = container_status(pod, "main")["state"]["terminated"]
    assert (ended["exitCode"], ended["reason"]) == (code, reason)
    assert ended.get("message", "").startswith(message)
    assert bool(ended.get("message")) == bool(message)


def test_a_container_without_a_command_waits_and_says_why(pods: Pods) -> None:
    pods.create("imageless", [container("main")])
    waiting = until(
        lambda: container_status(pods.get("imageless"), "main").get("state", {}).get("waiting", {}).get("message"),
        20,
        "a message",
    )
    assert "give container 'main' a command" in waiting


def test_restarts_on_failure_and_keeps_the_last_state(pods: Pods) -> None:
    mounts = [{"name": "shared", "mountPath": "/data"}]
    main = container("main", "echo x >> /data/runs; test $(wc -l < /data/runs) -ge 2", volumeMounts=mounts)
    pods.create("retry", [main], volumes=[{"name": "shared", "emptyDir": {}}], restartPolicy="OnFailure")
    status = container_status(pods.phase("retry", "Succeeded"), "main")
    assert status["restartCount"] == 1
    assert status["lastState"]["terminated"]["exitCode"] == 1


def test_a_sidecar_that_dies_is_started_again(pods: Pods) -> None:
    pods.create("revived", [container("main", "sleep 600")], init=[sidecar("helper", "sleep 0.5; exit 1")])
    until(lambda: container_status(pods.get("revived"), "helper").get("restartCount", 0) >= 1, 30, "a restart")
    assert pods.get("revived")["status"]["phase"] == "Running"
    pods.delete("revived", 0)


def test_readiness_is_reported_and_a_failed_liveness_probe_restarts(pods: Pods) -> None:
    mounts = [{"name": "shared", "mountPath": "/data"}]

    def check(path: str) -> Any:
        return {"exec": {"command": ["test", "-e", path]}, "periodSeconds": 1, "failureThreshold": 1}

    # Ready at once, then not alive: the second run finds the file and stays.
    script = "touch /data/ready; sleep 0.5; test -e /data/again || { touch /data/again; exec sleep 600; }; "
    script += "touch /data/alive; exec sleep 600"
    probes = {
        "readinessProbe": check("/data/ready"),
        "livenessProbe": {**check("/data/alive"), "initialDelaySeconds": 2},
    }
    main = container("main", script, volumeMounts=mounts, **probes)
    pods.create("lives", [main], volumes=[{"name": "shared", "emptyDir": {}}], restartPolicy="Always")
    until(lambda: condition(pods.get("lives"), "Ready").get("status") == "True", 20, "readiness")
    until(lambda: container_status(pods.get("lives"), "main")["restartCount"] == 1, 30, "a restart")
    until(lambda: condition(pods.get("lives"), "Ready").get("status") == "True", 20, "readiness again")
    assert container_status(pods.get("lives"), "main")["lastState"]["terminated"]["exitCode"] == 143
    pods.delete("lives", 0)


def test_environment_of_a_container(pods: Pods, node: ProcessNode) -> None:
    metadata = {"name": "given"}
    pods.core.create_namespaced_secret(pods.namespace, {"metadata": metadata, "stringData": {"key": "s3", "b": "B"}})
    pods.core.create_namespaced_config_map(pods.namespace, {"metadata": metadata, "data": {"a": "A", "key": "cm"}})
    env = [
        {"name": "FROM_SECRET", "valueFrom": {"secretKeyRef": {"name": "given", "key": "key"}}},
        {"name": "FROM_MAP", "valueFrom": {"configMapKeyRef": {"name": "given", "key": "a"}}},
        {"name": "NOT_THERE", "valueFrom": {"configMapKeyRef": {"name": "given", "key": "zz", "optional": True}}},
        {"name": "NAME", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}},
        {"name": "CPU", "valueFrom": {"resourceFieldRef": {"resource": "limits.cpu"}}},
        {"name": "BOTH", "value": "$(NAME)-$(FROM_MAP)-$(LATER)-$$(NAME)"},
        {"name": "LATER", "value": "x"},
        POD_IP,
    ]
    main = container(
        "main",
        "env; echo arg=$0",
        env=env,
        envFrom=[{"prefix": "P_", "secretRef": {"name": "given"}}],
        args=["$(BOTH)"],
        resources={"limits": {"cpu": "1500m"}},
    )
    pods.create("env", [main])
    pod = pods.phase("env", "Succeeded")
    lines = set(pods.log("env", "main").splitlines())
    expected = {"FROM_SECRET=s3", "FROM_MAP=A", "NAME=env", "CPU=2", "P_b=B", "P_key=s3", "LATER=x"}
    assert expected <= lines
    assert f"POD_IP={pod['status']['podIP']}" in lines
    assert "BOTH=env-A-$(LATER)-$(NAME)" in lines
    assert "arg=env-A-$(LATER)-$(NAME)" in lines
    assert not any(line.startswith(("NOT_THERE=", "ALMONER_")) for line in lines)


def test_a_missing_secret_is_waited_for(pods: Pods) -> None:
    env = [{"name": "KEY", "valueFrom": {"secretKeyRef": {"name": "late", "key": "key"}}}]
    pods.create("waits", [container("main", "echo $KEY", env=env)])
    message = until(
        lambda: container_status(pods.get("waits"), "main").get("state", {}).get("waiting", {}).get("message"),
        20,
        "a message",
    )
    assert message == 'secret "late" not found'
    pods.core.create_namespaced_secret(pods.namespace, {"metadata": {"name": "late"}, "stringData": {"key": "here"}})
    pods.phase("waits", "Succeeded")
    assert pods.log("waits", "main") == "here\n"


def test_a_projected_token_is_the_pods_own(pods: Pods, kubernetes_api: Any) -> None:
    source = {"serviceAccountToken": {"path": "token", "audience": "almoner-ledger", "expirationSeconds": 600}}
    volumes = [{"name": "token", "projected": {"sources": [source]}}]
    mounts = [{"name": "token", "mountPath": "/almoner/token"}]
    pods.create("token", [container("main", "cat /almoner/token/token", volumeMounts=mounts)], volumes=volumes)
    uid = pods.phase("token", "Succeeded")["metadata"]["uid"]
    # The API server honours a bound token only while its pod exists: it still does.
    review = client.AuthenticationV1Api(kubernetes_api).create_token_review(
        {"spec": {"token": pods.log("token", "main"), "audiences": ["almoner-ledger"]}}
    )
    assert review.status.authenticated
    assert review.status.audiences == ["almoner-ledger"]
    assert review.status.user.extra["authentication.kubernetes.io/pod-name"] == ["token"]
    assert review.status.user.extra["authentication.kubernetes.io/pod-uid"] == [uid]


def test_a_mounted_secret_follows_its_object_all_at_once(pods: Pods, diary: Diary) -> None:
    metadata = {"name": "rotating"}
    pods.core.create_namespaced_secret(pods.namespace, {"metadata": metadata, "stringData": {"a": "1", "b": "1"}})
    loop = (
        "import time,subprocess,os,sys\n"
        "seen=set()\n"
        "while True:\n"
        "    d=os.open('/keys/..data',os.O_PATH)\n"
        "    try: pair=tuple(open(os.open(n,os.O_RDONLY,dir_fd=d)).read() for n in 'ab')\n"
        # The old folder is removed once the new one is in place: whoever still holds it looks again.
        "    except FileNotFoundError: continue\n"
        "    finally: os.close(d)\n"
        "    if pair not in seen:\n"
        "        seen.add(pair); sys.argv=['','/'.join(pair)]; exec(os.environ['SAY'])\n"
        "    time.sleep(0.01)\n"
    )
    mounts = [{"name": "keys", "mountPath": "/keys"}]
    main = container("main", command=["python", "-c", loop], env=diary.environment, volumeMounts=mounts)
    pods.create("rotation", [main], volumes=[{"name": "keys", "secret": {"secretName": "rotating"}}])
    until(lambda: diary.entries == ["1/1"], 20, "the first content")
    pods.core.patch_namespaced_secret("rotating", pods.namespace, {"stringData": {"a": "2", "b": "2"}})
    until(lambda: len(diary.entries) > 1, 30, "the second content")
    assert diary.entries == ["1/1", "2/2"]
    pods.delete("rotation", 0)


def test_deletion_runs_hooks_then_ends_main_containers_then_sidecars(pods: Pods, diary: Diary) -> None:
    def script(name: str) -> str:
        return f"trap '{SAY} {name}-term; exit 0' TERM; {SAY} {name}-up; while :; do sleep 0.05; done"

    hook = {"preStop": {"exec": {"command": ["sh", "-c", f"{SAY} hook"]}}}
    meter = sidecar("meter", script("meter"), env=diary.environment, lifecycle=hook)
    pods.create("leaving", [container("agent", script("agent"), env=diary.environment)], init=[meter])
    until(lambda: sorted(diary.entries) == ["agent-up", "meter-up"], 20, "both containers")
    pods.delete("leaving", 20)
    pods.gone("leaving")
    told = diary.entries[2:]
    assert sorted(told) == ["agent-term", "hook", "meter-term"]
    assert told[-1] == "meter-term"


def test_what_ignores_sigterm_is_killed_after_its_grace(pods: Pods, diary: Diary) -> None:
    deaf = f"trap '' TERM; {SAY} up; while :; do sleep 0.05; done"
    pods.create("deaf", [container("main", deaf, env=diary.environment)])
    until(lambda: diary.entries == ["up"], 20, "the container")
    pods.delete("deaf", 1)
    pods.gone("deaf", 10)


def test_the_active_deadline_ends_the_pod(pods: Pods) -> None:
    pods.create("late", [container("main", "sleep 600")], init=[sidecar("s", "sleep 600")], activeDeadlineSeconds=2)
    pod = pods.phase("late", "Failed")
    assert pod["status"]["reason"] == "DeadlineExceeded"
    assert container_status(pod, "main")["state"]["terminated"]["exitCode"] == 143


def test_memory_past_its_limit_is_oom_killed(pods: Pods) -> None:
    grow = "import time\nb=b'x'*(200*1024*1024)\ntime.sleep(60)"
    main = container("main", command=["python", "-c", grow], resources={"limits": {"memory": "64Mi"}})
    pods.create("greedy", [main])
    ended = container_status(pods.phase("greedy", "Failed"), "main")["state"]["terminated"]
    assert (ended["exitCode"], ended["reason"]) == (137, "OOMKilled")


def test_logs_by_tail_follow_and_kubectl(pods: Pods, control_plane: ControlPlane, diary: Diary) -> None:
    script = f"for i in 1 2 3; do echo line $i; done; {SAY} up; until test -e /flag/go; do sleep 0.05; done; echo end"
    flag = {"name": "flag", "configMap": {"name": "flag", "optional": True}}
    mounts = [{"name": "flag", "mountPath": "/flag"}]
    main = container("main", script, env=diary.environment, volumeMounts=mounts)
    pods.create("talks", [main], volumes=[flag])
    until(lambda: diary.entries == ["up"], 20, "the container")
    assert pods.log("talks", "main", tail_lines=2) == "line 2\nline 3\n"
    pods.core.create_namespaced_config_map(pods.namespace, {"metadata": {"name": "flag"}, "data": {"go": ""}})
    assert pods.log("talks", "main", follow=True).endswith("line 3\nend\n")
    if kubectl := shutil.which("kubectl"):
        command = [kubectl, "--kubeconfig", str(control_plane.kubeconfig), "-n", pods.namespace, "logs", "talks"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True)
        assert done.stdout == "line 1\nline 2\nline 3\nend\n"


def test_extended_resources_are_counted_by_the_scheduler(pods: Pods) -> None:
    def gpus(number: int) -> dict[str, Any]:
        return container("main", "true", resources={"limits": {"nvidia.com/gpu": str(number)}})

    pods.create("one-gpu", [gpus(1)])
    pods.phase("one-gpu", "Succeeded")
    pods.create("two-gpus", [gpus(2)])
    until(lambda: condition(pods.get("two-gpus"), "PodScheduled").get("reason") == "Unschedulable", 20, "a refusal")


def test_the_meters_address_is_the_pods_own_in_either_isolation(pods: Pods, node: ProcessNode) -> None:
    env = [
        {"name": "ALMONER_METER_ADDRESS", "value": "127.0.0.1:8790"},
        {"name": "BASE", "value": "http://$(ALMONER_METER_ADDRESS)/openai/v1"},
    ]
    serve = "h,p=__import__('os').environ['ALMONER_METER_ADDRESS'].split(':');import http.server as s;"
    serve += "s.HTTPServer((h,int(p)),s.SimpleHTTPRequestHandler).serve_forever()"
    probe = {"tcpSocket": {"port": 8790}} if node.isolation == "none" else None
    exec_probe = {"exec": {"command": ["python", "-c", "import socket;socket.create_connection(('127.0.0.1',8790))"]}}
    meter = sidecar("meter", "", env=env, startupProbe={**(probe or exec_probe), "periodSeconds": 1})
    meter["command"] = ["python", "-c", serve]
    ask = "import os,urllib.request as u;print(u.urlopen(os.environ['BASE'].rsplit('/',2)[0]).status)"
    # Two at once: on one machine, the same port must be free for both.
    for name in ("left", "right"):
        agent = container("agent", command=["python", "-c", ask], env=env)
        pods.create(name, [agent], init=[meter])
    for name in ("left", "right"):
        pods.phase(name, "Succeeded")
        assert pods.log(name, "agent") == "200\n"


def test_users_capabilities_and_file_systems_are_apart(pods: Pods, isolated: ProcessNode) -> None:
    look = (
        "id -u; id -g; id -G; grep -c 'Cap[PE].*0000000000000000$' /proc/self/status; "
        "grep NoNewPrivs /proc/self/status | tr '\\t' ' '; "
        "touch /x 2>/dev/null || echo root-read-only; touch /usr/x 2>/dev/null || echo usr-read-only; "
        "touch /data/mine && stat -c %g /data/mine; ls /secret 2>&1 | wc -l; ls -A /home /run; hostname; "
        f"ls {isolated.scratch} 2>/dev/null || echo scratch-hidden"
    )
    mounts = [{"name": "data", "mountPath": "/data"}]
    hidden = [{"name": "secret", "mountPath": "/secret"}]
    main = container("main", look, volumeMounts=mounts, securityContext={**USER, "readOnlyRootFilesystem": True})
    meter = sidecar("meter", "sleep 600", volumeMounts=hidden, securityContext={"runAsUser": 10002})
    volumes = [{"name": "data", "emptyDir": {}}, {"name": "secret", "emptyDir": {}}]
    pods.create(
        "apart", [main], init=[meter], volumes=volumes, securityContext={"fsGroup": 10000, "runAsNonRoot": True}
    )
    pods.phase("apart", "Succeeded")
    lines = pods.log("apart", "main").splitlines()
    expected = ["10001", "10001", "10001 10000", "2", "NoNewPrivs: 1", "root-read-only", "usr-read-only", "10000", "1"]
    assert lines[: len(expected)] == expected
    assert lines[len(expected) :] == ["/home:", "", "/run:", "apart", "scratch-hidden"]


def test_pods_reach_the_host_address_and_nothing_else(pods: Pods, isolated: ProcessNode, diary: Diary) -> None:
    port = isolated.ready["kubelet_port"]
    logs = f"https://{isolated.host_address}:{port}/containerLogs/{pods.namespace}/net/main"
    tries = (
        "import socket,ssl,urllib.request as u,urllib.error\n"
        "def go(a,p):\n"
        "    try: socket.create_connection((a,p),timeout=2); return 'yes'\n"
        "    except OSError as e: return e.strerror or 'timeout'\n"
        "print(go('192.0.2.2',22)); print(go('1.1.1.1',443))\n"
        "c=ssl._create_unverified_context()\n"
        f"try: u.urlopen('{logs}',context=c,timeout=3)\n"
        "except urllib.error.HTTPError as e: print(e.code)\n"
    )
    main = container("main", f'{SAY} hello && exec python -c "$TRIES"')
    main["env"] = [*diary.environment, {"name": "TRIES", "value": tries}]
    pods.create("net", [main])
    pods.phase("net", "Succeeded")
    assert diary.entries == ["hello"]
    assert pods.log("net", "main").splitlines() == ["Network is unreachable", "Network is unreachable", "403"]


def test_root_is_refused_where_the_pod_forbids_it(pods: Pods, isolated: ProcessNode) -> None:
    pods.create("rootless", [container("main", "id")], securityContext={"runAsNonRoot": True})
    waiting = pods.state("rootless", "main", "waiting")
    until(
        lambda: "runAsUser" in container_status(pods.get("rootless"), "main")["state"]["waiting"].get("message", ""),
        20,
        f"a reason, not {waiting}",
    )


def test_what_a_pod_leaves_running_dies_with_it(pods: Pods, isolated: ProcessNode) -> None:
    marker = f"4{secrets.randbelow(10**6):06d}"
    pods.create("escapee", [container("main", f"setsid sleep {marker} & sleep 0.2")])
    pods.phase("escapee", "Succeeded")
    until(lambda: not _runs(f"sleep\0{marker}"), 10, "the escaped process to end")


def _runs(command: str) -> bool:
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if command in entry.read_text():
                return True
        except OSError:
            continue
    return False


def _links(node: ProcessNode) -> set[str]:
    """Interfaces of one node, empty where it made none: its bridge and what hangs on it. Other nodes may be running."""
    if node.isolation == "none":
        return set()
    shown = subprocess.run(["ip", "-o", "-4", "addr"], capture_output=True, text=True, check=True).stdout
    (bridge,) = [line.split()[1] for line in shown.splitlines() if f" {node.host_address}/" in line]
    return {entry.name for entry in Path("/sys/class/net").glob(f"{bridge}*")}


@pytest.mark.parametrize("isolation", ["namespaces", "none"])
def test_a_killed_node_takes_its_containers_and_its_next_life_says_so(
    control_plane: ControlPlane, kubernetes_api: Any, namespace: str, isolation: str
) -> None:
    if isolation == "namespaces" and os.geteuid() != 0:
        pytest.skip("isolation by namespaces needs root: NOT tested in this run")
    pods = Pods(kubernetes_api, namespace)
    marker = f"5{secrets.randbelow(10**6):06d}"
    name = f"node-{secrets.token_hex(3)}"
    first = ProcessNode(control_plane.kubeconfig, name, isolation=isolation).start()
    try:
        pods.create("lost", [container("main", f"exec sleep {marker}")], init=[sidecar("s", "sleep 600")], node=name)
        pods.state("lost", "main", "running")
        assert _runs(f"sleep\0{marker}")
        links = _links(first)
        first.kill()
        until(lambda: not _runs(f"sleep\0{marker}"), 10, "the container to die with its node")
        with ProcessNode(control_plane.kubeconfig, name, isolation=isolation) as second:
            pod = pods.phase("lost", "Failed")
            assert pod["status"]["reason"] == "NodeRestarted"
            assert container_status(pod, "main")["state"]["terminated"]["exitCode"] == 137
            pods.delete("lost")
            pods.gone("lost")
            pods.create("fresh", [container("main", "true")], node=name)
            pods.phase("fresh", "Succeeded")
            pods.create("unfinished", [container("main", "sleep 600")], node=name)
            pods.state("unfinished", "main", "running")
            links |= _links(second)
        stopped = pods.phase("unfinished", "Failed")
        assert stopped["status"]["reason"] == "NodeShutdown"
        with pytest.raises(ApiException, match="404"):
            pods.core.read_node(name)
        assert bool(links) == (isolation == "namespaces")
        left = links & {entry.name for entry in Path("/sys/class/net").iterdir()}
        assert not left, "interfaces left behind"
    finally:
        first.stop()


def test_two_nodes_side_by_side(
    control_plane: ControlPlane, kubernetes_api: Any, namespace: str, node: ProcessNode
) -> None:
    pods = Pods(kubernetes_api, namespace)
    name = f"second-{secrets.token_hex(3)}"
    with ProcessNode(control_plane.kubeconfig, name, isolation=node.isolation) as second:
        for target in (node.name, name):
            pods.create(target, [container("main", "true")], node=target)
        addresses = {pods.phase(target, "Succeeded")["status"]["podIP"] for target in (node.name, name)}
        assert len(addresses) == 2
        assert second.isolation == node.isolation


def test_a_node_that_cannot_start_says_why(tmp_path: Any) -> None:
    config = tmp_path / "kubeconfig"
    config.write_text("{}")
    command = [sys.executable, "-m", "almoner_dev.node", "--kubeconfig", str(config), "--isolation", "none"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 1
    assert "is no kubeconfig with a current-context" in done.stderr
    assert "Traceback" not in done.stderr
