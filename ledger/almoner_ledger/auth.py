"""Who calls: bearer tokens to callers with roles.

Role: judges tokens by TokenReview, cached. Of the audience almoner-ledger, a pod-bound token makes a meter, whose pod
uid the store compares with the one that the operator bound, and a configured user makes the operator. On the roads of
people, and there alone, tokens of the API server's own audience are known as well: they make a reader and nothing else.
Static tokens serve a laptop without Kubernetes, and tests: whoever holds the file is whom it says. Boundary: what a
reader may read is readers.py's.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Final

from almoner_core.contract import LEDGER_AUDIENCE
from almoner_core.wire import ErrorCode
from almoner_ledger import metrics
from almoner_ledger.errors import LedgerError
from almoner_ledger.kubernetes import Access, KubernetesUnavailableError, Review, Subject, TokenReviewer

log = logging.getLogger(__name__)

OPERATOR_USER: Final = "system:serviceaccount:almoner-system:almoner-operator"
TOKEN_BYTES_MAX: Final = 16_384
CACHE_MAX: Final = 10_000
FRESH_SECONDS: Final = 60.0
REFUSED_SECONDS: Final = 10.0
STALE_SECONDS: Final = 300.0
"""How long a caller that was known is still known while the API server does not answer."""
REVIEWS_AT_ONCE: Final = 32
PEOPLES_REVIEWS_AT_ONCE: Final = 8
"""Of tokens that are shown on the roads of people: whatever is shown there, meters do not wait for it."""


class Role(StrEnum):
    """What a caller may do; a caller may have several."""

    OPERATOR = "operator"
    METER = "meter"
    READER = "reader"


@dataclass(frozen=True, slots=True)
class Caller:
    """An authenticated caller. A reader reads what the API server lets its `subject`; one that `reads_all`, all."""

    name: str
    roles: frozenset[Role]
    pod_uid: str | None = None
    subject: Subject | None = None
    reads_all: bool = False


@dataclass(frozen=True)
class Policy:
    """Which users are the operator."""

    operators: frozenset[str] = frozenset({OPERATOR_USER})

    def caller(self, review: Review) -> Caller:
        """Give the caller that a review for the ledger's audience describes."""
        if review.username in self.operators:
            roles = frozenset({Role.OPERATOR, Role.READER})
            return Caller(review.username, roles, review.pod_uid, review.subject, reads_all=True)
        # A meter's token is for its own allotment, and reads nothing, whatever the pod's service account may.
        role = Role.METER if review.pod_uid else Role.READER
        return Caller(review.username, frozenset({role}), review.pod_uid, review.subject)


def person(review: Review) -> Caller:
    """Give the caller that a review for the API server's own audience describes: a reader, whoever it is."""
    return Caller(review.username, frozenset({Role.READER}), subject=review.subject)


def load_static_tokens(path: Path) -> dict[str, Caller]:
    """Read static tokens: a JSON list of {"token", "role", "name", "pod_uid"}; roles operator, meter, reader.

    Raises ValueError that names what is wrong.
    """
    callers: dict[str, Caller] = {}
    try:
        entries = json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"--static-tokens: {path} is no JSON: {error}") from error
    if not isinstance(entries, list):
        raise ValueError(f"--static-tokens: {path} is no JSON list")  # noqa: TRY004 - one kind of error for bad input
    for index, entry in enumerate(entries):
        try:
            role, token = Role(entry["role"]), str(entry["token"])
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path}: entry {index}: needs a token and a role of operator, meter or reader") from error
        pod_uid = entry.get("pod_uid")
        if role is Role.METER and not pod_uid:
            raise ValueError(f"{path}: entry {index}: a meter needs the pod_uid that it speaks for")
        roles = {role, Role.READER} if role is Role.OPERATOR else {role}
        callers[_fingerprint(token)] = Caller(
            str(entry.get("name", role)), frozenset(roles), pod_uid, reads_all=Role.READER in roles
        )
    return callers


def _fingerprint(token: str) -> str:
    # Tokens themselves are kept nowhere.
    return hashlib.sha256(token.encode()).hexdigest()


@dataclass(slots=True)
class _Known:
    caller: Caller | None
    error: str
    judged: float


class _Judge:
    """Judges tokens for one audience. Bounded: the cache, and the reviews that run at once."""

    def __init__(self, reviewer: TokenReviewer, made: Callable[[Review], Caller]) -> None:
        self._reviewer = reviewer
        self._made = made
        self._cache: OrderedDict[str, _Known] = OrderedDict()
        self._under_way: dict[str, asyncio.Task[_Known]] = {}

    async def close(self) -> None:
        await self._reviewer.close()

    async def known(self, token: str, slots: asyncio.Semaphore) -> _Known:
        """Judge a token. Raises LedgerError `unavailable`."""
        key = _fingerprint(token)
        known = self._cache.get(key)
        if known is not None and _fresh(known):
            return known
        # Many requests of one caller at once are one review; it goes on if the first of them hangs up.
        task = self._under_way.get(key)
        if task is None:
            task = self._under_way[key] = asyncio.create_task(self._review(key, token, slots))
            task.add_done_callback(lambda _: self._under_way.pop(key, None))
        try:
            return await asyncio.shield(task)
        except KubernetesUnavailableError as error:
            if known is not None and known.caller is not None and time.monotonic() - known.judged < STALE_SECONDS:
                return known
            metrics.AUTHENTICATION.labels("unavailable").inc()
            raise LedgerError(ErrorCode.UNAVAILABLE, f"the token could not be checked: {error}") from error

    async def _review(self, key: str, token: str, slots: asyncio.Semaphore) -> _Known:
        async with slots:
            review = await self._reviewer.review(token)
        caller = self._made(review) if review.authenticated else None
        known = _Known(caller, review.error, time.monotonic())
        self._cache[key] = known
        self._cache.move_to_end(key)
        while len(self._cache) > CACHE_MAX:
            self._cache.popitem(last=False)
        return known


@dataclass
class Authenticator:
    """Judges bearer tokens. Bounded: the caches, the token's length, and the reviews that run at once."""

    access: Access | None
    policy: Policy = field(default_factory=Policy)
    static: Mapping[str, Caller] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._machines = self._people = None
        if self.access is not None:
            self._machines = _Judge(TokenReviewer(self.access, LEDGER_AUDIENCE), self.policy.caller)
            self._people = _Judge(TokenReviewer(self.access, None), person)
        self._slots = asyncio.Semaphore(REVIEWS_AT_ONCE)
        self._peoples_slots = asyncio.Semaphore(PEOPLES_REVIEWS_AT_ONCE)

    async def close(self) -> None:
        """Close what it holds open."""
        for judge in (self._machines, self._people):
            if judge is not None:
                await judge.close()

    async def caller(self, authorization: str | None, *, reading: bool = False) -> Caller:
        """Give the caller of an Authorization header. Raises LedgerError `unauthenticated` or `unavailable`.

        `reading`: it is shown on a road of people, where a token of the API server's own audience will do.
        """
        scheme, _, token = (authorization or "").partition(" ")
        token = token.strip()
        if scheme.lower() != "bearer" or not token:
            raise _unauthenticated("send Authorization: Bearer <token>", "missing")
        if len(token) > TOKEN_BYTES_MAX or not token.isascii():
            raise _unauthenticated("the token is not one of Kubernetes", "malformed")
        if (static := self.static.get(_fingerprint(token))) is not None:
            return static
        if self._machines is None or self._people is None:
            raise _unauthenticated("no such token, and no API server to ask", "refused")
        slots = self._peoples_slots if reading else self._slots
        known = await self._people.known(token, slots) if reading else None
        if known is None or known.caller is None:
            known = await self._machines.known(token, slots)
        if known.caller is None:
            raise _unauthenticated(known.error or "the token is not valid", "refused")
        metrics.AUTHENTICATION.labels("accepted").inc()
        return known.caller


def _fresh(known: _Known) -> bool:
    age = time.monotonic() - known.judged
    return age < (FRESH_SECONDS if known.caller is not None else REFUSED_SECONDS)


def _unauthenticated(message: str, result: str) -> LedgerError:
    metrics.AUTHENTICATION.labels(result).inc()
    return LedgerError(ErrorCode.UNAUTHENTICATED, message)
