"""A throw-away certificate authority for the local control plane.

Role: makes the authority, the API server's serving certificate and the service account key pair in a
scratch folder, so that nothing has to be installed or trusted beforehand.

Boundary: development only. Keys are unencrypted files of mode 0600; certificates last a year.
"""

from __future__ import annotations

import datetime as dt
import ipaddress
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

VALID_DAYS = 365


@dataclass(frozen=True)
class Authority:
    """A certificate authority: `ca.crt` and `ca.key` in a folder."""

    directory: Path

    @property
    def certificate_path(self) -> Path:
        """The authority's own certificate, in PEM: what clients trust."""
        return self.directory / "ca.crt"

    @property
    def key_path(self) -> Path:
        """The authority's key, in PEM."""
        return self.directory / "ca.key"

    def ensure(self) -> None:
        """Makes the authority unless the folder holds it already."""
        if self.certificate_path.exists():
            return
        key = ec.generate_private_key(ec.SECP256R1())
        name = _name("almoner-dev-ca", ())
        usage = x509.KeyUsage(
            digital_signature=True,
            key_cert_sign=True,
            crl_sign=True,
            content_commitment=False,
            key_encipherment=False,
            data_encipherment=False,
            key_agreement=False,
            encipher_only=False,
            decipher_only=False,
        )
        certificate = (
            _builder(name, name, key.public_key(), key.public_key())
            .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
            .add_extension(usage, critical=True)
            .sign(key, hashes.SHA256())
        )
        write_private(self.key_path, _pem(key))
        self.certificate_path.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))

    def issue(
        self,
        file_stem: str,
        common_name: str,
        *,
        organizations: Sequence[str] = (),
        names: Sequence[str] = (),
        valid: dt.timedelta = dt.timedelta(days=VALID_DAYS),
    ) -> tuple[Path, Path]:
        """Issues a certificate for servers and clients; returns the paths of certificate and key.

        `names` are DNS names and IP addresses. It is good from an hour ago until `valid` from now.
        The key of an earlier certificate with the same stem is
        kept, so that a server that reloads its files never sees a pair that does not match.
        """
        certificate_path, key_path = self.directory / f"{file_stem}.crt", self.directory / f"{file_stem}.key"
        if not key_path.exists():
            write_private(key_path, _pem(ec.generate_private_key(ec.SECP256R1())))
        key = _load(key_path)
        authority_key = _load(self.key_path)
        authority = x509.load_pem_x509_certificate(self.certificate_path.read_bytes())
        builder = (
            _builder(
                _name(common_name, organizations),
                authority.subject,
                key.public_key(),
                authority_key.public_key(),
                valid,
            )
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(
                x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]),
                critical=False,
            )
        )
        if names:
            builder = builder.add_extension(x509.SubjectAlternativeName([_general(n) for n in names]), critical=False)
        pem = builder.sign(authority_key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)
        fresh = certificate_path.with_suffix(".crt.new")
        fresh.write_bytes(pem)
        fresh.rename(certificate_path)
        return certificate_path, key_path


def service_account_keys(directory: Path) -> tuple[Path, Path]:
    """Makes the pair that service account tokens are signed with; returns private and public path."""
    private_path, public_path = directory / "service-account.key", directory / "service-account.pub"
    if not public_path.exists():
        key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
        write_private(private_path, _pem(key))
        public_path.write_bytes(
            key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
        )
    return private_path, public_path


def write_private(path: Path, content: bytes) -> None:
    """Writes a file that only its owner can read, replacing any earlier one as a whole."""
    fresh = path.with_name(path.name + ".new")
    descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
    fresh.rename(path)


def _builder(
    subject: x509.Name,
    issuer: x509.Name,
    public_key: ec.EllipticCurvePublicKey,
    issuer_key: ec.EllipticCurvePublicKey,
    valid: dt.timedelta = dt.timedelta(days=VALID_DAYS),
) -> x509.CertificateBuilder:
    now = dt.datetime.now(dt.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public_key)
        .serial_number(x509.random_serial_number())
        # An hour ago: clocks of containers and virtual machines may lag a little.
        .not_valid_before(now - dt.timedelta(hours=1))
        .not_valid_after(now + valid)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public_key), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key), critical=False)
    )


def _name(common_name: str, organizations: Sequence[str]) -> x509.Name:
    parts = [x509.NameAttribute(NameOID.ORGANIZATION_NAME, organization) for organization in organizations]
    return x509.Name([*parts, x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


def _general(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def _pem(key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def _load(path: Path) -> ec.EllipticCurvePrivateKey:
    key = serialization.load_pem_private_key(path.read_bytes(), password=None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    return key
