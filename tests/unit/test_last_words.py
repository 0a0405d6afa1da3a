"""What the operator makes of a pod's termination message: used where it is whole and of this attempt, else nothing."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from almoner_core.environment import OutputProblem
from almoner_core.wire import Dimension, ExecutionTotals, ItemAnswer, UsageTotals
from almoner_operator import last_words

ALLOTMENT = "a" * 36
GOOD: dict[str, Any] = {
    "version": 1,
    "allotment": ALLOTMENT,
    "attempt": 1,
    "last_sequence": 3,
    "posted": 1,
    "final": False,
    "complete": True,
    "rejected": 0,
    "totals": {"cost_nanos": 60, "input_tokens": 30, "output_tokens": 15, "requests": 3},
}
KEPT = {"bytes": 2, "stored": False, "content": "42", "truncated": False}


def pod_of(message: Any, *, place: str = "state", name: str = "meter") -> dict[str, Any]:
    ended = {"terminated": {"exitCode": 0, "message": message}}
    return {"status": {"initContainerStatuses": [{"name": name, place: ended}]}}


def pod(**changes: Any) -> dict[str, Any]:
    return pod_of(json.dumps({**GOOD, **changes}))


def test_a_whole_word_is_read() -> None:
    word = last_words.word_of(pod(output=KEPT), ALLOTMENT)
    assert word is not None
    said = last_words.for_ledger(word)
    assert (said.last_sequence, said.totals.cost_nanos, said.totals.requests) == (3, 60, 3)
    assert said.output is not None
    assert (said.output.content, said.output.truncated) == ("42", False)
    assert last_words.digest(word) != last_words.digest(last_words.word_of(pod(), ALLOTMENT))


@pytest.mark.parametrize(
    "found",
    [
        pytest.param(None, id="no pod"),
        pytest.param({}, id="no status"),
        pytest.param(pod_of(None), id="no message"),
        pytest.param(pod_of(json.dumps(GOOD), place="lastState"), id="of an earlier life"),
        pytest.param(pod_of(json.dumps(GOOD), name="mesh"), id="of another container"),
        pytest.param(pod_of(json.dumps(GOOD)[:-5]), id="cut"),
        pytest.param(pod_of("[" * 4000), id="deep"),
        pytest.param(pod_of(json.dumps(GOOD) + " " * 5000), id="too long"),
        pytest.param(pod(allotment="b" * 36), id="of another attempt"),
        pytest.param(pod(complete=False), id="not complete"),
        pytest.param(pod(version=2), id="of another version"),
        pytest.param(pod(posted=4), id="more posted than there is"),
        pytest.param(pod(last_sequence=10**30), id="beyond reason"),
        pytest.param(pod(last_sequence=True), id="no number"),
        pytest.param(pod(totals={**GOOD["totals"], "cost_nanos": -1}), id="negative"),
        pytest.param(pod(totals={**GOOD["totals"], "cost_nanos": 1.5}), id="a fraction"),
        pytest.param(pod(totals={**GOOD["totals"], "more": 1}), id="an unknown sum"),
    ],
)
def test_what_does_not_fit_is_no_word(found: Any) -> None:
    assert last_words.word_of(found, ALLOTMENT) is None


@given(st.text(max_size=200) | st.recursive(st.none() | st.integers() | st.text(), st.lists).map(json.dumps))
def test_nothing_that_a_pod_says_raises(message: str) -> None:
    assert last_words.word_of(pod_of(message), ALLOTMENT) is None


def test_what_no_database_takes_is_replaced() -> None:
    word = last_words.word_of(pod(output={**KEPT, "content": "a\0b\ud800"}), ALLOTMENT)
    assert word is not None
    said = last_words.for_ledger(word).output
    assert said is not None
    assert said.content == "a\ufffdb?"


def issue_of(output: dict[str, Any] | None, totals: ExecutionTotals | None = None, **answer: Any) -> Any:
    word = last_words.word_of(pod(**({} if output is None else {"output": output})), ALLOTMENT)
    assert word is not None
    found = last_words.told(word, ItemAnswer(allotment=ALLOTMENT, **answer), totals, 1).issue
    return None if found is None else found.reason


def totals_with(output: str | None, attempt: int = 1) -> ExecutionTotals:
    nothing = UsageTotals()
    more = {} if output is None else {"output": output, "output_attempt": attempt, "output_bytes": len(output)}
    return ExecutionTotals(
        kind="Execution", namespace="n", name="x", uid="u", totals=nothing, attempts={}, states={}, **more
    )


CUT = {**KEPT, "bytes": 9000, "truncated": True, "detail": "the ledger was not reached"}


@pytest.mark.parametrize(
    ("output", "totals", "issue"),
    [
        (None, None, None),
        ({"bytes": 5, "stored": True}, None, None),
        (KEPT, None, None),
        (CUT, None, OutputProblem.NOT_STORED),
        (CUT, totals_with("42"), OutputProblem.NOT_STORED),
        (CUT, totals_with("42 and more: the put was done, its answer lost"), None),
        (CUT, totals_with("42 and more", attempt=2), OutputProblem.NOT_STORED),
        ({"bytes": 0, "problem": "NotRegular", "detail": "a pipe"}, None, OutputProblem.NOT_REGULAR),
        ({"bytes": 2, "stored": True, "problem": "NotUTF8", "detail": "no"}, None, OutputProblem.NOT_UTF8),
        ({**KEPT, "problem": "NotUTF8", "detail": "no"}, None, OutputProblem.NOT_UTF8),
        ({**CUT, "problem": "TooLarge", "detail": "no"}, None, OutputProblem.NOT_STORED),
    ],
)
def test_the_status_says_what_is_wrong_with_the_output(output: Any, totals: Any, issue: OutputProblem | None) -> None:
    assert issue_of(output, totals) == issue


def test_the_status_says_where_its_sums_come_from() -> None:
    word = last_words.word_of(pod(), ALLOTMENT)
    entered = {Dimension.USD: 40_000_000, Dimension.REQUESTS: 2}
    told = last_words.told(word, ItemAnswer(allotment=ALLOTMENT, last_word=entered), None, 1)
    assert told.note.startswith("0.04 USD of 2 calls are known from the meter's last word")
    charged = ItemAnswer(allotment=ALLOTMENT, charged={Dimension.USD: 1})
    told = last_words.told(None, charged, None, 1)
    assert "left no last word" in told.note
    assert told.issue is not None
    assert told.issue.reason is OutputProblem.NOT_STORED
    assert last_words.told(None, charged, totals_with("here"), 1).issue is None
    assert last_words.told(word, ItemAnswer(allotment=ALLOTMENT), None, 1) == last_words.Told()
