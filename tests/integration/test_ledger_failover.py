"""Case C16: after a failover the ledger leaves the old primary by itself, and books everything once."""

from __future__ import annotations

import contextlib
import io
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psycopg2
import pytest
import sqlalchemy as sa
from psycopg2 import sql
from sqlalchemy.engine import make_url

from almoner_dev.postgres import Postgres, PostgresMissing
from almoner_ledger import migrations, schema
from almoner_ledger.database import Database
from tests.conftest import missing
from tests.support.books import DOLLAR, new_id
from tests.support.ledger_service import LedgerService, meter_token, record_body
from tests.support.polling import until
from tests.support.tcp_proxy import TcpProxy

RECORDS = 100
SECONDS = 60.0


class Pair:
    """Two servers, and the one address by which the ledger knows whichever is the primary."""

    def __init__(self, old: Postgres, new: Postgres, proxy: TcpProxy) -> None:
        self.old, self.new, self.proxy = old, new, proxy
        self.old_url = old.create_database("ledger")
        self.url = make_url(self.old_url).set(port=proxy.port).render_as_string(hide_password=False)

    def fence(self) -> None:
        """Have the old primary only read; its connections stay open."""
        self.old.execute("ALTER SYSTEM SET default_transaction_read_only = on")
        self.old.execute("SELECT pg_reload_conf()")
        until(self._is_fenced, SECONDS, "the old primary to only read")

    def _is_fenced(self) -> bool:
        engine = sa.create_engine(self.old_url)
        with engine.connect() as connection:
            said = connection.exec_driver_sql("SHOW default_transaction_read_only").scalar_one()
        engine.dispose()
        return bool(said == "on")

    def promote(self) -> None:
        """Copy the data to the new primary, and let new connections reach that one."""
        old = make_url(self.old_url)
        assert old.password is not None
        self.new.execute("CREATE DATABASE ledger")
        # From here on it has the password by which the ledger knows the primary.
        self.new.execute(
            sql.SQL("ALTER ROLE {} PASSWORD {}").format(sql.Identifier(old.username or ""), sql.Literal(old.password))
        )
        database = Database(self.new_url)
        database.migrate(migrations.upgrade)
        database.dispose()
        _copy(old, make_url(self.new_url))
        self.proxy.target = self.new.port

    def counted(self, url: str) -> int:
        engine = sa.create_engine(url)
        with engine.connect() as connection:
            found = connection.execute(sa.select(sa.func.count()).select_from(schema.records)).scalar_one()
        engine.dispose()
        return int(found)

    @property
    def new_url(self) -> str:
        return make_url(self.old_url).set(port=self.new.port).render_as_string(hide_password=False)


def _copy(source: sa.URL, sink: sa.URL) -> None:
    """Copy every row, as a standby has them."""
    with contextlib.ExitStack() as stack:
        old, new = (stack.enter_context(contextlib.closing(_connect(each))) for each in (source, sink))
        reading, writing = old.cursor(), new.cursor()
        writing.execute("DELETE FROM counters; DELETE FROM epochs")
        for table in schema.metadata.sorted_tables:
            rows = io.StringIO()
            reading.copy_expert(f"COPY (SELECT * FROM {table.name}) TO STDOUT", rows)
            rows.seek(0)
            writing.copy_expert(f"COPY {table.name} FROM STDIN", rows)
        new.commit()


def _connect(url: sa.URL) -> psycopg2.extensions.connection:
    return psycopg2.connect(host=url.host, port=url.port, user=url.username, password=url.password, dbname=url.database)


@pytest.fixture
def pair() -> Iterator[Pair]:
    try:
        with Postgres() as old, Postgres() as new, TcpProxy(old.port) as proxy:
            yield Pair(old, new, proxy)
    except PostgresMissing as error:
        missing(error)


def test_a_failover_loses_and_doubles_nothing_and_needs_nobody(pair: Pair, tmp_path: Path) -> None:
    service = LedgerService(tmp_path, pair.url, pods=["pod"]).start()
    try:
        epoch = service.epoch()
        service.limit(epoch, {"usd": DOLLAR})
        allotment = service.active(epoch, "pod", {"usd": 10_000})

        given_up = threading.Event()

        def post(sequence: int) -> None:
            body = {"operation_id": new_id(), "records": [record_body(sequence, 10)]}
            path = f"/v1/allotments/{allotment}/records"

            def posted() -> bool:
                # As a meter does: the same operation again until it is answered.
                assert not given_up.is_set()
                answer = service.request("POST", path, meter_token("pod"), json=body)
                assert answer.status_code in (200, 503), answer.text
                return answer.status_code == 200

            until(posted, SECONDS, f"record {sequence} to be posted")

        for sequence in range(1, 11):
            post(sequence)
        pair.fence()
        until(lambda: not service.ready(), SECONDS, "readyz to fail while writes fail")
        with ThreadPoolExecutor(8) as pool:
            waiting = [pool.submit(post, sequence) for sequence in range(11, RECORDS + 1)]
            try:
                pair.promote()
                for each in waiting:
                    each.result()
            finally:
                given_up.set()
        until(service.ready, SECONDS, "readyz")
        assert pair.counted(pair.old_url) == 10, "nothing goes to the fenced one"
        assert pair.counted(pair.new_url) == RECORDS
        state = next(
            each
            for each in service.ask("GET", "/v1/changes?after=0&timeout_seconds=0&limit=500")["accounts"]
            if each["dimension"] == "usd"
        )
        assert state["spent"] == 10 * RECORDS
        log = (tmp_path / "ledger.log").read_text()
        assert len(log.splitlines()) < 60, log
        assert "the database takes no writes" in log
        assert "the database takes writes again" in log
    finally:
        service.close()


def test_sessions_that_the_server_ends_for_being_idle_are_replaced(tmp_path: Path) -> None:
    """57P05 and 25P03: the next transaction finds its connection ended, and runs on another one."""
    try:
        with Postgres(settings={"idle_session_timeout": "200ms"}) as server:
            url = server.create_database("ledger")
            service = LedgerService(tmp_path, url, pods=["pod"]).start()
            try:
                epoch = service.epoch()
                service.limit(epoch, {"usd": DOLLAR})
                allotment = service.active(epoch, "pod", {"usd": 10_000})
                for sequence in range(1, 6):
                    until(lambda: _sessions(url) == 0, SECONDS, "the server to end the ledger's idle sessions")
                    body = {"operation_id": new_id(), "records": [record_body(sequence, 10)]}
                    service.ask("POST", f"/v1/allotments/{allotment}/records", body, meter_token("pod"))
            finally:
                service.close()
    except PostgresMissing as error:
        missing(error)


def _sessions(url: str) -> int:
    query = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'almoner-ledger' AND state = 'idle'"
    engine = sa.create_engine(url, poolclass=sa.NullPool)
    with engine.connect() as connection:
        return int(connection.exec_driver_sql(query).scalar_one())
