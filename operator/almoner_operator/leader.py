"""One operator acts at a time: a coordination.k8s.io Lease decides which.

Role: hold the Lease, renew it, and end the process at once when that fails: a process that cannot tell whether it leads
must not write. The ledger's epoch and pod names derived from the attempt fence what a paused process may still send.
The official client's elector runs callbacks in threads of its own and cannot be awaited, hence this small one; the
record is the usual one, so kubectl and other tools read it.
"""

from __future__ import annotations

import asyncio
import logging
import time
from datetime import UTC, datetime
from typing import Any, Final

from almoner_operator.errors import (
    AlreadyExistsError,
    ApiError,
    ConflictError,
    LeadershipLostError,
    NotFoundError,
    fix_of,
)
from almoner_operator.kubernetes import LEASES, KubernetesClient
from almoner_operator.limiter import Rank

log = logging.getLogger(__name__)

LEASE_SECONDS: Final = 15
RETRY_SECONDS: Final = 0.5


class Leader:
    """Takes part in the election under `identity` for the Lease `name` in `namespace`.

    The lease is renewed after a fifth of its `seconds`; where that fails for two thirds of them, it counts as lost.
    """

    def __init__(
        self, client: KubernetesClient, *, namespace: str, name: str, identity: str, seconds: int = LEASE_SECONDS
    ) -> None:
        self._seconds = seconds
        self._client = client
        self._namespace = namespace
        self._name = name
        self.identity = identity
        self._renewed_at = 0.0
        self._record: dict[str, Any] = {}
        self._seen: tuple[str, float] = ("", 0.0)
        self._heard_at: float | None = None
        self._trouble = "the API server has not answered yet"

    def certain(self) -> bool:
        """Say whether this process surely still leads, by its own monotonic clock."""
        return time.monotonic() - self._renewed_at < self._seconds

    def unheard(self) -> str:
        """Say what is wrong where the API server was not heard for two leases; empty where it was."""
        if self._heard_at is not None and time.monotonic() - self._heard_at < 2 * self._seconds:
            return ""
        return f"cannot take part in the election: {self._trouble}"

    async def acquire(self) -> None:
        """Return once this process leads."""
        waiting_said = False
        while True:
            try:
                leads = await self._try_acquire()
                self._heard_at = time.monotonic()
                if leads:
                    log.info("this process leads", extra={"identity": self.identity})
                    return
            except ApiError as error:
                self._trouble = f"{error}{fix_of(error)}"
                log.warning("cannot take part in the election: %s", self._trouble)
                await asyncio.sleep(RETRY_SECONDS * 4)
            if not waiting_said:
                waiting_said = True
                holder = (self._record.get("spec") or {}).get("holderIdentity")
                log.info("another process leads; standing by", extra={"holder": holder})
            await asyncio.sleep(RETRY_SECONDS)

    async def keep(self) -> None:
        """Renew for ever. Raises LeadershipLostError when it was lost, or could not be renewed in time."""
        while True:
            await asyncio.sleep(self._seconds / 5)
            deadline = self._renewed_at + self._seconds * 2 / 3
            while True:
                try:
                    started = time.monotonic()
                    async with asyncio.timeout(max(0.1, deadline - started)):
                        await self._write(self._body(renew=True))
                    self._renewed_at = started
                    break
                except (ConflictError, NotFoundError):
                    if not await self._still_ours():
                        raise LeadershipLostError("another process took the lease") from None
                except (ApiError, TimeoutError) as error:
                    log.warning("the lease could not be renewed yet: %s", error)
                if time.monotonic() > deadline:
                    raise LeadershipLostError("the lease could not be renewed in time")
                await asyncio.sleep(RETRY_SECONDS)

    async def release(self) -> None:
        """Give the lease up at a clean stop, so that the next process need not wait for it to run out."""
        body = self._body(renew=True)
        body["spec"]["holderIdentity"] = ""
        body["spec"]["leaseDurationSeconds"] = 1
        try:
            async with asyncio.timeout(2):
                await self._write(body)
        except (ApiError, TimeoutError) as error:
            log.info("the lease was not released: %s", error)

    async def _try_acquire(self) -> bool:
        try:
            self._record = await self._client.get(LEASES, self._namespace, self._name, rank=Rank.LEASE)
        except NotFoundError:
            body = self._body(renew=False)
            started = time.monotonic()
            try:
                await self._client.create(LEASES, self._namespace, body, rank=Rank.LEASE)
            except (AlreadyExistsError, ConflictError):
                return False
            self._record = await self._client.get(LEASES, self._namespace, self._name, rank=Rank.LEASE)
            self._renewed_at = started
            return self._holder() == self.identity
        # Clocks of two machines differ: what counts is how long *we* saw the record unchanged.
        version = str(self._record["metadata"]["resourceVersion"])
        now = time.monotonic()
        if self._seen[0] != version:
            self._seen = (version, now)
        spec = self._record.get("spec") or {}
        duration = float(spec.get("leaseDurationSeconds") or self._seconds)
        if self._holder() not in ("", self.identity) and now - self._seen[1] < duration:
            return False
        try:
            await self._write(self._body(renew=False))
        except (ConflictError, NotFoundError):
            return False
        self._renewed_at = now
        return True

    async def _still_ours(self) -> bool:
        try:
            self._record = await self._client.get(LEASES, self._namespace, self._name, rank=Rank.LEASE)
        except NotFoundError:
            return False
        except ApiError:
            return True  # Not known: the deadline decides.
        return self._holder() == self.identity

    async def _write(self, body: dict[str, Any]) -> None:
        self._record = await self._client.replace(LEASES, self._namespace, self._name, body)

    def _holder(self) -> str:
        return str((self._record.get("spec") or {}).get("holderIdentity") or "")

    def _body(self, *, renew: bool) -> dict[str, Any]:
        spec = self._record.get("spec") or {}
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        transitions = int(spec.get("leaseTransitions") or 0)
        metadata: dict[str, Any] = {"name": self._name, "namespace": self._namespace}
        version = (self._record.get("metadata") or {}).get("resourceVersion")
        if version:
            metadata["resourceVersion"] = version
        return {
            "apiVersion": "coordination.k8s.io/v1",
            "kind": "Lease",
            "metadata": metadata,
            "spec": {
                "holderIdentity": self.identity,
                "leaseDurationSeconds": self._seconds,
                "acquireTime": spec.get("acquireTime", now) if renew else now,
                "renewTime": now,
                "leaseTransitions": transitions if renew else transitions + 1,
            },
        }
