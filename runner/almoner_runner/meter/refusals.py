"""Refusals: what the meter says where it does not make a call."""

from __future__ import annotations

from typing import Final

NANOS_PER_DOLLAR: Final = 10**9


def kind(dimension: str) -> str:
    """Give a dimension's name for people."""
    return "money" if dimension == "usd" else dimension.replace("_", " ")


def amount(dimension: str, value: int) -> str:
    """Give an amount for people: money, which comes in nano-dollars, in dollars.

    As core's `Money` writes it, which brings pydantic along; the meter starts without.
    """
    if dimension != "usd":
        return str(value)
    whole, nanos = divmod(value, NANOS_PER_DOLLAR)
    return f"${whole}.{f'{nanos:09d}'.rstrip('0').ljust(2, '0')}"


class RefusedError(Exception):
    """A call that the meter does not make. `code` names the reason for programs, the message says what to do."""

    def __init__(
        self, status: int, code: str, message: str, *, retry_after: int | None = None, param: str | None = None
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message
        self.retry_after = retry_after
        self.param = param


class InvalidCallError(RefusedError):
    """A request that cannot be read, or has a field that the meter does not let through."""

    def __init__(self, message: str, *, code: str = "invalid_request", param: str | None = None) -> None:
        super().__init__(400, code, message, param=param)
