"""What Prometheus may know about the operator. Labels are bounded: so many namespaces are named, and no runs."""

from __future__ import annotations

from typing import Final

from prometheus_client import Counter, Gauge, Histogram

from almoner_core.bounded import Bounded

_FAST: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)

_WAITS: Final = (1.0, 5.0, 15.0, 60.0, 300.0, 900.0, 3600.0, 4 * 3600.0, 24 * 3600.0)
NAMESPACES_MAX: Final = 500
"""Namespaces that have series of their own; those met later share the label `other`."""
bounded: Final = Bounded(NAMESPACES_MAX)

KNOWN: Final = Gauge("almoner_known_objects", "Objects in the operator's cache.", ["kind"])
# Names as Kueue's, where the meaning is the same.
ADMITTED: Final = Counter("almoner_admitted_workloads_total", "Attempts admitted.", ["namespace"])
ADMISSION_WAIT_SECONDS: Final = Histogram(
    "almoner_admission_wait_time_seconds",
    "Time from the creation of an Execution or TrainingJob to its first admission.",
    ["namespace"],
    buckets=_WAITS,
)
ADMISSION_FAILURES: Final = Counter("almoner_admission_failures_total", "Admissions undone, by reason.", ["reason"])
FINISHED: Final = Counter(
    "almoner_finished_workloads_total",
    "Executions and jobs that ended, by phase and, where they failed, reason.",
    ["namespace", "phase", "reason"],
)
RUN_SECONDS: Final = Histogram(
    "almoner_run_duration_seconds",
    "Time from the start of the first attempt to the end of an Execution or TrainingJob.",
    ["namespace", "phase"],
    buckets=_WAITS,
)
DECIDE_SECONDS: Final = Histogram("almoner_decide_seconds", "Time to decide on one snapshot.", buckets=_FAST)
ROUND_SECONDS: Final = Histogram("almoner_round_seconds", "Time of one round of the scheduling loop.", buckets=_FAST)
PATCHES: Final = Counter("almoner_status_patches_total", "Status patches sent.", ["kind"])
PATCHES_SKIPPED: Final = Counter("almoner_status_patches_skipped_total", "Status patches that would change nothing.")
PATCH_CONFLICTS: Final = Counter(
    "almoner_status_conflicts_total", "Status patches refused since somebody else had changed the object.", ["kind"]
)
API_SECONDS: Final = Histogram(
    "almoner_api_seconds", "Time of a request to the API server, waiting for a slot apart.", ["method"], buckets=_FAST
)
API_WAIT_SECONDS: Final = Histogram("almoner_api_wait_seconds", "Time that a request waited for a slot.", buckets=_FAST)
LEDGER_SECONDS: Final = Histogram("almoner_ledger_seconds", "Time of a request to the ledger.", ["call"], buckets=_FAST)
API_RETRIES: Final = Counter("almoner_api_retries_total", "Requests to the API server that were sent again.")
LEDGER_ERRORS: Final = Counter("almoner_ledger_errors_total", "Answers of the ledger that were errors.", ["code"])
CONFIGURATION_REFUSED: Final = Counter(
    "almoner_configuration_changes_refused_total",
    "Changes of quotas and providers that could not be told to the ledger's log.",
)
FAULTS: Final = Counter(
    "almoner_object_faults_total",
    "Objects whose handling failed while others' went on, by what was done.",
    ["what"],
)
EVENTS_DROPPED: Final = Counter("almoner_events_dropped_total", "Kubernetes events not sent, to spare the API server.")
QUOTA_ALERTS: Final = Counter(
    "almoner_quota_alerts_total", "Budget thresholds that fired, by quota.", ["namespace", "quota", "percent"]
)
LEADER: Final = Gauge("almoner_leader", "1 where this process leads.")


def begin(namespace: str) -> None:
    """Have a namespace's counters begin at 0, as far as their labels are known ahead."""
    name = bounded(namespace)
    ADMITTED.labels(name)
    FINISHED.labels(name, "Succeeded", "")
