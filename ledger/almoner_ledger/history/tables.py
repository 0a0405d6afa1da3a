"""History for a terminal: tables that line up, JSON and CSV. Money is in US dollars, exact; unknown is not 0.00."""

from __future__ import annotations

import csv
import datetime as dt
import io
import json
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Final

from almoner_core.money import Money
from almoner_core.wire import ConfigurationChanges, EntryPage, ExecutionPage, UsagePage, UsageTotals

Row = Mapping[str, Any]

TOTALS_SHOWN: Final = (
    "cost_usd",
    "unaccounted_usd",
    "unpriced",
    "input_tokens",
    "output_tokens",
    "requests",
    "tool_calls",
)
EXECUTIONS_SHOWN: Final = (
    "created",
    "kind",
    "namespace",
    "name",
    "agent",
    "owner",
    "attempts",
    "state",
    "cost_usd",
    "unaccounted_usd",
    "input_tokens",
    "output_tokens",
)
ENTRIES_SHOWN: Final = (
    "number",
    "counted",
    "kind",
    "namespace",
    "name",
    "attempt",
    "resource_type",
    "provider",
    "model",
    "operation",
    "outcome",
    "cost_usd",
    "input_tokens",
    "output_tokens",
)
CHANGES_SHOWN: Final = ("seen", "kind", "namespace", "name", "action", "managers", "field", "before", "after")
CHANGES_NAMES: Final = (
    "number",
    "seen",
    "changed",
    "kind",
    "namespace",
    "name",
    "uid",
    "action",
    "generation",
    "managers",
    "field",
    "before",
    "after",
    "fields_left_out",
    "before_sha256",
    "after_sha256",
)
_LEFT_OUT: Final = {
    False: "more rows were left out, which TOTAL counts: raise --limit\n",
    True: "more was left out: raise --limit\n",
}
_EPOCH: Final = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)


def usage(page: UsagePage, output: str) -> str:
    """Give sums, with a last line of the totals of all groups, those that are left out included."""
    rows = [{**dict(zip(page.columns, row.key, strict=True)), **_totals(row.totals)} for row in page.rows]
    columns = [*page.columns, *TOTALS_SHOWN]
    keys = {**dict.fromkeys(page.columns, " "), page.columns[0]: "TOTAL"}
    summed = {**keys, **_totals(page.totals)} if rows else None
    names = [*page.columns, *_totals(UsageTotals())]
    return _render(rows, columns, names, output, total=summed, more=page.next is not None)


def executions(page: ExecutionPage, output: str) -> str:
    """Give executions."""
    rows = [
        {
            "created": moment(each.created_unix_ms),
            "kind": each.kind,
            "namespace": each.namespace,
            "name": each.name,
            "uid": each.uid,
            "agent": each.agent,
            "owner": each.owner,
            "attempts": each.attempts,
            "state": each.state.value,
            "ended": moment(each.ended_unix_ms),
            "close_reason": each.close_reason,
            **_totals(each.totals),
        }
        for each in page.executions
    ]
    names = [*EXECUTIONS_SHOWN] if not rows else [*rows[0]]
    return _render(rows, EXECUTIONS_SHOWN, names, output, more=page.next is not None)


def entries(page: EntryPage, output: str) -> str:
    """Give entries."""
    rows = []
    for each in page.records:
        row = each.model_dump()
        for name in ("counted", "started", "posted"):
            row[name] = moment(row.pop(f"{name}_unix_ms"))
        nanos = row["cost_nanos"]
        row["cost_usd"] = None if nanos is None else str(Money(nanos))
        rows.append(row)
    names = [*ENTRIES_SHOWN] if not rows else [*rows[0]]
    return _render(rows, ENTRIES_SHOWN, names, output, more=page.next is not None)


def changes(page: ConfigurationChanges, output: str) -> str:
    """Give changes of the configuration, a row for each field."""
    rows = []
    for each in page.changes:
        row = each.model_dump(exclude={"managers", "fields"})
        for name in ("seen", "changed"):
            row[name] = moment(row.pop(f"{name}_unix_ms"))
        row["managers"] = ", ".join(f"{by.name} ({by.operation})" for by in each.managers)
        fields = [(field.path, field.before, field.after) for field in each.fields]
        for path, before, after in fields or [("", None, None)]:
            rows.append({**row, "field": path, "before": before or "", "after": after or ""})
    return _render(rows, CHANGES_SHOWN, CHANGES_NAMES, output, more=page.next is not None)


def moment(unix_ms: int | None) -> str | None:
    """Write an instant in UTC, such as 2026-01-31T12:00:00.000Z; None of none."""
    if unix_ms is None:
        return None
    at = _EPOCH + dt.timedelta(milliseconds=unix_ms)
    return f"{at:%Y-%m-%dT%H:%M:%S}.{unix_ms % 1000:03d}Z"


def _totals(totals: UsageTotals) -> dict[str, Any]:
    found = totals.model_dump()
    money = {name: str(Money(found.pop(f"{name}_nanos"))) for name in ("cost", "unaccounted")}
    return {**{f"{name}_usd": value for name, value in money.items()}, **found}


def _render(
    rows: Sequence[Row],
    shown: Sequence[str],
    names: Sequence[str],
    output: str,
    *,
    total: Row | None = None,
    more: bool,
) -> str:
    """Write rows: `shown` columns as a table, all `names` as JSON or CSV."""
    if output == "json":
        return json.dumps([dict(row) for row in rows], indent=2) + "\n"
    if output == "csv":
        buffer = io.StringIO()
        writer = csv.writer(buffer, lineterminator="\n")
        writer.writerow(names)
        writer.writerows([row[name] for name in names] for row in rows)
        return buffer.getvalue()
    return table([*rows, *([total] if total else [])], shown) + (_LEFT_OUT[total is None] if more else "")


def table(rows: Sequence[Row], columns: Sequence[str], *, numbers: Collection[str] = ()) -> str:
    """Line up rows under a header; integers, amounts and the columns `numbers` to the right."""
    cells = [[name.upper().replace("_", " ") for name in columns]]
    cells += [[_cell(row.get(name, "")) for name in columns] for row in rows]
    right = [
        name in numbers or name.endswith("_usd") or any(isinstance(row.get(name), int) for row in rows)
        for name in columns
    ]
    widths = [max(len(line[index]) for line in cells) for index in range(len(columns))]
    lines = [
        "  ".join(
            cell.rjust(width) if number else cell.ljust(width)
            for cell, width, number in zip(line, widths, right, strict=True)
        )
        for line in cells
    ]
    return "".join(f"{line.rstrip()}\n" for line in lines)


def _cell(value: Any) -> str:
    if value is None:
        return "unknown"
    # What was reported may hold anything: a terminal gets no control characters.
    return "".join(each if each.isprintable() else "?" for each in str(value)) or "-"
