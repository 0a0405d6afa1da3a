"""The simulation in short: some seeded schedules on both databases, and that it finds what is broken."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from almoner_dev.simulate import schedule
from almoner_dev.simulate.databases import PostgresSource, Source, SqliteSource, scratch

if TYPE_CHECKING:
    from almoner_dev.postgres import Postgres

SCHEDULES = 4
MUTANTS_SEEDS = range(1, 9)


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def source(request: pytest.FixtureRequest) -> Iterator[Source]:
    if request.param == "sqlite":
        with scratch() as folder:
            yield SqliteSource(Path(folder))
    else:
        server: Postgres = request.getfixturevalue("postgres_server")
        yield PostgresSource(server, f"simulate_{random.randrange(10**6)}")


@pytest.fixture(scope="module")
def sqlite() -> Iterator[Source]:
    with scratch() as folder:
        yield SqliteSource(Path(folder))


def test_schedules_overspend_and_lose_nothing(source: Source) -> None:
    first = int(os.environ.get("ALMONER_TEST_SEED") or random.randrange(2**31))
    print(f"ALMONER_TEST_SEED={first}")  # noqa: T201 - shown where the test fails
    for seed in range(first, first + SCHEDULES):
        result = schedule.run(seed, source)
        replay = f"python -m almoner_dev.simulate --seed {seed} --schedules 1"
        assert result.ok, "\n".join([f"{source.name}: {result.verdict}", replay, *result.violations])
        assert result.operations > 0


def test_a_seed_replays_the_same_history(sqlite: Source) -> None:
    first, second = schedule.run(7, sqlite), schedule.run(7, sqlite)
    assert (first.trace, first.calls, first.faults) == (second.trace, second.calls, second.faults)
    assert first.trace != schedule.run(8, sqlite).trace
