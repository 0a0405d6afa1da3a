"""What an attempt was admitted with: what counts from then on, whatever becomes of the Agent, quotas and providers.

Role: computed once, when the attempt is admitted, and used for quota counts, timeouts, machine time and the meter's
configuration. It is in the status beside the attempt (and the quotas' names in `status.quotas`), so that an operator
that takes over has the same values.

Boundary: PURE.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime

from almoner_core.api.execution import Attempt, AttemptAdmission, AttemptOutcome
from almoner_core.money import Money
from almoner_operator.scheduling.model import NO_REQUESTS, Admission, Requests


@dataclass(frozen=True, slots=True)
class Admitted:
    """The admission of one attempt.

    `requests` and `quotas` are what quotas count. `timeout_seconds` is over all attempts, None without one.
    `first_need` is what the first call needs, by dimension: the ledger was asked for it, and the meter is told the
    same. `queued_since` is when the run began to wait before this admission, for an admission that comes to nothing;
    None after a restart.
    """

    requests: Requests = NO_REQUESTS
    quotas: tuple[str, ...] = ()
    grace_seconds: int = 0
    timeout_seconds: int | None = None
    first_need: Mapping[str, int] = field(default_factory=dict)
    queued_since: datetime | None = None

    @classmethod
    def assumed(cls, admission: Admission) -> Admitted:
        """Take what was decided, before the attempt's other values are known."""
        workload = admission.workload
        return cls(requests=workload.requests, quotas=admission.quotas, queued_since=workload.since)

    def completed(self, *, grace_seconds: int, timeout_seconds: int | None, first_need: Mapping[str, int]) -> Admitted:
        """Add what was worked out for the attempt."""
        needs = {name: amount for name, amount in first_need.items() if amount}
        return replace(self, grace_seconds=grace_seconds, timeout_seconds=timeout_seconds, first_need=needs)

    def to_status(self) -> AttemptAdmission:
        """Give it as the attempt's status has it."""
        dollars, tokens = self.first_need.get("usd"), self.first_need.get("tokens")
        return AttemptAdmission(
            cpu_milli=self.requests.cpu,
            memory=self.requests.memory,
            gpu=self.requests.gpu,
            grace_seconds=self.grace_seconds,
            timeout_seconds=self.timeout_seconds,
            first_cost=Money(dollars) if dollars is not None else None,
            first_tokens=tokens,
        )

    @classmethod
    def of_status(cls, attempts: Sequence[Attempt], quotas: Sequence[str]) -> Admitted | None:
        """Read it back from a run's status; None where no attempt is under way, or an older version admitted it."""
        last = attempts[-1] if attempts else None
        if last is None or last.outcome is not AttemptOutcome.RUNNING or last.admission is None:
            return None
        told = last.admission
        amounts = {"usd": told.first_cost.nanos if told.first_cost is not None else 0, "tokens": told.first_tokens or 0}
        return cls(
            requests=Requests(told.cpu_milli, told.memory, told.gpu),
            quotas=tuple(quotas),
            grace_seconds=told.grace_seconds,
            timeout_seconds=told.timeout_seconds,
            first_need={name: amount for name, amount in amounts.items() if amount},
        )
