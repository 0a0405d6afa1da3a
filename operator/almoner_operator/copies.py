"""What tells an object that is a copy of one that may have run already: restored from a backup, or applied again.

Role: an Execution or TrainingJob is an order to run something and pay for it. Whatever brings one back without its
status brings the order back, as an object with another uid. Velero marks what it restores. Everything else is told by
an annotation of ours, in which the operator writes the object's uid before it writes a first status: it is in every
copy that somebody makes of the object, and there it is another object's uid.

Boundary: PURE.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from almoner_core.api.execution import ExecutionStatus, WaitReason
from almoner_core.api.training_job import TrainingJobStatus
from almoner_core.contract import ANNOTATION_UID

BACKUP_MARKS: Final = ("velero.io/restore-name", "velero.io/backup-name")
"""Labels that what Velero restored has."""


def copy_marks(metadata: Mapping[str, Any]) -> tuple[str, ...]:
    """Give the labels and the annotation that say of an object that it is a copy of one that may have run already.

    A backup's labels; and Almoner's own annotation where the uid in it is another object's: whoever creates an object
    anew from what was stored of it, in whatever way, brings the annotation along and gets a new uid.
    """
    stamp = stamp_of(metadata)
    labels = tuple(mark for mark in BACKUP_MARKS if mark in (metadata.get("labels") or {}))
    return (*labels, ANNOTATION_UID) if stamp and stamp != metadata.get("uid") else labels


def stamp_of(metadata: Mapping[str, Any]) -> str:
    """Give whose order an object says that it is; "" where it says nothing."""
    return str((metadata.get("annotations") or {}).get(ANNOTATION_UID) or "")


def why_restored(marks: Sequence[str]) -> str:
    """Say why a copy waits, and how it is made to run."""
    labels = [mark for mark in marks if mark != ANNOTATION_UID]
    named = [f"label {mark}" for mark in labels] + ([f"annotation {ANNOTATION_UID}"] if ANNOTATION_UID in marks else [])
    what = "restored from a backup without its status" if labels else "a copy of another object, with another uid"
    return (
        f"{what}, so it may have run already: to run it, set spec.suspend to true and back to false, or remove the "
        f"{' and the '.join(named)}, from where it is applied too"
    )


def waits_as_restored(status: ExecutionStatus | TrainingJobStatus) -> bool:
    """Say whether nobody has consented to the running of what a backup brought back, as far as its status tells.

    Consent shows in the status: what was admitted has attempts, and what waits then waits for something else.
    """
    if status.attempts:
        return False
    reason = next((each.reason for each in status.conditions if each.type == "Admitted"), None)
    return reason in (None, WaitReason.RESTORED, WaitReason.SUSPENDED)
