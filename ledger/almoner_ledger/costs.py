"""`almoner ledger costs`: what was spent, as a table, JSON or CSV."""

from __future__ import annotations

import csv
import datetime as dt
import io
import json
import sys

from almoner_core.money import Money
from almoner_core.wire import Costs
from almoner_ledger.database import Database
from almoner_ledger.store import queries

COLUMNS = ("cost_usd", "unaccounted_usd", "unpriced", "input_tokens", "output_tokens", "requests", "tool_calls")


def report(
    database: Database, by: str, *, since: dt.date | None, until: dt.date | None, limit: int, output: str
) -> int:
    """Write the sums to standard output; gives the exit code."""
    found = database.read(lambda connection: queries.costs(connection, queries.By(by), since, until, limit))
    sys.stdout.write(render(found, output))
    return 0


def render(found: Costs, output: str) -> str:
    """Give the sums as `table`, `json` or `csv`. Money is in US dollars, exact."""
    rows = [[*row.key, *_values(row.totals.model_dump())] for row in found.rows]
    header = [*found.columns, *COLUMNS]
    if output == "json":
        return json.dumps([dict(zip(header, row, strict=True)) for row in rows], indent=2) + "\n"
    if output == "csv":
        buffer = io.StringIO()
        csv.writer(buffer, lineterminator="\n").writerows([header, *rows])
        return buffer.getvalue()
    return _table(found, header, rows)


def _values(totals: dict[str, int]) -> list[str | int]:
    return [
        str(Money(totals["cost_nanos"])),
        str(Money(totals["unaccounted_nanos"])),
        *(totals[name] for name in COLUMNS[2:]),
    ]


def _table(found: Costs, header: list[str], rows: list[list[str | int]]) -> str:
    keys = len(found.columns)
    cells = [[name.upper().replace("_", " ") for name in header]]
    cells += [[str(value) if value != "" else "-" for value in row] for row in rows]
    if rows:
        nanos = [sum(_nanos(row.totals, name) for row in found.rows) for name in ("cost_nanos", "unaccounted_nanos")]
        sums = [str(sum(_nanos(row.totals, name) for row in found.rows)) for name in COLUMNS[2:]]
        cells.append(["TOTAL", *[""] * (keys - 1), *(str(Money(each)) for each in nanos), *sums])
    widths = [max(len(row[index]) for row in cells) for index in range(len(header))]
    lines = [
        "  ".join(
            cell.ljust(width) if index < keys else cell.rjust(width)
            for index, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in cells
    ]
    if found.truncated:
        lines.append("more rows were left out: raise --limit")
    return "\n".join(lines) + "\n"


def _nanos(totals: object, name: str) -> int:
    return int(getattr(totals, name))
