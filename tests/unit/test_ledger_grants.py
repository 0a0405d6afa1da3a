from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from almoner_core.wire import Dimension
from almoner_ledger.grants import CHUNK_DIVISOR, RefusedError, Room, decide, size

USD, TOKENS = Dimension.USD, Dimension.TOKENS
AMOUNT = st.integers(0, 10**15)


def room(limit: int | None, spent: int = 0, reserved: int = 0, **more: object) -> Room:
    return Room(account="team/quota", dimension=USD, limit=limit, spent=spent, reserved=reserved, **more)  # type: ignore[arg-type]


rooms = st.lists(
    st.builds(
        Room,
        account=st.sampled_from(["a", "b", "execution"]),
        dimension=st.sampled_from(Dimension),
        limit=st.none() | AMOUNT,
        spent=AMOUNT,
        reserved=AMOUNT,
        holders=st.integers(0, 300),
    ),
    max_size=6,
)
amounts = st.dictionaries(st.sampled_from(Dimension), AMOUNT)


@given(rooms, amounts, amounts)
def test_a_grant_fits_on_every_account_and_covers_the_need(
    found: list[Room], need: dict[Dimension, int], want: dict[Dimension, int]
) -> None:
    limited = {each.dimension for each in found if each.limit is not None}
    try:
        granted = decide(found, need, want)
    except RefusedError as refused:
        dimension = refused.refusal.dimension
        left = [each.available for each in found if each.dimension is dimension and each.available is not None]
        assert need[dimension] > min(left)
        return
    assert set(granted) == limited & (set(need) | set(want))
    for each in found:
        if each.available is not None and each.dimension in granted:
            amount = granted[each.dimension]
            assert amount <= each.available
            assert amount >= need.get(each.dimension, 0)
            if amount > need.get(each.dimension, 0):
                assert amount <= want.get(each.dimension, 0)
                assert amount * CHUNK_DIVISOR * max(1, each.holders) <= each.available


@given(AMOUNT, AMOUNT, AMOUNT, st.integers(0, 1000))
def test_one_grant_is_need_or_a_small_part_of_what_is_left(need: int, want: int, left: int, holders: int) -> None:
    amount = size(need, want, left, holders)
    assert need <= amount <= max(need, want)


def test_two_hundred_holders_leave_less_than_one_percent_idle() -> None:
    """Peer failure: worst-case holds starve a budget of which nothing is spent (BerriAI/litellm 38647)."""
    left = 1_000 * 10**9
    handed_out = 0
    for _ in range(200):
        handed_out += decide([room(left + handed_out, reserved=handed_out, holders=200)], {}, {USD: 10**15})[USD]
    assert handed_out * 100 < left


def test_what_does_not_fit_is_refused_with_where_how_much_and_when() -> None:
    with pytest.raises(RefusedError) as caught:
        decide([room(100, spent=40, reserved=30, ends_in_seconds=60), room(1000)], {USD: 31}, {})
    refusal = caught.value.refusal
    assert (refusal.limit, refusal.spent, refusal.reserved, refusal.needed) == (100, 40, 30, 31)
    assert refusal.retry_after_seconds == 60
    assert refusal.may_free_up


def test_waiting_is_not_advised_where_it_is_vain() -> None:
    with pytest.raises(RefusedError) as caught:
        decide([room(100, reserved=50, ends_in_seconds=60)], {USD: 101}, {})
    assert caught.value.refusal.retry_after_seconds is None
    assert not caught.value.refusal.may_free_up
    with pytest.raises(RefusedError) as caught:
        decide([room(100, reserved=50, own=50)], {USD: 51}, {})
    assert not caught.value.refusal.may_free_up


def test_one_dimension_without_room_refuses_the_others_too() -> None:
    tokens = Room(account="execution", dimension=TOKENS, limit=10, spent=10, reserved=0)
    with pytest.raises(RefusedError) as caught:
        decide([room(1000), tokens], {USD: 1, TOKENS: 1}, {})
    assert caught.value.refusal.account == "execution"


def test_what_nobody_limits_is_not_granted() -> None:
    assert decide([room(None)], {USD: 5, TOKENS: 3}, {USD: 9}) == {}
