"""Kubernetes quantities as exact integers of their smallest unit that Almoner counts.

cpu is counted in millicores, memory and storage in bytes, gpu in whole devices. The grammar is Kubernetes' own
(apimachinery's resource.Quantity): a decimal, then a binary suffix, a decimal suffix or an exponent.
"""

from __future__ import annotations

import re
from decimal import ROUND_CEILING, Context, Decimal
from typing import Final

QUANTITY_PATTERN: Final = r"^(([0-9]{1,15}(\.[0-9]{0,9})?)|(\.[0-9]{1,9}))([KMGTPE]i|[numkMGTPE]|[eE][0-9]{1,2})?$"
_QUANTITY_RE: Final = re.compile(
    r"^(?P<number>[0-9]{1,15}(?:\.[0-9]{0,9})?|\.[0-9]{1,9})(?P<suffix>[KMGTPE]i|[numkMGTPE]|[eE][0-9]{1,2})?$"
)
# The largest product has 24 + 19 digits; Python's own context would round it to 28.
_EXACT: Final = Context(prec=64)
_BINARY: Final = {f"{letter}i": Decimal(1024**power) for power, letter in enumerate("KMGTPE", start=1)}
_DECIMAL: Final = {
    "": Decimal(1),
    "n": Decimal("1e-9"),
    "u": Decimal("1e-6"),
    "m": Decimal("1e-3"),
    "k": Decimal("1e3"),
    "M": Decimal("1e6"),
    "G": Decimal("1e9"),
    "T": Decimal("1e12"),
    "P": Decimal("1e15"),
    "E": Decimal("1e18"),
}


def parse_quantity(value: str | int) -> Decimal:
    """Read a Kubernetes quantity exactly. Raises ValueError naming the text for anything else, negatives included."""
    text = str(value)
    match = _QUANTITY_RE.fullmatch(text)
    if match is None or isinstance(value, bool) or not isinstance(value, (str, int)):
        raise ValueError(f"{text[:40]!r} is not a quantity: write it as '500m', '2' or '1.5Gi'")
    number = Decimal(match["number"])
    suffix = match["suffix"] or ""
    factor = _BINARY.get(suffix) or _DECIMAL.get(suffix)
    if factor is None:
        factor = Decimal(f"1e{suffix[1:]}")
    return _EXACT.multiply(number, factor)


def millicores(value: str | int) -> int:
    """Give cpu in thousandths of a core, rounded up as the kubelet does."""
    return int(_EXACT.multiply(parse_quantity(value), Decimal(1000)).to_integral_value(ROUND_CEILING))


def whole(value: str | int) -> int:
    """Give bytes or devices, rounded up to a whole one."""
    return int(parse_quantity(value).to_integral_value(ROUND_CEILING))


def format_millicores(amount: int) -> str:
    """Write millicores as people do: `2` for 2000, `1500m` for 1500."""
    return str(amount // 1000) if amount % 1000 == 0 else f"{amount}m"


def format_bytes(amount: int) -> str:
    """Write bytes with the largest binary suffix that divides them exactly."""
    for suffix, power in (("Ti", 4), ("Gi", 3), ("Mi", 2), ("Ki", 1)):
        if amount and amount % 1024**power == 0:
            return f"{amount // 1024**power}{suffix}"
    return str(amount)
