"""Almoner installed in a cluster, for the tests that run there."""

from __future__ import annotations

import os
import secrets
import string
import subprocess
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kubernetes import client
from kubernetes.client import ApiException
from urllib3.exceptions import HTTPError

from almoner_dev import binaries, gotools, model
from almoner_dev.cluster import Cluster, checkout
from tests.support.polling import until
from tests.support.restricted import RESTRICTED

IMAGE = os.environ.get("ALMONER_E2E_IMAGE") or checkout.REFERENCE
"""The image of this checkout: made and loaded by the tests on their own node; elsewhere whoever asks says its name."""
SYSTEM = "almoner-system"
MODELS = "models"
PARTS = {"almoner-ledger": SYSTEM, "almoner-operator": SYSTEM, "model": MODELS}
"""Deployments and their namespaces."""
FOLDER = Path(__file__).resolve().parent.parent / "cluster"
ROOT = FOLDER.parent.parent
ROLLOUT = "180s"
ENDED = {"Succeeded", "Failed", "Cancelled", "Rejected"}
UNREACHED = (ApiException, HTTPError)
"""What a client meets while the API server is started again."""


def kubectl(kubeconfig: Path, *arguments: str, given: str | None = None) -> str:
    """Run kubectl as the administrator and return what it printed; a failure shows what it said."""
    command = [str(binaries.find(["kubectl"]).path("kubectl")), f"--kubeconfig={kubeconfig}", *arguments]
    done = subprocess.run(command, input=given, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"kubectl {' '.join(arguments)}: {done.stderr.strip()}"
    return done.stdout


@dataclass(frozen=True)
class Installation:
    """A running Almoner; `seconds` is how long it took from the first manifest to the last part that was ready."""

    kubeconfig: Path
    model_key: str
    seconds: float

    def apply(self, file: str, **values: str) -> None:
        """Apply a file of tests/cluster with its placeholders filled."""
        text = string.Template((FOLDER / file).read_text()).substitute(MODEL_KEY=self.model_key, **values)
        kubectl(self.kubeconfig, "apply", "-f", "-", given=text)

    def logs(self) -> str:
        """The end of what every part said, for a test that failed."""
        said = [
            kubectl(self.kubeconfig, "logs", "-n", namespace, f"deployment/{part}", "--tail=40")
            for part, namespace in PARTS.items()
        ]
        said.append(kubectl(self.kubeconfig, "get", "pods", "-A", "-o", "wide"))
        return "\n".join(f"--- {part}\n{text}" for part, text in zip([*PARTS, "pods"], said, strict=True))


def load_image(cluster: Cluster) -> None:
    """Make the image of this checkout, and import it; and those that `ALMONER_E2E_IMAGES` has, where it is set."""
    with tempfile.TemporaryDirectory(prefix="almoner-image-") as folder:
        cluster.load(checkout.write_image(Path(folder) / "checkout.tar", IMAGE, more=[model.weights()]))
    for archive in given_images():
        cluster.load(archive)


def given_images() -> list[Path]:
    """OCI archives of the images that the Dockerfiles make, almoner-operator and almoner-runner.

    `make e2e` builds them, and says why where it cannot: then there are none.
    """
    folder = os.environ.get("ALMONER_E2E_IMAGES")
    return [Path(folder) / f"almoner-{part}.tar" for part in ("operator", "runner")] if folder else []


def image_values(image: str | None = None) -> dict[str, str]:
    """The chart's values for an image with all of Almoner; None: the two that are given, or else this checkout's."""
    if image is None and given_images():
        return {"image.registry": "localhost/"}  # Under the names that the chart has by itself.
    name, _, tag = (image or IMAGE).rpartition(":")
    values: dict[str, str] = {}
    for part in ("operator", "runner"):
        values |= {f"image.{part}.repository": name, f"image.{part}.tag": tag}
    return values


def install(kubeconfig: Path, api: Any) -> Installation:
    """Install the chart with Helm, and start the model; returns when all of it is ready."""
    helm = gotools.path("helm")
    began = time.monotonic()
    core = client.CoreV1Api(api)
    core.create_namespace({"metadata": {"name": SYSTEM, "labels": RESTRICTED}})
    key = secrets.token_hex(16)
    Installation(kubeconfig, key, 0.0).apply("model.yaml", IMAGE=IMAGE, WEIGHTS=str(model.weights()))
    settings = [word for each, value in image_values().items() for word in ("--set-string", f"{each}={value}")]
    command = [str(helm), "install", "almoner", str(ROOT / "charts" / "almoner"), "--namespace", SYSTEM, "--wait"]
    done = subprocess.run(
        [*command, f"--kubeconfig={kubeconfig}", f"--timeout={ROLLOUT}", *settings],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, (
        f"helm install: {done.stderr}\n{kubectl(kubeconfig, 'get', 'pods,events', '-n', SYSTEM)}"
    )
    kubectl(kubeconfig, "rollout", "status", "-n", MODELS, "deployment/model", f"--timeout={ROLLOUT}")
    return Installation(kubeconfig, key, time.monotonic() - began)


def execution(api: Any, namespace: str, name: str) -> dict[str, Any]:
    """The status of an Execution; empty while it has none."""
    found = client.CustomObjectsApi(api).get_namespaced_custom_object(
        "almoner.dev", "v1alpha1", namespace, "executions", name
    )
    return dict(found.get("status") or {})


def ended(api: Any, namespace: str, name: str, seconds: float, almoner: Installation) -> dict[str, Any]:
    """Wait until an Execution has ended and its cost is known; gives its status. A failure shows every part's log."""

    def finished() -> dict[str, Any] | None:
        status = execution(api, namespace, name)
        return status if status.get("phase") in ENDED and status.get("usage", {}).get("cost") else None

    try:
        status = until(finished, seconds, f"execution {name} to end and its cost", retry_on=UNREACHED)
    except AssertionError as error:
        raise AssertionError(f"{error}\n{execution(api, namespace, name)}\n{almoner.logs()}") from error
    assert status is not None
    return status
