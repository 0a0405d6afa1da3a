"""A pod that vanishes without a last word: its attempt is over when the ledger says so, and no sooner."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import sqlalchemy as sa

from almoner_core import wire
from almoner_dev.controlplane import ControlPlane
from almoner_dev.simnode import SimulatedNode
from almoner_dev.stack import Stack
from almoner_ledger import schema
from almoner_ledger.store import Database, Store, Verb, command
from tests.support.books import new_id
from tests.support.cluster import Cluster, verify_ledger

LEASE = 3
SILENCE = 12


@pytest.fixture(scope="module")
def stack(bare_plane: ControlPlane, simulated: SimulatedNode) -> Iterator[Stack]:
    ledger = ["--lease-seconds", str(LEASE), "--silence-seconds", str(SILENCE)]
    with Stack(bare_plane, ledger_args=ledger, operator_args=["--lost-seconds", "1"]) as running:
        yield running


@pytest.fixture
def store(stack: Stack) -> Iterator[Store]:
    database = Database(stack.database, patience_seconds=20)
    yield Store(database)
    database.dispose()


def row(store: Store, allotment: str) -> dict[str, Any]:
    query = sa.select(schema.allotments).where(schema.allotments.c.id == allotment)
    return store.read(lambda c: dict(c.execute(query).mappings().one()))


def running_one(cluster: Cluster, store: Store) -> str:
    """An execution that runs, whose meter took its allotment and says nothing more; gives the allotment's id."""
    cluster.world()
    cluster.agent("forever")
    cluster.wait_ready("Agent", "forever")
    cluster.execution("one", agent="forever", retry={"limit": 1, "backoffSeconds": 1})
    attempt = cluster.wait_phase("one", "Running")["attempts"][0]
    (pod,) = cluster.pods_of("one")
    allotment = str(attempt["allotment"])
    cluster.wait(lambda: row(store, allotment)["pod_uid"] == pod.metadata.uid, "the pod to be bound")
    body = wire.Activate(operation_id=new_id())
    (answer,) = store.execute([command(Verb.ACTIVATE, body, allotment=allotment, pod_uid=pod.metadata.uid)])
    assert isinstance(answer, wire.Activated), answer
    return allotment


def test_a_vanished_pod_is_waited_for_until_its_meter_can_spend_no_more(
    cluster: Cluster, stack: Stack, store: Store
) -> None:
    allotment = running_one(cluster, store)
    (pod,) = cluster.pods_of("one")
    cluster.core.delete_namespaced_pod(pod.metadata.name, cluster.namespace, grace_period_seconds=0)
    said = cluster.wait_ready("Execution", "one", "WaitingForLease")
    assert "UTC at the latest" in said["message"], "while it waits, the status says for what and until when"
    cluster.wait(lambda: row(store, allotment)["state"] == "closed", "the allotment to be closed")
    over = row(store, allotment)
    assert over["closed_ms"] - over["exchanged_ms"] >= SILENCE * 1000
    assert over["unaccounted_nanos"] > 0, "what it held is charged off, not released"
    cluster.wait(lambda: len(cluster.status("one")["attempts"]) == 2, "the next attempt")
    first, second = cluster.status("one")["attempts"]
    assert (first["outcome"], first["reason"]) == ("Failed", "NodeLost")
    # Nothing of the next attempt was there before the first one was over.
    assert row(store, second["allotment"])["opened_ms"] >= over["closed_ms"]
    verify_ledger(stack)
