"""Keeps the Secret with the ledger's self-signed certificate: makes it, renews it, and leaves what somebody else made.

Role: any number of operators may do this at once, before any of them leads, since nothing runs without the ledger:
creation and replacement are decided by the API server (a name, a resourceVersion), and who comes second reads what the
first wrote. Boundary: what the Secret has to hold is certificates.py's; who serves it, the ledger's.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import datetime as dt
import logging
from collections.abc import Callable, Mapping
from typing import Any, Final

from almoner_operator import certificates
from almoner_operator.credentials import CredentialsError
from almoner_operator.errors import AlreadyExistsError, ApiError, ConflictError, NotFoundError
from almoner_operator.kubernetes import SECRETS, KubernetesClient
from almoner_operator.ledger_trust import LedgerTrust
from almoner_operator.limiter import Rank

log = logging.getLogger(__name__)

SERVICE: Final = "almoner-ledger"
OURS: Final = ("app.kubernetes.io/managed-by", "almoner")
"""The label of a Secret that is ours to renew."""
TYPE: Final = "kubernetes.io/tls"
TRIES_MAX: Final = 8
CHECK_SECONDS: Final = 300.0
RETRY_SECONDS: Final = 2.0


def dns_names(namespace: str) -> list[str]:
    """Give what the ledger is called: within the cluster, and by whoever forwards its port."""
    short = f"{SERVICE}.{namespace}"
    return [SERVICE, short, f"{short}.svc", f"{short}.svc.cluster.local", "localhost"]


class CertificateKeeper:
    """Keeps one Secret of a namespace."""

    def __init__(
        self,
        client: KubernetesClient,
        namespace: str,
        name: str,
        *,
        clock: Callable[[], dt.datetime] = lambda: dt.datetime.now(dt.UTC),
    ) -> None:
        self._client, self._namespace, self._name, self._clock = client, namespace, name, clock
        self.problem = "the ledger's certificate is not there yet"
        """Why it is not in order; empty where it is."""

    async def ensure(self) -> str:
        """Make or renew the Secret where that is due; gives the certificates to trust, in PEM.

        Raises ApiError, and CredentialsError where somebody else's Secret has no ca.crt.
        """
        problem: ApiError | None = None
        for _ in range(TRIES_MAX):
            try:
                return await self._ensure()
            except (AlreadyExistsError, ConflictError, NotFoundError) as error:
                problem = error  # Another process was faster: see what it wrote.
        assert problem is not None
        raise problem

    async def _ensure(self) -> str:
        try:
            found = await self._client.get(SECRETS, self._namespace, self._name, rank=Rank.LEASE)
        except NotFoundError:
            made = certificates.renewed({}, dns_names(self._namespace), self._clock())
            await self._client.create(SECRETS, self._namespace, self._body(made), rank=Rank.LEASE)
            self._say("made", made)
            return made[certificates.TRUSTED]
        held = _decoded(found)
        if (found["metadata"].get("labels") or {}).get(OURS[0]) != OURS[1]:
            if not held.get(certificates.TRUSTED):
                raise CredentialsError(
                    f"the Secret {self._namespace}/{self._name} is not Almoner's and has no ca.crt: add the authority "
                    "of its tls.crt, or delete the Secret"
                )
            return held[certificates.TRUSTED]
        due = self._due(held)
        if due != held:
            await self._client.replace(SECRETS, self._namespace, self._name, self._body(due, found))
            self._say("renewed", due)
        return due[certificates.TRUSTED]

    def _due(self, held: Mapping[str, str]) -> dict[str, str]:
        names, now = dns_names(self._namespace), self._clock()
        try:
            return certificates.renewed(held, names, now)
        except certificates.ContentError as error:
            log.error("the Secret %s/%s is made anew: %s", self._namespace, self._name, error)  # noqa: TRY400
            return certificates.renewed({}, names, now)

    def _body(self, content: Mapping[str, str], found: Mapping[str, Any] | None = None) -> dict[str, Any]:
        metadata: dict[str, Any] = (
            dict(found["metadata"]) if found is not None else {"name": self._name, "namespace": self._namespace}
        )
        metadata.pop("managedFields", None)
        labels = {**(metadata.get("labels") or {}), "app.kubernetes.io/part-of": "almoner", OURS[0]: OURS[1]}
        data = {name: base64.b64encode(text.encode()).decode() for name, text in content.items()}
        return {
            "apiVersion": "v1",
            "kind": "Secret",
            "type": TYPE,
            "metadata": {**metadata, "labels": labels},
            "data": data,
        }

    def _say(self, done: str, content: Mapping[str, str]) -> None:
        until = certificates.expires(content).isoformat()
        log.info("%s the ledger's certificate in %s/%s, good until %s", done, self._namespace, self._name, until)

    async def keep(self, trust: LedgerTrust) -> None:
        """Ensure again and again, without end, and tell what is to be trusted."""
        while True:
            await asyncio.sleep(CHECK_SECONDS)
            await self._look(trust)

    async def first(self, trust: LedgerTrust) -> None:
        """Ensure once, for as long as that takes: without it there is no ledger."""
        while True:
            if await self._look(trust):
                return
            await asyncio.sleep(RETRY_SECONDS)

    async def _look(self, trust: LedgerTrust) -> bool:
        try:
            trust.trust(await self.ensure())
        except (ApiError, CredentialsError) as error:
            problem = f"the ledger's certificate is not in order: {error}"
            if problem != self.problem:  # Told once, not every two seconds.
                log.error("%s", problem)  # noqa: TRY400
            self.problem = problem
            return False
        self.problem = ""
        return True


def _decoded(secret: Mapping[str, Any]) -> dict[str, str]:
    """Read a Secret's data; what is no text is left out, and so made anew."""
    held: dict[str, str] = {}
    for name, value in (secret.get("data") or {}).items():
        try:
            held[name] = base64.b64decode(value).decode()
        except (binascii.Error, UnicodeDecodeError):
            continue
    return held
