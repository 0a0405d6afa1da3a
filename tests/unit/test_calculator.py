from __future__ import annotations

import re
import time
from decimal import Decimal
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from almoner_core.api.agent import Tool
from almoner_core.json_schema import Schema
from almoner_runner.tools.base import ToolConfigError
from almoner_runner.tools.calculator import Calculator
from almoner_runner.tools.errors import ToolError, ToolErrorCode
from almoner_runner.tools.registry import build, known_names

CALL_SECONDS_MAX = 1.0


def calculate(operation: str, a: Any, b: Any = None, **config: Any) -> dict[str, Any]:
    arguments = {"operation": operation, "a": a} | ({} if b is None else {"b": b})
    assert Schema(Calculator.input_schema).problems(arguments) == []
    return Calculator(config).run(arguments)


@pytest.mark.parametrize(
    ("operation", "a", "b", "result", "exact"),
    [
        ("add", "0.1", "0.2", "0.3", True),
        ("add", 0.1, 0.2, "0.3", True),
        ("add", -5, 5, "0", True),
        ("subtract", 10, "0.01", "9.99", True),
        ("multiply", "1.10", "1.10", "1.21", True),
        ("multiply", 100, 10, "1000", True),
        ("divide", 1, 3, "0.3333333333333333333333333333", False),
        ("divide", 2, -8, "-0.25", True),
        ("divide", 0, 7, "0", True),
        ("power", 2, 100, "1.267650600228229401496703205E+30", False),
        ("power", 2, 64, "18446744073709551616", True),
        ("power", 2, -2, "0.25", True),
        ("power", -3, 3, "-27", True),
        ("power", 0, 3, "0", True),
        ("power", 10, 400, "1E+400", True),
        ("sqrt", 144, None, "12", True),
        ("sqrt", 2, None, "1.414213562373095048801688724", False),
        ("sqrt", 0, None, "0", True),
        ("percent", 15, 200, "30", True),
        ("percent", "7.5", "19.99", "1.49925", True),
        ("percent", 0, 5, "0", True),
        ("add", "1e5000", 0, "1E+5000", True),
        ("add", " 7 ", 1, "8", True),
    ],
)
def test_results(operation: str, a: Any, b: Any, result: str, exact: bool) -> None:
    assert calculate(operation, a, b) == {"success": True, "result": result, "exact": exact}


@pytest.mark.parametrize(
    ("operation", "a", "b", "says"),
    [
        ("divide", 1, 0, "b must not be 0"),
        ("divide", 0, 0, "b must not be 0"),
        ("power", 0, -1, "b must not be 0"),
        ("power", 0, 0, "0 to the 0"),
        ("power", -8, "0.5", "whole b"),
        ("power", 2, 10_001, "between -10000 and 10000"),
        ("power", 2, "1e9000", "between -10000 and 10000"),
        ("power", "1e5000", 3, "larger than 10 to the 9999"),
        ("multiply", "9e9999", 10, "larger than 10 to the 9999"),
        ("sqrt", -1, None, "a must not be negative"),
        ("sqrt", 4, 2, "sqrt takes no b"),
        ("add", 1, None, "add needs b"),
        ("add", "one", 2, "a is not a decimal number"),
        ("add", 1, "", "b is not a decimal number"),
        ("add", "NaN", 2, "a must be finite"),
        ("add", "-Infinity", 2, "a must be finite"),
        ("add", "1e10000", 2, "a lies outside"),
        ("add", "1e-10000", 2, "a lies outside"),
        ("add", "1" * 129, 2, "a is longer than 128"),
        pytest.param("add", 10**5000, 2, "a is longer than 128", id="huge integer"),
    ],
)
def test_refusals_name_the_operand(operation: str, a: Any, b: Any, says: str) -> None:
    with pytest.raises(ToolError, match=re.escape(says)) as caught:
        calculate(operation, a, b)
    assert caught.value.code is ToolErrorCode.TOOL_INPUT_INVALID


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"operation": "add"},
        {"operation": "modulo", "a": 1, "b": 2},
        {"operation": "add", "a": None, "b": 2},
        {"operation": "add", "a": 1, "b": 2, "c": 3},
        {"operation": "add", "a": [1], "b": 2},
        {"operation": "add", "a": True, "b": 2},
    ],
)
def test_the_schema_refuses(arguments: dict[str, Any]) -> None:
    assert Schema(Calculator.input_schema).problems(arguments)


def test_precision_is_configured_and_bounded() -> None:
    assert calculate("divide", 1, 3, precision=5)["result"] == "0.33333"
    assert len(calculate("divide", 1, 3, precision=100)["result"]) == 102
    for bad in (0, 101, "28", 2.5, True):
        with pytest.raises(ToolConfigError, match="precision must be an integer from 1 to 100"):
            Calculator({"precision": bad})
    with pytest.raises(ToolConfigError, match="unknown setting 'digits'"):
        Calculator({"digits": 3})


operands = st.decimals(allow_nan=False, allow_infinity=False, min_value=-(10**12), max_value=10**12, places=6)


@given(operands, operands)
def test_small_sums_and_products_are_exact(a: Decimal, b: Decimal) -> None:
    for operation, expected in (
        ("add", Fraction(a) + Fraction(b)),
        ("subtract", Fraction(a) - Fraction(b)),
        ("multiply", Fraction(a) * Fraction(b)),
        ("percent", Fraction(a) * Fraction(b) / 100),
    ):
        answer = calculate(operation, str(a), str(b), precision=60)
        assert answer["exact"] is True
        assert Fraction(answer["result"]) == expected


@given(operands, operands)
def test_rounded_results_are_within_half_a_unit_of_the_last_place(a: Decimal, b: Decimal) -> None:
    answer = calculate("divide", str(a), str(b or 1), precision=12)
    expected = Fraction(a) / Fraction(b or 1)
    assert abs(Fraction(answer["result"]) - expected) <= abs(expected) * Fraction(1, 2 * 10**11)
    assert answer["exact"] is (Fraction(answer["result"]) == expected)


@given(
    st.sampled_from(Calculator.input_schema["properties"]["operation"]["enum"]),
    st.one_of(st.integers(), st.floats(), st.text(max_size=140), st.decimals().map(str)),
    st.one_of(st.none(), st.integers(), st.floats(), st.text(max_size=140), st.decimals().map(str)),
)
def test_whatever_is_asked_gets_a_short_answer_or_a_named_error_soon(operation: str, a: Any, b: Any) -> None:
    began = time.monotonic()
    try:
        answer = Calculator({"precision": 100}).run({"operation": operation, "a": a} | ({} if b is None else {"b": b}))
    except ToolError as error:
        assert error.code is ToolErrorCode.TOOL_INPUT_INVALID  # noqa: PT017 - an answer will do as well
    else:
        assert len(answer["result"]) <= 210
        assert Decimal(answer["result"]).is_finite()
    assert time.monotonic() - began < CALL_SECONDS_MAX


@pytest.mark.parametrize(
    ("a", "b"), [("9.99e2000", "4.9999"), ("1.0000000001", "9999.99999"), ("1e-9999", "0.0001"), ("7", "-9999.5")]
)
def test_the_heaviest_powers_take_no_time(a: str, b: str) -> None:
    began = time.monotonic()
    try:
        answer = calculate("power", a, b, precision=100)
    except ToolError as error:
        assert "larger than" in str(error)  # noqa: PT017 - either answer will do, slowness will not
    else:
        assert Decimal(answer["result"]) >= 0
    assert time.monotonic() - began < CALL_SECONDS_MAX


def test_an_unknown_tool_is_refused_with_the_list_of_known_ones() -> None:
    assert known_names() == ["calculator"]
    with pytest.raises(ToolError, match="no tool named 'abacus'; this version has: calculator") as caught:
        build([Tool(name="calculator"), Tool(name="abacus")])
    assert caught.value.code is ToolErrorCode.TOOL_NOT_FOUND


def test_the_registry_hands_over_the_settings() -> None:
    ((manifest, tool),) = build([Tool(name="calculator", config={"precision": 3}, timeout_seconds=5)])
    assert manifest.timeout_seconds == 5
    assert tool.run({"operation": "divide", "a": 2, "b": 3})["result"] == "0.667"
