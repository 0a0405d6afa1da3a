"""Fixtures of the operator's tests (a control plane without a scheduler, a simulated node) and of the ledger's."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from almoner_core.contract import MeterModel
    from almoner_dev.controlplane import ControlPlane
    from almoner_dev.scripted import ScriptedProvider
    from almoner_dev.simnode import SimulatedNode
    from almoner_dev.stack import Stack
    from tests.support.books import Books, Clock
    from tests.support.cluster import Cluster
    from tests.support.ledger_double import LedgerDouble
    from tests.support.meter import Meter
    from tests.support.metered import Metered, Team


@pytest.fixture(scope="session")
def bare_plane() -> Iterator[ControlPlane]:
    """A control plane whose pods nobody schedules but the simulated node."""
    from almoner_dev.binaries import BinariesMissing
    from almoner_dev.controlplane import ControlPlane
    from tests.conftest import missing

    plane = ControlPlane(with_scheduler=False)
    try:
        plane.start()
    except BinariesMissing as error:
        missing(error)
    with plane:
        yield plane


@pytest.fixture(scope="module")
def simulated(bare_plane: ControlPlane) -> Iterator[SimulatedNode]:
    """Runs pods as their agent's name says: `run-<ms>`, `fail-<code>`, `nowhere`, `forever`, else at once.

    `fail-1` has much to say, in Chinese.
    `ahead-<s>` and `behind-<s>` run until they are deleted, on a node whose clock is off; `injected` ends, but for a
    container that goes on.
    """
    from almoner_dev.simnode import Fate, SimulatedNode

    def plan(pod: Mapping[str, Any]) -> Fate:
        kind, _, value = str(pod["metadata"]["labels"].get("almoner.dev/agent", "")).partition("-")
        if kind == "fail":
            return Fate(0.2, exit_code=int(value), message="坏" * 1000 if value == "1" else "it broke")
        if kind == "run":
            return Fate(int(value) / 1000)
        if kind in ("nowhere", "unstarted"):
            return Fate(schedule=False)
        if kind in ("ahead", "behind"):
            return Fate(None, clock=float(value) if kind == "ahead" else -float(value))
        if kind == "injected":
            return Fate(0.2, injected=True)
        return Fate(None if kind == "forever" else 0.0)

    with SimulatedNode(bare_plane, plan=plan) as node:
        yield node


@pytest.fixture(scope="module")
def stack(bare_plane: ControlPlane, simulated: SimulatedNode) -> Iterator[Stack]:
    """Ledger and operator, shared by a module's tests: each keeps to its namespace."""
    from almoner_dev.stack import Stack

    with Stack(bare_plane, operator_args=["--start-deadline-seconds", "4", "--lost-seconds", "5"]) as running:
        yield running


@pytest.fixture
def cluster(bare_plane: ControlPlane, stack: Stack) -> Iterator[Cluster]:
    """A namespace of the test's own."""
    from tests.support.cluster import Cluster

    made = Cluster(bare_plane)
    yield made
    made.close()


@pytest.fixture(params=["sqlite", "postgresql"])
def ledger_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of an empty database for the ledger, on each kind in turn."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/ledger.db"
    return str(request.getfixturevalue("postgres_url"))


@pytest.fixture
def clock() -> Clock:
    """The clock that `books` goes by."""
    from tests.support.books import Clock

    return Clock()


@pytest.fixture
def books(ledger_url: str, clock: Clock) -> Iterator[Books]:
    """A ledger's books, whose invariants have to hold when the test is done."""
    from tests.support.books import Books

    opened = Books(ledger_url, clock)
    yield opened
    violations = opened.violations()
    opened.close()
    assert violations == []


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def metered(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Metered]:
    """A ledger service for real meters, on each kind of database in turn, shared by a module's tests."""
    from tests.support.metered import Metered

    folder = tmp_path_factory.mktemp("metered")
    url = f"sqlite:///{folder}/ledger.db"
    if request.param == "postgresql":
        url = request.getfixturevalue("postgres_server").create_database(f"test_{secrets.token_hex(4)}")
    running = Metered(folder, url)
    yield running
    running.close()


@pytest.fixture
def team(metered: Metered) -> Iterator[Team]:
    """A quota, a provider and runs of the test's own; the books have to be sound when it is done."""
    from almoner_dev.scripted import Reply, ScriptedProvider
    from tests.support.metered import Team

    with ScriptedProvider([Reply()]) as provider:
        made = Team(metered, provider)
        try:
            yield made
        finally:
            made.kill()
        metered.audit()


@pytest.fixture
def provider() -> Iterator[ScriptedProvider]:
    """A model's provider that answers every call with three words, for 10 tokens of input and 5 of output."""
    from almoner_dev.scripted import Reply, ScriptedProvider, Usage

    with ScriptedProvider([Reply(text="one two three", usage=Usage(input_tokens=10, output_tokens=5))]) as scripted:
        yield scripted


@pytest.fixture
def start(tmp_path: Path, provider: ScriptedProvider) -> Iterator[Callable[..., Meter]]:
    """Starts a meter between `provider` and the double of a ledger; all are stopped afterwards."""
    from tests.support.meter import Meter, meter_config, provider_config

    meters: list[Meter] = []

    def make(ledger: LedgerDouble, model: MeterModel | None = None, *, ready: bool = True, **changes: Any) -> Meter:
        models = {} if model is None else {"models": (model,)}
        meter = Meter(tmp_path, meter_config(ledger.url, provider_config(provider.base_url, **models), **changes))
        meters.append(meter)
        if ready:
            meter.start()
        return meter

    yield make
    for meter in meters:
        meter.discard()  # the ledger is gone already, and a last word to nobody takes its time
