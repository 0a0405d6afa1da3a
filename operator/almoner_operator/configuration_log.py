"""Tells the ledger who changed which limit, price or provider: see `almoner_core.configuration`.

Role: hands over what the recorder noted, in its order, as often as it takes; at its start also what the ledger knows
and is not there any more. The ledger compares, so telling twice changes nothing. Boundary: an object that the ledger
refuses is left out and said in the log; a ledger that knows no such log is asked again now and then.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Final
from uuid import uuid4

from pydantic import ValidationError

from almoner_core import wire
from almoner_core.configuration import KINDS, digest
from almoner_operator import metrics
from almoner_operator.configuration_recorder import Seen
from almoner_operator.context import Context
from almoner_operator.errors import LeadershipLostError, LedgerError, LedgerUnavailableError

log = logging.getLogger(__name__)

BATCH: Final = 20
CHARS_MAX: Final = 1_000_000
"""Of one message, as JSON."""
RETRY_SECONDS: Final = 2.0
RETRY_SECONDS_MAX: Final = 60.0


class ConfigurationLog:
    """Keeps the ledger's log in step with what the cache saw."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._recorder = context.cache.configuration
        self._digests: dict[str, str] | None = None
        """What the ledger has of each object; None: it was not asked yet."""

    async def run(self) -> None:
        """Tell what changed, for ever."""
        wait = RETRY_SECONDS
        while True:
            try:
                await self._compare()
                while await self.tell():
                    pass
                wait = RETRY_SECONDS
                await self._recorder.changed.wait()
            except LeadershipLostError:
                raise
            except LedgerError as error:
                quiet = isinstance(error, LedgerUnavailableError)
                (log.info if quiet else log.warning)("changes of the configuration are not logged yet: %s", error)
                await asyncio.sleep(wait)
                wait = min(2 * wait, RETRY_SECONDS_MAX)
            except Exception:
                log.exception("changes of the configuration are not logged yet")
                await asyncio.sleep(RETRY_SECONDS_MAX)

    async def _compare(self) -> None:
        """Learn what the ledger knows, once, and note what is not there any more. Raises LedgerError."""
        if self._digests is not None:
            return
        scope = self._context.settings.namespaces
        known = [each async for each in self._context.ledger.known_configuration()]
        for each in known:
            if each.kind in KINDS and (not scope or not each.namespace or each.namespace in scope):
                self._recorder.missing(each)
        self._digests = {each.uid: each.digest for each in known}

    async def tell(self) -> bool:
        """Tell of the next few changes; False where there is none. Raises LedgerError."""
        batch, size = self._recorder.pending(BATCH), 0
        objects: list[tuple[int, wire.ObservedObject]] = []
        for place, seen in batch:
            made = _made(seen)
            before = next((each for _, each in reversed(objects) if each.uid == seen.uid), None)
            if made is None or _digest(made) == (self._known(made) if before is None else _digest(before)):
                self._recorder.told(place)
                continue
            size += len(made.model_dump_json())
            if objects and size > CHARS_MAX:
                break
            objects.append((place, made))
        if objects:
            answer = await self._context.ledger.observe([made for _, made in objects], operation_id=str(uuid4()))
            for refused in answer.refused:
                _refused(objects[refused.index][1], refused.error.message)
            for place, made in objects:
                self._recorder.told(place)
                self._keep(made)
        return bool(batch)

    def _known(self, made: wire.ObservedObject) -> str | None:
        assert self._digests is not None
        return self._digests.get(made.uid)

    def _keep(self, told: wire.ObservedObject) -> None:
        assert self._digests is not None
        known = _digest(told)
        if known is None:
            self._digests.pop(told.uid, None)
        else:
            self._digests[told.uid] = known


def _made(seen: Seen) -> wire.ObservedObject | None:
    """Give what the ledger is told of an object; None where that cannot be."""
    try:
        return seen.to_wire()
    except (ValidationError, RecursionError) as error:
        _refused(seen, str(error))
        return None


def _digest(made: wire.ObservedObject) -> str | None:
    return None if made.spec is None else digest(made.spec)


def _refused(what: Seen | wire.ObservedObject, why: str) -> None:
    log.warning("a change of %s %s/%s is not logged: %s", what.kind, what.namespace, what.name, why[:300])
    metrics.CONFIGURATION_REFUSED.inc()
