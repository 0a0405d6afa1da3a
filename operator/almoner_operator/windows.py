"""Windows that end: the ledger is asked again, since of a window in which nothing happens its feed says nothing.

Role: once a second; what waits for a budget starts when the window begins anew. Boundary: the ledger's clock decides
when that is; until it has answered, what was left of the old window holds.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime

from almoner_operator.cache import Cache


def ask_again(cache: Cache, now: datetime) -> None:
    """Have the limits of accounts handed over again whose window is over: the answer tells of the new one."""
    for space in cache.spaces.values():
        for key, account in list(space.accounts.items()):
            if account.resets_at is None or account.resets_at > now:
                continue
            quota, subject, _ = key
            space.accounts[key] = replace(account, resets_at=None)
            record = space.quotas.get(quota)
            if record is not None:
                record.subjects.discard(subject)
                cache.quotas_changed.add((space.name, quota))
            space.stale = True
            cache.wake()
