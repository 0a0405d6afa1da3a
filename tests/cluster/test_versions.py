"""An upgrade from the version before this one and a rollback to it, with runs under way: nothing is lost or doubled."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from kubernetes import client, config

from almoner_dev.cluster import Cluster, checkout
from tests.conftest import missing
from tests.support import previous, production
from tests.support.batch import Batch, judge
from tests.support.installed import IMAGE, ROLLOUT, ROOT, SYSTEM

RUNS = 8
"""So many are started before each change, and after the last."""
AT_ONCE = 4
WAIT = ("--wait", "--timeout", ROLLOUT)


@pytest.fixture(scope="module")
def older_node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A node with the version before this one, its chart and its programs, and with this one's image."""
    from almoner_dev.binaries import BinariesMissing
    from almoner_dev.cluster import NodeImpossible
    from almoner_dev.gotools import ToolMissing
    from almoner_dev.postgres import PostgresMissing

    if os.environ.get("ALMONER_E2E_KUBECONFIG"):
        pytest.skip("the images of two versions can only be loaded into the node that `make e2e` starts by itself")
    logs = os.environ.get("ALMONER_E2E_LOGS")
    cluster = Cluster(logs=Path(logs) / "versions" if logs else None)
    try:
        older = previous.sources(tmp_path_factory.mktemp("previous"))
        cluster.start()
        with cluster:
            with tempfile.TemporaryDirectory(prefix="almoner-image-") as folder:
                cluster.load(checkout.write_image(Path(folder) / "checkout.tar", IMAGE))
                cluster.load(checkout.write_image(Path(folder) / "older.tar", previous.IMAGE, sources=older))
                cluster.load(production.postgres_image(Path(folder) / "postgres.tar"))
            production.install(cluster, chart=older / "charts" / "almoner", image=previous.IMAGE)
            yield cluster
    except (BinariesMissing, NodeImpossible, ToolMissing, PostgresMissing, previous.PreviousMissing) as error:
        missing(error)


@pytest.fixture(scope="module")
def api(older_node: Cluster) -> Iterator[Any]:
    opened = config.new_client_from_config(str(older_node.kubeconfig))
    yield opened
    opened.close()


def images(api: Any) -> set[str]:
    """The images of the parts that run."""
    pods = client.CoreV1Api(api).list_namespaced_pod(SYSTEM, label_selector="app.kubernetes.io/part-of=almoner").items
    living = [pod for pod in pods if pod.metadata.deletion_timestamp is None and pod.status.phase == "Running"]
    return {container.image for pod in living for container in pod.spec.containers}


def test_runs_go_on_from_one_version_to_the_next_and_back(older_node: Cluster, api: Any) -> None:
    kubeconfig = older_node.kubeconfig
    batch = Batch(older_node, api, "changing")
    batch.prepare(AT_ONCE)
    assert images(api) == {previous.IMAGE}

    batch.start(f"before-{number}" for number in range(RUNS))
    batch.wait_ended(1, "the first run to end")
    assert batch.ended() < RUNS
    newer = production.values(IMAGE)
    production.helm(kubeconfig, "upgrade", "almoner", str(ROOT / "charts" / "almoner"), *newer, *WAIT)
    assert images(api) == {IMAGE}

    batch.start(f"between-{number}" for number in range(RUNS))
    batch.wait_ended(RUNS + 1, "a run of the newer version to end")
    assert batch.ended() < 2 * RUNS
    production.helm(kubeconfig, "rollback", "almoner", "1", *WAIT)
    assert images(api) == {previous.IMAGE}

    batch.start(f"after-{number}" for number in range(RUNS))
    batch.wait_ended(3 * RUNS, "all runs to end")
    batch.wait_costs()
    judge(batch, 3 * RUNS)

    # And the newer one takes the books as the older one left them.
    production.helm(kubeconfig, "upgrade", "almoner", str(ROOT / "charts" / "almoner"), *newer, *WAIT)
    judge(batch, 3 * RUNS)
