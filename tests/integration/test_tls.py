"""HTTPS between operator, meters and ledger: the real service, real meters, the operator's client, rotated pairs."""

from __future__ import annotations

import datetime as dt
import ssl
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from almoner_dev.ledger_environment import ledger_environment
from almoner_dev.scripted import ScriptedProvider
from almoner_operator.credentials import CredentialsError
from almoner_operator.errors import LedgerUnavailableError
from almoner_operator.ledger_client import LedgerClient
from almoner_operator.ledger_trust import PEM_BYTES_MAX, LedgerTrust
from tests.support.books import new_id
from tests.support.ledger_service import OPERATOR
from tests.support.metered import Metered, Team, chat
from tests.support.mounted import Mounted, served
from tests.support.polling import until

ROTATIONS = 4


@pytest.fixture(scope="module")
def mounted(tmp_path_factory: pytest.TempPathFactory) -> Mounted:
    return Mounted(tmp_path_factory.mktemp("secret"))


@pytest.fixture(scope="module")
def strangers(tmp_path_factory: pytest.TempPathFactory) -> Mounted:
    """Another authority, which the ledger's certificate is not from."""
    return Mounted(tmp_path_factory.mktemp("strangers"))


@pytest.fixture(scope="module")
def metered(tmp_path_factory: pytest.TempPathFactory, mounted: Mounted) -> Iterator[Metered]:
    folder = tmp_path_factory.mktemp("ledger")
    running = Metered(
        folder,
        f"sqlite:///{folder}/ledger.db",
        ledger_ca=mounted.ca,
        tls_dir=mounted.folder,
        trusted=mounted.trusted(),
    )
    yield running
    running.close()


def log_of(metered: Metered) -> str:
    return (metered.folder / "ledger.log").read_text()


def rotate(metered: Metered, mounted: Mounted) -> None:
    pair = mounted.pair()
    mounted.replace(**pair)
    shown = pair["certificate"].decode().strip()
    until(
        lambda: served(metered.service.port, mounted.trusted()).strip() == shown,
        30,
        "a handshake with the new certificate",
    )


class Asking(threading.Thread):
    """Asks the ledger without end, on one connection or a new one each time, and keeps what went wrong."""

    def __init__(self, url: str, trusted: ssl.SSLContext, *, anew: bool) -> None:
        super().__init__()
        self.url, self.trusted, self.anew = url, trusted, anew
        self.answers, self.ports, self.errors = 0, set[int](), list[str]()
        self.ending = threading.Event()

    def run(self) -> None:
        client = httpx.Client(verify=self.trusted, timeout=10)
        while not self.ending.is_set():
            try:
                if self.anew:
                    client.close()
                    client = httpx.Client(verify=self.trusted, timeout=10)
                with client.stream("GET", f"{self.url}/readyz") as answer:
                    assert answer.status_code == 200, answer.status_code
                    answer.read()
                    self.ports.add(answer.extensions["network_stream"].get_extra_info("client_addr")[1])
                self.answers += 1
            except (httpx.HTTPError, AssertionError) as error:
                self.errors.append(f"{type(error).__name__}: {error}")
        client.close()


def test_no_request_fails_while_the_certificate_is_rotated(metered: Metered, mounted: Mounted) -> None:
    asking = [Asking(metered.service.url, mounted.trusted(), anew=anew) for anew in (False, True)]
    for each in asking:
        each.start()
    try:
        for _ in range(ROTATIONS):
            before = [each.answers for each in asking]
            rotate(metered, mounted)
            until(lambda: all(each.answers > was for each, was in zip(asking, before, strict=True)), 10, "answers")  # noqa: B023
    finally:
        for each in asking:
            each.ending.set()
            each.join()
    kept, anew = asking
    assert kept.errors == anew.errors == []
    # The connection that was open before the first rotation is the one that was open after the last.
    assert len(kept.ports) == 1
    assert anew.answers > ROTATIONS
    told = metered.service.client.get("/metrics", headers={"Authorization": f"Bearer {OPERATOR}"}).text
    (line,) = [each for each in told.splitlines() if each.startswith("almoner_ledger_certificate_expires_seconds ")]
    assert float(line.split()[1]) > dt.datetime.now(dt.UTC).timestamp()


@pytest.mark.parametrize("broken", ["of another key", "not PEM", "expired", "empty"])
def test_a_broken_pair_is_kept_out(metered: Metered, mounted: Mounted, broken: str) -> None:
    before = served(metered.service.port, mounted.trusted())
    pair = mounted.pair(dt.timedelta(minutes=-5) if broken == "expired" else dt.timedelta(days=1))
    if broken == "of another key":
        pair["key"] = mounted.pair()["key"]
    elif broken != "expired":
        pair["certificate"] = b"no certificate" if broken == "not PEM" else b""
    start = len(log_of(metered))
    mounted.replace(**pair)
    says = {
        "of another key": "no pair",
        "not PEM": "no certificate in PEM",
        "expired": "it expired at",
        "empty": "0 bytes",
    }
    until(lambda: says[broken] in log_of(metered)[start:], 30, f"the ledger to say: {says[broken]}")
    assert served(metered.service.port, mounted.trusted()) == before
    assert metered.service.ready()
    rotate(metered, mounted)  # A good one is taken up again.
    assert log_of(metered)[start:].count("the old one stays") == 1


def test_a_meter_knows_the_ledger_by_its_authority(metered: Metered, mounted: Mounted, strangers: Mounted) -> None:
    with ScriptedProvider() as provider:
        team = Team(metered, provider)
        team.limit()
        meter = team.run({"usd": 1})
        assert chat(meter).choices
        rotate(metered, mounted)  # A new certificate of the same authority: the meter notices nothing.
        assert chat(meter).choices
        team.posted(2)
        team.finish()
        metered.ledger_ca = strangers.ca
        try:
            meter = team._spawn({"usd": 1}, (), {})
            until(lambda: "CertificateError" in meter.log, 30, "the meter to refuse the ledger")
            assert not meter.healthy()
        finally:
            metered.ledger_ca = mounted.ca
            team.kill()


async def test_the_operator_knows_it_by_a_file_that_it_reads_again(
    metered: Metered, mounted: Mounted, strangers: Mounted, tmp_path: Path
) -> None:
    token, trusted = tmp_path / "token", tmp_path / "ca.crt"
    token.write_text(OPERATOR)
    trusted.write_text(strangers.ca)
    trust = LedgerTrust(trusted)
    async with LedgerClient(metered.service.url, token_file=token, trust=trust) as ledger:
        with pytest.raises(LedgerUnavailableError, match="certificate verify failed"):
            await ledger.changes(0, wait_seconds=0)
        trusted.write_text("rubbish")
        assert trust.pem() == strangers.ca  # Told, and not taken.
        trusted.write_text(strangers.ca + mounted.ca)  # Both, as while one authority follows another.
        metered.epoch = await ledger.take_epoch(operation_id=new_id(), holder="test")
        assert trust.pem() == strangers.ca + mounted.ca


@pytest.mark.parametrize(
    ("text", "says"),
    [("rubbish", "no certificates in PEM"), ("", "no certificates in PEM"), ("x" * (PEM_BYTES_MAX + 1), "keep only")],
    ids=["rubbish", "empty", "too much"],
)
def test_an_authority_that_is_none_is_said_at_the_start(tmp_path: Path, text: str, says: str) -> None:
    (tmp_path / "ca.crt").write_text(text)
    with pytest.raises(CredentialsError, match=f"--ledger-ca-file: .*{says}"):
        LedgerTrust(tmp_path / "ca.crt")
    with pytest.raises(CredentialsError, match="--ledger-ca-file: cannot read"):
        LedgerTrust(tmp_path / "none.crt")


def test_a_ledger_does_not_start_with_a_certificate_that_nobody_would_take(tmp_path: Path) -> None:
    place = Mounted(tmp_path)
    place.replace(**place.pair(dt.timedelta(minutes=-5)))
    tokens = tmp_path / "tokens.json"
    tokens.write_text('[{"token": "t", "role": "reader"}]')
    command: list[str | Path] = [
        sys.executable,
        "-m",
        "almoner_ledger",
        "serve",
        "--listen=127.0.0.1:0",
        "--static-tokens",
        tokens,
    ]
    done = subprocess.run(
        [*command, "--tls-dir", place.folder],
        env=ledger_environment(f"sqlite:///{tmp_path}/ledger.db"),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 2
    assert f"{place.folder}/tls.crt: it expired at" in done.stderr.replace(
        str(place.folder.resolve()), str(place.folder)
    )
