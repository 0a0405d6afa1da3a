"""The runner pod of one attempt: a pure function from what was admitted to the object that is created.

The meter is a native sidecar and alone has the provider keys and the ledger's token; the agent container gets addresses
on the pod's loopback and placeholders. Everything here fits Kubernetes' restricted pod security profile.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from almoner_core.api.agent import AgentSpec, Limits
from almoner_core.api.base import ConfigMapKeyReference, SecretKeyReference
from almoner_core.api.runner import Runner
from almoner_core.contract import MeterProvider
from almoner_operator.scheduling.model import Requests


class PodError(ValueError):
    """The pod cannot be built from this spec; the message names the field and the fix."""


@dataclass(frozen=True, slots=True)
class RunnerSettings:
    """How runner pods look on this cluster, from the operator's configuration."""

    image: str
    """The runner image: it holds the meter and our agent loop."""
    ledger_url: str
    image_pull_policy: str = "IfNotPresent"
    image_pull_secrets: tuple[str, ...] = ()
    service_account: str = "default"
    meter_command: tuple[str, ...] = ("almoner-meter",)
    agent_command: tuple[str, ...] = ("almoner-agent",)
    meter_cpu: str = "50m"
    meter_memory: str = "96Mi"
    meter_memory_limit: str = "256Mi"
    meter_start_seconds: int = 60
    """Seconds in which the meter must have loaded its allotment, else it is restarted."""
    token_seconds: int = 3600
    """Life of the projected token for the ledger; the kubelet renews it. At least 600."""
    spool_size: str = "64Mi"
    output_size: str = "16Mi"
    scratch_size: str = "1Gi"

    @property
    def meter_requests(self) -> Requests:
        """What the meter's container reserves, for `requests_of`."""
        raise NotImplementedError


@dataclass(frozen=True, slots=True)
class PodProvider:
    """A provider that the meter may call (with its price cards, resolved), and where its key lies.

    `meter.key_file` is filled in by `build_pod` where `credentials` is given.
    """

    meter: MeterProvider
    credentials: SecretKeyReference | None = None


@dataclass(frozen=True, slots=True)
class PodRequest:
    """One attempt that was admitted.

    `agent` is the pinned AgentSpec, None for a TrainingJob with a runner of its own. `input` is the text (or JSON) as it
    is to be written to the input file; `input_from` a ConfigMap key instead. `remaining_seconds` is what is left of the
    timeout over all attempts; None without one. `extra` reaches the meter as it is.
    """

    kind: str
    namespace: str
    name: str
    uid: str
    attempt: int
    owner: str
    runner: Runner
    agent_name: str | None = None
    agent: AgentSpec | None = None
    limits: Limits = field(default_factory=Limits)
    providers: tuple[PodProvider, ...] = ()
    input: str | None = None
    input_from: ConfigMapKeyReference | None = None
    remaining_seconds: int | None = None
    extra: dict[str, Any] = field(default_factory=dict)


def build_pod(request: PodRequest, settings: RunnerSettings) -> dict[str, Any]:
    """Give the Pod object (JSON form) for an attempt. Raises PodError naming what is too large or malformed."""
    raise NotImplementedError
