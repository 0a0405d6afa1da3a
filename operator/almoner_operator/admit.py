"""Carries an admission out: allotment, status, pod, binding; each step can be repeated, and what failed is undone.

The order is what makes a crash harmless. The allotment comes first, because nothing may run unpaid. The status names
the attempt before the pod exists, so whoever takes over finds the intent and finishes it under the same pod name: there
is never a second pod for an attempt. The pod cannot spend until the ledger has its uid, so an unbound pod is harmless
too.
"""

from __future__ import annotations

import asyncio
import json
import logging
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

from almoner_core import wire
from almoner_core.api.agent import AgentReason, AgentSpec, Limits
from almoner_core.api.base import ConfigMapKeyReference
from almoner_core.api.execution import (
    Attempt,
    AttemptOutcome,
    ExecutionReason,
    ExecutionSpec,
    FailureReason,
    PinnedAgent,
    WaitReason,
)
from almoner_core.api.runner import Runner
from almoner_core.api.training_job import TrainingJobSpec
from almoner_core.contract import EXTRA_FIRST_NEED
from almoner_core.identity import allotment_id, operation_id, pod_proof
from almoner_operator import (
    demand,
    failpoints,
    metrics,
    milestones,
    outcome,
    provider_access,
    providers,
    rates,
    tool_providers,
)
from almoner_operator.additions import plus, requests_of_pod
from almoner_operator.admitted import Admitted
from almoner_operator.agents import AgentFacts, ProviderFacts, ToolProviderFacts, runner_secrets_verdict
from almoner_operator.attempts import AttemptEnd, remaining_seconds
from almoner_operator.compute import MachineTime
from almoner_operator.context import Context, now, run_target
from almoner_operator.errors import (
    AlreadyExistsError,
    ApiError,
    ConflictError,
    ForbiddenError,
    InvalidError,
    LeadershipLostError,
    LedgerError,
    LedgerUnavailableError,
    NotFoundError,
)
from almoner_operator.kubernetes import CONFIG_MAPS, PODS
from almoner_operator.limiter import Rank
from almoner_operator.machines import PROBE_FAILURES, PROBE_TIMEOUT_SECONDS, pod_time
from almoner_operator.pins import PinLostError
from almoner_operator.pods import PaidProbe, PodError, PodRequest, build_pod
from almoner_operator.records import Pod, Run, parse_pod, runner_of
from almoner_operator.refusals import explain, pod_refusal
from almoner_operator.runner_pods import belongs, place_of
from almoner_operator.scheduling.model import Admission, Wait
from almoner_operator.secret_facts import secrets_of
from almoner_operator.trouble import say_trouble

log = logging.getLogger(__name__)

REFUSED_SECONDS: Final = 15.0
BUSY_SECONDS: Final = 2.0
LEDGER_SECONDS: Final = 2.0
INPUT_SECONDS: Final = 15.0
LEASED_SECONDS: Final = 5.0
OPEN_TRIES_MAX: Final = 8
_OWN_ACCOUNT: Final = "execution"
"""What the ledger calls the account of an execution's own limits."""
_HAS_RUN: Final = (
    "the ledger says that attempt {number} has run, and the status no longer says how it ended: somebody overwrote it"
)


class _NotAdmittedError(Exception):
    """It waits on: why, for how long at most, in which quota's queue."""

    def __init__(self, reason: WaitReason, message: str, seconds: float, quota: str | None = None) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message
        self.seconds = seconds
        self.quota = quota


class _NeverError(Exception):
    """It can never be admitted: it ends."""


class _ChangedError(Exception):
    """What it asks for is not what was decided on: the Agent or a price changed meanwhile. It is decided again."""


class _HasRunError(Exception):
    """The ledger knows of an attempt that has run, and the status does not."""


class _PodNameTakenError(Exception):
    """A pod has the attempt's name that the operator did not create."""


@dataclass(frozen=True, slots=True)
class _Plan:
    """All that an attempt needs, worked out once, before anything is written."""

    attempt: Attempt
    pinned: PinnedAgent | None
    agent: AgentSpec | None
    demand: demand.Demand
    admitted: Admitted
    pod: dict[str, Any]


class Admitter:
    """Admits what was decided, and finishes what a crash left half done."""

    def __init__(self, context: Context, machines: MachineTime) -> None:
        self._context = context
        self._machines = machines

    async def admit(self, run: Run, admission: Admission) -> None:
        """Admit one run; `run.admitting` is set already. Never raises but for lost leadership."""
        try:
            await self._try(run, admission)
        except LeadershipLostError:
            raise
        except Exception as error:
            # Nobody reckoned with that: it would be decided, and fail, again at once and for ever.
            metrics.ADMISSION_FAILURES.labels("Fault").inc()
            log.exception("admission of %s/%s failed", run.key.namespace, run.key.name)
            text = f"it cannot be admitted: {type(error).__name__}: {error}"[:200]
            self._context.cache.hold(run, WaitReason.QUEUED, text, seconds=REFUSED_SECONDS)
        finally:
            run.admitting = False
            if run.attempt is None:
                run.admitted = None
            self._context.cache.touch(run, review=True)

    async def _try(self, run: Run, admission: Admission) -> None:
        """Admit one run, or note what keeps it from being admitted."""
        context = self._context
        try:
            await self._admit(run, admission)
        except _ChangedError:
            metrics.ADMISSION_FAILURES.labels("Changed").inc()
        except _NeverError as error:
            metrics.ADMISSION_FAILURES.labels("Never").inc()
            await self._fail(run, str(error), FailureReason.BUDGET_EXHAUSTED)
        except _NotAdmittedError as error:
            metrics.ADMISSION_FAILURES.labels(str(error.reason)).inc()
            context.cache.hold(run, error.reason, error.message, seconds=error.seconds, quota=error.quota)
        except (PodError, PinLostError) as error:
            metrics.ADMISSION_FAILURES.labels("PodError").inc()
            await self._fail(run, str(error))
        except LedgerUnavailableError as error:
            context.cache.hold(run, WaitReason.LEDGER_UNAVAILABLE, str(error), seconds=LEDGER_SECONDS)
        except _HasRunError as error:
            metrics.ADMISSION_FAILURES.labels("HasRun").inc()
            await self._fail(run, str(error), FailureReason.STATUS_LOST)
        except ApiError as error:
            metrics.ADMISSION_FAILURES.labels("ApiError").inc()
            log.warning("admission of %s/%s failed: %s", run.key.namespace, run.key.name, error)
            context.cache.hold(run, WaitReason.QUEUED, f"the API server: {error.message}", seconds=BUSY_SECONDS)

    async def resume(self, run: Run) -> None:
        """Create the pod of an attempt that has none, and bind it: a crash came between, or the ledger was away."""
        context, attempt = self._context, run.attempt
        if attempt is None or run.admitting or run.spec is None:
            return
        run.admitting = True
        try:
            log.info("finishing the admission of %s/%s, attempt %d", run.key.namespace, run.key.name, attempt.number)
            await self._resume(run, attempt)
        except (PodError, PinLostError) as error:
            run.end = AttemptEnd(AttemptOutcome.FAILED, FailureReason.RUNNER_FAILED, str(error), finished=now())
        except (ApiError, LedgerError) as error:
            log.warning("cannot finish the admission of %s/%s yet: %s", run.key.namespace, run.key.name, error)
            self._say_not_there(run, error)
        finally:
            run.admitting = False
            context.cache.touch(run, review=True)

    async def _resume(self, run: Run, attempt: Attempt) -> None:
        """Bind the attempt's pod, or create it: one that this process has no nonce for is announced first."""
        known = self._context.cache.pods.of(run)
        if known is not None and not known.raw.get("gone"):
            await self._take_up(run, attempt, known)
            return
        if run.allotment_state(attempt.number) == wire.AllotmentState.CLOSED:
            self._has_run(run, attempt)
            return
        found = await self._context.client.get_metadata(PODS, run.key.namespace, attempt.pod)
        if attempt.pod_uid is not None and (found is None or found.get("uid") != attempt.pod_uid):
            return  # It vanished, whatever has its name now: nothing runs twice.
        if found is None:
            proof = pod_proof(attempt.pod, _nonce(run, attempt.number))
            if proof != attempt.pod_proof:
                run.status = run.status.model_copy(update={"attempts": outcome.changed_attempt(run, pod_proof=proof)})
                if not await self._context.writer.flush(run_target(run), Rank.ADMIT):
                    return
        spec = await self._pinned_spec(run, run.status.agent)
        first_need = run.admitted.first_need if run.admitted is not None else {}
        await self._start(run, attempt, self._pod(run, spec, attempt.number, first_need))

    # -- the steps -----------------------------------------------------------------------------------

    async def _admit(self, run: Run, admission: Admission) -> None:
        context = self._context
        plan = await self._plan(run, admission)
        run.admitted = plan.admitted
        plan = await self._open(run, admission, plan)
        failpoints.hit(failpoints.AFTER_OPEN)
        before = run.status
        run.status = outcome.admitted(run, plan.attempt, plan.pinned, admission.quotas, now())
        run.pinned = plan.agent if plan.pinned is not None else None
        run.hold, run.stop, run.timed_out, run.backoff_until = None, None, False, None
        run.next_attempt = plan.attempt.number + 1
        try:
            written = await context.writer.flush(run_target(run), Rank.ADMIT)
        except ApiError:
            # Not known whether it was written: the number is spent, and the next patch undoes what may be there.
            run.written, run.status = run.status, before
            context.writer.mark(run_target(run), Rank.STATUS, delay=BUSY_SECONDS)
            await self._void(plan.attempt, "the status could not be written")
            raise
        if not written:
            await self._void(plan.attempt, "deleted")
            return
        context.cache.count_run(run)
        milestones.admitted(context.events, run, plan.attempt, admission.quotas, now())
        failpoints.hit(failpoints.AFTER_STATUS)
        try:
            await self._start(run, plan.attempt, plan.pod)
        except (ApiError, LedgerError) as error:
            # The attempt stands in the status: the review finishes it as after a crash.
            log.warning("the pod of %s/%s is not there yet: %s", run.key.namespace, run.key.name, error)
            self._say_not_there(run, error)

    async def _plan(self, run: Run, admission: Admission) -> _Plan:
        assert run.spec is not None
        await self._check_input(run)
        number = run.next_attempt
        pinned = run.status.agent
        if pinned is None and run.agent_name is not None:
            agent = self._context.cache.space(run.key.namespace).agents.get(run.agent_name)
            if agent is None or agent.spec is None:
                raise _NotAdmittedError(
                    WaitReason.AGENT_NOT_FOUND, f"Agent {run.agent_name} does not exist", REFUSED_SECONDS
                )
            pinned = await self._context.pins.pin(agent)
        spec = await self._pinned_spec(run, pinned)
        if run.status.agent is not None:
            run.pinned = spec
        if text := provider_access.refusal(self._context.cache, run, spec):
            raise _NotAdmittedError(WaitReason.PROVIDER_NOT_ALLOWED, text, REFUSED_SECONDS)
        await self._check_secrets(run, spec)
        await self._check_environment(run, runner_of(run, spec))
        asked = self._demand(run, spec)
        decided = admission.workload
        if asked.requests != decided.requests or asked.need > decided.need:
            raise _ChangedError
        runner = self._context.settings.runner
        admitted = Admitted.assumed(admission).completed(
            grace_seconds=demand.grace_seconds(run, spec, runner),
            timeout_seconds=demand.limits_of(run, spec).timeout_seconds,
            first_need=asked.first.need,
        )
        attempt = self._attempt(run, number, admitted)
        pod = self._pod(run, spec, number, admitted.first_need)
        return _Plan(attempt, pinned, spec, asked, admitted, pod)

    def _demand(self, run: Run, agent: AgentSpec | None) -> demand.Demand:
        settings, cache = self._context.settings, self._context.cache
        providers_seen = cache.providers_for(cache.space(run.key.namespace))
        added = self._context.cache.additions.of(run)
        ahead = demand.ahead(run, agent, settings.runner, settings.compute, added)
        return demand.demand_of(run, agent, providers_seen, plus(settings.runner.meter_requests, added), ahead)

    @staticmethod
    def _attempt(run: Run, number: int, admitted: Admitted) -> Attempt:
        pod = place_of(run.key, number)[1]
        return Attempt(
            number=number,
            pod=pod,
            pod_proof=pod_proof(pod, _nonce(run, number)),
            allotment=allotment_id(run.key.uid, number),
            admitted_time=outcome.moment(now()),
            admission=admitted.to_status(),
        )

    async def _pinned_spec(self, run: Run, pinned: PinnedAgent | None) -> AgentSpec | None:
        if pinned is None:
            return None
        return await self._context.pins.read(run.key.namespace, pinned)

    async def _check_input(self, run: Run) -> None:
        """A ConfigMap or key that is not there would leave a pod hanging that holds quota."""
        if not isinstance(run.spec, ExecutionSpec) or run.spec.input.config_map_key_ref is None:
            return
        problem = await self._config_map_problem(run, run.spec.input.config_map_key_ref)
        if problem:
            raise _NotAdmittedError(WaitReason.INPUT_NOT_FOUND, f"the input's {problem}", INPUT_SECONDS)

    async def _config_map_problem(self, run: Run, reference: ConfigMapKeyReference) -> str:
        """Say what is missing of a ConfigMap's key; empty where it is there."""
        try:
            found = await self._context.client.get(CONFIG_MAPS, run.key.namespace, reference.name)
        except NotFoundError:
            return f"ConfigMap {reference.name} does not exist"
        keys = {*(found.get("data") or {}), *(found.get("binaryData") or {})}
        return "" if reference.key in keys else f"ConfigMap {reference.name} has no key {reference.key}"

    async def _check_environment(self, run: Run, runner: Runner) -> None:
        """A key of a ConfigMap that is not there would leave the agent's container hanging."""
        for variable in runner.env:
            reference = variable.value_from.config_map_key_ref if variable.value_from is not None else None
            problem = await self._config_map_problem(run, reference) if reference is not None else ""
            if problem:
                text = f"runner.env {variable.name}: {problem}"
                raise _NotAdmittedError(WaitReason.CONFIG_MAP_NOT_FOUND, text, INPUT_SECONDS)

    async def _check_secrets(self, run: Run, agent: AgentSpec | None) -> None:
        """What is about to run, pinned or a job's own, may name only Secrets that agents may read, now."""
        runner, space = runner_of(run, agent), self._context.cache.space(run.key.namespace)
        if problem := await provider_access.keys_missing(self._context, space, agent):
            raise _NotAdmittedError(WaitReason.SECRET_NOT_FOUND, problem, REFUSED_SECONDS)
        names = secrets_of(runner)
        if not names:
            return
        facts = AgentFacts(
            providers={name: ProviderFacts(each.spec) for name, each in space.providers.items() if each.spec},
            tool_providers={n: ToolProviderFacts(each.spec) for n, each in space.tool_providers.items() if each.spec},
            secrets=await self._context.secrets.facts(space.name, names),
        )
        verdict = runner_secrets_verdict(runner, facts)
        if verdict is not None:
            missing = verdict.reason is AgentReason.SECRET_NOT_FOUND
            reason = WaitReason.SECRET_NOT_FOUND if missing else WaitReason.AGENT_NOT_READY
            raise _NotAdmittedError(reason, verdict.message, REFUSED_SECONDS)

    def _pod(self, run: Run, agent: AgentSpec | None, number: int, first_need: Mapping[str, int]) -> dict[str, Any]:
        assert run.spec is not None
        cache = self._context.cache
        space = cache.space(run.key.namespace)
        limits = demand.limits_of(run, agent)
        used = sum(_seconds(attempt) for attempt in run.status.attempts if attempt.number != number)
        given, given_from, extra = _input(run)
        if first_need:
            extra = {**extra, EXTRA_FIRST_NEED: dict(first_need)}
        return build_pod(
            PodRequest(
                kind=run.key.kind,
                namespace=run.key.namespace,
                name=run.key.name,
                uid=run.key.uid,
                attempt=number,
                owner=run.owner,
                runner=runner_of(run, agent),
                agent_name=run.agent_name,
                agent=agent,
                limits=limits,
                providers=providers.for_agent(agent, cache.providers_for(space)) if agent is not None else (),
                tools=tool_providers.for_agent(agent, cache.tool_providers_for(space)),
                input=given,
                input_from=given_from,
                remaining_seconds=remaining_seconds(limits.timeout_seconds, used),
                extra=extra,
                prestop_token=secrets.token_hex(16),
                nonce=_nonce(run, number),
                paid=self._paid_probe(run, agent),
                ledger_ca=self._context.trust.pem(),
            ),
            self._context.settings.runner,
        )

    def _terms(self, run: Run, agent: AgentSpec | None) -> wire.MachineTerms | None:
        settings = self._context.settings
        grace = demand.grace_seconds(run, agent, settings.runner)
        added = self._context.cache.additions.of(run)
        return settings.compute.terms(demand.machine(run, agent, settings.runner, added), grace)

    def _paid_probe(self, run: Run, agent: AgentSpec | None) -> PaidProbe | None:
        if self._terms(run, agent) is None:
            return None
        settings = self._context.settings
        end_seconds = settings.compute.end_seconds(demand.grace_seconds(run, agent, settings.runner))
        return PaidProbe(settings.compute.probe_seconds, PROBE_FAILURES, PROBE_TIMEOUT_SECONDS, end_seconds)

    async def _open(self, run: Run, admission: Admission, plan: _Plan) -> _Plan:
        """Open the allotment. A number whose allotment is void is passed over; one that was used ends the run."""
        context = self._context
        seen = context.cache.providers_for(context.cache.space(run.key.namespace))
        spec, first, ahead = plan.agent, plan.demand.first, plan.demand.ahead
        limits, terms = demand.limits_of(run, spec), self._terms(run, spec)
        try:
            accounts = rates.accounts_for(spec, seen, admission.accounts)
        except rates.RatesNotReadyError as error:
            raise _NotAdmittedError(WaitReason.PROVIDER_NOT_READY, str(error), BUSY_SECONDS) from error
        for _ in range(OPEN_TRIES_MAX):
            attempt = plan.attempt
            assert attempt.allotment is not None
            item = wire.OpenAllotment(
                # Of this leader: an earlier one may have asked with other amounts, and got its own answer.
                operation_id=operation_id("open", attempt.allotment, context.ledger.epoch),
                allotment=attempt.allotment,
                execution=wire.ExecutionRef(
                    kind=run.key.kind,
                    namespace=run.key.namespace,
                    name=run.key.name,
                    uid=run.key.uid,
                    attempt=attempt.number,
                    agent=run.agent_name or "",
                    owner=run.owner,
                ),
                pod=attempt.pod,
                accounts=accounts,
                limits=_amounts_of(limits),
                need=wire_amounts(usd=first.need.get("usd")),
                want=wire_amounts(usd=first.want.get("usd")),
                compute=wire_amounts(usd=ahead),
                machine=terms,
                keys=provider_access.grants(spec, seen),
            )
            try:
                await context.ledger.open(item)
                self._machines.opened(attempt.allotment)
                return plan
            except LedgerUnavailableError as error:
                context.cache.set_ledger_ready(False)
                raise _NotAdmittedError(
                    WaitReason.LEDGER_UNAVAILABLE, f"the ledger does not answer: {error.message}", LEDGER_SECONDS
                ) from error
            except LedgerError as error:
                if error.code not in (wire.ErrorCode.WRONG_STATE, wire.ErrorCode.OPERATION_CONFLICT):
                    raise _refused(error) from error
            if not await self._void(attempt, "passed over"):
                raise _HasRunError(_HAS_RUN.format(number=attempt.number))
            number = run.next_attempt = attempt.number + 1
            plan = replace(
                plan,
                attempt=self._attempt(run, number, plan.admitted),
                pod=self._pod(run, spec, number, plan.admitted.first_need),
            )
        raise _NotAdmittedError(WaitReason.QUEUED, "the ledger refuses every attempt's allotment", REFUSED_SECONDS)

    async def _start(self, run: Run, attempt: Attempt, pod: dict[str, Any]) -> None:
        """Create the pod and bind it. Raises ApiError or LedgerError where that can be tried again."""
        try:
            made = await self._create_pod(run, attempt, pod)
        except _PodNameTakenError as error:
            await self._unadmit(run, attempt, str(error), reason=WaitReason.POD_NAME_TAKEN)
            return
        except InvalidError as error:
            run.end = AttemptEnd(
                AttemptOutcome.FAILED,
                FailureReason.RUNNER_FAILED,
                f"the API server refuses the pod: {error.message}",
                finished=now(),
            )
            return
        except ForbiddenError as error:
            reason, message, seconds = pod_refusal(error.message)
            await self._unadmit(run, attempt, message, reason=reason, seconds=seconds)
            return
        except NotFoundError as error:
            message = f"the namespace is going away: {error.message}"
            await self._unadmit(run, attempt, message, reason=WaitReason.POD_REFUSED)
            return
        run.made = (attempt.number, made.uid)
        milestones.pod_created(run, attempt, made.uid)
        failpoints.hit(failpoints.AFTER_POD)
        await self._take_up(run, attempt, made)

    async def _take_up(self, run: Run, attempt: Attempt, pod: Pod) -> None:
        """Bind the attempt's pod where what it really asks for may run; delete it where not.

        Whoever created it, and however often this was tried. Raises ApiError or LedgerError.
        """
        refused = await self._check_made(run, attempt, pod)
        if refused is not None:
            await self._context.client.delete(PODS, run.key.namespace, attempt.pod, uid=pod.uid, grace_seconds=0)
            await self._unadmit(run, attempt, refused.message, reason=refused.reason, seconds=BUSY_SECONDS)
            return
        await self._bind(run, attempt, pod.uid)

    async def _check_made(self, run: Run, attempt: Attempt, pod: Pod) -> Wait | None:
        """Count what a pod really asks for; say why it may not run where its quotas or money do not allow that.

        Raises LedgerError.
        """
        cache, admitted = self._context.cache, run.admitted
        actual = requests_of_pod(pod_time(pod.raw).machine)
        cache.learn_addition(run, actual)
        if admitted is None or run.attempt is None or actual == admitted.requests:
            return None
        # Assumed, so that nobody else is admitted to the same room; it only stays so where it was found to fit.
        run.admitted = replace(admitted, requests=actual)
        cache.touch(run)
        fits = False
        try:
            refused = await self._no_room(run, attempt, pod)
            fits = refused is None
        finally:
            if not fits:
                run.admitted = admitted
                cache.touch(run)
        if fits:
            attempts = outcome.changed_attempt(run, admission=run.admitted.to_status())
            run.status = run.status.model_copy(update={"attempts": attempts})
            # At once: whoever takes over before the pod has started counts by it.
            self._context.writer.mark(run_target(run), Rank.STATUS)
        return refused

    async def _no_room(self, run: Run, attempt: Attempt, pod: Pod) -> Wait | None:
        """Say where there is no room for what a run was admitted with; hold what it costs. Raises LedgerError."""
        message, time = self._context.cache.passed_quota(run), pod_time(pod.raw)
        if message is not None:
            return Wait(WaitReason.WAITING_FOR_QUOTA, message)
        assert attempt.allotment is not None
        error = await self._machines.reprice(attempt.allotment, time.machine, time.grace_seconds)
        if error is None:
            return None
        why = explain(error.refusal, now()) if error.refusal is not None else error.message
        return Wait(WaitReason.BUDGET_EXHAUSTED, f"its pod costs more with what the cluster adds to it: {why}")

    async def _bind(self, run: Run, attempt: Attempt, pod_uid: str) -> None:
        """Make the pod known to the ledger: until then its meter can spend nothing. Raises ApiError or LedgerError."""
        assert attempt.allotment is not None
        try:
            await self._context.ledger.bind(
                wire.BindAllotment(
                    operation_id=operation_id("bind", attempt.allotment, pod_uid),
                    allotment=attempt.allotment,
                    pod_uid=pod_uid,
                )
            )
        except LedgerUnavailableError:
            raise
        except LedgerError as error:
            # Void, or bound to another pod: this pod can never spend. End it; the run queues again.
            log.warning("the pod of %s/%s cannot be bound: %s", run.key.namespace, run.key.name, error)
            await self._context.client.delete(PODS, run.key.namespace, attempt.pod, uid=pod_uid, grace_seconds=0)
            message = f"the ledger refuses the pod: {error.message}"
            await self._unadmit(run, attempt, message, reason=WaitReason.POD_REFUSED)
            return
        run.bound = attempt.number
        failpoints.hit(failpoints.AFTER_BIND)
        if run.attempt is not None and run.attempt.number == attempt.number:
            # Known from now on; written with the next change, since nothing depends on it before.
            attempts = outcome.changed_attempt(run, pod_uid=pod_uid, pod_proof=None)
            run.status = run.status.model_copy(update={"attempts": attempts})

    async def _create_pod(self, run: Run, attempt: Attempt, pod: dict[str, Any]) -> Pod:
        """Create the attempt's pod, or find it, and give it. Raises _PodNameTakenError where it is another's."""
        client = self._context.client
        try:
            created = parse_pod(await client.create_whole(PODS, run.key.namespace, pod))
            if created is None:
                raise ConflictError(409, "Conflict", f"pod {attempt.pod} lost its labels as it was created")
            return created
        except AlreadyExistsError as error:
            try:
                found = parse_pod(await client.get(PODS, run.key.namespace, attempt.pod))
            except NotFoundError:
                raise ConflictError(error.status, error.reason, f"pod {attempt.pod} was there and is not") from error
        if found is None or run.attempt is None or not belongs(found, run, run.attempt):
            text = f"pod {attempt.pod} has the name of attempt {attempt.number}'s, and Almoner did not create it"
            raise _PodNameTakenError(text)
        return found

    def _say_not_there(self, run: Run, error: ApiError | LedgerError) -> None:
        if isinstance(error, ApiError):
            say_trouble(self._context, run, ExecutionReason.POD_NOT_CREATED, f"the API server: {error.message}")
        else:
            say_trouble(self._context, run, ExecutionReason.POD_NOT_BOUND, f"the ledger: {error.message}")

    # -- undoing -------------------------------------------------------------------------------------

    async def _unadmit(
        self,
        run: Run,
        attempt: Attempt,
        message: str,
        *,
        reason: WaitReason = WaitReason.WAITING_FOR_QUOTA,
        seconds: float = REFUSED_SECONDS,
    ) -> None:
        """Take the attempt back: no pod of it runs."""
        unused = await self._void(attempt, "no pod")
        if run.attempt is None or run.attempt.number != attempt.number:
            return
        if not unused:
            self._has_run(run, attempt)
            return
        run.status = outcome.unadmitted(run, Wait(reason, message), now())
        milestones.put_off(run, str(reason), message)
        run.next_attempt = attempt.number + 1
        self._context.cache.hold(run, reason, message, seconds=seconds)
        self._context.cache.count_run(run)
        self._context.writer.mark(run_target(run), Rank.STATUS)

    @staticmethod
    def _has_run(run: Run, attempt: Attempt) -> None:
        text = _HAS_RUN.format(number=attempt.number)
        run.end = AttemptEnd(AttemptOutcome.FAILED, FailureReason.STATUS_LOST, text, finished=now())

    async def _void(self, attempt: Attempt, reason: str) -> bool:
        """Give an allotment back that nothing was started for; False where it was used: then the attempt has run.

        Raises LedgerUnavailableError where the ledger does not answer for long.
        """
        assert attempt.allotment is not None
        item = wire.CloseAllotment(
            operation_id=operation_id("void", attempt.allotment), allotment=attempt.allotment, reason=reason
        )
        for pause in (0.5, 2.0, 5.0, 15.0, 30.0, None):
            try:
                await self._context.ledger.void(item)
            except LedgerUnavailableError:
                if pause is None:
                    raise
                await asyncio.sleep(pause)
            except LedgerError as error:
                log.warning("allotment %s is not voided: %s", attempt.allotment, error)
                if error.code != wire.ErrorCode.NOT_FOUND:
                    return False
            self._machines.forget(attempt.allotment)
            return True
        return True

    async def _fail(self, run: Run, message: str, reason: FailureReason = FailureReason.RUNNER_FAILED) -> None:
        """It can never run as it is."""
        context = self._context
        run.status = outcome.rejected(run, message, now(), reason)
        milestones.refused(run, reason, message)
        context.events.tell(*run.key, reason=str(reason), note=message, warning=True)
        context.cache.count_run(run)
        context.cache.review.add(run.key.uid)


def _refused(error: LedgerError) -> _NotAdmittedError | _NeverError:
    """Say why the ledger granted nothing, and when to try again."""
    refusal = error.refusal
    if error.code == wire.ErrorCode.INSUFFICIENT and refusal is not None:
        if refusal.account == _OWN_ACCOUNT and refusal.spent + refusal.needed > refusal.limit:
            return _NeverError(explain(refusal, now()))
        quota = refusal.account.split("/")[1] if "/" in refusal.account else None
        seconds = refusal.retry_after_seconds
        wait = BUSY_SECONDS if refusal.may_free_up else REFUSED_SECONDS
        return _NotAdmittedError(
            WaitReason.BUDGET_EXHAUSTED,
            explain(refusal, now()),
            float(seconds) if seconds is not None and not refusal.may_free_up else wait,
            quota,
        )
    if error.code == wire.ErrorCode.LEASED:
        return _NotAdmittedError(WaitReason.WAITING_FOR_LEASE, error.message, LEASED_SECONDS)
    if error.code == wire.ErrorCode.NOT_FOUND:
        return _NotAdmittedError(WaitReason.QUOTA_NOT_READY, error.message, BUSY_SECONDS)
    return _NotAdmittedError(WaitReason.LEDGER_UNAVAILABLE, f"the ledger refuses: {error}", REFUSED_SECONDS)


def _nonce(run: Run, number: int) -> str:
    """Give what the pod of an attempt is told by, drawn at the first call."""
    if run.nonce is None or run.nonce[0] != number:
        run.nonce = (number, secrets.token_hex(16))
    return run.nonce[1]


def wire_amounts(**amounts: int | None) -> dict[wire.Dimension, int]:
    """Give amounts by dimension, without those that are not limited or not asked for."""
    return {wire.Dimension(name): amount for name, amount in amounts.items() if amount is not None}


def _amounts_of(limits: Limits) -> dict[wire.Dimension, int]:
    """Give a run's own limits as the ledger takes them."""
    usd = limits.max_cost.nanos if limits.max_cost is not None else None
    return wire_amounts(usd=usd, tokens=limits.max_tokens, tool_calls=limits.max_tool_calls)


def _input(run: Run) -> tuple[str | None, Any, dict[str, Any]]:
    """Give a run's input as it is written to the input file, or the ConfigMap's key; and what else the meter gets."""
    if isinstance(run.spec, TrainingJobSpec):
        spec = run.spec
        told = {
            "hyperparameters": spec.hyperparameters or {},
            **({"steps": spec.steps} if spec.steps is not None else {}),
            **({"episodes": spec.episodes} if spec.episodes is not None else {}),
        }
        return json.dumps(told, separators=(",", ":")), None, {}
    assert run.spec is not None
    given = run.spec.input
    if given.config_map_key_ref is not None:
        return None, given.config_map_key_ref, {}
    if given.text is not None:
        return given.text, None, {}
    return (json.dumps(given.json_, separators=(",", ":")) if given.json_ is not None else None), None, {}


def _seconds(attempt: Attempt) -> int:
    """Give how long an attempt ran, in whole seconds."""
    if attempt.start_time is None or attempt.finish_time is None:
        return 0
    return max(0, int((attempt.finish_time - attempt.start_time).total_seconds()))
