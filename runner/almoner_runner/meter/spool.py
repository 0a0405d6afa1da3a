"""The spool: an append-only file of JSON lines that outlives the meter, so that no try is ever forgotten.

A try's id and hold are in it before the call goes out; its record follows when it is settled; a mark follows when the
ledger has the records up to a sequence. Lines are handed to the kernel at once, which survives a kill -9 of the meter;
flushing to disk happens in the background, off the path of calls. After a restart, holds without a record become
records in full, marked `estimated`. The file is bounded: it is rewritten without what the ledger has, and when that
does not help, it is full, and calls are refused.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Final

logger = logging.getLogger(__name__)

FILE_NAME: Final = "spool.jsonl"
SPOOL_BYTES_MAX: Final = 64 * 1024 * 1024
COMPACT_BYTES: Final = 4 * 1024 * 1024
# Kept for the settlements of calls that are in flight when the spool is full.
RESERVE_BYTES: Final = 1024 * 1024

# Made once: json.dumps with settings of its own makes an encoder a call.
_encode: Final = json.JSONEncoder(separators=(",", ":")).encode


class SpoolError(RuntimeError):
    """The spool cannot be read or written: without it no call may be made."""


@dataclass(slots=True)
class Totals:
    """Sums over all records of the allotment. Money in nano-dollars; `unpriced` counts records of unknown cost."""

    cost_nanos: int = 0
    unpriced: int = 0
    input_tokens: int = 0
    cached_input_tokens: int = 0
    cache_write_tokens: int = 0
    output_tokens: int = 0
    reasoning_tokens: int = 0
    requests: int = 0
    tool_calls: int = 0

    def add(self, record: dict[str, Any]) -> None:
        """Count one record."""
        if record["cost_nanos"] is None:
            self.unpriced += 1
        else:
            self.cost_nanos += record["cost_nanos"]
        tokens = record["tokens"]
        self.input_tokens += tokens["input"]
        self.cached_input_tokens += tokens["cached_input"]
        self.cache_write_tokens += tokens["cache_write"]
        self.output_tokens += tokens["output"]
        self.reasoning_tokens += tokens["reasoning"]
        self.requests += record["requests"]
        self.tool_calls += record["tool_calls"]

    def amounts(self) -> dict[str, int]:
        """Give the totals by the ledger's dimensions."""
        return {
            "usd": self.cost_nanos,
            "tokens": self.input_tokens + self.output_tokens,
            "tool_calls": self.tool_calls,
            "requests": self.requests,
        }

    def as_dict(self) -> dict[str, int]:
        """Give the totals by name."""
        return {f.name: getattr(self, f.name) for f in fields(self)}


@dataclass(slots=True)
class Recovered:
    """What a spool held when it was opened."""

    unsettled: list[dict[str, Any]] = field(default_factory=list)  # records in full, `estimated`, without a sequence
    settled: int = 0


class Spool:
    """One allotment's spool in a folder of the meter's own. One event loop writes; `flush` may run in a thread."""

    def __init__(self, folder: Path, allotment: str) -> None:
        self.path = folder / FILE_NAME
        self.allotment = allotment
        self.totals = Totals()
        self.posted = 0  # the ledger has the records up to here
        self.sequence = 0  # the last one given
        self.pending: dict[int, dict[str, Any]] = {}  # records that the ledger lacks, by sequence
        self.dirty = False
        self.broken = False
        self._unposted = Totals()
        self._gaps: list[int] = []  # sequences whose records were given and never written
        self._holds: dict[str, dict[str, Any]] = {}
        self._size = 0
        self._fd = -1

    # --- opening ------------------------------------------------------------------------------------------------------

    def open(self) -> Recovered:
        """Open or make the file, and read what an earlier meter left. Raises SpoolError."""
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            lines = self._read()
            for line in lines:
                self._replay(line)
            recovered = Recovered([hold["record"] for hold in self._holds.values()], len(self.pending))
            self._gaps = [n for n in range(self.posted + 1, self.sequence) if n not in self.pending]
            self._rewrite()
        except (OSError, KeyError, TypeError) as error:
            raise SpoolError(f"the spool {self.path} cannot be opened: {error}") from error
        return recovered

    def _read(self) -> Iterator[dict[str, Any]]:
        if not self.path.exists():
            return
        with self.path.open("rb") as file:
            for raw in file:
                if raw == b"\n":
                    continue
                try:
                    line = json.loads(raw)
                except ValueError:
                    # A torn last line: the meter died while writing it, before the call that it speaks of.
                    logger.warning("spool: skipped a torn line of %d bytes", len(raw))
                    continue
                if isinstance(line, dict):
                    yield line

    def _replay(self, line: dict[str, Any]) -> None:
        kind = line.get("t")
        if kind == "base":
            if line["allotment"] != self.allotment:
                raise SpoolError(
                    f"{self.path} belongs to allotment {line['allotment']}, not {self.allotment}: "
                    "give each meter a folder of its own"
                )
            self.totals = Totals(**line["totals"])
            self.posted = self.sequence = line["posted"]
        elif kind == "hold":
            self._holds[line["record"]["id"]] = line
        elif kind == "record":
            self._keep(line["record"])
        elif kind == "drop":
            self._holds.pop(line["id"], None)
        elif kind == "withdraw":
            self._withdraw(line["sequence"], free=line["free"])
        elif kind == "posted":
            self._forget(line["sequence"])

    def _keep(self, record: dict[str, Any]) -> None:
        self._holds.pop(record["id"], None)
        self.sequence = max(self.sequence, record["sequence"])
        self.totals.add(record)
        self._unposted.add(record)
        self.pending[record["sequence"]] = record

    def _forget(self, sequence: int) -> None:
        for number in [n for n in self.pending if n <= sequence]:
            del self.pending[number]
        self.posted = max(self.posted, sequence)
        self._unposted = Totals()
        for record in self.pending.values():
            self._unposted.add(record)

    # --- writing ------------------------------------------------------------------------------------------------------

    def hold(self, record: dict[str, Any]) -> None:
        """Write a try before it goes out: the record as it would be if nothing more were ever heard of it."""
        line = {"t": "hold", "record": record}
        self._append(line)
        self._holds[record["id"]] = line

    def settle(self, record: dict[str, Any]) -> None:
        """Write how a try ended. The record is given its sequence here, so that sequences have no gaps.

        A gap that a full disk left in an earlier meter's file is filled first.
        """
        record["sequence"] = self._gaps.pop(0) if self._gaps else self.sequence + 1
        # In memory first: even where the disk is full, the ledger hears of it.
        self._keep(record)
        self._note({"t": "record", "record": record})

    def drop(self, record_id: str) -> None:
        """Forget a try that the ledger has settled already."""
        self._holds.pop(record_id, None)
        self._note({"t": "drop", "id": record_id})

    def withdraw(self, sequence: int, *, free: bool) -> None:
        """Take back a record that the ledger does not take. `free`: its sequence is to be given to another one."""
        self._withdraw(sequence, free=free)
        self._note({"t": "withdraw", "sequence": sequence, "free": free})

    def _withdraw(self, sequence: int, *, free: bool) -> None:
        record = self.pending.pop(sequence, None)
        if record is None:
            return
        _subtract(self.totals, record)
        _subtract(self._unposted, record)
        if free and sequence == self.sequence:
            self.sequence -= 1
        elif free:
            self._gaps.append(sequence)

    def mark_posted(self, sequence: int) -> None:
        """Write that the ledger has the records up to a sequence."""
        if sequence <= self.posted:
            return
        self._forget(sequence)
        self._note({"t": "posted", "sequence": sequence})
        if self._size > COMPACT_BYTES and not self.pending:
            self._compact()

    def doubtful(self, next_sequence: int) -> list[str]:
        """Give the ids of records that stand where the ledger has records: these, or others that came late."""
        return [record["id"] for number, record in sorted(self.pending.items()) if number < next_sequence]

    def begin(self, next_sequence: int, settled: Totals | None = None, known: Collection[str] | None = None) -> None:
        """Go on where the ledger is: it has nothing from `next_sequence` on, and what it has sums to `settled`.

        known: of the records here, those that the ledger has, whatever it has them as; None: it was not asked. What an
        earlier meter of this pod posted may have come to it in another order than here: whoever has lost its place is
        given another.
        """
        if settled is not None and known is not None and self._displaced(next_sequence, known):
            self._renumber(next_sequence, settled, known)
            return
        # More than is here, where an earlier meter's spool is gone, or could not be written.
        self.sequence = max(self.sequence, next_sequence - 1)
        self._gaps = [number for number in self._gaps if number >= next_sequence]
        self.mark_posted(next_sequence - 1)
        if settled is None:
            return
        posted = Totals(**self.totals.as_dict())
        for record in self.pending.values():
            _subtract(posted, record)
        if posted.amounts() != settled.amounts():
            for record in self.pending.values():
                settled.add(record)
            self.totals = settled

    def _displaced(self, next_sequence: int, known: Collection[str]) -> bool:
        """Say whether a record that the ledger lacks stands where it has another, or one that it has stands above."""
        return any((record["id"] in known) != (number < next_sequence) for number, record in self.pending.items())

    def _renumber(self, next_sequence: int, settled: Totals, known: Collection[str]) -> None:
        lacking = [record for _, record in sorted(self.pending.items()) if record["id"] not in known]
        self.pending, self._gaps, self._unposted = {}, [], Totals()
        self.totals = settled
        self.posted = self.sequence = next_sequence - 1
        for record in lacking:
            record["sequence"] = self.sequence + 1
            self._keep(record)
        try:
            self._rewrite()
        except OSError as error:
            # Until it can be written no further call is made; a meter that starts meanwhile asks again.
            self.broken = True
            logger.warning("spool: could not be rewritten: %s", error.strerror)

    @property
    def unposted(self) -> dict[str, int]:
        """What is settled here and not yet known to the ledger, by dimension."""
        return self._unposted.amounts()

    @property
    def full(self) -> bool:
        """Whether no further call may be made: no room, or the last write failed."""
        if self.broken or self._size > SPOOL_BYTES_MAX - RESERVE_BYTES:
            self._compact()
        return self.broken or self._size > SPOOL_BYTES_MAX - RESERVE_BYTES

    def batch(self, most: int) -> list[dict[str, Any]]:
        """Give the oldest records that the ledger lacks."""
        return [self.pending[number] for number in sorted(self.pending)[:most]]

    def flush(self) -> None:
        """Flush to disk what was written; slow, so call it in a thread."""
        if self.dirty and self._fd >= 0:
            self.dirty = False
            os.fdatasync(self._fd)

    def close(self) -> None:
        """Flush and close."""
        if self._fd >= 0:
            self.flush()
            os.close(self._fd)
            self._fd = -1

    def _note(self, line: dict[str, Any]) -> None:
        """Append what is in memory already: a failure is said and does not stop the settlement."""
        try:
            self._append(line)
        except SpoolError as error:
            logger.error("spool: %s; what was not written is posted from memory", error)  # noqa: TRY400 - no traceback

    def _append(self, line: dict[str, Any]) -> None:
        data = _encode(line).encode() + b"\n"
        if self.broken:
            # The write before may have left half a line: this one must not be lost with it.
            data = b"\n" + data
        try:
            written = os.write(self._fd, data)
        except OSError as error:
            self.broken = True
            raise SpoolError(f"the spool cannot be written: {error.strerror}") from error
        self._size += written
        self.dirty = True
        if written != len(data):
            self.broken = True
            raise SpoolError("the spool cannot be written: the disk is full")

    def _compact(self) -> None:
        try:
            self._rewrite()
        except OSError as error:
            logger.warning("spool: could not be rewritten: %s", error.strerror)

    def _rewrite(self) -> None:
        """Write a new file without what the ledger has, and put it in the old one's place."""
        base = Totals(**self.totals.as_dict())
        for record in self.pending.values():
            _subtract(base, record)
        lines: list[dict[str, Any]] = [
            {"t": "base", "allotment": self.allotment, "totals": base.as_dict(), "posted": self.posted}
        ]
        lines += [{"t": "record", "record": record} for _, record in sorted(self.pending.items())]
        lines += self._holds.values()
        scratch = self.path.with_suffix(".new")
        fd = os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_CLOEXEC, 0o600)
        data = b"".join(_encode(line).encode() + b"\n" for line in lines)
        try:
            view = memoryview(data)
            while view:
                view = view[os.write(fd, view) :]
            os.fdatasync(fd)
            scratch.replace(self.path)
        except OSError:
            os.close(fd)
            raise
        if self._fd >= 0:
            os.close(self._fd)
        self._fd, self._size, self.broken = fd, len(data), False


def _subtract(totals: Totals, record: dict[str, Any]) -> None:
    other = Totals()
    other.add(record)
    for f in fields(Totals):
        setattr(totals, f.name, getattr(totals, f.name) - getattr(other, f.name))
