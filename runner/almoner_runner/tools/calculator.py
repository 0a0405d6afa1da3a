"""The calculator: exact decimal arithmetic for models, which are poor at it.

Role: add, subtract, multiply, divide, power, sqrt, percent on decimals. Boundary: no expressions, no eval. Why bounded
everywhere (digits of the operands, precision, exponents): one call must take microseconds whatever the model asks for.
"""

from __future__ import annotations

import decimal
from decimal import Decimal
from typing import Any, ClassVar, Final

from almoner_core.agent_checks import calculator_precision
from almoner_runner.tools.base import ToolConfigError
from almoner_runner.tools.errors import ToolError, ToolErrorCode

OPERAND_CHARS_MAX: Final = 128
EXPONENT_MAX: Final = 9999  # of ten, of operands and results
POWER_MAX: Final = 10_000  # absolute value of the second operand of power
UNARY: Final = frozenset({"sqrt"})
# Wide enough for every operand that is let in: moving the point rounds nothing.
_WIDE: Final = decimal.Context(prec=2 * OPERAND_CHARS_MAX, Emin=-2 * EXPONENT_MAX, Emax=2 * EXPONENT_MAX)


class Calculator:
    """Settings: `precision`, significant digits of a result, 1 to 100, default 28."""

    name: ClassVar[str] = "calculator"
    description: ClassVar[str] = (
        "Exact decimal arithmetic. operation: add (a+b), subtract (a-b), multiply (a*b), divide (a/b), "
        "power (a to the b), sqrt (square root of a), percent (a percent of b)."
    )
    input_schema: ClassVar[dict[str, Any]] = {
        "type": "object",
        "properties": {
            "operation": {
                "type": "string",
                "enum": ["add", "subtract", "multiply", "divide", "power", "sqrt", "percent"],
            },
            "a": {"type": ["number", "string"], "description": "First operand; a string keeps every decimal."},
            "b": {"type": ["number", "string"], "description": "Second operand; none for sqrt."},
        },
        "required": ["operation", "a"],
        "additionalProperties": False,
    }

    def __init__(self, config: dict[str, Any]) -> None:
        try:
            self._precision = calculator_precision(config)
        except ValueError as error:
            raise ToolConfigError(str(error)) from error

    def run(self, arguments: dict[str, Any]) -> dict[str, Any]:
        """Give `success`, `result` (a decimal string) and `exact` (whether nothing was rounded). Raises ToolError."""
        operation = arguments["operation"]
        left = _operand("a", arguments["a"])
        right = _second_operand(operation, arguments)
        context = decimal.Context(
            prec=self._precision,
            rounding=decimal.ROUND_HALF_EVEN,
            Emin=-EXPONENT_MAX,
            Emax=EXPONENT_MAX,
            traps=[decimal.InvalidOperation, decimal.DivisionByZero, decimal.Overflow],
        )
        try:
            result = _calculate(context, operation, left, right)
        except decimal.DivisionByZero as error:
            raise _invalid("division by zero: b must not be 0") from error
        except decimal.Overflow as error:
            raise _invalid(f"the result is larger than 10 to the {EXPONENT_MAX}") from error
        except decimal.InvalidOperation as error:
            raise _invalid(f"{operation} is not defined for these operands") from error
        exact = not (context.flags[decimal.Inexact] or context.flags[decimal.Underflow])
        return {"success": True, "result": _write(result, self._precision), "exact": exact}


def _calculate(context: decimal.Context, operation: str, left: Decimal, right: Decimal) -> Decimal:
    match operation:
        case "add":
            return context.add(left, right)
        case "subtract":
            return context.subtract(left, right)
        case "multiply":
            return context.multiply(left, right)
        case "divide":
            if right.is_zero():  # 0/0 too: to a model both are the same mistake
                raise decimal.DivisionByZero
            return context.divide(left, right)
        case "percent":
            return context.multiply(left.scaleb(-2, _WIDE), right)
        case "sqrt":
            if left < 0:
                raise _invalid("a must not be negative: its square root is no real number")
            return context.sqrt(left)
        case "power":
            return _power(context, left, right)
        case _:  # pragma: no cover - the schema's enum comes first
            raise _invalid(f"unknown operation {operation!r}")


def _power(context: decimal.Context, base: Decimal, exponent: Decimal) -> Decimal:
    if abs(exponent) > POWER_MAX:
        raise _invalid(f"b must lie between -{POWER_MAX} and {POWER_MAX} for power")
    if base.is_zero():
        if exponent < 0:
            raise decimal.DivisionByZero
        if exponent.is_zero():
            raise _invalid("0 to the 0 is not defined")
    if base < 0 and exponent != exponent.to_integral_value():
        raise _invalid("a negative a needs a whole b for power: the result is no real number")
    return context.power(base, exponent)


def _second_operand(operation: str, arguments: dict[str, Any]) -> Decimal:
    if operation in UNARY:
        if "b" in arguments:
            raise _invalid(f"{operation} takes no b")
        return Decimal(0)
    if "b" not in arguments:
        raise _invalid(f"{operation} needs b")
    return _operand("b", arguments["b"])


def _operand(name: str, value: Any) -> Decimal:
    text = str(value).strip() if not isinstance(value, int) else _integer_text(name, value)
    if len(text) > OPERAND_CHARS_MAX:
        raise _invalid(f"{name} is longer than {OPERAND_CHARS_MAX} characters")
    try:
        number = Decimal(text)
    except decimal.InvalidOperation as error:
        raise _invalid(f"{name} is not a decimal number: {text[:40]!r}") from error
    if not number.is_finite():
        raise _invalid(f"{name} must be finite, not {text[:40]!r}")
    if number and abs(number.adjusted()) > EXPONENT_MAX:
        raise _invalid(f"{name} lies outside 10 to the plus or minus {EXPONENT_MAX}")
    return number or Decimal(0)


def _integer_text(name: str, value: int) -> str:
    # Before str(): turning a huge integer into digits is what takes long. Four bits are more than one digit.
    if value.bit_length() > OPERAND_CHARS_MAX * 4:
        raise _invalid(f"{name} is longer than {OPERAND_CHARS_MAX} characters")
    return str(value)


def _write(number: Decimal, precision: int) -> str:
    """Write without trailing zeros; plainly where that is short, with an exponent where it is not."""
    if number.is_zero():
        return "0"
    if -precision <= number.adjusted() <= precision:
        text = format(number, "f")
        return text.rstrip("0").rstrip(".") if "." in text else text
    digits = number.as_tuple().digits
    text = "".join(map(str, digits)).rstrip("0")
    mantissa = text[0] + (f".{text[1:]}" if len(text) > 1 else "")
    return f"{'-' if number < 0 else ''}{mantissa}E{number.adjusted():+d}"


def _invalid(message: str) -> ToolError:
    return ToolError(ToolErrorCode.TOOL_INPUT_INVALID, message)
