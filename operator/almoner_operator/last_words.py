"""What a pod's meter said last: read from the pod's status, handed to the ledger, told in the run's status.

PURE: no I/O. The termination message comes out of the pod and is checked like any other input: where it is missing or
does not fit, everything goes on as if there were none, and the status says so where something is charged for it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from almoner_core.api.execution import OutputIssue
from almoner_core.contract import METER_CONTAINER, OutputProblem
from almoner_core.last_word import MeterWord, WordOutput, read_word
from almoner_core.money import Money
from almoner_core.text import short
from almoner_core.wire import Dimension, ExecutionTotals, ItemAnswer, LastOutput, LastWord

MESSAGE_CHARS_MAX: Final = 1024


@dataclass(frozen=True, slots=True)
class Told:
    """What is said in the status of an attempt's end besides how it ended."""

    note: str = ""
    issue: OutputIssue | None = None


def word_of(pod: Mapping[str, Any] | None, allotment: str) -> MeterWord | None:
    """The last word of the pod's meter about its allotment; None: it left none that can be used.

    Of its last life alone: an earlier one did not know what came after it.
    """
    status = (pod or {}).get("status") or {}
    for container in status.get("initContainerStatuses") or []:
        if container.get("name") == METER_CONTAINER:
            ended = (container.get("state") or {}).get("terminated") or {}
            return read_word(ended.get("message"), allotment)
    return None


def for_ledger(word: MeterWord) -> LastWord:
    """Give the word as the ledger takes it."""
    output = word.output
    kept = None
    if output is not None and output.content is not None and not output.stored:
        kept = LastOutput(content=output.content, bytes=output.bytes, truncated=output.truncated)
    return LastWord(last_sequence=word.last_sequence, totals=word.totals, output=kept)


def digest(word: MeterWord | None) -> str:
    """What tells words apart in operation ids; empty where there is none."""
    return "" if word is None else hashlib.sha256(for_ledger(word).model_dump_json().encode()).hexdigest()


def told(word: MeterWord | None, answer: ItemAnswer, totals: ExecutionTotals | None, attempt: int) -> Told:
    """What the status says of a word and of what the ledger did with it."""
    return Told(_note(word, answer), _issue(word, answer, totals, attempt))


def _note(word: MeterWord | None, answer: ItemAnswer) -> str:
    if answer.last_word:
        amounts = answer.last_word
        calls = amounts.get(Dimension.REQUESTS, 0) + amounts.get(Dimension.TOOL_CALLS, 0)
        cost = Money(amounts.get(Dimension.USD, 0))
        return f"{cost} USD of {calls} calls are known from the meter's last word: the ledger did not get their records"
    if answer.charged:
        why = "left no last word" if word is None else "left a last word that does not fit its records"
        return f"the meter {why}: what it could still have spent is charged"
    return ""


def _issue(
    word: MeterWord | None, answer: ItemAnswer, totals: ExecutionTotals | None, attempt: int
) -> OutputIssue | None:
    there = totals.output if totals is not None and totals.output_attempt == attempt else None
    if word is None:
        if answer.charged is None or there is not None:
            return None
        return _said(OutputProblem.NOT_STORED, "the meter left no last word: an output that it had not sent is lost")
    output = word.output
    if output is None:
        return None
    if output.problem is not None and (output.stored or output.content is None):
        return _said(output.problem, output.detail)
    if not output.stored and (output.truncated or output.content is None) and not _has_more(there, output):
        kept = len((output.content or "").encode())
        text = f"of {output.bytes} bytes the first {kept} are kept: {output.detail or 'the ledger was not reached'}"
        return _said(OutputProblem.NOT_STORED, text)
    return None if output.problem is None else _said(output.problem, output.detail)


def _has_more(there: str | None, output: WordOutput) -> bool:
    """Whether the ledger got the output after all, and only its answer was lost."""
    return there is not None and len(there) > len(output.content or "")


def _said(reason: OutputProblem, message: str) -> OutputIssue:
    return OutputIssue(reason=reason, message=short(message, MESSAGE_CHARS_MAX) or None)
