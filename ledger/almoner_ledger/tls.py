"""HTTPS at the ledger's door: one SSLContext, into which a rotated pair is loaded while connections stay open.

Role: `Pair` reads tls.crt and tls.key of a folder (as a Secret of the type kubernetes.io/tls is mounted), checks them
and loads them. Connections that are open keep what they began with; each new handshake uses the newest pair. A new pair
that is broken, does not belong together or has expired is logged, and the old one stays. Boundary: trusts nobody and
makes no certificate; who calls is auth.py's business.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import ssl
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any, Final

from aiohttp import web
from cryptography import x509

from almoner_ledger import metrics

log = logging.getLogger(__name__)

CERTIFICATE: Final = "tls.crt"
KEY: Final = "tls.key"
RELOAD_SECONDS: Final = 2.0
HANDSHAKE_SECONDS: Final = 10.0
"""A connection whose handshake takes longer is closed: it is not yet one of those that doors.py counts."""
FILE_BYTES_MAX: Final = 256 * 1024


class PairError(ValueError):
    """The certificate and its key cannot be used; the message names the file and the fix."""


class Pair:
    """The ledger's certificate and key in a folder, and the context that serves them. Raises PairError, OSError."""

    def __init__(self, folder: Path, *, reload_seconds: float = RELOAD_SECONDS) -> None:
        self._folder = folder
        self._reload_seconds = reload_seconds
        self._seen = self._content()
        self._problem = ""
        self.context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        self._use(*self._seen)

    def reload(self) -> bool:
        """Load the pair anew where the files changed; says whether another one is served now."""
        try:
            found = self._content()
            if found != self._seen:
                self._use(*found)
        except (OSError, PairError) as error:
            # Told once, not every two seconds.
            if str(error) != self._problem:
                log.error("the ledger's certificate was not replaced, the old one stays: %s", error)  # noqa: TRY400
            self._problem = str(error)
            return False
        changed, self._seen, self._problem = found != self._seen, found, ""
        return changed

    async def watching(self, _: web.Application) -> AsyncIterator[None]:
        """Reload for as long as an application runs, as one of its clean-up contexts."""
        task = asyncio.create_task(self._watch(), name="ledger-certificate")
        yield
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(self._reload_seconds)
            self.reload()

    def _content(self) -> tuple[bytes, bytes]:
        # The kubelet replaces a mounted Secret by one new link: seen through it, the two files belong together.
        place = self._folder.resolve()
        with contextlib.suppress(OSError):
            place = (self._folder / "..data").resolve(strict=True)
        return _read(place / CERTIFICATE), _read(place / KEY)

    def _use(self, certificate: bytes, key: bytes) -> None:
        expires = self._checked(certificate)
        with _file_of(key + b"\n" + certificate) as path:
            # First into a context that nobody uses: one that was half replaced could serve nothing.
            for context in (ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), self.context):
                try:
                    context.load_cert_chain(path)
                except ssl.SSLError as error:
                    raise PairError(
                        f"{self._folder}: {CERTIFICATE} and {KEY} are no pair in PEM ({error.reason}): write a "
                        "certificate and the key that it was made for"
                    ) from error
        metrics.CERTIFICATE_EXPIRES.set(expires)
        log.info("the ledger's certificate is good until %s", time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(expires)))

    def _checked(self, content: bytes) -> float:
        """Give when the certificate expires, in Unix seconds. Raises PairError where it has, or is none."""
        try:
            leaf = x509.load_pem_x509_certificates(content)[0]
        except ValueError as error:
            raise PairError(f"{self._folder / CERTIFICATE}: no certificate in PEM: {error}") from error
        expires = leaf.not_valid_after_utc.timestamp()
        if expires <= time.time():
            raise PairError(
                f"{self._folder / CERTIFICATE}: it expired at {leaf.not_valid_after_utc.isoformat()}: renew it"
            )
        return expires


def _read(path: Path) -> bytes:
    with path.open("rb") as file:
        content = file.read(FILE_BYTES_MAX + 1)
    if not content or len(content) > FILE_BYTES_MAX:
        raise PairError(f"{path}: it has {len(content)} bytes or more; expected 1 to {FILE_BYTES_MAX}, in PEM")
    return content


@contextlib.contextmanager
def _file_of(content: bytes) -> Iterator[str]:
    """Give the path of a file that lies in memory alone: OpenSSL reads files, and a key is not for a disk."""
    descriptor = os.memfd_create("almoner-pair", os.MFD_CLOEXEC)
    try:
        with os.fdopen(os.dup(descriptor), "wb") as file:
            file.write(content)
        yield f"/proc/self/fd/{descriptor}"
    finally:
        os.close(descriptor)


class Site(web.TCPSite):
    """A site that gives a TLS handshake HANDSHAKE_SECONDS; aiohttp's own gives it a minute."""

    async def start(self) -> None:
        """Listen. Raises OSError where the port is taken."""
        await web.BaseSite.start(self)
        bounded: dict[str, Any] = {"ssl_handshake_timeout": HANDSHAKE_SECONDS} if self._ssl_context else {}
        server = self._runner.server
        assert server is not None
        self._server = await asyncio.get_running_loop().create_server(
            server,
            self._host,
            self._port,
            ssl=self._ssl_context,
            backlog=self._backlog,
            reuse_address=self._reuse_address,
            **bounded,
        )
