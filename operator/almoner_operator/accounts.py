"""Quotas as the ledger knows them: limits handed over, use and money read back into their status.

Role: every ResourceQuota has an account in the ledger for each of its subjects (one, or one for each owner that it
names). Nothing is admitted under a quota until the ledger has acknowledged its limits, or under one that asks for what
this version cannot enforce: limits fail closed.

The generation that the ledger orders updates by is the leader's epoch and a counter: a quota that was deleted and
created again counts its own generation from 1, which would look stale for ever.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Iterable, Mapping
from datetime import datetime, timedelta
from typing import Final, NamedTuple

from almoner_core import wire
from almoner_core.api.execution import WaitReason
from almoner_core.api.resource_quota import (
    BudgetPeriod,
    Enforcement,
    LimitStatus,
    QuotaAlert,
    QuotaReason,
    ResourceQuotaSpec,
)
from almoner_core.identity import operation_id
from almoner_core.money import Money
from almoner_core.quantity import format_bytes, format_millicores
from almoner_core.time_zones import zone
from almoner_operator import alerts, apart, metrics, rates
from almoner_operator.cache import Space
from almoner_operator.conditions import BUDGET_ALERT, quota_conditions
from almoner_operator.context import Context, now, target_of
from almoner_operator.errors import LeadershipLostError, LedgerError, LedgerUnavailableError
from almoner_operator.limiter import Rank
from almoner_operator.records import QuotaRecord
from almoner_operator.scheduling.model import Account, Decisions, Hard, Quota, SubjectUse
from almoner_operator.writer import COALESCE_SECONDS

log = logging.getLogger(__name__)

BATCH: Final = 200
RETRY_SECONDS: Final = 1.0
LIMITS_MAX: Final = 1024
UPDATE_TRIES_MAX: Final = 3
REFRESH_SECONDS_LEAST: Final = 1.0
REFRESH_SECONDS_MAX: Final = 60.0


SPEC_FIELDS: Final[Mapping[str, str]] = {
    "time_zone": "spec.budget.timeZone",
    "period": "spec.budget.period",
    "limits": "spec.budget.amount",
    "max_per_execution": "spec.budget.maxPerExecution",
    "max_per_request": "spec.budget.maxPerRequest",
    "alert_thresholds_percent": "spec.budget.alertThresholdsPercent",
    "rates": "spec.rates",
}
"""What the spec calls the fields of the ledger's messages."""


OF_LIMITS: Final = frozenset({wire.ErrorCode.INVALID, wire.ErrorCode.TOO_LARGE})
"""Errors that are about what was handed over, and not about the ledger or who asks."""


_PLACE: Final = re.compile(r"accounts\.\d+\.")


class Owner(NamedTuple):
    """Whose limits are handed over: a quota; `record` None: one that was deleted."""

    namespace: str
    name: str
    record: QuotaRecord | None


Update = tuple[Owner, wire.AccountLimits]


class Accounts:
    """Keeps the ledger's accounts in step with ResourceQuotas, and their status with the ledger."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._counter = 0
        self._wake = asyncio.Event()
        self._known: dict[tuple[str, str], set[str]] = {}
        """Subjects that the ledger was told of, by quota: of deleted quotas too."""
        self._use: dict[tuple[str, str], tuple[SubjectUse, ...]] = {}
        self._providers_known: set[tuple[str, str]] = set()
        """Providers whose rates the ledger was told of."""
        self._refreshing: set[tuple[str, str]] = set()
        """Quotas whose status is looked at again when a rate's bucket is full."""

    def wake(self) -> None:
        """Look soon at what changed."""
        self._wake.set()

    async def run(self) -> None:
        """Hand changed limits over and write statuses, for ever."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            try:
                await self.sync()
            except LedgerUnavailableError as error:
                log.warning("limits are not handed over yet: %s", error)
                await asyncio.sleep(RETRY_SECONDS)
                self._wake.set()
            except LedgerError as error:
                log.error("the ledger refuses limits: %s", error)  # noqa: TRY400 - expected, no trace needed
                await asyncio.sleep(RETRY_SECONDS * 5)
                self._wake.set()
            except LeadershipLostError:
                raise
            except Exception:
                # A fault of ours: quotas must not stand still for it.
                log.exception("limits are not handed over yet")
                await asyncio.sleep(RETRY_SECONDS * 5)
                self._wake.set()

    # -- limits --------------------------------------------------------------------------------------

    async def sync(self) -> None:
        """Hand over what changed, each quota and provider on its own.

        Raises the first LedgerError when all was tried; what was not handed over is tried at the next call.
        """
        cache = self._context.cache
        changed, cache.quotas_changed = cache.quotas_changed, set()
        problem = await self._sync_quotas(changed)
        for namespace, name in changed:
            record = cache.space(namespace).quotas.get(name)
            if record is not None:
                apart.each("saying how it stands", f"{namespace}/{name}", self.write_status, record)
        await self._sync_providers()
        if problem is not None:
            raise problem

    async def _sync_quotas(self, changed: set[tuple[str, str]]) -> LedgerError | None:
        cache = self._context.cache
        updates: list[Update] = []
        for namespace, name in sorted(changed):
            try:
                updates += self._updates(cache.space(namespace), name)
            except Exception as error:
                # Limits that no message can hold, or that nobody reckoned with: the others' are handed over.
                if not isinstance(error, ValueError):
                    log.exception("the limits of %s/%s cannot be worked out", namespace, name)
                if (record := cache.space(namespace).quotas.get(name)) is not None:
                    said = str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"
                    self._refuse(record, f"spec: {said}"[:500])
        refused: set[tuple[str, str]] = set()
        for start in range(0, len(updates), BATCH):
            try:
                await self._hand_over(updates[start : start + BATCH], refused)
            except LedgerError as error:
                for left, _ in updates[start:]:
                    self._not_handed_over(left)
                return error
        return None

    def _not_handed_over(self, owner: Owner) -> None:
        cache = self._context.cache
        cache.quotas_changed.add((owner.namespace, owner.name))
        record = owner.record
        if record is not None and record.acknowledged != record.generation:
            record.reason, record.message = QuotaReason.LEDGER_UNAVAILABLE, "the ledger does not answer"

    def _refuse(self, record: QuotaRecord, message: str) -> None:
        """Let nothing be admitted under a quota whose limits cannot be in force as they are written."""
        record.reason, record.message = QuotaReason.INVALID_SPEC, message
        record.acknowledged = -1
        self._context.cache.space(record.namespace).stale = True
        self._context.cache.wake()

    async def _sync_providers(self) -> None:
        """Hand over the rates of providers that are new or changed, and of those that are gone. Raises LedgerError."""
        context, cache = self._context, self._context.cache
        spaces = (cache.cluster, *cache.spaces.values())
        known = {(space.name, name): record for space in spaces for name, record in space.providers.items()}
        wanted = [
            key
            for key, record in known.items()
            if record.generation not in (record.acknowledged, record.rates_refused_at)
        ]
        wanted += sorted(self._providers_known - known.keys())
        for start in range(0, len(wanted), BATCH):
            batch = wanted[start : start + BATCH]
            records = [known.get(key) for key in batch]
            # What is handed over is this generation, whatever comes while the ledger is asked.
            generations = [record.generation if record is not None else -1 for record in records]
            limits = [
                rates.provider_limits(record, rates.provider_key(*key), self._next_generation())
                for key, record in zip(batch, records, strict=True)
            ]
            subject = f"{context.ledger.epoch}/{limits[0].generation}/{len(limits)}"
            answer = await context.ledger.update_accounts(limits, operation_id=operation_id("providers", subject))
            refused = {each.index: each.error for each in answer.refused}
            for index, (key, record, generation) in enumerate(zip(batch, records, generations, strict=True)):
                if record is None:
                    self._providers_known.discard(key)
                    continue
                if index in refused:
                    record.rates_refused_at = generation
                    record.rates_problem = f"the ledger refuses its rateLimits: {refused[index].message}"
                    log.error("%s %s: %s", record.kind, record.place, record.rates_problem)
                    continue
                record.acknowledged = generation
                self._providers_known.add(key)
                self._release(key[0])

    def _release(self, namespace: str) -> None:
        """Let those try again that waited for a provider's rates; `namespace` is empty for those of the cluster's."""
        cache = self._context.cache
        for run in cache.space(namespace).runs.values() if namespace else list(cache.runs.values()):
            if run.hold is not None and run.hold.reason is WaitReason.PROVIDER_NOT_READY:
                run.hold = None
                cache.touch(run)

    def _next_generation(self) -> int:
        self._counter += 1
        return (self._context.ledger.epoch << 32) + self._counter

    def _subjects(self, record: QuotaRecord) -> set[str]:
        """Give the subjects of a quota: the owners that it names, where it opens an account for each, else the one."""
        if record.spec is None or record.spec.scope is None or not record.spec.scope.per_owner:
            return {""}
        return set(record.spec.scope.owners)

    def _updates(self, space: Space, name: str) -> list[Update]:
        record = space.quotas.get(name)
        owner = Owner(space.name, name, record)
        told = self._known.setdefault((space.name, name), set())
        if record is None:
            # Deleted: no limit holds any more; the account and what it spent stay.
            gone = [(owner, self._limits(space.name, name, subject, None)) for subject in sorted(told)]
            self._forget(space, name)
            return gone
        if record.spec is None:
            record.reason, record.message = QuotaReason.INVALID_SPEC, record.invalid
            return []
        problem = invalid(record.spec)
        if problem:
            self._refuse(record, problem)
            return []
        problem = unsupported(record.spec)
        if problem:
            record.reason, record.message = QuotaReason.NOT_SUPPORTED, problem
            record.acknowledged = -1
            return []
        named = self._subjects(record)
        fresh = record.acknowledged != record.generation
        if fresh:
            # Not in force until the ledger has the new limits.
            record.reason, record.message = QuotaReason.LEDGER_UNAVAILABLE, "the ledger does not have its limits yet"
        # Also those whose window ended, though nobody of that owner is here.
        wanted = named | told if fresh else (named | told) - record.subjects
        return [(owner, self._limits(space.name, name, subject, record.spec)) for subject in sorted(wanted)]

    def _forget(self, space: Space, name: str) -> None:
        for key in [key for key in space.accounts if key[0] == name]:
            del space.accounts[key]
        self._use.pop((space.name, name), None)
        self._context.rates.forget(space.name, name)

    def _limits(self, namespace: str, name: str, subject: str, spec: ResourceQuotaSpec | None) -> wire.AccountLimits:
        budget = spec.budget if spec is not None else None
        usd = wire.Dimension.USD
        return wire.AccountLimits(
            key=wire.AccountKey(namespace=namespace, quota=name, subject=subject),
            generation=self._next_generation(),
            enforced=spec is not None and spec.enforcement is Enforcement.ENFORCE,
            period=budget.period if budget is not None else BudgetPeriod.TOTAL,
            time_zone=budget.time_zone if budget is not None else "UTC",
            limits={usd: budget.amount.nanos} if budget is not None else {},
            max_per_execution=_amount(budget.max_per_execution if budget is not None else None),
            max_per_request=_amount(budget.max_per_request if budget is not None else None),
            alert_thresholds_percent=sorted(budget.alert_thresholds_percent) if budget is not None else [],
            rates=rates.of_quota(spec.rates if spec is not None else None),
        )

    async def _hand_over(self, updates: list[Update], refused: set[tuple[str, str]]) -> None:
        """Hand limits over; quotas of which the ledger refused one are noted in `refused`. Raises LedgerError."""
        context = self._context
        limits = [each for _, each in updates]
        subject = f"{context.ledger.epoch}/{limits[0].generation}/{len(limits)}"
        try:
            answer = await context.ledger.update_accounts(limits, operation_id=operation_id("accounts", subject))
        except LedgerError as error:
            if error.code not in OF_LIMITS:
                raise
            if len(updates) > 1:
                # Something in the batch is beyond the ledger: who it is shows when each goes alone.
                for update in updates:
                    await self._hand_over([update], refused)
                return
            answer = wire.AccountsAnswer(accounts=[], refused=[_refusal(error)])
        moment = now()
        errors = {each.index: each.error for each in answer.refused}
        for index, problem in errors.items():
            self._take_refusal(updates[index][0], problem, refused)
        live = {(owner.namespace, owner.name) for owner, _ in updates if owner.record is not None}
        for state in answer.accounts:
            if (state.key.namespace, state.key.quota) in live:
                rates.take_account(context.cache, context.rates, state, moment)
        for index, (owner, each) in enumerate(updates):
            if index not in errors:
                self._take_over(owner, each.key.subject, refused)

    def _take_refusal(self, owner: Owner, error: wire.Error, refused: set[tuple[str, str]]) -> None:
        log.error("ResourceQuota %s/%s: the ledger refuses its limits: %s", owner.namespace, owner.name, error.message)
        refused.add((owner.namespace, owner.name))
        if owner.record is not None:
            field = _PLACE.sub("", error.field or "")
            place = SPEC_FIELDS.get(field.partition(".")[0], "spec")
            self._refuse(owner.record, f"{place}: {error.message.removeprefix(f'{error.field}: ')}")

    def _take_over(self, owner: Owner, subject: str, refused: set[tuple[str, str]]) -> None:
        """Note that the ledger has the limits of one subject."""
        key = (owner.namespace, owner.name)
        known = self._known.setdefault(key, set())
        if owner.record is None:
            known.discard(subject)
            if not known:
                del self._known[key]
            return
        known.add(subject)
        owner.record.subjects.add(subject)
        if key not in refused:
            self._in_force(owner.record)

    def _in_force(self, record: QuotaRecord) -> None:
        record.acknowledged = record.generation
        record.reason, record.message = QuotaReason.IN_FORCE, ""
        self._context.cache.space(record.namespace).stale = True
        self._context.cache.wake()

    # -- status --------------------------------------------------------------------------------------

    def take_decisions(self, decisions: Decisions) -> None:
        """Note what is used of each quota's counts and machines, as the scheduler reckons it."""
        cache = self._context.cache
        for name in decisions.changed:
            space = cache.space(name)
            uses = decisions.namespaces[name].use
            for quota, record in space.quotas.items():
                # A quota that governs nothing any more is not in there: nothing is used of it.
                use = uses.get(quota, ())
                if self._use.get((name, quota), ()) != use:
                    self._use[name, quota] = use
                    apart.each("saying how it stands", f"{name}/{quota}", self.write_status, record)

    def write_status(self, record: QuotaRecord) -> None:
        """Bring a quota's status up to date, soon."""
        context = self._context
        space = context.cache.space(record.namespace)
        use = self._use.get((record.namespace, record.name), ())
        accounts = {
            subject: account
            for (quota, subject, dimension), account in space.accounts.items()
            if quota == record.name and dimension is wire.Dimension.USD
        }
        message = record.message or ("the limits hold" if record.reason is QuotaReason.IN_FORCE else "")
        moment = now()
        self._look_again(record, moment)
        limited = {subject: account for subject, account in accounts.items() if account.limit is not None}
        money = list(limited.values())
        before = record.status
        budget = record.spec.budget if record.spec is not None else None
        fired = alerts.standing(before.alerts, limited, moment) if budget is not None else []
        self._tell_alerts(record, alerts.fresh(fired, before.alerts), limited)
        record.status = before.model_copy(
            update={
                "observed_generation": record.generation,
                "conditions": quota_conditions(
                    record.reason,
                    message,
                    alert=alerts.condition(fired, limited, budget.alert_thresholds_percent if budget else ()),
                    generation=record.generation,
                    previous=before.conditions,
                    now=moment.replace(microsecond=0),
                ),
                "limits": [*limit_statuses(record, use, accounts), *context.rates.statuses(record, moment)][
                    :LIMITS_MAX
                ],
                "alerts": fired,
                "running": sum(each.executions + each.training_jobs for each in use),
                "pending": sum(each.pending for each in use),
                "spent": str(Money(sum(each.spent for each in money))) if money else None,
                "remaining": str(Money(max(0, sum(each.remaining or 0 for each in money)))) if money else None,
            }
        )
        if record.reason is not QuotaReason.IN_FORCE and record.reason is not QuotaReason.LEDGER_UNAVAILABLE:
            context.events.tell(
                "ResourceQuota",
                record.namespace,
                record.name,
                record.uid,
                reason=str(record.reason),
                note=message,
                warning=True,
            )
        context.writer.mark(target_of("ResourceQuota", record), Rank.STATUS, delay=COALESCE_SECONDS)

    def _tell_alerts(self, record: QuotaRecord, fired: Iterable[QuotaAlert], accounts: Mapping[str, Account]) -> None:
        for alert in fired:
            metrics.QUOTA_ALERTS.labels(record.namespace, record.name, str(alert.percent)).inc()
            self._context.events.tell(
                "ResourceQuota",
                record.namespace,
                record.name,
                record.uid,
                reason=BUDGET_ALERT,
                note=alerts.note(alert, accounts.get(alert.subject or "")),
                warning=True,
                once=f"{alert.subject or ''}/{alert.percent}/{alert.time.isoformat()}",
            )

    def _look_again(self, record: QuotaRecord, moment: datetime) -> None:
        """See to it that a rate does not show as used for ever: the ledger tells nothing of a bucket that refills."""
        full_at, key = self._context.rates.full_at(record, moment), (record.namespace, record.name)
        if full_at is None or key in self._refreshing:
            return
        self._refreshing.add(key)
        seconds = min(REFRESH_SECONDS_MAX, (full_at - moment) / timedelta(seconds=1) + REFRESH_SECONDS_LEAST)
        asyncio.get_running_loop().call_later(seconds, self._refresh, key)

    def _refresh(self, key: tuple[str, str]) -> None:
        self._refreshing.discard(key)
        self._context.cache.quotas_changed.add(key)
        self._wake.set()


def invalid(spec: ResourceQuotaSpec) -> str:
    """Say what of a quota has no meaning that the schema could not see; empty where there is nothing."""
    if spec.scope is not None and spec.scope.per_owner and not spec.scope.owners:
        # Stored before the schema asked for them.
        return "spec.scope.owners: perOwner needs the owners that get an account each"
    if spec.budget is not None:
        try:
            zone(spec.budget.time_zone)
        except ValueError as error:
            return f"spec.budget.timeZone: {error}"
    return ""


def _refusal(error: LedgerError) -> wire.RefusedAccount:
    named = wire.Error(code=wire.ErrorCode(error.code), message=error.message, field=error.field)
    return wire.RefusedAccount(index=0, error=named)


def unsupported(spec: ResourceQuotaSpec) -> str:
    """Say what of a quota this version can neither enforce nor watch; empty where there is nothing."""
    if spec.hard.storage is not None:
        return "spec.hard.storage: this version does not count storage; nothing is admitted under this quota: remove it"
    return ""


def limit_statuses(
    record: QuotaRecord, use: Iterable[SubjectUse], accounts: Mapping[str, Account]
) -> list[LimitStatus]:
    """Give every limit of a quota, and its use, by subject."""
    if record.spec is None:
        return []
    try:
        quota = Quota.of(record.name, record.spec)
    except ValueError:
        return []
    by_subject = {each.subject: each for each in use}
    if not quota.per_owner:
        by_subject.setdefault("", SubjectUse("", 0, 0, 0, 0, 0, 0))
    result: list[LimitStatus] = []
    for subject in sorted({*by_subject, *(accounts if quota.budget is not None else ())}):
        shown = subject or None
        if subject in by_subject:
            result += _machines(quota.hard, by_subject[subject], shown)
        account = accounts.get(subject)
        if account is not None and account.limit is not None:
            result.append(_money(account, shown))
    return result[:LIMITS_MAX]


def _machines(hard: Hard, use: SubjectUse, subject: str | None) -> list[LimitStatus]:
    rows = (
        ("executions", hard.executions, use.executions, str),
        ("trainingJobs", hard.training_jobs, use.training_jobs, str),
        ("pending", hard.pending, use.pending, str),
        ("cpu", hard.cpu, use.cpu, format_millicores),
        ("memory", hard.memory, use.memory, format_bytes),
        ("gpu", hard.gpu, use.gpu, str),
    )
    return [
        LimitStatus(
            name=name,
            subject=subject,
            limit=write(limit),
            used=write(used),
            remaining=write(max(0, limit - used)),
            percent=_percent(used, limit),
        )
        for name, limit, used, write in rows
        if limit is not None
    ]


def _money(account: Account, subject: str | None) -> LimitStatus:
    assert account.limit is not None
    resets: datetime | None = account.resets_at.replace(microsecond=0) if account.resets_at is not None else None
    return LimitStatus(
        name="budget",
        subject=subject,
        limit=str(Money(account.limit)),
        used=str(Money(account.spent)),
        reserved=str(Money(account.reserved)),
        remaining=str(Money(max(0, account.limit - account.spent - account.reserved))),
        percent=_percent(account.spent + account.reserved, account.limit),
        reset_time=resets,
    )


def _percent(part: int, whole: int) -> int:
    if whole <= 0:
        return 100 if part > 0 else 0
    return max(0, part * 100 // whole)


def _amount(money: Money | None) -> dict[wire.Dimension, int]:
    return {} if money is None else {wire.Dimension.USD: money.nanos}
