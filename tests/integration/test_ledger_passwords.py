"""No command of the ledger takes a password where everybody on the machine can read it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from sqlalchemy.engine import make_url

from almoner_ledger import cli, commands
from tests.support.ledger_service import LedgerService

NAMES = ["serve", *(each.NAME for each in commands.subcommands())]
NEEDED = {
    "correct": ["record", "--cost", "1", "--reason", "known"],
    "settle": ["allotment", "--cost", "1", "--reason", "known"],
    "export": ["out.csv"],
    "prune": ["--keep-months", "12"],
    "rerate": ["--from", "2026-01-01", "--to", "2026-01-01", "--genai-prices"],
}


@pytest.mark.parametrize("url", ["postgresql://ann:s3cret@127.0.0.1:9/x", "postgresql://127.0.0.1:9/x?password=s3cret"])
@pytest.mark.parametrize("name", NAMES)
def test_a_password_on_the_command_line_is_refused_with_the_way_out(
    name: str, url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main([name, "--database", url, *NEEDED.get(name, [])]) == 2
    said = capsys.readouterr().err
    for words in ("password", "ALMONER_LEDGER_DATABASE", "--database-file", "PGPASSFILE"):
        assert words in said
    assert "s3cret" not in said


def test_the_url_may_come_from_a_file_the_environment_or_without_its_password(
    postgres_url: str, tmp_path: Path
) -> None:
    url = make_url(postgres_url)
    file = tmp_path / "url"
    file.write_text(f"{postgres_url}\n")
    passwords = tmp_path / "passwords"
    passwords.touch(mode=0o600)
    passwords.write_text(f"*:*:*:*:{url.password}\n")
    bare = postgres_url.replace(f":{url.password}@", "@")
    roads: tuple[tuple[list[str], dict[str, str]], ...] = (
        (["--database-file", str(file)], {}),
        ([], {"ALMONER_LEDGER_DATABASE": postgres_url}),
        (["--database", bare], {"PGPASSFILE": str(passwords)}),
    )
    for argv, environment in roads:
        command = [sys.executable, "-m", "almoner_ledger", "migrate", *argv]
        env = {**os.environ, **environment}
        done = subprocess.run(command, env=env, capture_output=True, text=True, check=False, timeout=60)
        assert done.returncode == 0, done.stderr


def test_the_list_of_processes_shows_no_password(postgres_url: str, tmp_path: Path) -> None:
    password = make_url(postgres_url).password
    assert password
    service = LedgerService(tmp_path, postgres_url)
    try:
        service.start()
        assert password not in _shown()
    finally:
        service.close()


def _shown() -> str:
    """The command lines of all processes, as `ps` shows them."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            found.append(path.read_text(errors="replace").replace("\0", " "))
        except OSError:
            continue  # It has ended.
    return "\n".join(found)
