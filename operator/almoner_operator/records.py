"""What the cache keeps of each object: parsed once, as little as is needed, invalid ones marked instead of raised.

Role: a `Run` is an Execution or a TrainingJob that has not ended; a `Finished` one is a few words, because a cluster
may hold a hundred times as many of them. `status` is what the operator means the object's status to be, `written` what
the API server has of it; the difference is what status.py writes.

Boundary: no I/O. Parsing never raises on what a stored object may hold.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Final, NamedTuple, TypeVar

from pydantic import ValidationError

from almoner_core.agent_checks import Checked
from almoner_core.api.agent import AgentReason, AgentSpec, AgentStatus
from almoner_core.api.base import APIModel
from almoner_core.api.cluster_model_provider import ClusterModelProviderSpec
from almoner_core.api.execution import (
    TERMINAL_PHASES,
    Attempt,
    AttemptOutcome,
    ExecutionSpec,
    ExecutionStatus,
    FailureReason,
)
from almoner_core.api.model_provider import ModelProviderSpec, ModelProviderStatus, ProviderReason
from almoner_core.api.resource_quota import QuotaReason, ResourceQuotaSpec, ResourceQuotaStatus
from almoner_core.api.runner import Runner
from almoner_core.api.training_job import TrainingJobSpec, TrainingJobStatus
from almoner_core.contract import ANNOTATION_NONCE, ANNOTATION_UID, LABEL_ATTEMPT, LABEL_EXECUTION_UID
from almoner_core.identity import allotment_id
from almoner_core.wire import AllotmentState, ExecutionTotals
from almoner_operator.admitted import Admitted
from almoner_operator.attempts import AttemptEnd
from almoner_operator.copies import copy_marks, stamp_of, waits_as_restored
from almoner_operator.scheduling.model import EXECUTION, Hold, StopCause, WorkloadKey

log = logging.getLogger(__name__)

TRACKING_MARKS: Final = (
    "argocd.argoproj.io/tracking-id",
    "argocd.argoproj.io/instance",
    "kustomize.toolkit.fluxcd.io/name",
    "helm.toolkit.fluxcd.io/name",
)
"""Labels or annotations by which Argo CD and Flux mark what they would create again."""
_OVER: Final = (AllotmentState.CLOSED, AllotmentState.VOID)
_TERMINAL: Final = frozenset(str(phase) for phase in TERMINAL_PHASES)

Parsed = TypeVar("Parsed", bound=APIModel)
RunSpec = ExecutionSpec | TrainingJobSpec
RunStatus = ExecutionStatus | TrainingJobStatus


def version_of(raw: Mapping[str, Any]) -> int:
    """Give an object's resourceVersion as the number that it is; 0 where it has none."""
    text = str((raw.get("metadata") or {}).get("resourceVersion") or "0")
    return int(text) if text.isdigit() else 0


def generation_of(raw: Mapping[str, Any]) -> int:
    """Give how often an object's spec was changed; 0 where that is not counted."""
    return int((raw.get("metadata") or {}).get("generation") or 0)


def parse_time(value: object) -> datetime | None:
    """Read a Kubernetes time, None where there is none."""
    if not isinstance(value, str) or not value:
        return None
    try:
        found = datetime.fromisoformat(value)
    except ValueError:
        return None
    return found if found.tzinfo is not None else found.replace(tzinfo=UTC)


def mapping(value: object) -> Mapping[str, Any]:
    """Return a JSON object as it is; an empty one for whatever else an object stored without a schema holds there."""
    return value if isinstance(value, Mapping) else {}


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None


def _whole(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def explain(error: ValidationError | ValueError) -> str:
    """Say in one line what a stored object has wrong: the field, and why."""
    if not isinstance(error, ValidationError):
        return str(error)[:300]
    first = error.errors(include_url=False, include_input=False)[0]
    where = ".".join(str(part) for part in first["loc"]) or "spec"
    more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
    return f"spec.{where}: {first['msg']}{more}"[:300]


class Stuck(NamedTuple):
    """A pod that cannot start: which attempt's, what it will fail as, and since when."""

    attempt: int
    failure: FailureReason
    since: datetime


@dataclass(slots=True)
class Run:
    """An Execution or TrainingJob that has not ended."""

    key: WorkloadKey
    version: int
    generation: int
    created: datetime
    spec: RunSpec | None
    invalid: str
    """Why `spec` is None."""
    status: RunStatus
    written: RunStatus
    tracked: bool
    """Argo CD or Flux would create it again."""
    hold: Hold | None = None
    next_attempt: int = 1
    admitted: Admitted | None = None
    """What the attempt that is under way (or is being admitted) was admitted with; no other value counts for it."""
    pinned: AgentSpec | None = None
    """The Agent's spec that `status.agent` pins, once it was read: what a further attempt will ask for."""
    stop: StopCause | None = None
    """Why its pod was told to stop."""
    timed_out: bool = False
    end: AttemptEnd | None = None
    """How the present attempt ended, while its last word is still awaited from the ledger."""
    early: AttemptEnd | None = None
    """How it will have ended once its pod, which was told to stop, is gone: a pod that never started."""
    totals: ExecutionTotals | None = None
    settling: bool = False
    admitting: bool = False
    """Between the decision and the status: it holds quota already."""
    bound: int = 0
    """The attempt whose pod the ledger knows; until then its meter can spend nothing."""
    nonce: tuple[int, str] | None = None
    """An attempt, and what this process gives its pod to be told by."""
    made: tuple[int, str] | None = None
    """An attempt whose pod this process created or found to be the operator's own, and the pod's uid."""
    warned: bool = False
    """Whether it was told of a pod that is not its own."""
    overwritten: bool = False
    """Whether somebody else changed its status, and that is still to be put right."""
    overwrites: int = 0
    problem: str = ""
    """Why the scheduler does not see it: working out what it needs failed."""
    marks: tuple[str, ...] = ()
    """By which labels and annotations it is a copy: see `copy_marks`."""
    restored: bool = False
    """Whether it was restored from a backup or copied, and nobody has said since that it is to run."""
    stamp: str = ""
    """Whose order the object says that it is, by its annotation: the uid of the object that was first seen with it."""
    unstamped: bool = False
    """Whether the API server refuses that annotation."""
    pod_missing_since: float | None = None
    stuck: Stuck | None = None
    """Since when its pod has had the trouble that ends the attempt where it lasts."""
    backoff_until: datetime | None = None
    base: int = 0
    """Version of which `written` is the status. Not `version`: a change of the spec just before our write is due."""
    writing: bool = False
    rank: int = 9
    """How urgent the next write is; 9 where nothing is to be written."""
    position_at: float = 0.0
    """When its place in the queue was last written, on the monotonic clock."""

    @property
    def attempt(self) -> Attempt | None:
        """The attempt that is under way, if any."""
        last = self.status.attempts[-1] if self.status.attempts else None
        return last if last is not None and last.outcome is AttemptOutcome.RUNNING else None

    @property
    def stamp_due(self) -> dict[str, str]:
        """The annotation that the object lacks; {} where it has one, or where nothing will ever run of it.

        Another object's is left: it goes on saying that this is a copy, and what the status says counts.
        """
        over = self.status.phase in TERMINAL_PHASES and not self.status.attempts
        return {} if self.stamp or self.restored or over else {ANNOTATION_UID: self.key.uid}

    @property
    def stamp_needed(self) -> bool:
        """Whether a pod is about to be created, which nothing may be that could not be told from its copy."""
        attempt = self.attempt
        return attempt is not None and attempt.pod_uid is None

    @property
    def agent_name(self) -> str | None:
        """The Agent that the spec names."""
        return self.spec.agent_ref.name if self.spec is not None and self.spec.agent_ref is not None else None

    @property
    def owner(self) -> str:
        """Whose budget pays: the namespace where the spec names nobody."""
        return (self.spec.owner if self.spec is not None else None) or self.key.namespace

    def allotment_state(self, attempt: int) -> AllotmentState | None:
        """What the ledger last told of an attempt's allotment."""
        return self.totals.states.get(attempt) if self.totals is not None else None

    def settled(self, attempt: int) -> bool:
        """Whether the ledger told that nothing more comes of an attempt, its machine time included."""
        if self.totals is None or self.totals.states.get(attempt) not in _OVER:
            return False
        return self.totals.compute_states.get(attempt, AllotmentState.VOID) in _OVER


@dataclass(slots=True)
class Finished:
    """One that has ended: what TTL, counts and late reports need."""

    key: WorkloadKey
    version: int
    phase: str
    agent: str | None
    created: datetime
    completed: datetime | None
    ttl_seconds: int | None
    tracked: bool
    cost: str = "0.00"
    """`usage.cost` and the number of attempts, as written: a late report is told by the difference."""
    failure: str | None = None
    """Why it failed."""
    generation: int = 0
    observed: int | None = None
    """The generation that its status speaks of: whoever waits for it believes a status of the present one alone."""
    latched: int = 0
    """How often its end was written again over what somebody else had written."""


@dataclass(slots=True)
class AgentRecord:
    """An Agent."""

    namespace: str
    name: str
    uid: str
    version: int
    generation: int
    labels: Mapping[str, str]
    spec: AgentSpec | None
    invalid: str
    hash: str
    status: AgentStatus
    written: AgentStatus
    reason: AgentReason = AgentReason.READY
    message: str = ""
    judged: bool = False
    """Whether `reason` is about this generation; until then nothing is admitted with it."""
    checked: Checked | None = None
    """Its own first problem, once that was looked for: with large schemas a matter of some milliseconds."""
    revision_known: bool = False
    base: int = 0
    writing: bool = False
    rank: int = 9
    successor: AgentRecord | None = None
    """The record that took its place when the spec changed."""


@dataclass(slots=True)
class QuotaRecord:
    """A ResourceQuota."""

    namespace: str
    name: str
    uid: str
    version: int
    generation: int
    spec: ResourceQuotaSpec | None
    invalid: str
    status: ResourceQuotaStatus
    written: ResourceQuotaStatus
    reason: QuotaReason = QuotaReason.LEDGER_UNAVAILABLE
    message: str = ""
    acknowledged: int = -1
    """The generation whose limits the ledger has."""
    subjects: set[str] = field(default_factory=set)
    """Subjects whose accounts the ledger has in that generation."""
    base: int = 0
    writing: bool = False
    rank: int = 9
    seen: datetime | None = None
    """When this generation was first seen."""
    successor: QuotaRecord | None = None
    """The record that took its place when the spec changed."""


@dataclass(slots=True)
class ProviderRecord:
    """A ModelProvider, or a ClusterModelProvider: it has no namespace."""

    namespace: str
    name: str
    uid: str
    version: int
    generation: int
    spec: ModelProviderSpec | None
    invalid: str
    status: ModelProviderStatus
    written: ModelProviderStatus
    reason: ProviderReason = ProviderReason.READY
    message: str = ""
    acknowledged: int = -1
    """The generation whose rates the ledger has."""
    rates_refused_at: int = -1
    """The generation whose rates the ledger refused, and why."""
    rates_problem: str = ""
    base: int = 0
    writing: bool = False
    rank: int = 9
    successor: ProviderRecord | None = None
    """The record that took its place when the spec changed."""

    @property
    def kind(self) -> str:
        """What it is."""
        return "ModelProvider" if self.namespace else "ClusterModelProvider"

    @property
    def place(self) -> str:
        """Its namespace and name, or its kind and name; named with the prices that come from it."""
        return f"{self.namespace or self.kind}/{self.name}"


@dataclass(slots=True)
class Pod:
    """A runner pod: what says how its attempt goes."""

    namespace: str
    name: str
    uid: str
    version: int
    run_uid: str
    """Whose pod it says it is, as `attempt`: whether it is, runner_pods.py says."""
    attempt: int
    owner: str
    """Name of the run that controls it, by the uid that it names; "" where none does."""
    nonce: str
    raw: dict[str, Any]
    """metadata, a little of spec, and status, as the pure layers read them; its node's times are corrected."""
    times: dict[str, str] = field(default_factory=dict)
    """The corrections of its node's times: see clocks.py."""

    @property
    def labels(self) -> dict[str, str]:
        """The labels that say whose pod it is."""
        return {LABEL_EXECUTION_UID: self.run_uid, LABEL_ATTEMPT: str(self.attempt)}

    @property
    def deleting(self) -> bool:
        """Whether somebody asked for its deletion."""
        return bool((self.raw.get("metadata") or {}).get("deletionTimestamp"))


def parse_run(kind: str, raw: Mapping[str, Any]) -> Run | Finished:
    """Read an Execution or TrainingJob."""
    metadata = raw.get("metadata") or {}
    key = WorkloadKey(kind, metadata["namespace"], metadata["name"], metadata["uid"])
    created = parse_time(metadata.get("creationTimestamp")) or datetime.now(UTC)
    raw_spec, raw_status = mapping(raw.get("spec")), mapping(raw.get("status"))
    if _text(raw_status.get("phase")) in _TERMINAL:
        return Finished(
            key=key,
            version=version_of(raw),
            phase=str(raw_status["phase"]),
            agent=_text(mapping(raw_spec.get("agentRef")).get("name")),
            created=created,
            completed=parse_time(raw_status.get("completionTime")),
            ttl_seconds=_whole(raw_spec.get("ttlSecondsAfterFinished")),
            tracked=is_tracked(metadata),
            cost=cost_mark(raw_status),
            failure=_failure(raw_status.get("conditions") or []),
            generation=generation_of(raw),
            observed=observed_of(raw_status),
        )
    spec_type: type[RunSpec] = ExecutionSpec if kind == EXECUTION else TrainingJobSpec
    status_type: type[RunStatus] = ExecutionStatus if kind == EXECUTION else TrainingJobStatus
    spec, invalid = _parsed(spec_type, raw_spec)
    status, _ = _parsed(status_type, raw_status)
    status = status or status_type()
    marks = copy_marks(metadata)
    own = _of_this(key, status) if marks else status
    return Run(
        key=key,
        version=version_of(raw),
        base=version_of(raw),
        generation=generation_of(raw),
        created=created,
        spec=spec,
        invalid=invalid,
        status=own,
        written=status,
        marks=marks,
        restored=bool(marks) and waits_as_restored(own),
        stamp=stamp_of(metadata),
        tracked=is_tracked(metadata),
        next_attempt=(own.attempts[-1].number if own.attempts else 0) + 1,
        admitted=Admitted.of_status(own.attempts, own.quotas),
        stop=stop_intent(own),
    )


def finished_of(run: Run) -> Finished:
    """Give the few words that are kept of a run that has ended."""
    return Finished(
        key=run.key,
        version=max(run.version, run.base),
        phase=str(run.status.phase),
        agent=run.agent_name,
        created=run.created,
        completed=run.status.completion_time,
        ttl_seconds=run.spec.ttl_seconds_after_finished if run.spec is not None else None,
        tracked=run.tracked,
        cost=cost_mark({"usage": run.status.usage.to_wire()}),
        failure=_failure([each.to_wire() for each in run.status.conditions]),
        generation=run.generation,
        observed=run.status.observed_generation,
    )


def _failure(conditions: Sequence[Mapping[str, Any]]) -> str | None:
    """Give the reason of the condition Failed, where it holds."""
    failed = (each for each in conditions if each.get("type") == "Failed" and each.get("status") == "True")
    return next((str(each.get("reason")) for each in failed), None)


def stop_intent(status: RunStatus) -> StopCause | None:
    """Read why the pod was told to stop: a crash must not turn a preempted attempt into a failed one."""
    last = status.attempts[-1] if status.attempts else None
    if last is None or last.outcome is not AttemptOutcome.RUNNING or last.reason is None:
        return None
    return next((cause for cause in StopCause if cause.value == last.reason), None)


def observed_of(raw_status: Mapping[str, Any]) -> int | None:
    """Give the generation that a status speaks of; None where it says none."""
    return _whole(raw_status.get("observedGeneration"))


def cost_mark(raw_status: Mapping[str, Any]) -> str:
    """Give what tells a usage that was written from a later one."""
    usage = mapping(raw_status.get("usage"))
    return f"{usage.get('cost', '0.00')}/{usage.get('requests', 0)}"


def _of_this(key: WorkloadKey, status: RunStatus) -> RunStatus:
    """Give a status if it is this object's, and an empty one where a backup brought another's back with it."""
    last = status.attempts[-1] if status.attempts else None
    if last is None or last.allotment in (None, allotment_id(key.uid, last.number)):
        return status
    return type(status)()


def is_tracked(metadata: Mapping[str, Any]) -> bool:
    """Say whether Argo CD or Flux would create the object again once deleted."""
    marks = {**(metadata.get("labels") or {}), **(metadata.get("annotations") or {})}
    return any(mark in marks for mark in TRACKING_MARKS)


def read_object(raw: Mapping[str, Any], spec: type[APIModel], status: type[APIModel]) -> dict[str, Any]:
    """Read what the records of all kinds but runs have, as the arguments of one: names, versions, spec and status.

    A spec that cannot be read is None, and `invalid` says why; such a status is as good as none.
    """
    metadata = raw.get("metadata") or {}
    found, invalid = _parsed(spec, mapping(raw.get("spec")))
    written = _parsed(status, mapping(raw.get("status")))[0] or status()
    return {
        "namespace": metadata.get("namespace") or "",
        "name": metadata["name"],
        "uid": metadata["uid"],
        "version": version_of(raw),
        "base": version_of(raw),
        "generation": generation_of(raw),
        "spec": found,
        "invalid": invalid,
        "status": written,
        "written": written,
    }


def parse_agent(raw: Mapping[str, Any]) -> AgentRecord:
    """Read an Agent."""
    found = read_object(raw, AgentSpec, AgentStatus)
    labels, spec = dict(raw["metadata"].get("labels") or {}), found["spec"]
    return AgentRecord(**found, labels=labels, hash=spec_hash(spec) if spec is not None else "")


def spec_hash(spec: APIModel) -> str:
    """Give the SHA-256 of a spec, in hexadecimal: equal specs have equal hashes, whatever their order of fields."""
    text = json.dumps(spec.to_wire(), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def parse_quota(raw: Mapping[str, Any]) -> QuotaRecord:
    """Read a ResourceQuota."""
    return QuotaRecord(**read_object(raw, ResourceQuotaSpec, ResourceQuotaStatus))


def parse_provider(raw: Mapping[str, Any]) -> ProviderRecord:
    """Read a ModelProvider, or a ClusterModelProvider: that has no namespace."""
    spec = ModelProviderSpec if raw["metadata"].get("namespace") else ClusterModelProviderSpec
    return ProviderRecord(**read_object(raw, spec, ModelProviderStatus))


def parse_pod(raw: Mapping[str, Any]) -> Pod | None:
    """Read a runner pod, None where its labels do not say whose it is. Keeps a small part of it."""
    metadata = raw.get("metadata") or {}
    labels = metadata.get("labels") or {}
    attempt = str(labels.get(LABEL_ATTEMPT) or "")
    run_uid = labels.get(LABEL_EXECUTION_UID)
    if not run_uid or not attempt.isdigit():
        return None
    spec = raw.get("spec") or {}
    kept = {
        "metadata": {
            name: metadata[name]
            for name in (
                "name",
                "namespace",
                "uid",
                "creationTimestamp",
                "deletionTimestamp",
                "deletionGracePeriodSeconds",
                "ownerReferences",
            )
            if name in metadata
        },
        "spec": {
            **{name: spec[name] for name in ("nodeName", "terminationGracePeriodSeconds") if name in spec},
            **{
                group: [{name: each[name] for name in ("name", "resources") if name in each} for each in spec[group]]
                for group in ("initContainers", "containers")
                if group in spec
            },
        },
        "status": raw.get("status") or {},
    }
    return Pod(
        namespace=metadata["namespace"],
        name=metadata["name"],
        uid=metadata["uid"],
        version=version_of(raw),
        run_uid=str(run_uid),
        attempt=int(attempt),
        owner=next(
            (
                str(each.get("name") or "")
                for each in metadata.get("ownerReferences") or []
                if each.get("uid") == run_uid and each.get("controller")
            ),
            "",
        ),
        nonce=str((metadata.get("annotations") or {}).get(ANNOTATION_NONCE) or ""),
        raw=kept,
    )


def runner_of(run: Run, agent: AgentSpec | None) -> Runner:
    """Give how the container runs: the job's own runner, else the agent's."""
    if isinstance(run.spec, TrainingJobSpec) and run.spec.runner is not None:
        return run.spec.runner
    return agent.runner if agent is not None else Runner()


def _parsed(model: type[Parsed], raw: Mapping[str, Any]) -> tuple[Parsed | None, str]:
    try:
        return model.model_validate(raw), ""
    except ValidationError as error:
        return None, explain(error)
    except RecursionError:
        return None, "spec: nested too deeply to be read"
    except Exception as error:
        log.exception("a stored %s cannot be read", model.__name__)
        return None, f"spec: it cannot be read: {type(error).__name__}: {error}"[:300]
