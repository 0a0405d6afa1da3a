"""The termination message, whatever the output is."""

from __future__ import annotations

import json
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from almoner_core.environment import TERMINATION_MESSAGE_BYTES_MAX, OutputProblem
from almoner_core.refusals import Refused, read_refused
from almoner_runner.meter.lastword import LastOutput, compose
from almoner_runner.meter.spool import Spool, Totals

TEXT = st.text(max_size=6000) | st.integers(0, 6000).map(lambda n: "\x01" * n) | st.integers(0, 6000).map("é".__mul__)


REFUSED = st.none() | st.builds(Refused, st.just(10**9), st.just("code"), TEXT, st.booleans())


@given(content=TEXT, detail=st.text(max_size=400), whole=st.booleans(), refused=REFUSED)
def test_it_is_whole_json_within_its_bound_and_holds_as_much_as_fits(
    content: str, detail: str, whole: bool, refused: Refused | None
) -> None:
    spool = Spool(Path("nowhere"), "a" * 36)
    spool.totals = Totals(*([10**18] * 9))
    spool.sequence = spool.posted = 10**9
    output = LastOutput(content, 10**6, not whole, OutputProblem.TOO_LARGE, detail)
    message = compose("a" * 36, 100, spool, output, final=False, complete=True, rejected=10**9, refused=refused)
    assert len(message) <= TERMINATION_MESSAGE_BYTES_MAX
    word = json.loads(message)
    assert word["totals"]["cost_nanos"] == 10**18
    kept = word["output"]["content"]
    if refused is not None:
        assert read_refused(word) == Refused(10**9, "code", word["refused"]["message"], refused.last)
    clean = content.encode("utf-8", "replace").decode()
    assert clean.startswith(kept)
    assert word["output"]["truncated"] is (not whole or kept != clean)
    if kept != clean:
        # One more character would not have fitted.
        longer = len(json.dumps(clean[len(kept)], ensure_ascii=False).encode()) - 2
        assert len(message) + longer > TERMINATION_MESSAGE_BYTES_MAX - 1
