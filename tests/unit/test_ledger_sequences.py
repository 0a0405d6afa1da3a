from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from almoner_ledger.sequences import RANGES_MAX, Sequences, TooManyGapsError


@given(st.lists(st.integers(1, 60)))
def test_any_order_gives_the_same_set(numbers: list[int]) -> None:
    came = Sequences()
    for number in numbers:
        came = came.add(number)
    expected = set(numbers)
    contiguous = next(n for n in range(62) if n + 1 not in expected)
    assert came.contiguous == contiguous
    assert came.highest == max(expected, default=0)
    assert {n for n in range(1, 62) if n in came} == expected
    assert all(low <= high for low, high in came.ahead)
    assert all(a[1] + 1 < b[0] for a, b in zip(came.ahead, came.ahead[1:], strict=False))


def test_gaps_are_bounded() -> None:
    came = Sequences(0, tuple((n * 2, n * 2) for n in range(1, RANGES_MAX + 1)))
    assert 3 not in came
    assert came.add(3).contiguous == 0
    with pytest.raises(TooManyGapsError, match="gaps"):
        came.add(2 * RANGES_MAX + 10)
