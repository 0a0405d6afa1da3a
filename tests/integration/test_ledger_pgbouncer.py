"""Case C17: the ledger behind PgBouncer in transaction mode. Some of its other tests run here too, through it."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.engine import Connection

from almoner_dev.pgbouncer import PgBouncer
from almoner_dev.postgres import Postgres
from almoner_ledger import sealing
from almoner_ledger.database import Database
from almoner_ledger.maintenance import Maintenance
from almoner_ledger.store import Store
from tests.integration import test_ledger_faults as faults
from tests.integration import test_ledger_migrations as migrations
from tests.integration import test_ledger_retention as retention
from tests.integration import test_ledger_store as store
from tests.support.books import DOLLAR, USD, Books, record


@pytest.fixture
def postgres_url(postgres_server: Postgres, pgbouncer: PgBouncer) -> str:
    name = f"test_{secrets.token_hex(4)}"
    postgres_server.create_database(name)
    return pgbouncer.url(name)


@pytest.fixture
def ledger_url(postgres_url: str) -> str:
    return postgres_url


for _module in (store, migrations, retention):
    for _name, _value in vars(_module).items():
        if _name.startswith("test_") or _name in ("full", "history"):
            globals()[_name] = _value

seed, replicas = faults.seed, faults.replicas
test_200_concurrent_spenders_never_pass_the_budget = faults.test_200_concurrent_spenders_never_pass_the_budget
test_threads_on_one_database_never_pass_the_budget = faults.test_threads_on_one_database_never_pass_the_budget
test_lost_connections_are_retried_not_surfaced = faults.test_lost_connections_are_retried_not_surfaced


def _shown(connection: Connection) -> dict[str, str]:
    names = ("statement_timeout", "lock_timeout", "TimeZone", "transaction_read_only", "transaction_isolation")
    return {name: str(connection.exec_driver_sql(f"SHOW {name}").scalar_one()) for name in names}


@pytest.mark.parametrize("pooled", [True, False])
def test_every_transaction_has_its_limits_and_leaves_none_behind(
    postgres_server: Postgres, pgbouncer: PgBouncer, *, pooled: bool
) -> None:
    name = f"test_{secrets.token_hex(4)}"
    direct = postgres_server.create_database(name)
    url = pgbouncer.url(name) if pooled else direct
    database = Database(url, patience_seconds=5)
    limits = {"statement_timeout": "30s", "lock_timeout": "10s", "TimeZone": "UTC"}
    runs: tuple[tuple[Callable[[Callable[[Connection], Any]], Any], dict[str, str]], ...] = (
        (database.write, {**limits, "transaction_read_only": "off"}),
        (lambda work: database.write(work, by_index=True), {**limits, "transaction_read_only": "off"}),
        (database.read, {**limits, "transaction_read_only": "on"}),
        (
            database.snapshot,
            {"statement_timeout": "0", "transaction_read_only": "on", "transaction_isolation": "repeatable read"},
        ),
    )
    for run, expected in runs:
        assert expected.items() <= run(_shown).items()
    with database.reading() as connection:
        assert {**limits, "transaction_read_only": "on"}.items() <= _shown(connection).items()
    engine = sa.create_engine(url)
    with engine.connect() as connection:
        assert _shown(connection)["statement_timeout"] == "0", "a session of the pool is as it was"
    engine.dispose()
    database.dispose()


def test_migrations_seals_and_chores_of_replicas_exclude_each_other_through_the_pooler(postgres_url: str) -> None:
    stores = [Store(Database(postgres_url, patience_seconds=30)) for _ in range(3)]
    _at_once([each.migrate for each in stores])
    books = Books(postgres_url)
    books.limits(limits={USD: DOLLAR})
    allotment = books.active(need={USD: 1000})
    books.post(allotment, [record(sequence, 3) for sequence in range(1, 51)])
    assert sum(_at_once([partial(sealing.seal_all, each, wait=True) for each in stores])) == 50
    _at_once([Maintenance(each).tidy for each in stores])
    assert books.violations() == []
    books.close()
    for each in stores:
        each.database.dispose()


def _at_once(works: list[Callable[[], Any]]) -> list[Any]:
    with ThreadPoolExecutor(len(works)) as pool:
        return [each.result(120) for each in [pool.submit(work) for work in works]]
