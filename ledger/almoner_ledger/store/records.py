"""What meters report: records, output, progress."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from almoner_core.usage import UsageRecord
from almoner_core.wire import AllotmentState, Dimension, ErrorCode, Posted, PostRecords
from almoner_ledger.errors import LedgerError, invalid
from almoner_ledger.sequences import TooManyGapsError
from almoner_ledger.store import charging, compute, finishing, last_words, rates
from almoner_ledger.store.allotments import speaking_for, wrong_state
from almoner_ledger.store.books import LARGEST_SUM, Books, StoredRecord
from almoner_ledger.store.commands import Command, Done
from almoner_ledger.store.state import Allotment, Usage, amounts_of

METADATA_BYTES_MAX = 4096
ATTEMPT_TOTAL_MAX = 10**18
"""No attempt's sum goes beyond it: a billion dollars is a report gone wrong."""


def post(books: Books, command: Command) -> Posted:
    """Post records: all of them, or none where one is refused by name. Room is never a reason to refuse."""
    body: PostRecords = command.body
    allotment = speaking_for(books, command)
    if allotment.state in (AllotmentState.OFFERED, AllotmentState.VOID):
        raise wrong_state(allotment, "have records: it was never activated")
    compute.refuse_from_meters(body.records)
    posted = fresh(books, allotment, body.records)
    allotment.exchanged_ms = books.now_ms
    for record, digest, metadata in posted:
        enter(books, allotment, record, digest, metadata)
    rates.settle(books, allotment, [record for record, _, _ in posted], body.refunds)
    finishing.finish(books, allotment)
    books.touch(allotment)
    return Posted(
        last_sequence=allotment.sequences.contiguous,
        held=allotment.held(),
        frozen=allotment.frozen or not allotment.open,
        rates=rates.told(books, allotment),
    )


def fresh(books: Books, allotment: Allotment, records: list[UsageRecord]) -> list[tuple[UsageRecord, str, str]]:
    """The records that are not there yet, with digest and metadata as text. Raises LedgerError, changing nothing."""
    found: dict[str, tuple[UsageRecord, str, str]] = {}
    sequences = allotment.sequences
    totals = allotment.settled()
    for index, record in enumerate(records):
        place = f"records.{index}"
        digest = _digest(record)
        known = books.records.get(record.id)
        if record.id in found:
            known = StoredRecord(allotment.id, found[record.id][1])
        if known is not None:
            _check_duplicate(allotment, record, known, digest, place)
            continue
        if record.sequence in sequences:
            raise _conflict(f"{place}.sequence", f"sequence {record.sequence} belongs to another record")
        try:
            sequences = sequences.add(record.sequence)
        except TooManyGapsError as error:
            raise invalid(f"{place}.sequence", str(error)) from error
        if allotment.final_sequence is not None and record.sequence > allotment.final_sequence:
            raise _conflict(f"{place}.sequence", f"the meter said that {allotment.final_sequence} was its last record")
        for dimension, amount in amounts_of(record).items():
            totals[dimension] += amount
            if totals[dimension] > ATTEMPT_TOTAL_MAX:
                raise invalid(place, f"the attempt's {dimension.value} would pass {ATTEMPT_TOTAL_MAX}")
        found[record.id] = (record, digest, _metadata(record, place))
    _check_sums(books, allotment, totals)
    return list(found.values())


def _check_duplicate(allotment: Allotment, record: UsageRecord, known: StoredRecord, digest: str, place: str) -> None:
    if known.allotment_id != allotment.id:
        raise _conflict(f"{place}.id", f"record {record.id} was posted to another allotment")
    if known.digest != digest:
        raise _conflict(f"{place}.id", f"record {record.id} was posted with other content")


def _check_sums(books: Books, allotment: Allotment, totals: dict[Dimension, int]) -> None:
    posted = allotment.settled()
    for hold in allotment.holds.values():
        window = hold.window
        if window.spent + window.reserved + totals[window.dimension] - posted[window.dimension] > LARGEST_SUM:
            raise invalid("records", f"{books.accounts[window.account_id].label} cannot count that far")


def _conflict(field: str, message: str) -> LedgerError:
    return LedgerError(ErrorCode.RECORD_CONFLICT, f"{field}: {message}", field=field)


def _digest(record: UsageRecord) -> str:
    return hashlib.sha256(record.model_dump_json().encode("utf-8", "surrogatepass")).hexdigest()


def _metadata(record: UsageRecord, place: str) -> str:
    try:
        text = json.dumps(record.metadata, separators=(",", ":"), allow_nan=False)
    except ValueError as error:
        raise invalid(f"{place}.metadata", "numbers must be finite") from error
    if len(text) > METADATA_BYTES_MAX:
        raise invalid(f"{place}.metadata", f"it takes {len(text)} bytes as JSON, at most {METADATA_BYTES_MAX}")
    return text


def enter(books: Books, allotment: Allotment, record: UsageRecord, digest: str, metadata: str) -> None:
    """Post one record that `fresh` gave."""
    amounts = amounts_of(record)
    if allotment.word is not None:
        # Late: the last word gives way to it.
        last_words.give_way(books, allotment, Usage.of(record), record.id)
    elif allotment.usage.unaccounted_nanos or any(hold.charged for hold in allotment.holds.values()):
        # Late: it explains part of what was charged off.
        charging.uncharge(books, allotment, amounts, record.id)
    row = charging.entry(books, allotment, _row(record, digest, metadata))
    charging.settle(books, allotment, amounts, charging.effective_ms(allotment, row) // 1000)
    allotment.sequences = allotment.sequences.add(record.sequence)
    books.records[record.id] = StoredRecord(allotment.id, digest)
    books.new_records.append(row)
    books.add_usage(allotment, charging.rollup_key(allotment, row), Usage.of(record))


def _row(record: UsageRecord, digest: str, metadata: str) -> dict[str, Any]:
    tokens = record.tokens
    return {
        "id": record.id,
        "kind": "usage",
        "sequence": record.sequence,
        "digest": digest,
        "resource_type": record.resource_type.value,
        "provider": record.provider,
        "model": record.model,
        "operation": record.operation,
        "cost_nanos": record.cost_nanos,
        "total_tokens": tokens.input + tokens.output,
        "input_tokens": tokens.input,
        "cached_input_tokens": tokens.cached_input,
        "cache_write_tokens": tokens.cache_write,
        "output_tokens": tokens.output,
        "reasoning_tokens": tokens.reasoning,
        "requests": record.requests,
        "tool_calls": record.tool_calls,
        "units": record.units,
        "price_version": record.price_version,
        "started_ms": record.started_unix_ms,
        "duration_ms": record.duration_ms,
        "outcome": record.outcome.value,
        "error": record.error,
        "metadata": metadata,
    }


def put_output(books: Books, command: Command) -> Done:
    """Keep the agent's output; a later one of the same attempt replaces it."""
    allotment = speaking_for(books, command)
    if allotment.state is AllotmentState.VOID:
        raise wrong_state(allotment, "have an output")
    content = command.body.content
    books.outputs[allotment.id] = {
        "allotment_id": allotment.id,
        "content": content,
        "bytes": len(content.encode("utf-8")),
        "truncated": command.body.truncated,
    }
    allotment.exchanged_ms = books.now_ms
    books.touch(allotment)
    return Done()


def post_progress(books: Books, command: Command) -> Done:
    """Keep the newest progress of an attempt."""
    allotment = speaking_for(books, command)
    if not allotment.open:
        raise wrong_state(allotment, "make progress")
    allotment.progress = command.body.model_dump_json()
    allotment.exchanged_ms = books.now_ms
    books.touch(allotment)
    return Done()
