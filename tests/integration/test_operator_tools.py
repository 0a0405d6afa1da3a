"""ToolProviders on a real API server: judged, named by agents, and their prices in the meter's configuration."""

from __future__ import annotations

import json
from typing import Any

from almoner_core.environment import ENV_METER_CONFIG, METER_CONTAINER
from tests.support.cluster import Cluster

SEARCH = {"name": "web_search", "provider": "search"}


def tool_provider(cluster: Cluster, name: str = "search", **spec: Any) -> None:
    prices = [{"tool": "web_search", "perCall": "0.005", "perUnit": "0.0001", "unit": "result"}]
    cluster.create("ToolProvider", name, {"type": "DuckDuckGo", "prices": prices, **spec})


def meter_config(pod: Any) -> Any:
    (meter,) = [each for each in pod.spec.init_containers if each.name == METER_CONTAINER]
    return json.loads(next(each.value for each in meter.env if each.name == ENV_METER_CONFIG))


def test_a_tools_price_reaches_the_meter_as_it_was_at_admission(cluster: Cluster) -> None:
    cluster.provider()
    tool_provider(cluster)
    cluster.wait_ready("ToolProvider", "search")
    cluster.agent("run-600000", runner={"image": "example/sdk:1"}, tools=[SEARCH])
    cluster.wait_ready("Agent", "run-600000")
    cluster.execution("one", agent="run-600000")
    cluster.wait_phase("one", "Running")
    (pod,) = cluster.pods_of("one")
    assert meter_config(pod)["tools"] == [
        {
            "name": "web_search",
            "provider": "search",
            "resource_type": "web_search",
            "price": {
                "version": f"override {cluster.namespace}/search generation 1",
                "per_call": 5_000_000,
                "per_unit": 100_000,
            },
        }
    ]
    cluster.patch("Execution", "one", {"cancel": True})
    cluster.wait_phase("one", "Cancelled")


def test_an_agent_waits_for_its_tools_and_says_which(cluster: Cluster) -> None:
    cluster.provider()
    cluster.agent(runner={"image": "example/sdk:1"}, tools=[SEARCH])
    condition = cluster.wait_ready("Agent", "agent", "ToolProviderNotFound")
    assert "spec.tools[0].provider: ToolProvider search does not exist" in condition["message"]
    tool_provider(cluster, credentials={"name": "search-key", "key": "k"})
    assert "search-key" in cluster.wait_ready("ToolProvider", "search", "SecretNotFound")["message"]
    cluster.wait_ready("Agent", "agent", "ToolProviderNotReady")
    cluster.patch("ToolProvider", "search", {"credentials": None, "prices": []})
    cluster.wait_ready("ToolProvider", "search")
    condition = cluster.wait_ready("Agent", "agent", "ToolUnpriced")
    assert "ToolProvider search" in condition["message"]
    cluster.patch("ToolProvider", "search", {"prices": [{"tool": "web_search", "perCall": "0"}]})
    cluster.wait_ready("Agent", "agent")
    cluster.delete("ToolProvider", "search")
    cluster.wait_ready("Agent", "agent", "ToolProviderNotFound")
