"""Streams entries into a CSV or Parquet file: all of them, one consistent snapshot, in constant memory.

Role: a server-side cursor in one transaction that sees one state; batches are turned into columns and written as they
come. A file is written under a temporary name beside its place and renamed when it is whole and on the disk: there is
never half a file. Boundary: which entries and columns there are is the business of `entries`.

Money is exact twice: `cost_nanos` (integer) and `cost_usd` (decimal, nine places). An unknown cost is null, in CSV an
empty field; so is whatever else does not apply. Times are instants in UTC.
"""

from __future__ import annotations

import contextlib
import csv
import os
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Final, Protocol

from sqlalchemy.engine import Connection

from almoner_ledger.database import Database
from almoner_ledger.history import entries, reading
from almoner_ledger.history.asking import Question
from almoner_ledger.history.exported import COLUMNS, MOMENTS, Rows
from almoner_ledger.history.tables import moment

ROWS: Final = 10_000
"""Rows in a batch, and in a row group of Parquet."""
QUIET_SECONDS: Final = 2.0
FORMATS: Final = ("csv", "parquet")
COST: Final = entries.COLUMNS.index("cost_nanos")
_MOMENT_INDEXES: Final = tuple(entries.COLUMNS.index(name) for name in MOMENTS)
INSTALL: Final = "Parquet needs pyarrow: pip install 'almoner[export]', or export to a .csv"


class ExportError(Exception):
    """What was asked for cannot be written; the message says why."""


class Writer(Protocol):
    """Writes rows of entries.COLUMNS."""

    def write(self, rows: Rows) -> None:
        """Write some more."""

    def close(self) -> None:
        """Write what is left; the stream stays open."""

    def abandon(self) -> None:
        """Write no more, not even what makes a file whole."""


@dataclass(slots=True)
class Progress:
    """Tells how far an export is, once it has taken a while."""

    tell: Callable[[str], None]
    rows: int = 0
    begun: float = 0.0
    told: float = 0.0

    def begin(self) -> None:
        """Start the clock."""
        self.begun = self.told = time.monotonic()

    def add(self, rows: int) -> None:
        """Count rows."""
        self.rows += rows
        now = time.monotonic()
        if now - self.told >= QUIET_SECONDS:
            self.told = now
            self.tell(f"{self.rows} entries after {now - self.begun:.0f} s")


def format_of(name: str, given: str | None) -> str:
    """Say in which format to write: the one given, else by the file's suffix. Raises ExportError."""
    if given is not None:
        return given
    if name == "-":
        return "csv"
    suffix = Path(name).suffix.removeprefix(".").lower()
    if suffix not in FORMATS:
        raise ExportError(f"{name}: end the name in .csv or .parquet, or give --format")
    return suffix


def to_file(database: Database, question: Question, path: Path, form: str, progress: Progress) -> int:
    """Write a file; gives the number of entries. Raises ExportError and OSError, and then there is no new file."""
    opened = open_writer(form)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.partial")
    if path.is_dir():
        raise ExportError(f"{path} is a directory")
    try:
        with temporary.open("wb") as stream:
            count = to_stream(database, question, stream, opened, progress)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise
    return count


def to_stream(
    database: Database,
    question: Question,
    stream: IO[bytes],
    opened: Callable[[IO[bytes]], Writer],
    progress: Progress,
) -> int:
    """Write to a stream; gives the number of entries. It is not tried again: half of it may be gone already."""
    progress.begin()
    writer = opened(stream)
    try:
        with contextlib.closing(_batches(database, question)) as batches:
            for rows in batches:
                writer.write(rows)
                progress.add(len(rows))
        writer.close()
    except BaseException:
        writer.abandon()
        raise
    return progress.rows


def _batches(database: Database, question: Question) -> Generator[Rows, None, None]:
    with database.reading() as connection:
        yield from reading.generate(connection, lambda: _stream(connection, question))


def _stream(connection: Connection, question: Question) -> Iterator[Rows]:
    return entries.stream(connection, question, ROWS)


def open_writer(form: str) -> Callable[[IO[bytes]], Writer]:
    """Give what opens a writer of a format. Raises ExportError where a library is missing."""
    if form == "csv":
        return CsvWriter
    try:
        from almoner_ledger.history import parquet  # noqa: PLC0415 - its library is an extra
    except ImportError as error:
        raise ExportError(INSTALL) from error
    return parquet.ParquetWriter


def dollars(nanos: int | None) -> str | None:
    """Write an amount with nine places."""
    if nanos is None:
        return None
    whole, rest = divmod(abs(nanos), 1_000_000_000)
    return f"{'-' if nanos < 0 else ''}{whole}.{rest:09d}"


class CsvWriter:
    """RFC 4180 with newlines as line ends, UTF-8, a header."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream
        self._text = _Lines()
        self._csv = csv.writer(self._text, lineterminator="\n")
        self._csv.writerow(COLUMNS)
        self._flush()

    def write(self, rows: Rows) -> None:
        """Write some more."""
        self._csv.writerows(map(_csv_row, rows))
        self._flush()

    def close(self) -> None:
        """Write what is left."""
        self._flush()

    def abandon(self) -> None:
        """Leave it as it is."""

    def _flush(self) -> None:
        # What was reported may hold a half of a surrogate pair, which is no text.
        self._stream.write("".join(self._text.lines).encode("utf-8", "replace"))
        self._text.lines.clear()


class _Lines:
    """What the csv module writes into."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def write(self, line: str) -> None:
        self.lines.append(line)


def _csv_row(row: Sequence[Any]) -> list[Any]:
    found = [*row, dollars(row[COST])]
    for index in _MOMENT_INDEXES:
        found[index] = moment(row[index])
    return found
