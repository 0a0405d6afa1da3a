"""A folder that looks like a mounted Secret: the kubelet replaces all of its files at once, by one new link."""

from __future__ import annotations

import datetime as dt
import secrets
import socket
import ssl
from pathlib import Path

from almoner_dev.certificates import Authority


class Mounted:
    """A mounted Secret with what is needed for HTTPS on localhost, signed by an authority of its own."""

    def __init__(self, place: Path) -> None:
        self.place = place
        self.folder = place / "mounted"
        self.folder.mkdir(parents=True)
        self.authority = Authority(place / "authority")
        self.authority.directory.mkdir()
        self.authority.ensure()
        self.ca = self.authority.certificate_path.read_text()
        for name in ("tls.crt", "tls.key"):
            (self.folder / name).symlink_to(Path("..data") / name)
        self.replace(**self.pair())

    def trusted(self) -> ssl.SSLContext:
        return ssl.create_default_context(cadata=self.ca)

    def pair(self, valid: dt.timedelta = dt.timedelta(days=1)) -> dict[str, bytes]:
        """A new certificate with a new key."""
        made = self.authority.issue(secrets.token_hex(4), "almoner-ledger", names=("localhost",), valid=valid)
        return dict(zip(("certificate", "key"), (path.read_bytes() for path in made), strict=True))

    def replace(self, *, certificate: bytes, key: bytes) -> None:
        """Put other files in the place of those that are there, as the kubelet does."""
        fresh = self.folder / f"..{secrets.token_hex(4)}"
        fresh.mkdir()
        (fresh / "tls.crt").write_bytes(certificate)
        (fresh / "tls.key").write_bytes(key)
        link = self.folder / "..data_tmp"
        link.symlink_to(fresh.name)
        link.replace(self.folder / "..data")


def served(port: int, trusted: ssl.SSLContext) -> str:
    """The certificate that a server shows in a new handshake, in PEM."""
    with (
        socket.create_connection(("127.0.0.1", port), timeout=10) as plain,
        trusted.wrap_socket(plain, server_hostname="localhost") as tls,
    ):
        shown = tls.getpeercert(binary_form=True)
        assert shown is not None
        return ssl.DER_cert_to_PEM_cert(shown)
