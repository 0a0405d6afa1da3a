"""The ledger's client: one exchange at a time, JSON by hand, every failure by name.

Speaks almoner_core.wire without importing it (pydantic is heavy); a test reads every message with those models. The
token file is read again when it changed, since the kubelet rotates it. Retries are the caller's business: who retries a
mutation sends the same operation id and content again.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

import aiohttp

ANSWER_BYTES_MAX: Final = 1024 * 1024
BODY_BYTES_MAX: Final = 2 * 1024 * 1024
EXCHANGE_SECONDS_MAX: Final = 10.0
SIGNALS_SECONDS: Final = 20


class LedgerError(Exception):
    """The ledger said no; `code` is a wire.ErrorCode, `refusal` a wire.Refusal where an account had no room.

    `field` names what was wrong in the request; empty: all of it.
    """

    def __init__(self, code: str, message: str, refusal: dict[str, Any] | None = None, field: str = "") -> None:
        super().__init__(f"{code}: {message}")
        self.field = field
        self.code = code
        self.message = message
        self.refusal = refusal


class LedgerUnreachableError(Exception):
    """The ledger did not answer, or not now: the exchange may or may not have happened."""


class Secret:
    """A file that holds a token or a key, read again when it changed. Its content is never shown."""

    __slots__ = ("_path", "_seen", "_value")

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._seen: tuple[int, int, int] | None = None
        self._value = ""

    def read(self) -> str:
        """Give the content without surrounding white space; empty where there is no file. Raises OSError."""
        if self._path is None:
            return ""
        stat = self._path.stat()
        seen = (stat.st_mtime_ns, stat.st_ino, stat.st_size)
        if seen != self._seen:
            self._value = self._path.read_text(encoding="utf-8").strip()
            self._seen = seen
        return self._value

    def __repr__(self) -> str:
        return f"Secret({self._path})"


class LedgerClient:
    """Exchanges about one allotment."""

    def __init__(self, url: str, allotment: str, token: Secret, session: aiohttp.ClientSession) -> None:
        self._base = f"{url.rstrip('/')}/v1/allotments/{allotment}"
        self._token = token
        self._session = session

    async def exchange(
        self, method: str, verb: str, body: dict[str, Any] | None = None, *, seconds: float = EXCHANGE_SECONDS_MAX
    ) -> dict[str, Any]:
        """Do one exchange and give the answer. Raises LedgerError, LedgerUnreachableError."""
        data = None if body is None else json.dumps(body, ensure_ascii=False, separators=(",", ":")).encode()
        try:
            headers = {"authorization": f"Bearer {self._token.read()}", "content-type": "application/json"}
            async with self._session.request(
                method,
                f"{self._base}/{verb}",
                data=data,
                headers=headers,
                allow_redirects=False,
                timeout=aiohttp.ClientTimeout(total=seconds),
            ) as answer:
                raw = await answer.content.read(ANSWER_BYTES_MAX)
                while len(raw) < ANSWER_BYTES_MAX and (more := await answer.content.read(ANSWER_BYTES_MAX - len(raw))):
                    raw += more
                return _read(answer.status, raw)
        except (TimeoutError, aiohttp.ClientError, OSError) as error:
            raise LedgerUnreachableError(f"{method} {verb}: {type(error).__name__}") from error

    async def signals(self, seconds: float = SIGNALS_SECONDS, *, paid: bool = False) -> dict[str, Any]:
        """Wait for a signal of the ledger's, up to SIGNALS_SECONDS; `paid`: tell for how long machine time is, too."""
        wait = int(max(0.0, min(SIGNALS_SECONDS, seconds)))
        verb = f"signals?timeout_seconds={wait}" + ("&paid=1" if paid else "")
        return await self.exchange("GET", verb, seconds=wait + EXCHANGE_SECONDS_MAX)


def _read(status: int, raw: bytes) -> dict[str, Any]:
    try:
        data = json.loads(raw) if raw else {}
    except ValueError:
        data = None
    if status < 300:
        if not isinstance(data, dict):
            raise LedgerUnreachableError("the ledger's answer is not a JSON object")
        return data
    error = data.get("error") if isinstance(data, dict) else None
    if not isinstance(error, dict) or status >= 500:
        raise LedgerUnreachableError(f"the ledger answered HTTP {status}")
    refusal = error.get("refusal")
    field = error.get("field")
    return _raise(str(error.get("code")), str(error.get("message", ""))[:512], refusal, str(field or "")[:128])


def _raise(code: str, message: str, refusal: Any, field: str) -> dict[str, Any]:
    raise LedgerError(code, message, refusal if isinstance(refusal, dict) else None, field)
