"""The spool forgets nothing that the ledger lacks: over restarts, torn lines, compaction and a full disk."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from almoner_core.environment import OUTPUT_BYTES_MAX
from almoner_core.usage import UsageRecord
from almoner_runner.meter import files, progress, spool
from almoner_runner.meter.body import read_body
from almoner_runner.meter.config import Card, Model, Provider, Tier
from almoner_runner.meter.dialect import Call
from almoner_runner.meter.holds import _estimate
from almoner_runner.meter.ids import uuid7
from almoner_runner.meter.spool import Spool, SpoolError


def record(cost: int | None = 100) -> dict[str, Any]:
    card = Card(version="v", tiers=(Tier(input=1, cached_input=1, cache_write=1, output=1),))
    provider = Provider("p", "OpenAI", "http://x/v1", ("OpenAI",), {})
    call = Call("chat", "llm", provider, Model("m", card), read_body(b"{}"), "openai", input_bound=10, output_max=5)
    return _estimate(call) | {"cost_nanos": cost}


def opened(folder: Path) -> Spool:
    made = Spool(folder, "allotment-1")
    made.open()
    return made


def test_a_record_of_the_spool_is_what_the_ledger_takes(tmp_path: Path) -> None:
    made = opened(tmp_path)
    one = record()
    made.hold(one)
    made.settle(one)
    assert UsageRecord.model_validate(made.batch(10)[0]).sequence == 1


def test_what_was_in_flight_comes_back_in_full_after_a_kill(tmp_path: Path) -> None:
    first = opened(tmp_path)
    one, two, three = record(1), record(2), record(None)
    for each in (one, two, three):
        first.hold(each)
    first.settle(one)
    # No close: killed.
    second = Spool(tmp_path, "allotment-1")
    recovered = second.open()
    assert [each["id"] for each in recovered.unsettled] == [two["id"], three["id"]]
    assert [each["outcome"] for each in recovered.unsettled] == ["estimated", "estimated"]
    assert second.sequence == 1
    for each in recovered.unsettled:
        second.settle(each)
    assert [each["sequence"] for each in second.batch(10)] == [1, 2, 3]
    assert (second.totals.cost_nanos, second.totals.unpriced) == (3, 1)
    assert opened(tmp_path).totals == second.totals, "and once more: nothing twice"


def test_a_torn_last_line_is_skipped(tmp_path: Path) -> None:
    first = opened(tmp_path)
    one = record()
    first.hold(one)
    first.settle(one)
    with first.path.open("ab") as file:
        file.write(b'{"t":"hold","record":{"id":"')
    second = opened(tmp_path)
    assert (second.sequence, len(second.pending)) == (1, 1)


def test_what_the_ledger_has_is_forgotten_and_the_totals_stay(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(spool, "COMPACT_BYTES", 2000)
    made = opened(tmp_path)
    for number in range(50):
        one = record(1)
        made.hold(one)
        made.settle(one)
        made.mark_posted(number + 1)
    assert made.path.stat().st_size < 4000
    assert made.unposted == {"usd": 0, "tokens": 0, "tool_calls": 0, "requests": 0}
    again = opened(tmp_path)
    assert (again.sequence, again.posted, again.totals.cost_nanos, again.pending) == (50, 50, 50, {})


def test_a_full_spool_says_so_and_recovers(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(spool, "SPOOL_BYTES_MAX", 12_000)
    monkeypatch.setattr(spool, "RESERVE_BYTES", 2000)
    made = opened(tmp_path)
    while not made.full:
        one = record(1)
        made.hold(one)
        made.settle(one)
    assert made.path.stat().st_size > 9000
    made.mark_posted(made.sequence)
    assert not made.full


def test_a_disk_that_fails_refuses_calls_and_loses_no_settlement(tmp_path: Path, monkeypatch: Any) -> None:
    made = opened(tmp_path)
    one = record()
    made.hold(one)

    def broken(*_: Any) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "write", broken)
    with pytest.raises(SpoolError, match="No space left"):
        made.hold(record())
    made.settle(one)
    assert [each["id"] for each in made.batch(10)] == [one["id"]]
    assert made.full, "nothing can be written"
    monkeypatch.undo()
    assert bool(made.full) is False, "and now it can"
    assert opened(tmp_path).totals.cost_nanos == 100


def test_half_a_line_takes_no_other_with_it(tmp_path: Path, monkeypatch: Any) -> None:
    made = opened(tmp_path)
    one, two = record(), record()
    made.hold(one)
    made.hold(two)
    write = os.write
    monkeypatch.setattr(os, "write", lambda fd, data: write(fd, bytes(data)[: len(data) // 2]))
    made.settle(one)
    monkeypatch.undo()
    # There is room again, and the meter dies before it has written its file anew.
    made.settle(two)
    again = opened(tmp_path)
    assert [each["id"] for each in again.batch(10)] == [two["id"]]


def test_a_gap_that_a_full_disk_left_is_filled(tmp_path: Path, monkeypatch: Any) -> None:
    """The ledger counts on sequences without gaps."""
    made = opened(tmp_path)
    one, two = record(1), record(10)
    made.hold(one)
    made.hold(two)
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", lambda _fd, data: len(data) // 2)
        made.settle(one)
    made.settle(two)
    again = Spool(tmp_path, "allotment-1")
    (left,) = again.open().unsettled
    again.begin(1, spool.Totals())
    again.settle(left)
    assert {each["sequence"]: each["id"] for each in again.batch(10)} == {1: one["id"], 2: two["id"]}
    assert again.totals.cost_nanos == left["cost_nanos"] + 10


def test_what_the_ledger_heard_and_the_disk_did_not_take_is_in_the_totals(tmp_path: Path, monkeypatch: Any) -> None:
    made = opened(tmp_path)
    one, two = record(1), record(10)
    made.hold(one)
    made.hold(two)
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", lambda _fd, data: len(data) // 2)
        made.settle(one)
    made.settle(two)
    again = Spool(tmp_path, "allotment-1")
    assert len(again.open().unsettled) == 1
    # It was posted from memory: so the ledger says.
    again.begin(
        2, spool.Totals(cost_nanos=1, input_tokens=one["tokens"]["input"] + one["tokens"]["output"], requests=1)
    )
    again.drop(one["id"])
    assert (again.posted, again.sequence, [each["id"] for each in again.batch(10)]) == (1, 2, [two["id"]])
    assert again.totals.cost_nanos == 11


@pytest.mark.parametrize(
    ("withdrawn", "free", "next_ones"),
    [(2, True, [2, 3]), (1, True, [1, 3]), (2, False, [3, 4]), (1, False, [3, 4])],
)
def test_a_record_that_the_ledger_does_not_take_is_withdrawn(
    withdrawn: int, free: bool, next_ones: list[int], tmp_path: Path
) -> None:
    made = opened(tmp_path)
    for cost in (1, 10):
        one = record(cost)
        made.hold(one)
        made.settle(one)
    made.withdraw(withdrawn, free=free)
    left = {1: 10, 2: 1}[withdrawn]
    again = Spool(tmp_path, "allotment-1")
    again.open()
    for each in (made, again):
        assert (each.totals.cost_nanos, each.unposted["usd"]) == (left, left)
    assert again.sequence == made.sequence
    given = []
    for _ in next_ones:
        one = record(100)
        made.hold(one)
        made.settle(one)
        given.append(one["sequence"])
    assert given == next_ones


def test_what_was_posted_and_never_written_is_dropped_for_good(tmp_path: Path) -> None:
    made = opened(tmp_path)
    one = record()
    made.hold(one)
    made.drop(one["id"])
    assert Spool(tmp_path, "allotment-1").open().unsettled == []


def test_a_spool_of_another_allotment_is_refused(tmp_path: Path) -> None:
    opened(tmp_path)
    with pytest.raises(SpoolError, match="belongs to allotment allotment-1"):
        Spool(tmp_path, "allotment-2").open()


def test_a_lost_spool_goes_on_where_the_ledger_is(tmp_path: Path) -> None:
    made = opened(tmp_path)
    made.begin(8, spool.Totals(cost_nanos=700, input_tokens=70, requests=7))
    one = record(5)
    made.hold(one)
    made.settle(one)
    assert one["sequence"] == 8
    assert made.totals.cost_nanos == 705
    assert made.unposted["usd"] == 5


def test_ids_are_uuid_7_and_sort_by_time() -> None:
    ids = [uuid7() for _ in range(100)]
    assert len(set(ids)) == 100
    assert all(len(i) == 36 and i[14] == "7" and i[19] in "89ab" for i in ids)
    assert ids[0][:8] <= ids[-1][:8]


@pytest.mark.parametrize(
    ("report", "message"),
    [
        ([], "JSON object"),
        ({"steps": 1}, "unknown field 'steps'"),
        ({"step": 1.5}, "progress.step"),
        ({"total": 0}, "progress.total"),
        ({"message": 1}, "progress.message"),
        ({"metrics": {str(n): 1 for n in range(33)}}, "at most 32"),
        ({"metrics": {"loss": [1]}}, "progress.metrics.loss"),
        ({"metrics": {"loss": "9" * 65}}, "at most 64"),
        ({"metrics": {"": 1}}, "1 to 128"),
    ],
)
def test_progress_is_checked(report: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        progress.check(report)


def test_a_report_with_half_a_character_is_sent_all_the_same() -> None:
    """JSON can bring a lone surrogate, which UTF-8 has no bytes for."""
    told = progress.check(json.loads('{"step": 1, "message": "\\ud83d!", "metrics": {"l\\ud83d": "\\ud83d"}}'))
    assert told == {"step": 1, "message": "?!", "metrics": {"l?": "?"}}
    told = progress.check(json.loads('{"message": "a\\u0000b", "metrics": {"l\\u0000": "\\u0000"}}'))
    assert told == {"step": 0, "message": "a\ufffdb", "metrics": {"l\ufffd": "\ufffd"}}, "nor can the ledger store NUL"
    assert progress.check({"message": "m" * 300})["message"] == "m" * 255 + "…"


def test_an_output_with_two_names_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "output").write_text("x")
    (tmp_path / "other").hardlink_to(tmp_path / "output")
    with pytest.raises(files.OutputError, match="more than one link"):
        files.read_output(tmp_path / "output")
    (tmp_path / "other").unlink()
    assert files.read_output(tmp_path / "output") == files.Output("x", truncated=False, size=1, decoded=True)
    assert files.read_output(tmp_path / "none") is None


def test_a_large_output_is_cut(tmp_path: Path) -> None:
    (tmp_path / "output").write_bytes(b"x" * (OUTPUT_BYTES_MAX + 10))
    found = files.read_output(tmp_path / "output")
    assert found is not None
    assert found.truncated
    assert len(found.content) == OUTPUT_BYTES_MAX


def test_a_large_output_is_not_cut_within_a_character(tmp_path: Path) -> None:
    assert OUTPUT_BYTES_MAX % 3
    (tmp_path / "output").write_text("字" * (OUTPUT_BYTES_MAX // 3 + 10), encoding="utf-8")
    found = files.read_output(tmp_path / "output")
    size = 3 * (OUTPUT_BYTES_MAX // 3 + 10)
    assert found == files.Output("字" * (OUTPUT_BYTES_MAX // 3), truncated=True, size=size, decoded=True)


def test_the_input_is_written_readable_for_the_agent(tmp_path: Path) -> None:
    files.write_input(tmp_path / "in" / "input", b'{"a": 1}')
    path = tmp_path / "in" / "input"
    assert json.loads(path.read_text()) == {"a": 1}
    assert path.stat().st_mode & 0o777 == 0o644
