"""Judges the certificate that the ledger serves: its Secret is there, it is good now, and clients can verify it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm

from almoner_cli.check.findings import Finding, Place, failed, ok, warning
from almoner_cli.check.installation import LEDGER, OPERATOR

ABOUT: Final = "certificate"
SOON: Final = timedelta(days=14)
"""Whoever renews it should have done so by then."""
_FILES: Final = ("tls.crt", "tls.key", "ca.crt")
_PAGE: Final = "docs/install.md, `Certificates`"
_BY_THE_OPERATOR: Final = "--ledger-certificate-secret="


def certificate(place: Place) -> Iterator[Finding]:
    """Whether the Secret that the ledger mounts holds a pair that is good, for its name, from an authority it names."""
    ledger = place.cluster.deployment(place.namespace, LEDGER)
    if ledger is None:
        return
    name = _secret_of(ledger)
    if name is None:
        yield warning(ABOUT, "tls.mode is none: tokens cross the pod network in clear", "set tls.mode, " + _PAGE)
        return
    fix = _fix(place.cluster.deployment(place.namespace, OPERATOR))
    found = place.cluster.certificates(place.namespace, name)
    yield judge(f"{place.namespace}/{name}", found, f"{LEDGER}.{place.namespace}.svc", datetime.now(UTC), fix)


def _secret_of(deployment: Mapping[str, Any]) -> str | None:
    """Give the name of the Secret in the volume of the ledger's pair; None where it serves plain HTTP."""
    volumes = deployment["spec"]["template"]["spec"].get("volumes") or []
    return next((str(each["secret"]["secretName"]) for each in volumes if each["name"] == "tls"), None)


def _fix(operator: Mapping[str, Any] | None) -> str:
    containers = operator["spec"]["template"]["spec"]["containers"] if operator is not None else []
    arguments = [word for each in containers for word in each.get("args") or []]
    if any(word.startswith(_BY_THE_OPERATOR) for word in arguments):
        return "the operator makes it within minutes of its start: see its log; " + _PAGE
    return "have it made or renewed by whom tls.mode names, " + _PAGE


def judge(secret: str, files: Mapping[str, str] | None, host: str, now: datetime, fix: str) -> Finding:
    """Judge a Secret's contents at `now` (aware): PEM by file, the key's withheld; None where there is no Secret."""
    if files is None:
        return failed(ABOUT, f"there is no Secret {secret}, which should hold the ledger's certificate", fix)
    lacking = [name for name in _FILES if name not in files]
    if lacking:
        return failed(ABOUT, f"Secret {secret} has no {' and no '.join(lacking)}", fix)
    try:
        pair = _Pair.read(files)
    except (ValueError, UnsupportedAlgorithm) as error:
        return failed(ABOUT, f"Secret {secret} holds what cannot be read: {str(error)[:200]}", fix)
    wrong = pair.wrong(f"Secret {secret}", host, now)
    if wrong:
        return failed(ABOUT, wrong, fix)
    ends = pair.chain[0].not_valid_after_utc
    if ends - now < SOON:
        return warning(ABOUT, f"the certificate in Secret {secret} expires {ends:%Y-%m-%d %H:%M} UTC", fix)
    return ok(ABOUT, f"Secret {secret} has one for {host}, good until {ends:%Y-%m-%d}")


@dataclass(frozen=True)
class _Pair:
    """What the ledger shows, and what its clients trust."""

    chain: Sequence[x509.Certificate]
    trusted: Sequence[x509.Certificate]
    names: Sequence[str]

    @classmethod
    def read(cls, files: Mapping[str, str]) -> _Pair:
        """Raises ValueError or UnsupportedAlgorithm."""
        chain = x509.load_pem_x509_certificates(files["tls.crt"].encode())
        trusted = x509.load_pem_x509_certificates(files["ca.crt"].encode())
        try:
            names = chain[0].extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        except x509.ExtensionNotFound:
            return cls(chain, trusted, ())
        return cls(chain, trusted, names.get_values_for_type(x509.DNSName))

    def wrong(self, secret: str, host: str, now: datetime) -> str:
        """Say why nobody can verify `host` by it at `now`; empty where all can."""
        leaf = self.chain[0]
        if host not in self.names and f"*.{host.partition('.')[2]}" not in self.names:
            has = ", ".join(self.names[:5]) or "no DNS name"
            return f"the certificate in {secret} is not for {host} but for {has}"
        if not any(_signed(each, authority) for each in self.chain for authority in self.trusted):
            return f"no authority in ca.crt of {secret} has signed tls.crt: nobody trusts it"
        if now >= leaf.not_valid_after_utc:
            return f"the certificate in {secret} expired {leaf.not_valid_after_utc:%Y-%m-%d %H:%M} UTC"
        if now < leaf.not_valid_before_utc:
            return f"the certificate in {secret} is not good before {leaf.not_valid_before_utc:%Y-%m-%d %H:%M} UTC"
        return ""


def _signed(certificate: x509.Certificate, authority: x509.Certificate) -> bool:
    if certificate == authority:
        return True
    try:
        certificate.verify_directly_issued_by(authority)
    except (ValueError, TypeError, InvalidSignature):
        return False
    return True
