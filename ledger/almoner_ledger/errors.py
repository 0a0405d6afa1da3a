"""Errors of the ledger, by the names that the wire protocol gives them."""

from __future__ import annotations

from typing import Final

from almoner_core.wire import Error, ErrorCode, Refusal

HTTP_STATUS: Final = {
    ErrorCode.INVALID: 400,
    ErrorCode.UNAUTHENTICATED: 401,
    ErrorCode.FORBIDDEN: 403,
    ErrorCode.INSECURE: 403,
    ErrorCode.NOT_FOUND: 404,
    ErrorCode.TOO_LARGE: 413,
    ErrorCode.UNAVAILABLE: 503,
}
CONFLICT_STATUS: Final = 409


class LedgerError(Exception):
    """A refusal by name. `field` names what to correct; `refusal` says which account had no room.

    `retry_after_seconds` goes with `leased`.
    """

    def __init__(
        self,
        code: ErrorCode,
        message: str,
        *,
        field: str | None = None,
        refusal: Refusal | None = None,
        retry_after_seconds: int | None = None,
    ) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.field = field
        self.refusal = refusal
        self.retry_after_seconds = retry_after_seconds

    @property
    def status(self) -> int:
        """The HTTP status that fits."""
        return HTTP_STATUS.get(self.code, CONFLICT_STATUS)

    def to_wire(self) -> Error:
        """The error as the wire has it."""
        return Error(
            code=self.code,
            message=self.message[:1024],
            field=self.field,
            refusal=self.refusal,
            retry_after_seconds=self.retry_after_seconds,
        )


def invalid(field: str, message: str) -> LedgerError:
    """An error about one field of a request."""
    return LedgerError(ErrorCode.INVALID, f"{field}: {message}", field=field)
