"""Token buckets: refill, debit, refund, waiting, changes and slices."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from almoner_core.rates import LEVEL_MOST, Bucket, representable, scale, slice_calls

MINUTE = 60
NOW = 1_800_000_000_000


def bucket(amount: int = 60, capacity: int = 60, per_seconds: int = MINUTE, left: int | None = None) -> Bucket:
    made = Bucket.full(amount, per_seconds, capacity, NOW)
    if left is not None:
        made.force(capacity - left)
    return made


@pytest.mark.parametrize(
    ("left", "after_ms", "expected_left"),
    [
        (0, 0, 0),
        (0, 1000, 1),
        (0, 999, 0),
        (0, 59_999, 59),
        (0, 60_000, 60),
        (0, 10**12, 60),  # a clock that jumps ahead fills it and no more
        (30, -5000, 30),  # a clock that goes back refills nothing
        (-60, 60_000, 0),  # a debt is paid first
        (-1, 500, -1),
    ],
)
def test_time_refills(left: int, after_ms: int, expected_left: int) -> None:
    made = bucket(left=left)
    made.refill(NOW + after_ms)
    assert made.level // scale(MINUTE) == expected_left
    assert made.refilled_ms == max(NOW, NOW + after_ms)


def test_a_clock_that_goes_back_and_forth_refills_once() -> None:
    made = bucket(left=0)
    for moment in (10_000, 3000, 10_000, 9000, 10_000):
        made.refill(NOW + moment)
    assert made.level == 10 * scale(MINUTE)


def test_nothing_is_lost_to_rounding() -> None:
    # 7 a day: no whole amount in any millisecond, and yet 7 when the day is over.
    made = Bucket.full(7, 86_400, 7, NOW)
    made.debit(7)
    for step in range(1, 86_401):
        made.refill(NOW + step * 1000)
    assert made.level == made.top


@pytest.mark.parametrize(
    ("left", "amount", "expected"),
    [(60, 60, 0), (0, 1, 1000), (0, 60, 60_000), (59, 60, 1000), (0, 61, None), (-60, 1, 61_000), (10, 0, 0)],
)
def test_when_an_amount_will_be_there(left: int, amount: int, expected: int | None) -> None:
    assert bucket(left=left).wait_ms(amount) == expected


def test_a_wait_is_rounded_up_to_where_it_is_enough() -> None:
    made = Bucket.full(7, MINUTE, 100, NOW)
    made.debit(100)
    wait = made.wait_ms(3)
    assert wait is not None
    made.refill(NOW + wait - 1)
    assert not made.holds(3)
    made.refill(NOW + wait)
    assert made.holds(3)


def test_a_debit_that_is_not_there_is_refused() -> None:
    made = bucket(left=5)
    with pytest.raises(ValueError, match="5 is there"):
        made.debit(6)
    with pytest.raises(ValueError, match="cannot debit"):
        made.debit(-1)
    assert (made.debited, made.missing) == (55, 55)


def test_a_refund_is_never_more_than_was_debited_and_never_overfills() -> None:
    made = bucket()
    made.debit(10)
    made.refill(NOW + 5000)
    assert made.refund(100) == 10
    assert made.level == made.top
    assert (made.debited, made.refunded) == (10, 10)
    assert made.refund(1) == 0


def test_use_beyond_what_was_debited_is_a_debt() -> None:
    made = bucket(left=10)
    made.force(25)
    assert made.level == -15 * scale(MINUTE)
    assert made.missing == 75
    assert made.wait_ms(1) == 16_000
    made.forgive()
    assert made.missing == 60


def test_a_changed_rate_keeps_what_is_missing() -> None:
    made = bucket(amount=60, capacity=60, left=20)
    made.change(600, 100)
    assert (made.missing, made.level) == (40, 60 * scale(MINUTE))
    made.change(600, 30)
    assert (made.missing, made.level) == (40, -10 * scale(MINUTE))


@pytest.mark.parametrize(
    ("left", "call", "holders", "expected"),
    [
        (1000, 1, 1, 7),
        (1000, 10, 1, 7),
        (1000, 11, 1, 0),  # less than 100 calls in a full bucket
        (1000, 10, 2, 0),
        (510, 5, 2, 1),  # of the upper half alone
        (500, 5, 2, 0),
        (-5, 1, 1, 0),
        (1000, 0, 1, 0),
        (1000, 1, 0, 7),
    ],
)
def test_slices_are_leased_of_large_buckets_alone(left: int, call: int, holders: int, expected: int) -> None:
    made = bucket(amount=1000, capacity=1000, left=left)
    assert made.slice_calls(call, holders) == expected


def test_a_slice_is_what_every_bucket_leases() -> None:
    large, small = bucket(capacity=10_000), bucket(capacity=100)
    assert slice_calls([(large, 10), (small, 1)], 1) == 7
    assert slice_calls([(large, 10), (small, 2)], 1) == 0
    assert slice_calls([], 1) == 0


@pytest.mark.parametrize(
    ("capacity", "per_seconds", "fits"), [(10**12, 3600, True), (10**12, 86_400, False), (5 * 10**10, 86_400, True)]
)
def test_what_64_bits_hold(capacity: int, per_seconds: int, fits: bool) -> None:
    assert representable(capacity, per_seconds) is fits


def test_a_debt_and_its_counter_stay_within_64_bits() -> None:
    made = bucket()
    made.force(10**18)
    made.force(10**18 * 9)
    assert made.level == -LEVEL_MOST
    assert made.debited <= LEVEL_MOST


Step = tuple[str, int, int]
STEPS = st.lists(
    st.tuples(st.sampled_from(["debit", "refund", "wait"]), st.integers(0, 50), st.integers(-2000, 5000)), max_size=60
)


@given(amount=st.integers(1, 1000), per=st.sampled_from([1, 7, 60, 3600]), capacity=st.integers(1, 100), steps=STEPS)
def test_over_any_interval_no_more_than_capacity_and_rate(
    amount: int, per: int, capacity: int, steps: list[Step]
) -> None:
    made = Bucket.full(amount, per, capacity, 0)
    clock, outstanding = 0, 0
    taken: list[tuple[int, int]] = []  # when, net amount
    for kind, size, jump in steps:
        clock += jump  # may go back
        made.refill(clock)
        if kind == "debit" and made.holds(size):
            made.debit(size)
            outstanding += size
            taken.append((made.refilled_ms, size))
        elif kind == "refund":
            given_back = min(size, outstanding)
            assert made.refund(given_back) == given_back
            outstanding -= given_back
            taken.append((made.refilled_ms, -given_back))
        assert 0 <= made.level <= made.top
        assert made.debited - made.refunded == outstanding
    for start in range(len(taken)):
        net = 0
        for moment, size in taken[start:]:
            net += size
            elapsed = moment - taken[start][0]
            assert net * scale(per) <= capacity * scale(per) + amount * elapsed


@given(
    amount=st.integers(1, 10**6),
    per=st.sampled_from([1, 60, 3600]),
    capacity=st.integers(1, 10**6),
    used=st.integers(0, 3 * 10**6),
    wanted=st.integers(0, 10**6),
)
def test_the_wait_is_exact(amount: int, per: int, capacity: int, used: int, wanted: int) -> None:
    made = Bucket.full(amount, per, capacity, 0)
    made.force(used)
    wait = made.wait_ms(wanted)
    if wanted > capacity:
        assert wait is None
        return
    assert wait is not None
    if wait:
        made.refill(wait - 1)
        assert not made.holds(wanted)
    made.refill(wait)
    assert made.holds(wanted)
    made.refill(wait + made.full_in_ms())
    assert made.level == made.top
