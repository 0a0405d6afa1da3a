"""What a hostile agent finds in its container on a real node: no key, no token, and no way but its own meter."""

from __future__ import annotations

import json
import secrets
from typing import Any

from kubernetes import client

from almoner_core.contract import HEALTH_PORT, LABEL_EXECUTION_UID
from almoner_core.identity import allotment_id
from almoner_dev.cluster import Cluster
from tests.support import production
from tests.support.installed import ENDED, ROLLOUT, ROOT, SYSTEM, UNREACHED, execution, kubectl
from tests.support.polling import until
from tests.support.restricted import RESTRICTED

SECONDS = 240.0
VICTIM = """
chat("victim")
for _ in range(600):
    time.sleep(1)
"""
# Tells what it got, by what it tried; nothing of it should be more than "no".
HOSTILE = """
import pathlib, re, socket, ssl, stat
TOKEN = re.compile(rb"eyJ[A-Za-z0-9_-]{20,}[.]")
KEY = re.compile(rb"provider-key-[0-9a-f]{32}")

def reach(host, port):
    try:
        with socket.create_connection((host, port), timeout=4):
            return "reached"
    except OSError as error:
        return "no"

def http(url):
    try:
        asked = b'{"providers": ["scripted"]}' if url.endswith("/keys") else None
        with urllib.request.urlopen(url, asked, timeout=10, context=ssl._create_unverified_context()) as said:
            return said.status
    except urllib.error.HTTPError as error:
        return error.code
    except OSError:
        return 0

def readable(path):
    try:
        return path.read_bytes()[:1_000_000] if path.is_file() else b""
    except OSError:
        return b""

asked = json.loads(given())
# Where volumes are mounted; the rest is the image.
tops = ("/almoner", "/var", "/run", "/tmp", "/etc", "/dev/shm")
files = [path for top in tops for path in pathlib.Path(top).rglob("*")]
processes = [path for path in pathlib.Path("/proc").glob("[0-9]*")]
texts = {str(path): readable(path) for path in files}
for process in processes:
    texts |= {str(process / name): readable(process / name) for name in ("environ", "cmdline")}
status = dict(line.split(":", 1) for line in open("/proc/self/status"))
answer({
    "secrets": sorted(name for name, text in texts.items() if TOKEN.search(text) or KEY.search(text)),
    "looked at": len(texts),
    "others": sorted(int(process.name) for process in processes if int(process.name) not in (1, os.getpid())),
    "user": os.getuid(), "capabilities": int(status["CapEff"], 16), "no new privileges": status["NoNewPrivs"].strip(),
    "writable root": os.access("/", os.W_OK),
    "routes": {name: reach(*address) for name, address in asked["closed"].items()},
    "ledger": {path: http(asked["ledger"] + path) for path in asked["paths"]},
    "its own meter": chat("hostile")[0],
})
"""


def confine(node: Cluster, namespace: str) -> None:
    """Let the chart close the namespace's runner pods to all but DNS, the ledger and the provider."""
    here = {"kubernetes.io/metadata.name": SYSTEM}
    provider = {"namespaceSelector": {"matchLabels": here}, "podSelector": {"matchLabels": {"app": "provider"}}}
    egress = json.dumps([{"to": [provider], "ports": [{"port": 8080, "protocol": "TCP"}]}])
    words = (
        "--set",
        f"networkPolicy.runnerNamespaces={{{namespace}}}",
        "--set-json",
        f"networkPolicy.providers={egress}",
    )
    chart = str(ROOT / "charts" / "almoner")
    production.helm(
        node.kubeconfig, "upgrade", "almoner", chart, "--reuse-values", *words, "--wait", "--timeout", ROLLOUT
    )


def test_a_hostile_agent_gets_nothing(production_node: Cluster, production_api: Any) -> None:
    node, core = production_node, client.CoreV1Api(production_api)
    namespace = f"hostile-{secrets.token_hex(4)}"
    key = f"provider-key-{secrets.token_hex(16)}"
    core.create_namespace({"metadata": {"name": namespace, "labels": RESTRICTED}})
    confine(node, namespace)
    documents = [
        *production.provider(namespace, key),
        production.manifest(namespace, "Agent", "victim", production.agent(VICTIM)),
        production.manifest(namespace, "Agent", "hostile", production.agent(HOSTILE)),
        production.manifest(namespace, "Execution", "victim", {"agentRef": {"name": "victim"}}),
    ]
    kubectl(
        node.kubeconfig, "apply", "-f", "-", given=json.dumps({"apiVersion": "v1", "kind": "List", "items": documents})
    )

    def victim() -> str | None:
        called = any("victim" in text for text in production.provider_requests(node.kubeconfig))
        found = core.list_namespaced_pod(namespace, label_selector=LABEL_EXECUTION_UID).items
        return found[0].status.pod_ip if called and found else None

    victim_ip = until(victim, SECONDS, "the other agent's call")
    services = {each.metadata.name: each.spec.cluster_ip for each in core.list_namespaced_service(SYSTEM).items}
    # Another run's keys, without a token; tests/integration/test_ledger_keys.py has what another meter's token gets.
    (pod,) = core.list_namespaced_pod(namespace, label_selector=LABEL_EXECUTION_UID).items
    keys = [f"/v1/allotments/{allotment_id(pod.metadata.labels[LABEL_EXECUTION_UID], 1)}/keys"]
    (database,) = core.list_namespaced_pod(SYSTEM, label_selector="app=postgres").items
    given = {
        "closed": {
            "the database": [database.status.pod_ip, 5432],
            "the API server's Service": [core.read_namespaced_service("kubernetes", "default").spec.cluster_ip, 443],
            "another pod's meter": [victim_ip, 8790],
            "another pod's health page": [victim_ip, HEALTH_PORT],
            "the kubelet": [database.status.host_ip, 10250],
            "the cloud's metadata": ["169.254.169.254", 80],
        },
        "ledger": production.ledger_url(node.kubeconfig).replace(
            f"almoner-ledger.{SYSTEM}.svc", services["almoner-ledger"]
        ),
        "paths": ["/v1/usage", "/v1/records", "/v1/executions", *keys],
    }
    run = production.manifest(
        namespace, "Execution", "hostile", {"agentRef": {"name": "hostile"}, "input": {"json": given}}
    )
    kubectl(node.kubeconfig, "apply", "-f", "-", given=json.dumps(run))

    def finished() -> dict[str, Any] | None:
        status = execution(production_api, namespace, "hostile")
        return status if status.get("phase") in ENDED else None

    status = until(finished, SECONDS, "the hostile agent to end", retry_on=UNREACHED)
    assert status is not None
    assert status["phase"] == "Succeeded", status
    found = json.loads(status["output"])
    assert found["secrets"] == []
    assert found["looked at"] > 5
    assert found["others"] == [], "it sees processes of others"
    assert found["user"] > 0
    assert (found["capabilities"], found["no new privileges"], found["writable root"]) == (0, "1", False)
    assert found["routes"] == dict.fromkeys(given["closed"], "no")
    # It does get there, and is told nothing without a token.
    assert set(found["ledger"].values()) <= {401, 403, 404, 405}
    assert 401 in found["ledger"].values()
    assert found["its own meter"] == 200
    kubectl(node.kubeconfig, "delete", "namespace", namespace, "--wait=false")
