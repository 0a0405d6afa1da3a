"""For how long held machine time pays, by the ledger's clock, whatever that does."""

from __future__ import annotations

import pytest

from almoner_core.compute import hold_nanos
from almoner_core.environment import PAID_ALWAYS_SECONDS
from almoner_core.wire import MachineTerms, PaidSpan
from almoner_ledger.store.compute import seconds_paid, span_paid

TERMS = MachineTerms(per_hour=3_600_000, ahead_seconds=200, late_seconds=50)
HELD = hold_nanos(TERMS.per_hour, 200_000)
SINCE = 10**12


@pytest.mark.parametrize(
    ("passed_ms", "seconds"),
    [
        pytest.param(0, 200, id="just charged"),
        pytest.param(60_000, 140, id="a minute ago"),
        pytest.param(260_000, -60, id="a minute too late"),
        pytest.param(-3_600_000, 200, id="the clock went back an hour: no more than all that is held"),
        pytest.param(3_600_000, -3400, id="the clock went ahead an hour"),
    ],
)
def test_what_is_held_pays_from_when_it_was_charged(passed_ms: int, seconds: int) -> None:
    assert seconds_paid(TERMS, HELD, SINCE, SINCE + passed_ms) == seconds
    assert span_paid(TERMS, HELD, SINCE) == PaidSpan(since_unix_ms=SINCE, until_unix_ms=SINCE + 200_000)


def test_what_has_no_price_or_no_limit_has_no_span() -> None:
    assert (seconds_paid(None, HELD, SINCE, SINCE), span_paid(None, HELD, SINCE)) == (None, None)
    assert (seconds_paid(TERMS, None, SINCE, SINCE), span_paid(TERMS, None, SINCE)) == (PAID_ALWAYS_SECONDS, None)
