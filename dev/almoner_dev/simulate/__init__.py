"""The seeded simulation: meters, ledger replicas and an operator over a real database, with everything going wrong.

    python -m almoner_dev.simulate --seed 7 --schedules 200 --json

Role: one schedule is a small world that lives some virtual minutes: quotas whose limits change, executions with several
attempts, pods whose meters spend. The ledger is the real service over a real PostgreSQL or SQLite, every message is the
real JSON; the meters are the real books, holds and spool. One seeded generator decides all: what is called, what it
costs, which message is lost, doubled, delayed, who is killed at which statement, how clocks jump. Afterwards an oracle
that counted what the provider billed compares: nothing overspent, nothing lost, every invariant held.

Beside each schedule `bounding` lives another with the same seed: bodies as agents write them, through the meter's app
to a provider that charges what it receives.

Boundary: virtual time has one event loop and runs one transaction at a time; what real concurrency and real processes
do is seen by `--processes` (and by the tests of the ledger's faults), which repeats the same world in real time.
"""

from __future__ import annotations

from almoner_dev.simulate.report import Result, Summary

__all__ = ["Result", "Summary"]
