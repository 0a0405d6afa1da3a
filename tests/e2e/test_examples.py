"""Every manifest in examples/ (but demo/ and start/: test_demo.py) is applied with kubectl; what can run runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

from almoner_dev.scripted import Reply
from tests.support.e2e import USAGE, World, nanos

APPLIED = {
    "providers": ("anthropic", "local", "openai", "tools"),
    "shared": ("agent", "provider"),  # applied in test_cluster_providers.py: their ledger must serve HTTPS
    "agents": ("custom-image", "real-deployment", "research", "support"),
    "executions": ("configmap", "json", "retry", "text"),
    "quotas": ("machines", "namespace", "pace", "per-owner"),
    "training": ("job",),
}
RESEARCH = ("research-machines", "research-machines-next-year", "research-team")


def files(repository: Path, *folders: str) -> list[Path]:
    return [repository / "examples" / folder / f"{name}.yaml" for folder in folders for name in APPLIED[folder]]


def documents(*paths: Path) -> list[dict[str, Any]]:
    return [document for path in paths for document in yaml.safe_load_all(path.read_text())]


def test_no_example_is_left_out(repository: Path) -> None:
    found = {path for path in (repository / "examples").rglob("*.yaml") if path.parent.name not in {"demo", "start"}}
    assert found == set(files(repository, *APPLIED))


def test_the_examples_run(world: World, repository: Path) -> None:
    answer = {"summary": "little", "confidence": 0.7, "sources": []}
    world.model.load(
        [Reply(text=json.dumps(answer), usage=USAGE, match="claude-sonnet"), Reply(text="59.97 in all", usage=USAGE)]
    )
    providers = documents(*files(repository, "providers"))
    for document in providers:
        # In place of the public addresses, and of the one that is no more than an example.
        if document["kind"] == "ModelProvider":
            suffix = "" if document["spec"]["type"] == "Anthropic" else "/v1"
            document["spec"]["baseURL"] = world.model.base_url + suffix
    world.apply(*providers)
    for path in files(repository, "quotas", "agents", "executions", "training"):
        world.kubectl("apply", "-f", str(path))
    for name in ("openai", "anthropic", "local"):
        world.wait_ready("ModelProvider", name)
    for name in ("serper", "vectors"):
        world.wait_ready("ToolProvider", name)
    bypassable = {
        name: world.condition("ModelProvider", name, "Bypassable")["status"]
        for name in ("openai", "anthropic", "local")
    }
    assert bypassable == {"openai": "False", "anthropic": "False", "local": "True"}
    for name in ("support", "researcher", "refunds", "crm-crew", "librarian"):
        world.wait_ready("Agent", name)
    order, recycling, complaint = world.succeeded("where-is-my-order", "battery-recycling", "answer-complaint")
    assert order["output"] == complaint["output"] == "59.97 in all"
    assert json.loads(recycling["output"]) == answer
    for status, quotas_of in (
        (order, ["each-owner", "everyone", "pace"]),
        (recycling, ["each-owner", "everyone", "pace", *RESEARCH]),
    ):
        assert sorted(status["quotas"]) == quotas_of
    assert world.condition("Execution", "nightly-crew", "Suspended")["status"] == "True"
    # An image of their own: its program is not on this node, and that is what is said.
    status = world.ended("tune-router", "Failed", kind="TrainingJob")
    assert "tune" in status["attempts"][0]["message"]
    world.nothing_open()
    assert len(world.model.requests) == 3
    world.wait(lambda: world.status_nanos() == world.ledger_nanos(), "the statuses to sum to the ledger")
    # By the public price data, as of this version of it: not free, and no more than three small calls can cost.
    assert 0 < world.ledger_nanos() < 1_000_000
    world.wait(lambda: nanos(world.limit("everyone")["used"]) == world.ledger_nanos(), "the namespace's budget")


def test_the_quotas_are_in_force(world: World, repository: Path) -> None:
    for path in files(repository, "quotas"):
        world.kubectl("apply", "-f", str(path))
    for document in documents(*files(repository, "quotas")):
        world.wait_ready("ResourceQuota", document["metadata"]["name"])
    table = world.kubectl("get", "aq")
    assert "everyone" in table
    assert "200.00" in table
