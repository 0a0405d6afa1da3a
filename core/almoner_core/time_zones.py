"""Time zones by their IANA names, as the operator and the ledger both know them.

PURE: looks up the time zone database (the system's, else the `tzdata` package) and nothing else.
"""

from __future__ import annotations

from typing import Final
from zoneinfo import ZoneInfo

_NOT_CALENDARS: Final = ("localtime", "posixrules", "Factory")
"""Files beside the zones: what they say depends on the machine."""
_NOT_FOLDERS: Final = ("right/", "posix/")
"""Copies of the database; those in `right` count leap seconds."""


def zone(name: str) -> ZoneInfo:
    """Look up an IANA time zone. Raises ValueError for a name that the time zone database does not know."""
    try:
        if name in _NOT_CALENDARS or name.startswith(_NOT_FOLDERS):
            raise ValueError(name)
        return ZoneInfo(name)
    except (KeyError, OSError, ValueError) as error:
        raise ValueError(f"{name[:64]!r} is not a time zone: write an IANA name such as 'Europe/Berlin'") from error
