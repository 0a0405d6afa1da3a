"""What is known of Secrets: whether they exist and whether agents may read them. Never what is in them.

Role: reads a Secret's metadata, asked for as metadata alone, so that no key ever reaches this process. Remembered for a
few seconds. Where the operator may not look at Secrets at all, nothing is known, and nothing is held back for it.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from typing import Final

from almoner_core.api.runner import Runner
from almoner_core.contract import LABEL_AGENT_READABLE
from almoner_operator.agents import SecretFacts
from almoner_operator.errors import ApiError, ForbiddenError
from almoner_operator.kubernetes import SECRETS, KubernetesClient

log = logging.getLogger(__name__)

FRESH_SECONDS: Final = 5.0
REMEMBERED_MAX: Final = 4096


def secrets_of(runner: Runner) -> list[str]:
    """Give the names of the Secrets that a runner's environment reads from."""
    return sorted(
        {
            variable.value_from.secret_key_ref.name
            for variable in runner.env
            if variable.value_from is not None and variable.value_from.secret_key_ref is not None
        }
    )


class Secrets:
    """Looks at Secrets from outside."""

    def __init__(self, client: KubernetesClient) -> None:
        self._client = client
        self._known: dict[tuple[str, str], tuple[float, SecretFacts | None]] = {}
        self._blind = False

    async def facts(self, namespace: str, names: Sequence[str]) -> dict[str, SecretFacts] | None:
        """Give what is known of Secrets by name, without those that do not exist; None where nothing can be known."""
        facts: dict[str, SecretFacts] = {}
        for name in names:
            known = self._known.get((namespace, name))
            if known is None or time.monotonic() - known[0] > FRESH_SECONDS:
                try:
                    metadata = await self._client.get_metadata(SECRETS, namespace, name)
                except ForbiddenError:
                    if not self._blind:
                        log.warning("Secrets may not be looked at: a missing one shows when a pod does not start")
                    self._blind = True
                    return None
                except ApiError as error:
                    log.warning("Secret %s/%s cannot be looked at now: %s", namespace, name, error)
                    return None
                labels = (metadata or {}).get("labels") or {}
                fact = SecretFacts(labels.get(LABEL_AGENT_READABLE) == "true") if metadata is not None else None
                if len(self._known) >= REMEMBERED_MAX:
                    self._known.clear()
                known = self._known[namespace, name] = (time.monotonic(), fact)
            if known[1] is not None:
                facts[name] = known[1]
        return facts
