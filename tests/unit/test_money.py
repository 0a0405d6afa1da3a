from __future__ import annotations

from decimal import Decimal
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError

from almoner_core.money import MONEY_NANOS_MAX, NANOS_PER_DOLLAR, Money

amounts = st.integers(min_value=0, max_value=MONEY_NANOS_MAX).map(Money)
any_amounts = st.integers().map(Money)


class Priced(BaseModel):
    price: Money


@given(amounts)
@example(Money(0))
@example(Money(1))
@example(Money(MONEY_NANOS_MAX))
def test_what_is_written_reads_back_the_same(amount: Money) -> None:
    assert Money.parse(str(amount)) == amount
    assert Priced(price=amount).model_dump(mode="json") == {"price": str(amount)}
    assert Priced.model_validate_json(f'{{"price": "{amount}"}}').price == amount


@given(any_amounts)
def test_writing_is_exact(amount: Money) -> None:
    text = str(amount)
    assert Fraction(text) == Fraction(amount.nanos, NANOS_PER_DOLLAR)
    assert "e" not in text.lower()
    assert len(text.partition(".")[2]) >= 2


@given(st.integers(min_value=0, max_value=999_999_999), st.text(alphabet="0123456789", max_size=9))
def test_reading_is_exact(whole: int, fraction: str) -> None:
    text = f"{whole}.{fraction}" if fraction else str(whole)
    assert Money.parse(text).nanos == int(Decimal(text) * NANOS_PER_DOLLAR)
    assert type(Money.parse(text).nanos) is int
    assert Money.parse(whole) == Money(whole * NANOS_PER_DOLLAR)


@given(any_amounts, any_amounts)
def test_arithmetic_is_that_of_integers(a: Money, b: Money) -> None:
    assert (a + b).nanos == a.nanos + b.nanos
    assert a - b == a + -b
    assert a + b - b == a
    assert (a < b) == (a.nanos < b.nanos)
    assert bool(a) == (a != Money.zero())


@given(st.floats())
@example(0.1)
@example(1.0)
def test_floats_are_refused_everywhere(value: float) -> None:
    with pytest.raises(ValueError, match="not float"):
        Money.parse(value)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="not float"):
        Money(value)  # type: ignore[arg-type]
    with pytest.raises(ValidationError):
        Priced.model_validate({"price": value})
    for operation in ("__add__", "__sub__"):
        assert getattr(Money(1), operation)(value) is NotImplemented


@pytest.mark.parametrize(
    "value",
    [
        "", " 1", "1 ", "-1", "+1", "-0", "01", "1.", ".5", "1e3", "1_000", "1,5", "0x1", "NaN", "inf", "1000000000",
        "0.0000000001", "1.5\n", "\u0661", "$1", "5k", -1, 1_000_000_000, True, None, Decimal("1.5"), [], b"1",
    ],
)  # fmt: skip
def test_what_is_no_amount_is_refused(value: Any) -> None:
    with pytest.raises(ValueError, match=r"money|amount"):
        Money.parse(value)


def test_raw_numbers_do_not_mix() -> None:
    for operand in (1, Decimal(1), True):
        with pytest.raises(TypeError):
            Money(1) + operand  # type: ignore[operator]
        assert Money(1) != operand
