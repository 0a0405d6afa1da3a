"""Errors of the operator's shell, named by what the caller should do."""

from __future__ import annotations

from typing import Any


class ApiError(Exception):
    """The API server refused: `status` and `reason` are its own, the message is for a person."""

    def __init__(self, status: int, reason: str, message: str, details: dict[str, Any] | None = None) -> None:
        super().__init__(f"{message} ({status} {reason})")
        self.status = status
        self.reason = reason
        self.message = message
        self.details = details or {}


class NotFoundError(ApiError):
    """There is no such object: forget it."""


class AlreadyExistsError(ApiError):
    """There is one of that name: look whose it is."""


class ConflictError(ApiError):
    """The object changed, or another of that name took its place: read it again, decide again."""


class InvalidError(ApiError):
    """The API server cannot use what was sent: sending it again is vain."""


class ForbiddenError(ApiError):
    """The service account may not do this, or an admission policy or core quota refused: not now, perhaps later."""


class UnavailableError(ApiError):
    """The API server did not answer in spite of retries: later."""


class LedgerError(Exception):
    """The ledger refused: `code` is wire.ErrorCode's value."""

    def __init__(
        self,
        code: str,
        message: str,
        *,
        refusal: Any = None,
        field: str | None = None,
        retry_after_seconds: int | None = None,
    ) -> None:
        super().__init__(f"{message} ({code})")
        self.code = code
        self.message = message
        self.refusal = refusal
        self.field = field
        self.retry_after_seconds = retry_after_seconds


class LedgerUnavailableError(LedgerError):
    """The ledger did not answer in spite of retries: nothing may be spent until it does."""


class LeadershipLostError(Exception):
    """Another operator leads: end this process at once, without another write."""


def fix_of(error: ApiError | LedgerError) -> str:
    """Give what a person can do about an error at the start, to follow its message; empty where that says it."""
    if isinstance(error, ForbiddenError):
        return ": apply the roles of this version (deploy/rbac.yaml); `almoner check` names every right that is missing"
    if isinstance(error, LedgerUnavailableError):
        return ": see that the ledger's pods are ready, and that no NetworkPolicy stands between"
    return ""
