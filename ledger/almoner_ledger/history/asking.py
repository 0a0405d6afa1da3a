"""What people ask of history, read strictly from text: dimensions, filters, times and cursors.

Role: the one reading for the service's parameters and the command line's options. Errors name what is wrong with
LedgerError `invalid`. Boundary: knows no tables.
"""

from __future__ import annotations

import base64
import binascii
import datetime as dt
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Final

from almoner_core.usage import Outcome, ResourceType
from almoner_core.wire import USAGE_BY_MAX, AllotmentState, UsageBy
from almoner_ledger.errors import invalid

DAY_MS: Final = 86_400_000
VALUES_MAX: Final = 100
VALUE_CHARS_MAX: Final = 507
"""A namespace and a name, with the slash."""
CURSOR_CHARS_MAX: Final = 4096
_DAY: Final = re.compile(r"\d{4}-\d{2}-\d{2}")
_EPOCH: Final = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)


class By(StrEnum):
    """What can be filtered by. An execution is `name` or `namespace/name`, so are agents."""

    NAMESPACE = "namespace"
    AGENT = "agent"
    OWNER = "owner"
    PROVIDER = "provider"
    MODEL = "model"
    RESOURCE_TYPE = "resource_type"
    OPERATION = "operation"
    OUTCOME = "outcome"
    EXECUTION = "execution"
    UID = "uid"
    KIND = "kind"
    STATE = "state"
    NAME = "name"


OF_USAGE: Final = (
    By.NAMESPACE,
    By.AGENT,
    By.OWNER,
    By.PROVIDER,
    By.MODEL,
    By.RESOURCE_TYPE,
    By.OPERATION,
    By.OUTCOME,
    By.EXECUTION,
    By.UID,
)
OF_EXECUTIONS: Final = (By.NAMESPACE, By.AGENT, By.OWNER, By.EXECUTION, By.UID, By.KIND, By.STATE)
OF_CHANGES: Final = (By.NAMESPACE, By.KIND, By.NAME, By.UID)
CHOICES: Final[Mapping[By, tuple[str, ...]]] = {
    # "" is what sums hold that were made before operation and outcome were told apart.
    By.OUTCOME: (*(each.value for each in Outcome), ""),
    By.RESOURCE_TYPE: (*(each.value for each in ResourceType), "unaccounted", "last_word"),
    By.STATE: tuple(each.value for each in AllotmentState),
}
QUALIFIED: Final = (By.AGENT, By.EXECUTION)
"""What may be written with its namespace, `namespace/name`."""

Filters = Mapping[By, tuple[str, ...]]


@dataclass(frozen=True, slots=True)
class Times:
    """A span of time in Unix milliseconds, the end not included. None: no bound."""

    since_ms: int | None = None
    until_ms: int | None = None

    @property
    def whole_days(self) -> bool:
        """Whether it begins and ends at midnight (UTC)."""
        return not ((self.since_ms or 0) % DAY_MS or (self.until_ms or 0) % DAY_MS)


EVER: Final = Times()


@dataclass(frozen=True, slots=True)
class Question:
    """Which entries, whatever is then done with them."""

    filters: Filters = field(default_factory=dict)
    times: Times = EVER

    def namespaces(self) -> frozenset[str] | None:
        """Give the namespaces that an answer can be of; None: any."""
        if By.NAMESPACE in self.filters:
            return frozenset(self.filters[By.NAMESPACE])
        for by in QUALIFIED:
            values = self.filters.get(by, ())
            if values and all("/" in value for value in values):
                return frozenset(value.partition("/")[0] for value in values)
        return None


def read_by(text: str) -> tuple[UsageBy, ...]:
    """Read dimensions such as `day,agent`, one to three. Raises LedgerError."""
    known = ", ".join(UsageBy)
    parts = [part.strip() for part in text.split(",")]
    if not 1 <= len(parts) <= USAGE_BY_MAX:
        raise invalid("by", f"write one to {USAGE_BY_MAX} of {known}, with commas between them")
    for part in parts:
        if part not in tuple(UsageBy):
            raise invalid("by", f"{part[:64]!r} is none of {known}")
    if len(set(parts)) != len(parts):
        raise invalid("by", "the same dimension is named twice")
    return tuple(UsageBy(part) for part in parts)


def read_filters(given: Mapping[By, Sequence[str]]) -> Filters:
    """Check filters: values of one name are alternatives. Raises LedgerError."""
    found: dict[By, tuple[str, ...]] = {}
    for by, values in given.items():
        if not values:
            continue
        if len(values) > VALUES_MAX:
            raise invalid(by.value, f"at most {VALUES_MAX} values")
        for value in values:
            if len(value) > VALUE_CHARS_MAX or "\0" in value or not _is_unicode(value):
                raise invalid(by.value, f"write at most {VALUE_CHARS_MAX} characters, none of them NUL")
            if by in CHOICES and value not in CHOICES[by]:
                raise invalid(by.value, f"write one of {', '.join(each for each in CHOICES[by] if each)}")
            if by in QUALIFIED and value.count("/") > 1:
                raise invalid(by.value, "write a name, or namespace/name")
        found[by] = tuple(dict.fromkeys(values))
    return found


def _is_unicode(value: str) -> bool:
    return not any("\ud800" <= character <= "\udfff" for character in value)


def read_times(since: str | None, until: str | None) -> Times:
    """Read `from` and `to`: days such as 2026-01-31, both included, or instants, of which `to` is not.

    Raises LedgerError.
    """
    since_ms = None if since is None else _instant("from", since)
    until_ms = None if until is None else _instant("to", until, is_end=True)
    if since_ms is not None and until_ms is not None and until_ms <= since_ms:
        raise invalid("to", "it must be later than from")
    return Times(since_ms, until_ms)


def _instant(field_name: str, text: str, *, is_end: bool = False) -> int:
    wanted = "write a day such as 2026-01-31, or an instant such as 2026-01-31T12:00:00Z"
    try:
        if _DAY.fullmatch(text):
            found = dt.datetime.fromisoformat(f"{text}T00:00:00+00:00") + dt.timedelta(days=int(is_end))
        else:
            found = dt.datetime.fromisoformat(text)
        if found.tzinfo is None:
            raise invalid(field_name, f"{wanted}, with its time zone")
        moment = (found - _EPOCH) // dt.timedelta(milliseconds=1)
    except (ValueError, OverflowError):
        raise invalid(field_name, wanted) from None
    if moment < 0:
        raise invalid(field_name, "nothing happened before 1970")
    return moment


def write_cursor(values: Iterable[Any]) -> str:
    """Make a cursor of a row's place in its order: integers and text."""
    return base64.urlsafe_b64encode(json.dumps([*values], separators=(",", ":")).encode()).decode().rstrip("=")


def read_cursor(text: str, types: Sequence[type]) -> list[Any]:
    """Read a cursor, whose values have these types. Raises LedgerError where it is not one of this order."""
    error = invalid("after", "give the `next` of the page before, and ask the same")
    if len(text) > CURSOR_CHARS_MAX:
        raise error
    try:
        values = json.loads(base64.b64decode(text + "=" * (-len(text) % 4), b"-_", validate=True))
    except (ValueError, binascii.Error, RecursionError):
        raise error from None
    if not isinstance(values, list) or [type(value) for value in values] != [*types]:
        raise error
    for value in values:
        if isinstance(value, str) and ("\0" in value or not _is_unicode(value)):
            raise error
        if isinstance(value, int) and not -(2**63) <= value < 2**63:
            raise error
    return values
