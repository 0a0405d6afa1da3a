"""Almoner as it runs in production: PostgreSQL in the cluster, two ledgers, two operators, a provider that counts."""

from __future__ import annotations

import json
import secrets
import subprocess
from pathlib import Path
from typing import Any

from almoner_dev import gotools, postgres
from almoner_dev.cluster import Cluster, oci, settings
from almoner_dev.cluster.requirements import program
from tests.support.e2e_scripts import PRELUDE
from tests.support.installed import FOLDER, IMAGE, ROLLOUT, ROOT, SYSTEM, image_values, kubectl
from tests.support.restricted import RESTRICTED

POSTGRES_IMAGE = "localhost/almoner-postgres:1"
CHART = ROOT / "charts" / "almoner"
APPLETS = ("sh", "test", "rm")
TIME_ZONES = ("UTC", "Etc/UTC", "GMT")
PROVIDER = "deployment/provider"
LEFT_OUT = {"bitcode", "pgxs", "man", "extension"}


def postgres_image(target: Path) -> Path:
    """Write an image of the PostgreSQL server that is installed here; returns `target`.

    Raises PostgresMissing where none is. Its `postgres` and `initdb` are on the PATH; it may run as user 10001.
    """
    binaries = (postgres.find_binaries() / "postgres").resolve().parent
    asked = subprocess.run([binaries / "pg_config", "--sharedir"], capture_output=True, text=True, check=True)
    folders = [binaries.parent / "lib", Path(asked.stdout.strip())]
    files = {str(path).lstrip("/"): path for path in (binaries / "postgres", binaries / "initdb")}
    for folder in folders:
        files |= {str(path).lstrip("/"): path for path in folder.rglob("*") if _wanted(path, folder)}
    files |= {str(path).lstrip("/"): path for path in (folders[1] / "extension").glob("plpgsql*") if path.is_file()}
    files |= {f"usr/share/zoneinfo/{name}": Path("/usr/share/zoneinfo", name).resolve() for name in TIME_ZONES}
    for library in _libraries([binaries / "postgres", binaries / "initdb"]):
        files.setdefault(str(library).lstrip("/"), library.resolve())
    files["bin/busybox"] = program("busybox")
    return oci.write_archive(
        target,
        POSTGRES_IMAGE,
        files=files,
        links={f"bin/{applet}": "busybox" for applet in APPLETS},
        texts={"etc/passwd": "postgres:x:10001:10001:postgres:/tmp:/bin/sh\n"},
        environment={"PATH": f"{binaries}:/bin", "LC_ALL": "C", "TZ": "UTC"},
    )


def _wanted(path: Path, folder: Path) -> bool:
    parts = path.relative_to(folder).parts
    # The compiler of queries is a library of its own that large queries alone are worth.
    return path.is_file() and not LEFT_OUT & set(parts) and not path.name.startswith("llvmjit")


def _libraries(programs: list[Path]) -> set[Path]:
    done = subprocess.run([program("ldd"), *programs], capture_output=True, text=True, check=True)
    words = done.stdout.replace("=>", " ").split()
    return {Path(word) for word in words if word.startswith("/") and not word.endswith(":")}


def install(cluster: Cluster, *, chart: Path = CHART, image: str | None = None) -> None:
    """Start PostgreSQL and the provider, and install the chart for production; returns when all of it is ready.

    `image` is that of Almoner's parts; None: those that the Dockerfiles make, or else that of this checkout.
    """
    kubeconfig, password = cluster.kubeconfig, secrets.token_hex(16)
    namespace = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": SYSTEM, "labels": RESTRICTED}}
    url = f"postgresql://almoner:{password}@postgres.{SYSTEM}.svc/almoner"
    secret = {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": "database", "namespace": SYSTEM},
        "stringData": {"url": url, "password": password},
    }
    for document in (namespace, secret):
        kubectl(kubeconfig, "apply", "-f", "-", given=json.dumps(document))
    text = (FOLDER / "production.yaml").read_text()
    kubectl(
        kubeconfig, "apply", "-f", "-", given=text.replace("${POSTGRES}", POSTGRES_IMAGE).replace("${IMAGE}", IMAGE)
    )
    kubectl(kubeconfig, "rollout", "status", "-n", SYSTEM, "statefulset/postgres", f"--timeout={ROLLOUT}")
    helm(kubeconfig, "install", "almoner", str(chart), "--wait", "--timeout", ROLLOUT, *values(image))
    kubectl(kubeconfig, "rollout", "status", "-n", SYSTEM, PROVIDER, f"--timeout={ROLLOUT}")


def values(image: str | None = None) -> list[str]:
    """Helm's words for an installation for production; `image` as for `install`."""
    chosen = {**image_values(image), "ledger.database.existingSecret": "database"}
    words = [word for each, value in chosen.items() for word in ("--set-string", f"{each}={value}")]
    return [*words, "--set", "ledger.replicas=2", "--set", "operator.replicas=2"]


def helm(kubeconfig: Path, *arguments: str) -> str:
    """Run Helm as the administrator and return what it printed; a failure shows what it said."""
    command = [str(gotools.path("helm")), *arguments, "--kubeconfig", str(kubeconfig), "--namespace", SYSTEM]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    pods = "" if done.returncode == 0 else kubectl(kubeconfig, "get", "pods,events", "-n", SYSTEM)
    assert done.returncode == 0, f"helm {' '.join(arguments)}: {done.stderr.strip()}\n{pods}"
    return done.stdout


def provider(namespace: str, key: str) -> list[dict[str, Any]]:
    """Manifests of the ModelProvider `scripted` and of the Secret with its key."""
    spec = {
        "type": "OpenAICompatible",
        "baseURL": f"http://provider.{SYSTEM}.svc:8080/v1",
        "credentials": {"name": "key", "key": "key"},
        "models": [{"name": "scripted", "contextWindow": 4096}],
        "prices": [{"model": "scripted", "inputPerMillion": "2", "outputPerMillion": "16"}],
    }
    secret = {"apiVersion": "v1", "kind": "Secret", "stringData": {"key": key}}
    return [
        {**secret, "metadata": {"name": "key", "namespace": namespace}},
        manifest(namespace, "ModelProvider", "scripted", spec),
    ]


def agent(script: str, **limits: Any) -> dict[str, Any]:
    """The spec of an Agent that is a Python script, after the prelude of e2e_scripts."""
    return {
        "type": "Evaluation",
        "model": {"provider": "scripted", "name": "scripted", "settings": {"maxOutputTokens": 64}},
        "runner": {"image": IMAGE, "command": ["python", "-c", PRELUDE + script]},
        "limits": {"maxCost": "0.01", "timeoutSeconds": 900, **limits},
    }


def manifest(namespace: str, kind: str, name: str, spec: dict[str, Any]) -> dict[str, Any]:
    """A custom resource of Almoner."""
    about = {"name": name, "namespace": namespace}
    return {"apiVersion": "almoner.dev/v1alpha1", "kind": kind, "metadata": about, "spec": spec}


def ledger_url(kubeconfig: Path) -> str:
    """Where the operator finds the ledger, as its Deployment says."""
    said = kubectl(kubeconfig, "get", "deployment", "almoner-operator", "-n", SYSTEM, "-o", "json")
    arguments = json.loads(said)["spec"]["template"]["spec"]["containers"][0]["args"]
    (url,) = [each.partition("=")[2] for each in arguments if each.startswith("--ledger-url=")]
    return str(url)


def kill_container(cluster: Cluster, pod: Any, container: str) -> None:
    """Kill every process of a pod's container at once (SIGKILL); the kubelet starts it anew."""
    statuses = [*(pod.status.init_container_statuses or []), *(pod.status.container_statuses or [])]
    (identity,) = [each.container_id for each in statuses if each.name == container]
    ctr = [str(program("ctr")), "-a", settings.CONTAINERD_SOCKET, "-n", "k8s.io", "tasks", "kill", "-s", "SIGKILL"]
    code, said = cluster.run(*ctr, identity.removeprefix("containerd://"))
    assert code == 0, said


def provider_requests(kubeconfig: Path) -> list[str]:
    """What the provider was asked, each call once: the text of its first message. Refusals are not among them."""
    script = (
        "import json,urllib.request;"
        "asked=json.load(urllib.request.urlopen('http://127.0.0.1:8080/scripted/requests'));"
        "print(json.dumps([each['body']['messages'][0]['content'] for each in asked]))"
    )
    said = kubectl(kubeconfig, "exec", "-n", SYSTEM, PROVIDER, "--", "python", "-c", script)
    texts: list[str] = json.loads(said)
    return texts


def records(kubeconfig: Path, namespace: str) -> list[dict[str, Any]]:
    """The entries of the ledger that are no machine time, oldest first."""
    command = ("almoner", "ledger", "records", "--namespace", namespace, "--limit", "1000", "-o", "json")
    said = kubectl(kubeconfig, "exec", "-n", SYSTEM, "deployment/almoner-ledger", "--", *command)
    entries: list[dict[str, Any]] = json.loads(said)
    return entries
