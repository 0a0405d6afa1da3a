"""docs/disaster-recovery.md on a real PostgreSQL: a dump, a lost database, a restore, the audit with the kept head."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from sqlalchemy.engine import make_url

from almoner_dev.postgres import Postgres, find_binaries
from almoner_ledger import sealing
from tests.support.books import DOLLAR, USD, Books, record
from tests.support.pages import Typed, blocks_of, judged, sections_of, type_in

ROOT = Path(__file__).resolve().parents[2]
SECONDS = 120


def test_the_books_come_back_from_a_dump_as_the_page_says(
    postgres_server: Postgres, postgres_url: str, tmp_path: Path
) -> None:
    page = sections_of((ROOT / "docs" / "disaster-recovery.md").read_text(encoding="utf-8"))
    books = Books(postgres_url)
    books.limits(limits={USD: DOLLAR})
    allotment = books.active(need={USD: 1000})
    books.post(allotment, [record(1, 10), record(2, 20)])
    assert sealing.seal_all(books.store, wait=True) == 2
    environ = surroundings(postgres_url, tmp_path)
    backup = blocks_of(page["Back up PostgreSQL"])
    judged(backup, typed([line for block in backup for line in block.lines], environ, tmp_path))
    # What came after the backup is lost with the database, and nothing else.
    books.post(allotment, [record(3, 40)])
    books.close()
    name = make_url(postgres_url).database
    postgres_server.execute(f'DROP DATABASE "{name}" WITH (FORCE)')
    postgres_server.execute(f'CREATE DATABASE "{name}"')
    restore = blocks_of(page["Restore PostgreSQL"])
    judged(restore, typed([line for block in restore for line in block.lines], environ, tmp_path))
    again = Books(postgres_url, migrate=False)
    assert again.violations() == []
    assert again.state().spent == 30
    again.close()


def typed(lines: list[str], environ: dict[str, str], folder: Path) -> list[Typed]:
    return type_in(lines, before="", cwd=folder, env=environ, seconds=SECONDS)


def surroundings(url: str, folder: Path) -> dict[str, str]:
    """The variables that the page names."""
    parts = make_url(url)
    passwords = folder / "pgpass"
    passwords.write_text(f"*:*:*:*:{parts.password}\n")
    passwords.chmod(0o600)
    return {
        **os.environ,
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), str(find_binaries()), os.environ["PATH"]]),
        "PGHOST": parts.host or "",
        "PGPORT": str(parts.port),
        "PGUSER": parts.username or "",
        "PGDATABASE": parts.database or "",
        "PGPASSFILE": str(passwords),
        "ALMONER_LEDGER_DATABASE": url,
    }
