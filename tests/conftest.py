"""Fixtures for every rung: a real control plane, a real PostgreSQL, a fresh namespace.

The servers start when the first test asks for them, and stop with the session. Where what they need
cannot be had, tests fail with the plain reason; `ALMONER_TEST_SKIP_MISSING=1` skips them instead.
Heavy imports happen inside the fixtures, so that unit tests stay fast.
"""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import pytest
from hypothesis import HealthCheck, settings

from tests.support.polling import until

if TYPE_CHECKING:
    from almoner_dev.controlplane import ControlPlane
    from almoner_dev.pgbouncer import PgBouncer
    from almoner_dev.postgres import Postgres

NAMESPACE_SECONDS = 90.0

# How long an example takes says what else the machine does: no test of properties fails for that.
settings.register_profile("almoner", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("almoner")


def missing(reason: object) -> NoReturn:
    """Ends the test that needs what is missing: a failure, or a skip where the environment asks for that."""
    text = str(reason)
    if os.environ.get("ALMONER_TEST_SKIP_MISSING") == "1":
        pytest.skip(text)
    pytest.fail(f"{text}\n(ALMONER_TEST_SKIP_MISSING=1 skips the tests that need it)", pytrace=False)


def pytest_configure(config: pytest.Config) -> None:
    """Has failures told at once, not at the end alone."""
    from tests.support.at_once import register

    register(config)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> object:
    """Shares the suite out among workers (`-n 3`) by what the tests start."""
    from tests.support.shares import Shares

    return Shares(config, log)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Marks tests by the folder they are in; among workers the longest begin first."""
    if hasattr(config, "workerinput"):
        from tests.support.shares import in_order

        in_order(items)
    for item in items:
        for rung in ("integration", "e2e"):
            if rung in item.path.parts:
                item.add_marker(rung)


@pytest.fixture(scope="session")
def control_plane() -> Iterator[ControlPlane]:
    """A control plane shared by the whole session: keep to a namespace of your own."""
    from almoner_dev.binaries import BinariesMissing
    from almoner_dev.controlplane import ControlPlane

    try:
        plane = ControlPlane()
        plane.start()
    except BinariesMissing as error:
        missing(error)
    with plane:
        yield plane


@pytest.fixture(scope="session")
def kubernetes_api(control_plane: ControlPlane) -> Iterator[Any]:
    """The official client's ApiClient, as an administrator."""
    from kubernetes import config

    client = config.new_client_from_config(str(control_plane.kubeconfig))
    yield client
    client.close()


@pytest.fixture
def namespace(kubernetes_api: Any) -> Iterator[str]:
    """A namespace of the test's own, ready for pods; its deletion is started, not awaited, afterwards."""
    from kubernetes import client

    core = client.CoreV1Api(kubernetes_api)
    name = f"test-{secrets.token_hex(4)}"
    core.create_namespace({"metadata": {"name": name}})
    until(
        lambda: any(s.metadata.name == "default" for s in core.list_namespaced_service_account(name).items),
        NAMESPACE_SECONDS,
        f"the default service account of namespace {name}",
    )
    yield name
    core.delete_namespace(name)


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[Postgres]:
    """A PostgreSQL server shared by the whole session: make a database of your own."""
    from almoner_dev.postgres import Postgres, PostgresMissing

    try:
        server = Postgres()
        server.start()
    except PostgresMissing as error:
        missing(error)
    with server:
        yield server


@pytest.fixture(scope="session")
def pgbouncer(postgres_server: Postgres) -> Iterator[PgBouncer]:
    """A pooler in transaction mode in front of the session's PostgreSQL server."""
    from almoner_dev.pgbouncer import PgBouncer, PgBouncerMissing

    try:
        pooler = PgBouncer(postgres_server).__enter__()
    except PgBouncerMissing as error:
        missing(error)
    with contextlib.ExitStack() as stack:
        stack.push(pooler)
        yield pooler


@pytest.fixture
def postgres_url(postgres_server: Postgres) -> str:
    """The SQLAlchemy URL of a fresh, empty database."""
    return postgres_server.create_database(f"test_{secrets.token_hex(4)}")


@pytest.fixture(scope="session")
def repository() -> Path:
    """The root of the checkout."""
    return Path(__file__).resolve().parent.parent
