"""By which certificates the ledger is known: read from a file that somebody replaces, or told by their keeper.

Role: the TLS context of the operator's own calls, and the PEM that every new meter gets. A file that cannot be used any
more is logged, and what was trusted stays trusted. Boundary: judges no certificate of the ledger's; OpenSSL does.
"""

from __future__ import annotations

import logging
import ssl
from pathlib import Path
from typing import Final

from almoner_operator.credentials import CredentialsError

log = logging.getLogger(__name__)

PEM_BYTES_MAX: Final = 16 * 1024
"""It travels in an environment variable of every runner pod."""


class LedgerTrust:
    """The certificates in force; without a file and untold: those of the image. Raises CredentialsError."""

    def __init__(self, file: Path | None = None) -> None:
        self._file = file
        self._seen: tuple[int, int, int] | None = None
        self._problem = ""
        self._pem: str | None = None
        self._context: ssl.SSLContext | None = None
        if file is not None:
            self._look(file)

    def pem(self) -> str | None:
        """Give the certificates for a meter, in PEM; None: it takes those of its image."""
        self._refresh()
        return self._pem

    def context(self) -> ssl.SSLContext | bool:
        """Give what aiohttp takes for `ssl`; the same object as long as nothing changed, so connections are kept."""
        self._refresh()
        return True if self._context is None else self._context

    def trust(self, pem: str) -> None:
        """Trust these from now on. Raises CredentialsError where they cannot be used; the earlier ones then stay."""
        if pem != self._pem:
            self._context, self._pem = context_of(pem, "the ledger's Secret, ca.crt"), pem

    def _refresh(self) -> None:
        if self._file is None:
            return
        try:
            self._look(self._file)
        except CredentialsError as error:
            if str(error) != self._problem:
                log.error("%s; the certificates that were trusted stay so", error)  # noqa: TRY400
            self._problem = str(error)

    def _look(self, file: Path) -> None:
        try:
            stat = file.stat()
            seen = (stat.st_mtime_ns, stat.st_ino, stat.st_size)
            if seen == self._seen:
                return
            with file.open(encoding="utf-8") as opened:
                pem = opened.read(PEM_BYTES_MAX + 1)
        except (OSError, UnicodeDecodeError) as error:
            raise CredentialsError(f"--ledger-ca-file: cannot read {file}: {error}") from error
        context = context_of(pem, f"--ledger-ca-file: {file}")
        self._context, self._pem, self._seen, self._problem = context, pem, seen, ""


def context_of(pem: str, what: str) -> ssl.SSLContext:
    """Make a context that trusts these certificates alone. Raises CredentialsError, which begins with `what`."""
    if len(pem) > PEM_BYTES_MAX:
        raise CredentialsError(
            f"{what}: more than {PEM_BYTES_MAX} characters: keep only the authorities of the ledger's certificate"
        )
    try:
        context = ssl.create_default_context(cadata=pem or "none")  # An empty text would be everybody's authorities.
    except (ssl.SSLError, ValueError) as error:
        raise CredentialsError(f"{what}: no certificates in PEM: {error}") from error
    if not context.get_ca_certs():
        raise CredentialsError(f"{what}: no certificate of an authority: one with CA:TRUE is needed")
    return context
