"""Which quotas select a workload, and which account of each: pure, and quick for a thousand quotas in a namespace."""

from __future__ import annotations

from collections.abc import Iterable

from almoner_core.wire import AccountKey
from almoner_operator.scheduling.model import Agent, Quota


def selects(quota: Quota, owner: str, agent: Agent | None) -> bool:
    """Whether a quota governs work of this owner with this agent: every part of its scope that is given must match.

    Work without an agent (a TrainingJob with a runner of its own, an agent that does not exist) matches no scope that
    asks for an agent's labels or type.
    """
    if quota.owners and owner not in quota.owners:
        return False
    if not quota.agent_types and not quota.agent_selector:
        return True
    if agent is None:
        return False
    if quota.agent_types and agent.type not in quota.agent_types:
        return False
    return all(agent.labels.get(key) == value for key, value in quota.agent_selector)


def subject_of(quota: Quota, owner: str) -> str:
    """The account's subject: the owner where the quota opens one account an owner, else empty."""
    return owner if quota.per_owner else ""


def account_key(namespace: str, quota: Quota, owner: str) -> AccountKey:
    """The ledger's name of the account that governs this owner's work under a quota."""
    return AccountKey(namespace=namespace, quota=quota.name, subject=subject_of(quota, owner))


class QuotaIndex:
    """The quotas of one namespace, found by owner: most name their owners, and most of those are other people's."""

    __slots__ = ("_by_owner", "_common", "_rank")

    def __init__(self, quotas: Iterable[Quota]) -> None:
        self._by_owner: dict[str, list[Quota]] = {}
        self._common: list[Quota] = []
        self._rank: dict[str, int] = {}
        for rank, quota in enumerate(quotas):
            self._rank[quota.name] = rank
            if quota.owners:
                for owner in quota.owners:
                    self._by_owner.setdefault(owner, []).append(quota)
            else:
                self._common.append(quota)

    def selecting(self, owner: str, agent: Agent | None) -> list[Quota]:
        """The quotas that govern this owner's work with this agent, in the order they were given."""
        candidates = [*self._by_owner.get(owner, ()), *self._common]
        found = [quota for quota in candidates if selects(quota, owner, agent)]
        found.sort(key=lambda quota: self._rank[quota.name])
        return found


def can_be_budgeted(quotas: Iterable[Quota], agent: Agent) -> bool:
    """Whether a quota with an enforced budget can govern an agent's work, for some owner."""
    return any(
        quota.enforced and quota.budget is not None and selects(quota, next(iter(quota.owners), ""), agent)
        for quota in quotas
    )
