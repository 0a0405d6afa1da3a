"""What `almoner check` makes of the Secret with the ledger's certificate."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from almoner_cli.check import certificate
from almoner_cli.check.findings import Level
from almoner_operator import certificates

NOW = datetime(2026, 11, 1, tzinfo=UTC)
HOST = "almoner-ledger.almoner-system.svc"
SECRET = "almoner-system/almoner-ledger-tls"


@pytest.fixture(scope="module")
def good() -> dict[str, str]:
    return certificates.renewed({}, [HOST], NOW)


@pytest.fixture(scope="module")
def other() -> dict[str, str]:
    return certificates.renewed({}, ["else.where.svc"], NOW)


def judged(files: dict[str, str] | None, now: datetime = NOW) -> tuple[Level, str]:
    found = certificate.judge(SECRET, files, HOST, now, "the fix")
    assert (found.about, found.fix) == (certificate.ABOUT, "" if found.level is Level.OK else "the fix")
    return found.level, found.says


@pytest.mark.parametrize(
    ("days", "level", "says"),
    [
        (0, Level.OK, f"Secret {SECRET} has one for {HOST}, good until 2027-01-30"),
        (75, Level.OK, f"Secret {SECRET} has one for {HOST}, good until 2027-01-30"),
        (77, Level.WARNING, f"the certificate in Secret {SECRET} expires 2027-01-30 00:00 UTC"),
        (90, Level.FAILED, f"the certificate in Secret {SECRET} expired 2027-01-30 00:00 UTC"),
        (-1, Level.FAILED, f"the certificate in Secret {SECRET} is not good before 2026-10-31 23:00 UTC"),
    ],
)
def test_its_days(good: dict[str, str], days: int, level: Level, says: str) -> None:
    assert judged(good, NOW + timedelta(days=days)) == (level, says)


def test_no_secret_and_a_secret_that_lacks_a_file(good: dict[str, str]) -> None:
    assert judged(None)[1] == f"there is no Secret {SECRET}, which should hold the ledger's certificate"
    without = {name: text for name, text in good.items() if name not in ("tls.key", "ca.crt")}
    assert judged(without) == (Level.FAILED, f"Secret {SECRET} has no tls.key and no ca.crt")


@pytest.mark.parametrize(
    "text", ["", "no certificate", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"]
)
@pytest.mark.parametrize("file", ["tls.crt", "ca.crt"])
def test_what_cannot_be_read(good: dict[str, str], file: str, text: str) -> None:
    level, says = judged({**good, file: text})
    assert level is Level.FAILED
    assert says.startswith(f"Secret {SECRET} holds what cannot be read: ")


def test_another_name_and_another_authority(good: dict[str, str], other: dict[str, str]) -> None:
    assert judged(other) == (
        Level.FAILED,
        f"the certificate in Secret {SECRET} is not for {HOST} but for else.where.svc",
    )
    assert judged({**good, "ca.crt": other["ca.crt"]}) == (
        Level.FAILED,
        f"no authority in ca.crt of Secret {SECRET} has signed tls.crt: nobody trusts it",
    )
    # While the authority changes both are trusted.
    assert judged({**good, "ca.crt": other["ca.crt"] + good["ca.crt"]})[0] is Level.OK
