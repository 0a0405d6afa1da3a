"""Fixtures of the tests in a cluster: `make e2e` runs them, `make test` does not.

The cluster is a real node that is started here (almoner_dev.cluster), or, with `ALMONER_E2E_KUBECONFIG`, any other.
`ALMONER_E2E_LOGS=DIR` keeps the logs of the node's parts.
Tests that kill a node's parts need the former. Every namespace of a test enforces Pod Security `restricted`.
"""

from __future__ import annotations

import os
import secrets
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.conftest import NAMESPACE_SECONDS, missing
from tests.support.polling import until
from tests.support.restricted import RESTRICTED, Pods

if TYPE_CHECKING:
    from almoner_dev.cluster import Cluster
    from tests.support.installed import Installation


@dataclass(frozen=True)
class Site:
    """The cluster that the tests run in."""

    kubeconfig: Path
    node: Cluster | None
    """The real node that was started for these tests; None in somebody else's cluster."""
    busybox: str
    """An image with a shell, which the cluster has or can pull."""


@pytest.fixture(scope="session")
def site() -> Iterator[Site]:
    """The cluster, shared by the whole session: keep to a namespace of your own."""
    from almoner_dev.binaries import BinariesMissing
    from almoner_dev.cluster import Cluster, NodeImpossible, settings
    from almoner_dev.gotools import ToolMissing

    given = os.environ.get("ALMONER_E2E_KUBECONFIG")
    if given:
        yield Site(Path(given), None, os.environ.get("ALMONER_E2E_BUSYBOX", "busybox:1.36"))
        return
    logs = os.environ.get("ALMONER_E2E_LOGS")
    cluster = Cluster(logs=Path(logs) if logs else None)
    try:
        cluster.start()
    except (BinariesMissing, NodeImpossible, ToolMissing) as error:
        missing(error)
    with cluster:
        yield Site(cluster.kubeconfig, cluster, settings.BUSYBOX_IMAGE)


@pytest.fixture(scope="session")
def kubernetes_api(site: Site) -> Iterator[Any]:
    """The official client's ApiClient, as an administrator."""
    from kubernetes import config

    api = config.new_client_from_config(str(site.kubeconfig))
    yield api
    api.close()


@pytest.fixture(scope="session")
def almoner(site: Site, kubernetes_api: Any) -> Iterator[Installation]:
    """Almoner in the cluster: its chart, with an image of this checkout."""
    from tests.support.installed import MODELS, SYSTEM, install, kubectl, load_image

    if site.node is not None:
        load_image(site.node)
    elif not os.environ.get("ALMONER_E2E_IMAGE"):
        pytest.skip(
            "say where this cluster finds the image of this checkout: IMAGE=REF (`almoner_dev images checkout`)"
        )
    yield install(site.kubeconfig, kubernetes_api)
    kubectl(site.kubeconfig, "delete", "namespace", SYSTEM, MODELS, "--wait=false")


@pytest.fixture(scope="session")
def production_node() -> Iterator[Cluster]:
    """A node of its own, since a cluster has one Almoner: with PostgreSQL, two ledgers and two operators."""
    from almoner_dev.binaries import BinariesMissing
    from almoner_dev.cluster import Cluster, NodeImpossible, checkout
    from almoner_dev.gotools import ToolMissing
    from almoner_dev.postgres import PostgresMissing
    from tests.support import production
    from tests.support.installed import IMAGE, given_images

    if os.environ.get("ALMONER_E2E_KUBECONFIG"):
        pytest.skip("the image of this checkout can only be loaded into the node that `make e2e` starts by itself")
    logs = os.environ.get("ALMONER_E2E_LOGS")
    cluster = Cluster(logs=Path(logs) / "production" if logs else None)
    try:
        cluster.start()
        with cluster:
            with tempfile.TemporaryDirectory(prefix="almoner-image-") as folder:
                cluster.load(checkout.write_image(Path(folder) / "checkout.tar", IMAGE))
                cluster.load(production.postgres_image(Path(folder) / "postgres.tar"))
            for archive in given_images():
                cluster.load(archive)
            production.install(cluster)
            yield cluster
    except (BinariesMissing, NodeImpossible, ToolMissing, PostgresMissing) as error:
        missing(error)


@pytest.fixture(scope="session")
def production_api(production_node: Cluster) -> Iterator[Any]:
    """The official client's ApiClient for that node, as an administrator."""
    from kubernetes import config

    api = config.new_client_from_config(str(production_node.kubeconfig))
    yield api
    api.close()


@pytest.fixture
def node(site: Site) -> Cluster:
    """The real node, for tests that kill its parts; skips in somebody else's cluster."""
    if site.node is None:
        pytest.skip("this test kills parts of the node: it runs on the node that `make e2e` starts by itself")
    return site.node


@pytest.fixture
def namespace(kubernetes_api: Any) -> Iterator[str]:
    """A namespace that enforces `restricted`; its deletion is started, not awaited, afterwards."""
    from kubernetes import client

    core = client.CoreV1Api(kubernetes_api)
    name = f"test-{secrets.token_hex(4)}"
    core.create_namespace({"metadata": {"name": name, "labels": RESTRICTED}})
    until(
        lambda: any(s.metadata.name == "default" for s in core.list_namespaced_service_account(name).items),
        NAMESPACE_SECONDS,
        f"the default service account of namespace {name}",
    )
    yield name
    core.delete_namespace(name)


@pytest.fixture
def pods(kubernetes_api: Any, namespace: str, site: Site) -> Pods:
    """The pods of the test's namespace."""
    return Pods(kubernetes_api, namespace, site.busybox)
