"""What the parts of the shell share: clients, cache, writer, settings, and the tasks that they start.

Role: every piece of work runs as a task that is known here, so that a clean stop waits for it, and so that losing the
leadership anywhere ends the process at once.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from almoner_operator.cache import Cache
from almoner_operator.errors import LeadershipLostError
from almoner_operator.events import EventRecorder
from almoner_operator.kubernetes import BY_KIND, KubernetesClient
from almoner_operator.ledger_client import LedgerClient
from almoner_operator.ledger_trust import LedgerTrust
from almoner_operator.log_tails import LogTails
from almoner_operator.machines import ComputeSettings
from almoner_operator.pins import Pins
from almoner_operator.pods import RunnerSettings
from almoner_operator.rates import RateBook
from almoner_operator.records import AgentRecord, ProviderRecord, QuotaRecord, Run
from almoner_operator.scheduling.model import Settings as SchedulingSettings
from almoner_operator.secret_facts import Secrets
from almoner_operator.tool_records import ToolProviderRecord
from almoner_operator.writer import StatusWriter, Target

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class OperatorSettings:
    """How the operator runs, from its command line and environment."""

    ledger_url: str
    runner: RunnerSettings
    scheduling: SchedulingSettings = field(default_factory=SchedulingSettings)
    compute: ComputeSettings = field(default_factory=ComputeSettings)
    kubeconfig: Path | None = None
    ledger_token_file: Path | None = None
    ledger_ca_file: Path | None = None
    """Certificates by which the ledger is known; the image's where None."""
    ledger_certificate_secret: str = ""
    """Secret of the own namespace in which to keep the ledger's self-signed certificate; empty: do not."""
    namespaces: tuple[str, ...] = ()
    """Namespaces to serve; all where empty."""
    own_namespace: str = "almoner-system"
    """Where the Lease lies."""
    identity: str = ""
    lease_seconds: int = 15
    """Life of the Lease; so long after a crash another process takes over."""
    start_deadline_seconds: int = 600
    """Seconds in which a pod must have started; then it gives its quota back."""
    lost_seconds: int = 90
    """Seconds after a pod vanished without a last word before the ledger is asked to charge its allotment off, which it
    does once the meter's lease, the longest call and a margin have passed."""
    settle_seconds: float = 10.0
    """Seconds to wait for the last totals of an attempt once its pod has ended."""
    health_port: int = 8080
    metrics_port: int = 9090
    listen_address: str = "0.0.0.0"  # noqa: S104 - a pod's own address: probes and Prometheus come from outside
    api_concurrent: int = 48
    api_rate: float = 1000.0


@dataclass
class Context:
    """Everything that a part of the shell may use."""

    settings: OperatorSettings
    client: KubernetesClient
    ledger: LedgerClient
    cache: Cache
    writer: StatusWriter
    events: EventRecorder
    pins: Pins
    secrets: Secrets
    fatal: asyncio.Future[BaseException]
    """Set by whatever must end the process."""
    trust: LedgerTrust = field(default_factory=LedgerTrust)
    rates: RateBook = field(default_factory=RateBook)
    log_tails: LogTails = field(init=False)
    tasks: set[asyncio.Task[Any]] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.log_tails = LogTails(self.client)

    def spawn(self, work: Coroutine[Any, Any, Any], name: str) -> asyncio.Task[Any]:
        """Run something in the background. What it raises is logged; lost leadership ends the process."""
        task = asyncio.get_running_loop().create_task(work, name=name)
        self.tasks.add(task)
        task.add_done_callback(self._done)
        return task

    def _done(self, task: asyncio.Task[Any]) -> None:
        self.tasks.discard(task)
        if task.cancelled():
            return
        error = task.exception()
        if error is None:
            return
        if isinstance(error, LeadershipLostError):
            self.end(error)
        else:
            log.error("%s failed: %s", task.get_name(), error, exc_info=error)

    def end(self, error: BaseException) -> None:
        """End the process for a reason that it cannot go on with."""
        if not self.fatal.done():
            self.fatal.set_result(error)


def run_target(run: Run) -> Target:
    """Give where a run's status is written."""
    return Target(run, BY_KIND[run.key.kind], run.key.namespace, run.key.name, run.key.uid)


def target_of(kind: str, record: AgentRecord | QuotaRecord | ProviderRecord | ToolProviderRecord) -> Target:
    """Give where another record's status is written."""
    return Target(record, BY_KIND[kind], record.namespace, record.name, record.uid)


def now() -> datetime:
    """Give the present moment, aware, in UTC."""
    return datetime.now(UTC)
