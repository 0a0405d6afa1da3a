"""Fixtures of the end-to-end tests: one site for most of them, a world of each test's own on it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.support.e2e import Site, World


@pytest.fixture(scope="package")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A control plane, a process node, ledger and operator, of these tests alone: the operator sees everything."""
    from almoner_dev.binaries import BinariesMissing
    from almoner_dev.controlplane import ControlPlane
    from almoner_dev.node import ProcessNode
    from almoner_dev.stack import Stack
    from tests.conftest import missing
    from tests.frameworks.pods import folders
    from tests.support.e2e import Site

    plane = ControlPlane()
    try:
        plane.start()
    except BinariesMissing as error:
        missing(error)
    with (
        plane,
        # Where tests of SDKs and frameworks have them, and Node.js.
        ProcessNode(plane.kubeconfig, expose=folders()) as node,
        Stack(
            plane,
            host_address=node.host_address,
            operator_args=["--lost-seconds", "5", "--lease-seconds", "4", "--meter-grace-seconds", "5"],
            # pytest keeps it for a while: the logs tell why a test failed.
            directory=tmp_path_factory.mktemp("stack"),
        ) as stack,
    ):
        yield Site(plane, node, stack)


@pytest.fixture
def world(site: Site) -> Iterator[World]:
    """A namespace with a scripted provider of the test's own, on the shared site."""
    from tests.support.e2e import World

    made = World(site)
    yield made
    made.close()
