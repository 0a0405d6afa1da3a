"""What a cluster adds to runner pods: a LimitRange's defaults, the containers that a webhook injects.

Role: the answer to a pod's creation says what it really asks for. What that is more than the Agent's runner and the
meter is learned here, by agent, so that the next of its kind is counted in full before it is admitted; and `passed`
says whether the one that taught it fits its quotas at all.

Boundary: no I/O and no clock; what follows is the admitter's business.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from almoner_core.compute import Machine
from almoner_operator.records import Run
from almoner_operator.scheduling.model import NO_REQUESTS, Quota, Requests
from almoner_operator.scheduling.selection import subject_of

FORGET_SECONDS: Final = 600.0
"""What no pod confirmed for so long is forgotten: whoever waits because of it would never find out."""
_UNITS: Final = {"cpu": "m cpu", "memory": " bytes of memory", "gpu": " gpu"}


class Additions:
    """What the cluster adds to the pods of each agent of each namespace."""

    def __init__(self) -> None:
        self._learned: dict[tuple[str, str], tuple[Requests, float]] = {}

    def of(self, run: Run) -> Requests:
        """Give what is added to a run's pod, as far as is known."""
        return self._learned.get(_key(run), (NO_REQUESTS, 0.0))[0]

    def learn(self, run: Run, plain: Requests, actual: Requests, moment: float) -> bool:
        """Note what a pod asks for, and what it would without additions; gives whether that is news."""
        before = self.of(run)
        added = Requests(*(max(0, real - asked) for real, asked in zip(actual, plain, strict=True)))
        if added == NO_REQUESTS:
            self._learned.pop(_key(run), None)
        else:
            self._learned[_key(run)] = (added, moment)
        return added != before

    def forget(self, moment: float) -> set[str]:
        """Forget what is old (monotonic seconds); gives the namespaces for which that is news."""
        old = [key for key, (_, at) in self._learned.items() if moment - at >= FORGET_SECONDS]
        for key in old:
            del self._learned[key]
        return {namespace for namespace, _ in old}


def _key(run: Run) -> tuple[str, str]:
    return run.key.namespace, run.agent_name or f"{run.key.kind}/{run.key.name}"


def plus(first: Requests, second: Requests) -> Requests:
    """Add up."""
    return Requests(*(a + b for a, b in zip(first, second, strict=True)))


def requests_of_pod(machine: Machine) -> Requests:
    """Give what a pod requests as quotas count it."""
    return Requests(machine.cpu, machine.memory, machine.gpu)


def passed(run: Run, quotas: Iterable[Quota], others: Iterable[tuple[Run, Requests]]) -> str | None:
    """Say which quota a run passes with what it was admitted with; None: it fits. `others` are under way, too."""
    if run.admitted is None:
        return None
    others = list(others)
    for quota in quotas:
        if not quota.enforced or quota.name not in run.admitted.quotas:
            continue
        subject = subject_of(quota, run.owner)
        beside = [
            asked
            for other, asked in others
            if other.admitted is not None
            and quota.name in other.admitted.quotas
            and subject_of(quota, other.owner) == subject
        ]
        for name, unit in _UNITS.items():
            limit, asked = getattr(quota.hard, name), getattr(run.admitted.requests, name)
            used = sum(getattr(each, name) for each in beside)
            if limit is not None and used + asked > limit:
                return (
                    f"ResourceQuota {quota.name}: its pod asks for {asked}{unit} with what the cluster adds to it (a "
                    f"LimitRange or a webhook), and {used} of {limit} are in use"
                )
    return None
