"""What a person may read: SubjectAccessReview on the resource and the namespace that a question is about.

Role: allows or refuses a question, with answers kept for seconds. A reader sees the namespaces in which they may `get`
the resource that is asked about, and nothing else. Fails closed: where the API server cannot be asked, only what was
allowed minutes ago still is. Boundary: who the caller is, is auth.py's; which namespaces a question is about is said by
who reads it.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final, Protocol
from weakref import WeakValueDictionary

from almoner_core.wire import ErrorCode
from almoner_ledger import metrics
from almoner_ledger.auth import STALE_SECONDS, Caller
from almoner_ledger.errors import LedgerError
from almoner_ledger.kubernetes import KubernetesUnavailableError, Subject

GROUP: Final = "almoner.dev"
ALL_NAMESPACES: Final = ""
KEPT_SECONDS: Final = 10.0
"""How long an answer of the API server holds, a permission as well as a refusal."""
KEPT_MAX: Final = 10_000
REVIEWS_AT_ONCE: Final = 16
FAILED_SECONDS: Final = 1.0
"""For so long after a review of a user got no answer, no other of that user is tried."""
NAME_CHARS_MAX: Final = 253


class Resource(StrEnum):
    """What a question is about, as RBAC calls it: a resource of the group almoner.dev."""

    EXECUTIONS = "executions"
    QUOTAS = "resourcequotas"
    MODEL_PROVIDERS = "modelproviders"
    TOOL_PROVIDERS = "toolproviders"
    CLUSTER_MODEL_PROVIDERS = "clustermodelproviders"
    CLUSTER_TOOL_PROVIDERS = "clustertoolproviders"


class Reviewer(Protocol):
    """Who is asked: the API server."""

    async def may_get(self, subject: Subject, group: str, resource: str, namespace: str) -> bool:
        """Say whether a user may. Raises KubernetesUnavailableError."""
        ...

    async def close(self) -> None:
        """Close what is held open."""
        ...


_Key = tuple[Subject, Resource, str]


@dataclass(frozen=True, slots=True)
class _Answer:
    allowed: bool
    at: float


class _Turn:
    """Of one user's reviews: one at a time."""

    __slots__ = ("__weakref__", "failed_at", "lock")

    def __init__(self) -> None:
        self.lock = asyncio.Lock()
        self.failed_at = float("-inf")


@dataclass
class Readers:
    """Allows and refuses questions, from one event loop. Bounded: what is kept, and the reviews that run at once.

    `reviewer` None: there is no API server, and only callers that may read everything are served.
    """

    reviewer: Reviewer | None
    kept_seconds: float = KEPT_SECONDS
    clock: Callable[[], float] = time.monotonic
    _kept: OrderedDict[_Key, _Answer] = field(default_factory=OrderedDict, init=False)
    _slots: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(REVIEWS_AT_ONCE), init=False)
    _turns: WeakValueDictionary[str, _Turn] = field(default_factory=WeakValueDictionary, init=False)

    async def close(self) -> None:
        """Close what it holds open."""
        if self.reviewer is not None:
            await self.reviewer.close()

    async def may(self, caller: Caller, resource: Resource, namespace: str) -> bool:
        """Say whether a caller may read a resource in a namespace, or in all. Raises LedgerError `unavailable`."""
        if caller.reads_all:
            return True
        if caller.subject is None or self.reviewer is None or len(namespace) > NAME_CHARS_MAX:
            return False
        key = (caller.subject, resource, namespace)
        # One review of a user at a time: whoever asks of a hundred namespaces waits, and not those who ask of one.
        turn = self._turns.get(caller.subject.username)
        if turn is None:
            turn = self._turns[caller.subject.username] = _Turn()
        async with turn.lock:
            known = self._kept.get(key)
            if known is not None and self.clock() - known.at < self.kept_seconds:
                return known.allowed
            return await self._review(self.reviewer, key, known, turn)

    async def _review(self, reviewer: Reviewer, key: _Key, known: _Answer | None, turn: _Turn) -> bool:
        try:
            if self.clock() - turn.failed_at < FAILED_SECONDS:
                raise KubernetesUnavailableError("the API server did not answer just now")
            async with self._slots:
                allowed = await reviewer.may_get(key[0], GROUP, key[1].value, key[2])
        except KubernetesUnavailableError as error:
            if self.clock() - turn.failed_at >= FAILED_SECONDS:
                turn.failed_at = self.clock()
            if known is not None and known.allowed and self.clock() - known.at < STALE_SECONDS:
                return True
            metrics.AUTHORIZATION.labels("unavailable").inc()
            raise LedgerError(
                ErrorCode.UNAVAILABLE, f"it could not be asked whether you may read that: {error}"
            ) from error
        metrics.AUTHORIZATION.labels("allowed" if allowed else "refused").inc()
        self._kept[key] = _Answer(allowed, self.clock())
        self._kept.move_to_end(key)
        while len(self._kept) > KEPT_MAX:
            self._kept.popitem(last=False)
        return allowed


class Reading:
    """One request for reading. What is not demanded is not shown: see `Service`."""

    def __init__(self, readers: Readers, caller: Caller) -> None:
        self._readers = readers
        self._caller = caller
        self.permitted = False
        """Whether a demand was met."""

    async def demand(self, resource: Resource, namespaces: Collection[str] | None) -> None:
        """Demand that the caller may read a resource in each of the namespaces; None: in all there are.

        Raises LedgerError `forbidden`, which tells nothing of what there is, or `unavailable`.
        """
        for namespace in [ALL_NAMESPACES] if namespaces is None else sorted(set(namespaces)):
            if not await self._readers.may(self._caller, resource, namespace):
                raise _forbidden(self._caller, resource, namespace)
        self.permitted = True

    async def demand_of_object(self, resource: Resource, namespace: str | None) -> None:
        """Demand that the caller may read an object that was asked for by its uid; `namespace` None: there is none.

        The refusal is the same whether or not there is such an object. Raises LedgerError.
        """
        if not await self._readers.may(self._caller, resource, ALL_NAMESPACES if namespace is None else namespace):
            raise LedgerError(
                ErrorCode.FORBIDDEN,
                f"uid: there is no such object that {_name(self._caller)} may read; reading needs "
                f"{_right(resource)} in its namespace",
                field="uid",
            )
        self.permitted = True


def _forbidden(caller: Caller, resource: Resource, namespace: str) -> LedgerError:
    if namespace:
        message = (
            f"namespace: {_name(caller)} may not {_right(resource)} in namespace {namespace[:NAME_CHARS_MAX]}; "
            "the cluster role almoner-viewer, bound there, has that right"
        )
    else:
        message = (
            f"namespace: {_name(caller)} may not {_right(resource)} in all namespaces; name those that you may read: "
            "namespace=NAME (--namespace NAME), once for each"
        )
    return LedgerError(ErrorCode.FORBIDDEN, message, field="namespace")


def _name(caller: Caller) -> str:
    return caller.name[:NAME_CHARS_MAX] or "the caller"


def _right(resource: Resource) -> str:
    return f"get {resource}.{GROUP}"
