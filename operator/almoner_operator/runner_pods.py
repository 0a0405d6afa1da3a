"""Which pods are runs' own: kept by namespace and name, which the API server gives to one pod at a time.

Role: labels only say which pods to watch; anybody may write them, in any namespace. A pod counts as an attempt's only
where it lies in the run's namespace under the attempt's own name, is controlled by the run's uid, and is the very
object that the operator created: by uid once that is known, until then by the nonce whose digest the status has from
before the pod existed. Whatever else says that it is a run's is a stranger, and counts for nothing.

Boundary: no I/O. Whoever asks for a run's pod asks here.
"""

from __future__ import annotations

import hmac
from collections.abc import Iterator
from typing import Final

from almoner_core.api.execution import Attempt
from almoner_core.identity import pod_name, pod_proof
from almoner_operator.news import DELETED
from almoner_operator.records import Pod, Run
from almoner_operator.scheduling.model import WorkloadKey

Place = tuple[str, str]
"""Namespace and name."""
SAME_PLACE_MAX: Final = 8
"""So many pods of one place are kept, gone ones among them: the last word of the right one may come late."""


def place_of(key: WorkloadKey, attempt: int) -> Place:
    """Give where the pod of a run's attempt lies."""
    return key.namespace, pod_name(key.name, key.uid, attempt)


def belongs(pod: Pod, run: Run, attempt: Attempt) -> bool:
    """Whether a pod is that of the run's attempt, and not only says so."""
    if (pod.namespace, pod.name) != place_of(run.key, attempt.number) or pod.owner != run.key.name:
        return False
    if (pod.run_uid, pod.attempt) != (run.key.uid, attempt.number):
        return False
    known = known_uid(run, attempt)
    return pod.uid == known if known is not None else proves(pod.nonce, pod.name, attempt)


def known_uid(run: Run, attempt: Attempt) -> str | None:
    """Give the uid of the attempt's pod, from the status, the ledger, or the answer to its creation."""
    if attempt.pod_uid is not None:
        return attempt.pod_uid
    return run.made[1] if run.made is not None and run.made[0] == attempt.number else None


def proves(nonce: str, pod: str, attempt: Attempt) -> bool:
    """Whether a pod carries what only the operator knew when the status told its digest."""
    return bool(nonce and attempt.pod_proof) and hmac.compare_digest(
        pod_proof(pod, nonce).encode(), (attempt.pod_proof or "").encode()
    )


def is_stranger(pod: Pod, run: Run) -> bool:
    """Whether a pod that says it is a run's is not: neither its present attempt's nor an earlier one's."""
    if (pod.namespace, pod.name) != place_of(run.key, pod.attempt) or pod.owner != run.key.name:
        return True
    attempt = run.attempt
    if attempt is not None and attempt.number == pod.attempt:
        return not belongs(pod, run, attempt)
    return pod.attempt >= run.next_attempt


class RunnerPods:
    """Every pod that may be an attempt's."""

    def __init__(self) -> None:
        self._at: dict[Place, dict[str, Pod]] = {}
        self._of: dict[str, set[Place]] = {}
        """Places by the run that their pods name."""

    def observe(self, pod: Pod, event: str | None) -> bool:
        """Take in what an event (None: a list) says of a pod; False where it is nothing new, or can be no attempt's."""
        if not pod.owner or pod.name != pod_name(pod.owner, pod.run_uid, pod.attempt):
            return False
        place = (pod.namespace, pod.name)
        known = self._at.get(place, {}).get(pod.uid)
        if event == DELETED:
            if known is None:
                return False
            # What it said last still tells how the attempt ended.
            pod.raw["gone"] = True
        elif known is not None and pod.version <= known.version and (event or pod.version == known.version):
            return False
        here = self._at.setdefault(place, {})
        here[pod.uid] = pod
        self._of.setdefault(pod.run_uid, set()).add(place)
        if len(here) > SAME_PLACE_MAX:
            del here[next((uid for uid, each in here.items() if each.raw.get("gone")), next(iter(here)))]
        return True

    def of(self, run: Run) -> Pod | None:
        """Give the pod of the attempt that is under way, gone ones included."""
        attempt = run.attempt
        if attempt is None:
            return None
        here = self._at.get(place_of(run.key, attempt.number), {})
        return next((pod for pod in here.values() if belongs(pod, run, attempt)), None)

    def at(self, place: Place, uid: str) -> Pod | None:
        """Give a pod by its place and uid."""
        return self._at.get(place, {}).get(uid)

    def left_by(self, run_uid: str) -> list[Pod]:
        """Give every pod that names a run, in whatever namespace: for runs that are no more."""
        places = self._of.get(run_uid, ())
        return [pod for place in places for pod in self._at.get(place, {}).values() if pod.run_uid == run_uid]

    def drop(self, run_uid: str) -> None:
        """Forget the pods that name a run."""
        for place in self._of.pop(run_uid, set()):
            here = self._at.get(place, {})
            for uid in [uid for uid, pod in here.items() if pod.run_uid == run_uid]:
                del here[uid]
            if not here:
                self._at.pop(place, None)

    def present(self) -> Iterator[Pod]:
        """Give every pod that is there, as far as is known."""
        for here in self._at.values():
            yield from (pod for pod in here.values() if not pod.raw.get("gone"))

    def __contains__(self, run_uid: str) -> bool:
        return run_uid in self._of
