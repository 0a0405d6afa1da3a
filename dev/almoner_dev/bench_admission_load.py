"""The load of the `admission` benchmark: the shape of Kueue's published baseline, as Almoner's own resources.

5 cohorts x 6 queues become 30 namespaces, each with a ResourceQuota of 20 cores; 70 % of a queue's executions are small
(1 core, 200 ms), 20 % medium (5 cores, 500 ms), 10 % large (20 cores, 1,000 ms), of rising priority. There is no
borrowing here: a cohort is a name and nothing else, so that a queue has its 20 cores and never more, which is harder
than the original.

PURE: manifests out of numbers; sends nothing.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any, Final

GROUP: Final = "almoner.dev/v1alpha1"
COHORTS: Final = 5
QUEUES: Final = 6
CORES: Final = 20
METER_MILLICORES: Final = 50
"""What the operator adds to every pod for the meter; the quota gives 20 meters' room on top of its cores."""
PROBE_NAMESPACE: Final = "bench-probe"
PROVIDER: Final = "local"
MODEL: Final = "bench"

Item = tuple[str, dict[str, Any]]
"""Where to create an object, and the object."""


@dataclass(frozen=True, slots=True)
class Size:
    """One class of executions."""

    name: str
    cores: int
    runtime_ms: int
    share: int
    """Of 500."""
    priority: int


SIZES: Final = (Size("small", 1, 200, 350, 3), Size("medium", 5, 500, 100, 5), Size("large", 20, 1000, 50, 7))


def namespaces() -> list[str]:
    """Give the namespaces of the queues."""
    return [f"bench-{cohort}-{queue}" for cohort in range(COHORTS) for queue in range(QUEUES)]


def path(plural: str, namespace: str) -> str:
    """Give where objects of a kind are created."""
    return f"/apis/{GROUP}/namespaces/{namespace}/{plural}"


def quota_bound_per_s() -> float:
    """Give the most executions a second that the quotas allow, were every core busy always."""
    core_seconds = sum(size.share / 500 * size.cores * size.runtime_ms / 1000 for size in SIZES)
    return COHORTS * QUEUES * CORES / core_seconds


def environment() -> list[Item]:
    """Give namespaces, providers, agents and quotas, in the order to create them in."""
    names = [*namespaces(), PROBE_NAMESPACE]
    items: list[Item] = [("/api/v1/namespaces", {"metadata": {"name": name}}) for name in names]
    for name in names:
        items.append((path("modelproviders", name), _provider()))
        items += [(path("agents", name), _agent(size)) for size in SIZES]
        items.append((path("resourcequotas", name), _quota(CORES if name != PROBE_NAMESPACE else 100_000)))
    return items


def executions(count: int, seed: int) -> list[Item]:
    """Give `count` executions, shared out evenly among the queues, in the order in which they are applied."""
    queues = namespaces()
    made: list[Item] = []
    for index in range(count):
        number, queue = divmod(index, len(queues))
        made.append(execution(queues[queue], f"run-{number:05d}", _size_of(number)))
    random.Random(seed).shuffle(made)
    return made


def probe(number: int) -> Item:
    """Give one execution that fits at once, however many wait elsewhere."""
    return execution(PROBE_NAMESPACE, f"probe-{number:05d}", SIZES[0])


def execution(namespace: str, name: str, size: Size) -> Item:
    """Give one execution of a class."""
    body = {
        "apiVersion": GROUP,
        "kind": "Execution",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {
            "agentRef": {"name": size.name},
            "input": {"text": "How much is 6 times 7?"},
            "priority": size.priority,
            "limits": {"maxCost": "0.01"},
        },
    }
    return path("executions", namespace), body


def _size_of(number: int) -> Size:
    """Deal the classes out by their shares: 7 small, 2 medium and 1 large in every ten."""
    place = number % 10
    small, medium = SIZES[0].share // 50, SIZES[1].share // 50
    return SIZES[0] if place < small else SIZES[1] if place < small + medium else SIZES[2]


def _provider() -> dict[str, Any]:
    return {
        "apiVersion": GROUP,
        "kind": "ModelProvider",
        "metadata": {"name": PROVIDER},
        "spec": {
            "type": "OpenAICompatible",
            "baseURL": "http://127.0.0.1:9/v1",
            "models": [{"name": MODEL, "contextWindow": 8192, "maxOutputTokens": 1024}],
            "prices": [{"model": MODEL, "inputPerMillion": "0.05", "outputPerMillion": "0.20"}],
        },
    }


def _agent(size: Size) -> dict[str, Any]:
    return {
        "apiVersion": GROUP,
        "kind": "Agent",
        "metadata": {"name": size.name},
        "spec": {
            "type": "Simulation",
            "model": {"provider": PROVIDER, "name": MODEL},
            "runner": {
                "image": "localhost/bench:1",
                "command": ["sleep", str(size.runtime_ms / 1000)],
                "resources": {"requests": {"cpu": str(size.cores)}},
            },
        },
    }


def _quota(cores: int) -> dict[str, Any]:
    millicores = cores * (1000 + METER_MILLICORES)
    return {
        "apiVersion": GROUP,
        "kind": "ResourceQuota",
        "metadata": {"name": "cores"},
        "spec": {"hard": {"cpu": f"{millicores}m"}, "budget": {"amount": "1000000"}},
    }
