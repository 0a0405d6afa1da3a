"""The ledger's self-signed certificate: what a Secret has to hold at a moment, given what it holds.

Role: `renewed` is pure but for the dice of new keys: the old contents and the time in, the new contents out, and equal
where nothing is due. An authority of ten years signs certificates of 90 days. Its successor is made, and trusted, long
before it signs anything, so that every meter that still runs by then was told of it.
Boundary: knows no Secret and no API server (certificate_keeper.py does).
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

LEAF: Final = dt.timedelta(days=90)
RENEW: Final = dt.timedelta(days=30)
"""A certificate is renewed when so much of its life is left."""
AUTHORITY: Final = dt.timedelta(days=3650)
ANNOUNCE: Final = dt.timedelta(days=500)
"""The next authority is made, and trusted, when so much of the present one's life is left."""
SWITCH: Final = dt.timedelta(days=120)
"""The next authority signs from then on: so long before the end, and ANNOUNCE - SWITCH after it was made known."""
EARLIER: Final = dt.timedelta(hours=1)
"""Certificates are good from an hour ago: the clocks of nodes differ."""
AUTHORITIES_MAX: Final = 4

CERTIFICATE: Final = "tls.crt"
KEY: Final = "tls.key"
TRUSTED: Final = "ca.crt"
"""What clients trust: the authority that signs, and the one before or after it."""
AUTHORITY_KEY: Final = "ca.key"
NEXT_KEY: Final = "next-ca.key"
FILES: Final = (CERTIFICATE, KEY, TRUSTED, AUTHORITY_KEY, NEXT_KEY)


class ContentError(ValueError):
    """The Secret holds something else than what was written into it."""


@dataclass(frozen=True)
class _Authority:
    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey

    @property
    def ends(self) -> dt.datetime:
        return self.certificate.not_valid_after_utc


def renewed(content: Mapping[str, str], names: Sequence[str], now: dt.datetime) -> dict[str, str]:
    """Give what the Secret has to hold at `now` (aware): PEM by file, for the DNS names `names`.

    Equal to `content` where nothing is due. Raises ContentError where it holds something else: then begin with nothing.
    """
    if not content:
        made = _authority(now)
        return _contents(made, None, (), _signed(made, names, now))
    trusted, signing, following = _read(content)
    if following is None and signing.ends - now <= ANNOUNCE:
        following = _authority(now)
    if following is not None and signing.ends - now <= SWITCH:
        signing, following = following, None
    if signing.ends <= now:
        signing, following, trusted = _authority(now), None, ()
    others = [each for each in trusted if each.not_valid_after_utc > now]
    leaf = _leaf(content, signing, names, now) or _signed(signing, names, now)
    return _contents(signing, following, others, leaf)


def expires(content: Mapping[str, str]) -> dt.datetime:
    """Give when the certificate in a Secret expires. Raises ContentError."""
    return _certificates(content, CERTIFICATE)[0].not_valid_after_utc


def _contents(
    signing: _Authority,
    following: _Authority | None,
    others: Sequence[x509.Certificate],
    leaf: tuple[str, str],
) -> dict[str, str]:
    known = [signing.certificate, *([following.certificate] if following is not None else []), *others]
    trusted = list(dict.fromkeys(known))[:AUTHORITIES_MAX]
    certificate, key = leaf
    return {
        CERTIFICATE: certificate,
        KEY: key,
        TRUSTED: "".join(_pem(each) for each in trusted),
        AUTHORITY_KEY: _key_pem(signing.key),
        **({NEXT_KEY: _key_pem(following.key)} if following is not None else {}),
    }


def _read(content: Mapping[str, str]) -> tuple[tuple[x509.Certificate, ...], _Authority, _Authority | None]:
    trusted = _certificates(content, TRUSTED)
    signing = _owner(trusted, _key(content, AUTHORITY_KEY))
    following = _owner(trusted, _key(content, NEXT_KEY)) if NEXT_KEY in content else None
    return tuple(trusted), signing, following


def _owner(trusted: Sequence[x509.Certificate], key: ec.EllipticCurvePrivateKey) -> _Authority:
    for each in trusted:
        if each.public_key() == key.public_key():
            return _Authority(each, key)
    raise ContentError(f"{TRUSTED} has no certificate of the key in {AUTHORITY_KEY} or {NEXT_KEY}")


def _leaf(
    content: Mapping[str, str], signing: _Authority, names: Sequence[str], now: dt.datetime
) -> tuple[str, str] | None:
    """Give the certificate and key that are there, where they are still good."""
    try:
        found, key = _certificates(content, CERTIFICATE)[0], _key(content, KEY)
        found.verify_directly_issued_by(signing.certificate)
        spoken = found.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (ContentError, ValueError, TypeError, InvalidSignature, x509.ExtensionNotFound):
        return None
    good = (
        found.public_key() == key.public_key()
        and found.not_valid_after_utc - now > RENEW
        and found.not_valid_before_utc <= now
        and spoken.get_values_for_type(x509.DNSName) == list(names)
    )
    return (content[CERTIFICATE], content[KEY]) if good else None


def _certificates(content: Mapping[str, str], name: str) -> list[x509.Certificate]:
    try:
        return x509.load_pem_x509_certificates(content.get(name, "").encode())
    except ValueError as error:
        raise ContentError(f"{name} has no certificates in PEM: {error}") from error


def _key(content: Mapping[str, str], name: str) -> ec.EllipticCurvePrivateKey:
    try:
        key = serialization.load_pem_private_key(content.get(name, "").encode(), password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise ContentError(f"{name} has no private key in PEM: {error}") from error
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise ContentError(f"{name} has no key of an elliptic curve")
    return key


# -- new ones --------------------------------------------------------------------------------------------------------


def _authority(now: dt.datetime) -> _Authority:
    key = ec.generate_private_key(ec.SECP256R1())
    name = _name(f"almoner-ledger-ca {now:%Y-%m-%d}")
    usage = x509.KeyUsage(
        digital_signature=False,
        key_cert_sign=True,
        crl_sign=True,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )
    made = (
        _builder(name, name, key.public_key(), key.public_key(), (now - EARLIER, now + AUTHORITY))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(usage, critical=True)
        .sign(key, hashes.SHA256())
    )
    return _Authority(made, key)


def _signed(authority: _Authority, names: Sequence[str], now: dt.datetime) -> tuple[str, str]:
    """Issue a certificate for a server; gives it and its key, in PEM."""
    key = ec.generate_private_key(ec.SECP256R1())
    ends = min(now + LEAF, authority.ends)
    made = (
        _builder(
            _name("almoner-ledger"),
            authority.certificate.subject,
            key.public_key(),
            authority.key.public_key(),
            (now - EARLIER, ends),
        )
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name) for name in names]), critical=False)
        .sign(authority.key, hashes.SHA256())
    )
    return _pem(made), _key_pem(key)


def _builder(
    subject: x509.Name,
    issuer: x509.Name,
    public_key: ec.EllipticCurvePublicKey,
    issuer_key: ec.EllipticCurvePublicKey,
    good: tuple[dt.datetime, dt.datetime],
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public_key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(good[0])
        .not_valid_after(good[1])
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public_key), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key), critical=False)
    )


def _name(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


def _pem(certificate: x509.Certificate) -> str:
    return certificate.public_bytes(serialization.Encoding.PEM).decode()


def _key_pem(key: ec.EllipticCurvePrivateKey) -> str:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    ).decode()
