"""What a meter's refusals mean for the run whose calls it refused: what operator and meter agree on.

Pure and light. The meter tells of them in its last word (`refused`: how many, and code and message of the last;
`provider_refused`: which provider refused the last call, and how), and the operator makes the reason of a failed run of
it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from almoner_core.text import short, storable

CODE_CHARS_MAX: Final = 64
MESSAGE_CHARS_MAX: Final = 512
COUNT_MAX: Final = 10**9
INSUFFICIENT_QUOTA: Final = "insufficient_quota"
BUDGET_IN_USE: Final = "budget_in_use"
"""The code of a refusal that passes: calls under way hold room that they may not need."""
BUDGET_CODES: Final = frozenset({INSUFFICIENT_QUOTA, BUDGET_IN_USE, "allotment_frozen", "machine_time_unpaid"})
"""Nothing is left of a limit, or of what may be used at once."""
RATE_CODES: Final = frozenset({"rate_limit_exceeded", "request_exceeds_rate"})
"""A rate has no room, now or ever."""
LIMIT_CODES: Final = BUDGET_CODES | RATE_CODES
LASTING_STATUSES: Final = frozenset({400, 401, 403, 404})
"""Answers of a provider that another attempt would get again: it refuses the request, the key or the model."""
PROVIDER_CHARS_MAX: Final = 63

# Of a run's own limits, money is its budget, and every other one is its limit.
_OWN_LIMIT: Final = re.compile(r"\bin execution: of (?!money|nano-dollars)")


def is_own_limit(message: str) -> bool:
    """Say whether a refusal is of a limit of the run itself that is no money: tokens, calls."""
    return _OWN_LIMIT.search(message) is not None


@dataclass(frozen=True, slots=True)
class Refused:
    """Calls that a meter refused. `last`: no call that began after the last one of them succeeded."""

    count: int
    code: str
    message: str
    last: bool

    def told(self) -> str:
        """Say it in a line."""
        calls = "a call was refused" if self.count == 1 else f"{self.count} calls were refused, the last"
        return f"{calls}: {self.message}"


@dataclass(frozen=True, slots=True)
class ProviderRefused:
    """The last answer of a provider's: an error by which it refuses the call. No call that began after it succeeded."""

    provider: str
    status: int

    def told(self) -> str:
        """Say it in a line."""
        return f"provider {self.provider} refused the last call (HTTP {self.status})"


def read_refused(word: Mapping[str, Any]) -> Refused | None:
    """Read `refused` of a last word, which comes out of a pod: None where there is none, or it does not fit."""
    given = word.get("refused")
    if not isinstance(given, Mapping):
        return None
    count, code, message = given.get("count"), given.get("code"), given.get("message")
    if (
        type(count) is not int
        or not 0 < count <= COUNT_MAX
        or not isinstance(code, str)
        or not isinstance(message, str)
    ):
        return None
    return Refused(
        count,
        short(storable(code), CODE_CHARS_MAX),
        short(storable(message), MESSAGE_CHARS_MAX),
        given.get("last") is True,
    )


def read_provider_refused(word: Mapping[str, Any]) -> ProviderRefused | None:
    """Read `provider_refused` of a last word, likewise."""
    given = word.get("provider_refused")
    if not isinstance(given, Mapping):
        return None
    provider, status = given.get("provider"), given.get("status")
    if not isinstance(provider, str) or type(status) is not int or status not in LASTING_STATUSES:
        return None
    return ProviderRefused(short(storable(provider), PROVIDER_CHARS_MAX), status)
