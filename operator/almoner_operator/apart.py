"""One object at a time: what goes wrong with one is logged once, and is nobody else's concern.

Role: every place that takes many objects (lists, watches, reviews, decisions, the ledger's feed) does each one's work
through here, so that no object, whatever it holds, keeps the others from being served.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Callable
from typing import Final, ParamSpec

from almoner_operator import metrics
from almoner_operator.errors import LeadershipLostError

log = logging.getLogger(__name__)

SAID_MAX: Final = 1024
Given = ParamSpec("Given")
_said: OrderedDict[tuple[str, str, str], None] = OrderedDict()


def each(what: str, name: str, work: Callable[Given, object], *given: Given.args, **more: Given.kwargs) -> str:
    """Do the work of one object; gives what went wrong, "" where nothing did. Raises LeadershipLostError alone."""
    try:
        work(*given, **more)
    except LeadershipLostError:
        raise
    except Exception as error:
        problem = f"{type(error).__name__}: {error}"[:200]
        metrics.FAULTS.labels(what).inc()
        key = (what, name, type(error).__name__)
        if key in _said:
            log.debug("%s of %s failed again: %s", what, name, problem)
        else:
            _said[key] = None
            if len(_said) > SAID_MAX:
                _said.popitem(last=False)
            log.exception("%s of %s failed; the others go on", what, name)
        return problem
    return ""
