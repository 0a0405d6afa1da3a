"""In which order waiting work is looked at: priority, then fair share among owners, then age.

Within a priority each owner's work is lined up by age, and each piece gets a tag: what the owner used lately, runs now
and has ahead of it in the line, divided by the owner's weight. Sorting by tag interleaves the owners, so that a burst
of one does not shut out the others. A long wait outweighs some of that (ageing), within the priority alone. It is when
one began to wait that counts, not for how long by now: the order does not depend on the clock, so decisions can be
kept.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

from almoner_operator.scheduling.model import Share, Workload

# A share is counted in thousandths of an execution; a tag in thousandths of those, so that weights divide finely.
EXECUTION_SHARE: Final = 1000
_TAG: Final = 1000
_DEFAULT: Final = Share()


def by_age(workload: Workload) -> tuple[object, ...]:
    """Sort key: the more important first, then the older; uid last, so that equals always come in the same order."""
    return (-workload.priority, workload.created, workload.key.uid)


def in_order(
    waiting: Iterable[Workload],
    running: Mapping[str, int],
    shares: Mapping[str, Share],
    ageing_seconds: int,
    first: frozenset[str] = frozenset(),
) -> list[Workload]:
    """Give the order in which to admit.

    `running` counts what holds quota, by owner; `ageing_seconds` of waiting outweigh one execution of share.
    `first` are uids that come before all others of their priority, whoever owns them.
    """
    lined_up = sorted(waiting, key=by_age)
    if not lined_up:
        return lined_up
    ahead = dict(running)
    tagged: list[tuple[int, bool, int, int, Workload]] = []
    unit = EXECUTION_SHARE * _TAG
    for place, workload in enumerate(lined_up):
        owner = workload.owner
        share = shares.get(owner, _DEFAULT)
        count = ahead.get(owner, 0)
        ahead[owner] = count + 1
        used = (share.use + count * EXECUTION_SHARE) * _TAG // max(1, share.weight)
        began = int(workload.since.timestamp() * unit) // max(1, ageing_seconds)
        tagged.append((-workload.priority, workload.key.uid not in first, used + began, place, workload))
    tagged.sort(key=_TAG_KEY)
    return [item[4] for item in tagged]


def _tag_key(item: tuple[int, bool, int, int, Workload]) -> tuple[int, bool, int, int]:
    return item[:4]


_TAG_KEY: Final = _tag_key
