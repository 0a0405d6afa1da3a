from __future__ import annotations

import re
from fractions import Fraction
from math import ceil
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from almoner_core.quantity import QUANTITY_PATTERN, format_bytes, format_millicores, millicores, parse_quantity, whole

FACTORS = {
    "": Fraction(1), "n": Fraction(10) ** -9, "u": Fraction(10) ** -6, "m": Fraction(10) ** -3, "k": Fraction(10) ** 3,
    "M": Fraction(10) ** 6, "G": Fraction(10) ** 9, "T": Fraction(10) ** 12, "P": Fraction(10) ** 15,
    "E": Fraction(10) ** 18, "Ki": Fraction(2) ** 10, "Mi": Fraction(2) ** 20, "Gi": Fraction(2) ** 30,
    "Ti": Fraction(2) ** 40, "Pi": Fraction(2) ** 50, "Ei": Fraction(2) ** 60, "e3": Fraction(1000),
    "E2": Fraction(100),
}  # fmt: skip
numbers = st.one_of(
    st.integers(min_value=0, max_value=10**15 - 1).map(str),
    st.builds(
        "{}.{}".format, st.integers(min_value=0, max_value=10**15 - 1), st.text(alphabet="0123456789", max_size=9)
    ),
    st.text(alphabet="0123456789", min_size=1, max_size=9).map(".{}".format),
)


@given(numbers, st.sampled_from(sorted(FACTORS)))
@example("1.", "")
@example("999999999999999.999999999", "Ei")
def test_parsing_is_exact(number: str, suffix: str) -> None:
    text = number + suffix
    exact = Fraction(number.removesuffix(".")) * FACTORS[suffix]
    assert Fraction(parse_quantity(text)) == exact
    assert whole(text) == ceil(exact)
    assert millicores(text) == ceil(exact * 1000)
    assert re.fullmatch(QUANTITY_PATTERN, text)


@given(st.integers(min_value=0, max_value=10**15 - 1))
def test_what_is_written_reads_back_the_same(amount: int) -> None:
    assert parse_quantity(amount) == amount
    assert whole(format_bytes(amount)) == amount
    assert millicores(format_millicores(amount)) == amount


@pytest.mark.parametrize(
    "value",
    ["", " 1", "1 ", "-1", "+1", "1.5.2", "1 Gi", "1gi", "1K", "1GiB", "lots", "0x1", "1e", "1e100", "1m1", "\u0661",
     "1\n", ".", "Gi", True, 0.5, -1, None, "1" * 16],
)  # fmt: skip
def test_what_is_no_quantity_is_refused(value: Any) -> None:
    with pytest.raises(ValueError, match="is not a quantity"):
        parse_quantity(value)


FORMATS = {"0": 0, "1": 1, "1000": 1000, "1Ki": 1024, "1536Ki": 1536 * 1024, "2Gi": 2 * 1024**3, "1Ti": 1024**4}


@pytest.mark.parametrize("text", FORMATS)
def test_bytes_are_written_as_people_do(text: str) -> None:
    assert format_bytes(FORMATS[text]) == text


def test_millicores_are_written_as_people_do_and_rounded_up() -> None:
    assert [format_millicores(each) for each in (0, 1, 500, 1000, 1500, 2000)] == ["0", "1m", "500m", "1", "1500m", "2"]
    assert millicores("0.0001") == 1
    assert whole("1.1") == 2
    assert whole("1u") == 1
