"""How the demo ended: what ran in which order, what was refused, what is left, and whether the books agree.

Role: a Picture and an Audit to text, and to whether the demo kept its word. Boundary: pure but for printing.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Final

from rich.console import Console
from rich.table import Table
from rich.text import Text

from almoner_core.api.execution import ExecutionPhase, FailureReason
from almoner_dev.demo.audit import Audit
from almoner_dev.demo.observe import Picture, Work
from almoner_dev.demo.view import fold, progress_words

# How work whose money may run out may end, besides well.
OUT_OF_MONEY: Final = frozenset({FailureReason.REJECTED.value, FailureReason.BUDGET_EXHAUSTED.value})
# Where the answers begin in the table of what ran. With less room than this beside it they go below.
ANSWER_COLUMN: Final = 78
ANSWER_CHARS_MIN: Final = 30
_LATEST: Final = datetime.max.replace(tzinfo=UTC)


def in_order(picture: Picture) -> list[Work]:
    """Give the work that ran, in the order in which it started."""
    ran = [item for item in picture.work if item.began is not None]
    return sorted(ran, key=lambda item: (item.began or _LATEST, -item.priority, item.name))


def broken_promises(picture: Picture, expected: Mapping[str, str]) -> list[str]:
    """Give what did not end as it must: labelled work in its phase, the rest well or for want of money."""
    broken: list[str] = []
    for item in picture.work:
        wanted = expected.get(item.name)
        if wanted is not None:
            if item.phase != wanted:
                broken.append(f"{item.name} is {item.phase}, not {wanted}: {item.note or 'it says nothing'}")
        elif item.phase is not ExecutionPhase.SUCCEEDED and item.failure[0] not in OUT_OF_MONEY:
            broken.append(f"{item.name} is {item.phase}, and not for want of money: {item.note or 'it says nothing'}")
    free = [item for item in picture.work if item.name not in expected]
    if free and not any(item.phase is ExecutionPhase.SUCCEEDED for item in free):
        broken.append("the small budget let nothing through")
    if free and all(item.phase is ExecutionPhase.SUCCEEDED for item in free):
        broken.append("the small budget never ran out")
    return broken


def show(console: Console, picture: Picture, audit: Audit, expected: Mapping[str, str]) -> None:
    """Print the whole report."""
    _heading(console, "What ran, in this order")
    answer_chars = console.width - ANSWER_COLUMN
    console.print(_ran(picture, answer_chars))
    if answer_chars < ANSWER_CHARS_MIN:
        for place, item in enumerate(in_order(picture), start=1):
            _line(console, f"{place:2}  {fold(_answer(item), max(ANSWER_CHARS_MIN, console.width - 4))}")
    refused = [item for item in picture.work if item.phase in {ExecutionPhase.FAILED, ExecutionPhase.CANCELLED}]
    _heading(console, "What was refused, and why")
    for item in refused:
        reason, message = item.failure
        _line(console, f"  {item.name} ({item.owner}): {reason}: {message}")
    if not refused:
        _line(console, "  nothing")
    _heading(console, "Training")
    for item in picture.work:
        if item.kind == "TrainingJob":
            _line(
                console, f"  {item.name}: {item.phase}, {progress_words(item)}; {fold(item.status.output or '', 160)}"
            )
    _heading(console, "Quotas")
    console.print(_quotas(picture))
    _heading(console, "Audit")
    for line in audit_lines(audit):
        _line(console, f"  {line}")
    broken = broken_promises(picture, expected)
    if broken:
        _heading(console, "What did not end as it must")
    for line in broken:
        _line(console, f"  {line}")


def audit_lines(audit: Audit) -> list[str]:
    """Give the audit in words."""
    same = "=" if audit.ledger == audit.statuses else "is NOT"
    lines = [f"sum of the ledger ${audit.ledger} {same} sum of the statuses ${audit.statuses}"]
    lines.extend(f"almoner ledger verify: {line}" for line in audit.verify.splitlines()[-3:])
    if audit.passed:
        lines.append("passed: every status agrees with its entries, nothing is overspent, nothing is still held")
    lines.extend(f"FAILED: {problem}" for problem in audit.problems)
    return lines


def _ran(picture: Picture, answer_chars: int) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 1))
    table.add_column("", justify="right")
    for name in ("name", "agent", "owner"):
        table.add_column(name, no_wrap=True)
    for name in ("pri", "s", "in", "out", "cost $"):
        table.add_column(name, justify="right", no_wrap=True)
    wide = answer_chars >= ANSWER_CHARS_MIN
    if wide:
        table.add_column("answer")
    for place, item in enumerate(in_order(picture), start=1):
        usage, seconds = item.status.usage, item.seconds
        table.add_row(
            str(place),
            item.name,
            item.agent,
            item.owner,
            str(item.priority),
            f"{seconds:.0f}" if seconds is not None else "",
            str(usage.tokens.input),
            str(usage.tokens.output),
            str(usage.cost),
            *([Text(fold(_answer(item), answer_chars))] if wide else []),
        )
    return table


def _answer(item: Work) -> str:
    return item.note if item.phase is ExecutionPhase.SUCCEEDED else f"[{item.phase}]"


def _quotas(picture: Picture) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 1))
    table.add_column("quota", no_wrap=True)
    table.add_column("limit", no_wrap=True)
    for name in ("of", "used", "held", "remaining", "%"):
        table.add_column(name, justify="right", no_wrap=True)
    for quota in picture.quotas:
        for limit in quota.limits:
            table.add_row(
                quota.name, limit.name, limit.limit, limit.used, limit.reserved, limit.remaining, str(limit.percent)
            )
    return table


def _heading(console: Console, text: str) -> None:
    console.print()
    console.print(Text(text, style="bold"))


def _line(console: Console, text: str) -> None:
    console.print(text, markup=False, highlight=False, soft_wrap=True)
