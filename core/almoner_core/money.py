"""Money: US dollars as an integer number of nano-dollars, in a type.

Nobody adds raw numbers: `Money` adds to `Money` only. Floats are refused at the door, because a price such as 0.1 has
no exact float. Parsing accepts what the API accepts: an integer of dollars or a decimal string with at most nine
fractional digits (a Kubernetes quantity without a suffix, so that CEL's `quantity()` reads the same value).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Final

from pydantic import GetCoreSchemaHandler, GetJsonSchemaHandler
from pydantic_core import CoreSchema, core_schema

NANOS_PER_DOLLAR: Final = 1_000_000_000
# Nine digits of dollars and nine of nano-dollars fit a BIGINT with a factor of nine to spare.
MONEY_PATTERN: Final = r"^(0|[1-9][0-9]{0,8})(\.[0-9]{1,9})?$"
MONEY_NANOS_MAX: Final = 999_999_999 * NANOS_PER_DOLLAR + 999_999_999
_MONEY_RE: Final = re.compile(MONEY_PATTERN)


@dataclass(frozen=True, slots=True, order=True)
class Money:
    """An exact amount of US dollars. `nanos` may be negative (a remainder may be), parsed amounts may not."""

    nanos: int

    def __post_init__(self) -> None:
        if type(self.nanos) is not int:
            raise TypeError(f"Money takes an integer number of nano-dollars, not {type(self.nanos).__name__}")

    @classmethod
    def parse(cls, value: str | int | Money) -> Money:
        """Read an amount of dollars. Raises ValueError for floats, signs, exponents and more than nine decimals."""
        if isinstance(value, Money):
            return value
        if isinstance(value, bool) or not isinstance(value, (str, int)):
            raise ValueError(f"money must be a string such as '12.50' or an integer, not {type(value).__name__}")  # noqa: TRY004 - pydantic reports ValueError as a validation error
        text = str(value)
        if not _MONEY_RE.fullmatch(text):
            raise ValueError(
                f"{text[:40]!r} is not an amount of US dollars: write it as '12.50', not negative, "
                "at most 999999999, with at most 9 decimals"
            )
        whole, _, fraction = text.partition(".")
        return cls(int(whole) * NANOS_PER_DOLLAR + int(fraction.ljust(9, "0") or "0"))

    @classmethod
    def zero(cls) -> Money:
        """No money at all (which is not the same as an unknown amount: that is None)."""
        return cls(0)

    def __add__(self, other: Money) -> Money:
        if not isinstance(other, Money):
            return NotImplemented
        return Money(self.nanos + other.nanos)

    def __sub__(self, other: Money) -> Money:
        if not isinstance(other, Money):
            return NotImplemented
        return Money(self.nanos - other.nanos)

    def __neg__(self) -> Money:
        return Money(-self.nanos)

    def __bool__(self) -> bool:
        return self.nanos != 0

    def __str__(self) -> str:
        """Give the exact decimal, at least two fractional digits, no trailing zeros beyond them: `0.50`, `0.000012`."""
        sign = "-" if self.nanos < 0 else ""
        whole, nanos = divmod(abs(self.nanos), NANOS_PER_DOLLAR)
        fraction = f"{nanos:09d}".rstrip("0").ljust(2, "0")
        return f"{sign}{whole}.{fraction}"

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_plain_validator_function(
            cls.parse, serialization=core_schema.plain_serializer_function_ser_schema(str)
        )

    @classmethod
    def __get_pydantic_json_schema__(cls, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        return {"x-kubernetes-int-or-string": True, "pattern": MONEY_PATTERN, "minimum": 0, "maximum": 999_999_999}
