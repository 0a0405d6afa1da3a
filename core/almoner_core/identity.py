"""Names and ids derived from an execution's uid and attempt, so that every step can be repeated without doubling.

Two operators that act for a moment at once derive the same pod name, so the API server lets only one create it; a crash
between two steps is repaired by looking up what the same derivation gives again.
"""

from __future__ import annotations

import hashlib
from typing import Final
from uuid import UUID, uuid5

# Namespace of the ids below (a fixed random UUID; RFC 9562 section 5.5).
_NAMESPACE: Final = UUID("6f1d3c0e-7d55-4ff0-9c5a-2f6f0a3b9a11")
_POD_PREFIX_LENGTH_MAX: Final = 46


def pod_name(name: str, uid: str, attempt: int) -> str:
    """Give the runner pod's name: readable, at most 63 characters, unique for a uid and attempt (from 1)."""
    digest = hashlib.sha256(f"{uid}/{attempt}".encode()).hexdigest()[:10]
    prefix = name[:_POD_PREFIX_LENGTH_MAX].rstrip("-.").replace(".", "-")
    return f"{prefix}-{attempt}-{digest}"


def pod_proof(pod: str, nonce: str) -> str:
    """Give what is told of a pod before it exists, so that nobody who reads it can make a pod that fits: a digest."""
    return hashlib.sha256(f"pod/{pod}/{nonce}".encode()).hexdigest()[:32]


def allotment_id(uid: str, attempt: int) -> str:
    """Give the allotment's id in the ledger for an execution's uid and attempt."""
    return str(uuid5(_NAMESPACE, f"allotment/{uid}/{attempt}"))


def compute_allotment_id(allotment: str) -> str:
    """Give the id of the allotment that an attempt's machine time is held in, from the attempt's own allotment."""
    return str(uuid5(_NAMESPACE, f"compute/{allotment}"))


def operation_id(verb: str, subject: str, discriminator: str | int = "") -> str:
    """Give a mutation's idempotency key: the same step of the same subject always has the same one."""
    return str(uuid5(_NAMESPACE, f"operation/{verb}/{subject}/{discriminator}"))
