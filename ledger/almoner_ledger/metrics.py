"""What the ledger tells Prometheus. Labels are bounded: verbs, error codes, routes."""

from __future__ import annotations

from prometheus_client import Counter, Gauge, Histogram

REQUESTS = Counter("almoner_ledger_requests_total", "Requests by route and error code.", ["route", "code"])
REQUEST_SECONDS = Histogram(
    "almoner_ledger_request_seconds",
    "Seconds to answer, long polls apart.",
    ["route"],
    buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 10, 30),
)
TRANSACTION_SECONDS = Histogram(
    "almoner_ledger_transaction_seconds",
    "Seconds of one group's transaction, retries included.",
    buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 10, 30),
)
GROUP_SIZE = Histogram(
    "almoner_ledger_group_size", "Commands in one transaction.", buckets=(1, 2, 5, 10, 20, 50, 100, 200, 500)
)
TURNED_AWAY = Counter(
    "almoner_ledger_turned_away_total", "Connections and requests beyond what one caller may have.", ["what"]
)
LONG_POLLS = Gauge("almoner_ledger_long_polls", "Calls that wait for news.")
QUEUE = Gauge("almoner_ledger_queue", "Commands waiting for a transaction.")
AUTHENTICATION = Counter(
    "almoner_ledger_authentication_total", "Tokens presented, by how they were judged.", ["result"]
)
AUTHORIZATION = Counter(
    "almoner_ledger_authorization_total",
    "Questions to the API server whether somebody may read, by its answer.",
    ["result"],
)
KEYS = Counter("almoner_ledger_keys_asked_total", "Keys of providers that meters asked for, by result.", ["result"])
SEALED = Counter("almoner_ledger_sealed_entries_total", "Entries that this replica sealed.")
MAINTENANCE_FAILURES = Counter(
    "almoner_ledger_maintenance_failures_total", "Turns of sealing or tidying that failed.", ["task"]
)
CERTIFICATE_EXPIRES = Gauge(
    "almoner_ledger_certificate_expires_seconds",
    "When the served certificate expires, in Unix seconds; 0: plain HTTP.",
)
EXPIRED = Counter("almoner_ledger_expired_total", "Attempts given up because nothing was heard of their meter.")
