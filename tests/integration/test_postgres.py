from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from pathlib import Path

import psycopg2
import pytest
import sqlalchemy as sa

from almoner_dev import postgres
from almoner_dev.postgres import Postgres, PostgresMissing
from almoner_dev.processes import ProcessError


@pytest.fixture
def own_server() -> Iterator[Postgres]:
    with Postgres() as server:
        yield server


def test_the_server_is_shared_and_databases_are_not(postgres_server: Postgres, postgres_url: str) -> None:
    other = postgres_server.create_database("books_of_another_test")
    try:
        first, second = sa.create_engine(postgres_url), sa.create_engine(other)
        with first.begin() as connection:
            connection.execute(sa.text("CREATE TABLE only_here (id int)"))
        assert sa.inspect(first).get_table_names() == ["only_here"]
        assert sa.inspect(second).get_table_names() == []
        first.dispose()
        second.dispose()
    finally:
        postgres_server.drop_database("books_of_another_test")


def test_it_listens_on_loopback_and_asks_for_the_password(postgres_server: Postgres) -> None:
    with pytest.raises(psycopg2.OperationalError, match="password"):
        psycopg2.connect(
            host="127.0.0.1", port=postgres_server.port, user="almoner", password="wrong", dbname="postgres"
        )
    engine = sa.create_engine(postgres_server.url())
    with engine.connect() as connection:
        assert connection.scalar(sa.text("SHOW listen_addresses")) == "127.0.0.1"
    engine.dispose()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root has to step down")
def test_root_starts_it_as_an_unprivileged_user(postgres_server: Postgres) -> None:
    assert postgres_server.child is not None
    assert Path(f"/proc/{postgres_server.child.pid}").stat().st_uid != 0


def test_what_was_committed_survives_a_kill_and_what_was_not_is_gone(own_server: Postgres) -> None:
    engine = sa.create_engine(own_server.create_database("faults"))
    with engine.begin() as connection:
        connection.execute(sa.text("CREATE TABLE entries (id int PRIMARY KEY)"))
        connection.execute(sa.text("INSERT INTO entries SELECT generate_series(1, 1000)"))
    hanging = engine.connect()
    hanging.execute(sa.text("INSERT INTO entries VALUES (1001)"))
    port = own_server.port

    own_server.kill()
    with pytest.raises(psycopg2.OperationalError):
        psycopg2.connect(own_server.url("faults").replace("+psycopg2", ""))
    own_server.start()

    hanging.invalidate()
    engine.dispose()
    with engine.connect() as connection:
        assert connection.scalar(sa.text("SELECT count(*) FROM entries")) == 1000
    assert own_server.port == port
    engine.dispose()


def test_restart_keeps_the_port_and_the_data(own_server: Postgres) -> None:
    url = own_server.create_database("kept")
    own_server.restart()
    engine = sa.create_engine(url)
    with engine.connect() as connection:
        assert connection.scalar(sa.text("SELECT 1")) == 1
    engine.dispose()


def test_it_may_be_started_from_a_thread_that_ends() -> None:
    server = Postgres()
    thread = threading.Thread(target=server.start)
    thread.start()
    thread.join()
    with server:
        server.create_database("still_there")
        assert server.child is not None
        assert server.child.running()


def test_close_leaves_nothing_behind() -> None:
    server = Postgres()
    server.start()
    directory, child = server.directory, server.child
    assert child is not None
    server.close()
    server.close()
    assert not directory.exists()
    assert not child.identity.alive()


def test_a_server_that_cannot_start_shows_its_log() -> None:
    with pytest.raises(ProcessError, match="no_such_setting"):
        Postgres(settings={"no_such_setting": "1"}).start()


def test_a_database_name_that_is_none_is_refused(postgres_server: Postgres) -> None:
    with pytest.raises(ValueError, match="database name"):
        postgres_server.create_database('books"; DROP DATABASE postgres')


def test_without_a_server_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = Path.glob
    monkeypatch.setattr(
        Path, "glob", lambda path, pattern: [] if "postgresql" in str(path) else original(path, pattern)
    )
    with pytest.raises(PostgresMissing, match="apt-get install postgresql"):
        postgres.find_binaries({"PATH": str(tmp_path)})
