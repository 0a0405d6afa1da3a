"""What is known of Secrets: whether they exist and whether agents may read them. Never what is in them.

Role: reads a Secret's metadata, asked for as metadata alone, so that no value ever reaches this process; the names of
its keys are in it. Remembered for a few seconds. Where the operator cannot look, the fact says so, with the HTTP
status, and whoever names the Secret waits.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Mapping, Sequence
from typing import Any, Final

from almoner_core.api.runner import Runner
from almoner_core.contract import LABEL_AGENT_READABLE, LABEL_PROVIDER_KEY
from almoner_operator.agents import SecretFacts, secret_references
from almoner_operator.errors import ApiError, ForbiddenError
from almoner_operator.kubernetes import SECRETS, KubernetesClient

log = logging.getLogger(__name__)

FRESH_SECONDS: Final = 5.0
LOOK_SECONDS: Final = 5.0
"""A Secret that takes longer is unknown for now: others wait to be judged."""
REMEMBERED_MAX: Final = 4096


def secrets_of(runner: Runner) -> list[str]:
    """Give the names of the Secrets that a runner names."""
    return sorted({name for _, name, _ in secret_references(runner)})


class Secrets:
    """Looks at Secrets from outside."""

    def __init__(self, client: KubernetesClient) -> None:
        self._client = client
        self._known: dict[tuple[str, str], tuple[float, SecretFacts | None]] = {}

    async def facts(self, namespace: str, names: Sequence[str]) -> dict[str, SecretFacts]:
        """Give what is known of Secrets by name, without those that do not exist."""
        facts: dict[str, SecretFacts] = {}
        for name in names:
            known = self._known.get((namespace, name))
            if known is None or time.monotonic() - known[0] > FRESH_SECONDS:
                fact = await self._look(namespace, name)
                if len(self._known) >= REMEMBERED_MAX:
                    self._known.clear()
                known = self._known[namespace, name] = (time.monotonic(), fact)
            if known[1] is not None:
                facts[name] = known[1]
        return facts

    async def _look(self, namespace: str, name: str) -> SecretFacts | None:
        """Look at a Secret; None where there is none."""
        try:
            async with asyncio.timeout(LOOK_SECONDS):
                metadata = await self._client.get_metadata(SECRETS, namespace, name)
        except ForbiddenError as error:
            return SecretFacts(unknown=f"{error.status} {error.reason}", forbidden=True)
        except ApiError as error:
            log.warning("Secret %s/%s cannot be looked at now: %s", namespace, name, error)
            return SecretFacts(unknown=f"{error.status} {error.reason}" if error.status else error.reason)
        except TimeoutError:
            return SecretFacts(unknown=f"no answer within {LOOK_SECONDS:.0f} seconds")
        if metadata is None:
            return None
        readable = (metadata.get("labels") or {}).get(LABEL_AGENT_READABLE) == "true"
        provider_key = (metadata.get("labels") or {}).get(LABEL_PROVIDER_KEY) == "true"
        return SecretFacts(readable, keys=keys_of(metadata), provider_key=provider_key)


def keys_of(metadata: Mapping[str, Any]) -> frozenset[str] | None:
    """Give the names of a Secret's keys, read from who manages which fields of it; None where that is not tracked.

    Metadata has no values, so none comes here for the sake of a name. The API server tracks an object's fields whole or
    not at all: one that was written before it did, or whose managedFields somebody cleared, has no entry.
    """
    entries = [each.get("fieldsV1") for each in metadata.get("managedFields") or []]
    if not any(entries):
        return None
    owned = [part for fields in entries for part in ((fields or {}).get("f:data"), (fields or {}).get("f:stringData"))]
    names = (name for part in owned for name in part or {})
    return frozenset(name.removeprefix("f:") for name in names if name.startswith("f:"))
