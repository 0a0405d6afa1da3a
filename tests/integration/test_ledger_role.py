"""The service's own database role on real PostgreSQL: it can do its work, and cannot change what it wrote."""

from __future__ import annotations

import secrets
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import sqlalchemy as sa
from sqlalchemy import exc
from sqlalchemy.engine import make_url

from almoner_dev.ledger_environment import ledger_environment
from almoner_ledger import maintenance, schema, sealing
from almoner_ledger.database import Database
from almoner_ledger.store import Verb
from tests.support.books import DOLLAR, REQUESTS, USD, Books, new_id, record
from tests.support.ledger_service import LedgerService, meter_token, record_body
from tests.support.polling import until


def ledger(url: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, "-m", "almoner_ledger", *arguments]
    return subprocess.run(argv, env=ledger_environment(url), capture_output=True, text=True, timeout=60, check=False)


@dataclass
class Place:
    """A database with an owner and a role for the service."""

    owner: str
    role: str
    name: str

    def run_as_owner(self, *statements: str) -> None:
        database = Database(self.owner)
        database.write(lambda connection: [connection.exec_driver_sql(each) for each in statements])
        database.dispose()


@pytest.fixture
def place(postgres_url: str) -> Iterator[Place]:
    name, password = f"service_{secrets.token_hex(4)}", secrets.token_hex(8)
    url = make_url(postgres_url)
    service = url.set(username=name, password=password).render_as_string(hide_password=False)
    made = Place(postgres_url, service, name)
    made.run_as_owner(f"CREATE ROLE {name} LOGIN PASSWORD '{password}'")
    done = ledger(postgres_url, "migrate", "--grant-to", name)
    assert done.returncode == 0, done.stderr
    yield made
    made.run_as_owner(f"DROP OWNED BY {name}", f"DROP ROLE {name}")


def test_a_service_of_that_role_does_the_whole_life_of_an_allotment(place: Place, tmp_path: Path) -> None:
    service = LedgerService(tmp_path, place.role, pods=["pod"])
    service.arguments += ["--no-migrate", "--seal-seconds", "0.2"]
    try:
        service.start()
        epoch = service.epoch()
        service.limit(epoch, {"usd": DOLLAR, "requests": 100})
        allotment = service.active(epoch, "pod", {"usd": 1000, "requests": 1})
        token, path = meter_token("pod"), f"/v1/allotments/{allotment}"
        more = {"operation_id": new_id(), "need": {"usd": 100}, "want": {"usd": 100}}
        service.ask("POST", f"{path}/extend", more, token)
        posted = {"operation_id": new_id(), "records": [record_body(1, 700, requests=1)]}
        service.ask("POST", f"{path}/records", posted, token)
        service.ask("POST", f"{path}/progress", {"message": "half"}, token)
        service.ask("PUT", f"{path}/output", {"operation_id": new_id(), "content": "done"}, token)
        settled = {"usd": 700, "requests": 1}
        returned = {"operation_id": new_id(), "last_sequence": 1, "settled": settled, "final": True}
        assert service.ask("POST", f"{path}/return", returned, token)["state"] == "closed"
        database = Database(place.role)
        until(lambda: database.read(sealing.head).sealed == 1, 30, "the service to seal the entry")
        database.dispose()
        assert service.stop() == 0
    finally:
        service.close()
    log = (tmp_path / "ledger.log").read_text()
    assert "permission denied" not in log
    assert "failed" not in log
    found = ledger(place.role, "verify")
    assert found.returncode == 0, found.stdout + found.stderr


def test_everything_that_the_store_writes_is_allowed(place: Place) -> None:
    """What the service's test leaves out: voids, charges, late reports, corrections, alerts, and tidying up."""
    books = Books(place.role, migrate=False)
    try:
        books.limits(limits={USD: DOLLAR, REQUESTS: 10}, alert_thresholds_percent=[1])
        books.end(books.open(need={USD: 10}).allotment, Verb.VOID)
        allotment = books.active(need={USD: DOLLAR // 2})
        books.post(allotment, [record(1, DOLLAR // 4)])
        books.end(allotment)
        books.post(allotment, [record(2, 10)])
        assert books.database.write(maintenance.make_partitions) == 0
        assert books.database.write(lambda c: maintenance.forget_operations(c, 2**62)) > 0
        assert sealing.seal_all(books.store, wait=True) > 0
        assert books.violations() == []
    finally:
        books.close()


def test_the_role_cannot_change_remove_or_rebuild_what_was_entered(place: Place) -> None:
    books = Books(place.role, migrate=False)
    try:
        books.limits(limits={USD: DOLLAR})
        books.post(books.active(need={USD: 1000}), [record(1, 10)])
        sealing.seal_all(books.store, wait=True)
        month = books.store.read(lambda c: c.execute(sa.select(schema.records.c.month)).scalar_one())
        partition = f"records_{month}"
        statements = [
            *(
                statement.format(table=table)
                for table in ("records", partition, "records_default", "seals", "closings", "alerts")
                for statement in ("UPDATE {table} SET month = 1", "DELETE FROM {table}", "TRUNCATE {table}")
                if not (table == "alerts" and "month" in statement)
            ),
            *(
                statement.format(table=table)
                for table in ("records", partition, "seals")
                for statement in (
                    "DROP TABLE {table}",
                    "ALTER TABLE {table} DISABLE TRIGGER append_only",
                    "DROP TRIGGER append_only ON {table}",
                    "ALTER TABLE {table} ADD COLUMN more integer",
                    "CREATE RULE nothing AS ON INSERT TO {table} DO INSTEAD NOTHING",
                )
            ),
            f"ALTER TABLE records DETACH PARTITION {partition}",
            f"INSERT INTO {partition} SELECT * FROM {partition}",
            "INSERT INTO closings (month, allotments, executions, entries, closed_ms) VALUES (1, 0, 0, 0, 0)",
            "UPDATE alerts SET percent = 1",
            "CREATE TABLE more (id integer)",
            "CREATE OR REPLACE FUNCTION refuse_change() RETURNS trigger LANGUAGE plpgsql AS $$BEGIN RETURN NEW; END$$",
            "SELECT almoner_make_partition(209901)",
            "SET session_replication_role = replica",
            "UPDATE alembic_version SET version_num = '0001'",
            "DELETE FROM windows",
            "DELETE FROM allotments",
        ]
        for statement in statements:
            with pytest.raises(exc.ProgrammingError, match=r"permission denied|must be owner"):
                books.execute(sa.text(statement))
        assert books.violations() == []
    finally:
        books.close()


def test_roles_that_no_grant_would_bind_are_refused_by_name(place: Place) -> None:
    owner = make_url(place.owner).username or ""
    for role, why in (("nobody_there", "there is no role"), (owner, "superuser")):
        done = ledger(place.owner, "migrate", "--grant-to", role)
        assert (done.returncode, why in done.stderr) == (2, True), done.stderr
    member = f"{place.name}_member"
    place.run_as_owner(
        f"CREATE ROLE {member}", f"ALTER TABLE outputs OWNER TO {member}", f"GRANT {member} TO {place.name}"
    )
    done = ledger(place.owner, "migrate", "--grant-to", place.name)
    assert (done.returncode, "owns tables" in done.stderr) == (2, True), done.stderr
    place.run_as_owner(f"ALTER TABLE outputs OWNER TO {owner}", f"DROP ROLE {member}")


def test_sqlite_has_no_roles(tmp_path: Path) -> None:
    done = ledger(f"sqlite:///{tmp_path}/ledger.db", "migrate", "--grant-to", "service")
    assert (done.returncode, "SQLite has no roles" in done.stderr) == (2, True)
