"""The service under test: a real database, the real ledger process, and the identities that may speak to it.

Role: starts PostgreSQL (fsync on) or makes an SQLite file, starts `almoner-ledger serve` as the process that it is in
production, takes an epoch as the operator would. Callers present static tokens, the ledger's own means for machines
without Kubernetes: a TokenReview is cached for a minute, so that what a steady load costs is the same.

Boundary: starts and stops; measures only the process's own memory and processor time.
"""

from __future__ import annotations

import json
import secrets
import shutil
import sqlite3
import sys
import urllib.error
import urllib.request
import uuid
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import psycopg2

from almoner_dev import bench_ledger_raw as raw
from almoner_dev import processes
from almoner_dev.bench_ledger_client import Caller, Maker, Meter, Target
from almoner_dev.bench_report import cpu_seconds, rss_mb, run_async
from almoner_dev.ledger_environment import ledger_environment
from almoner_dev.postgres import Postgres
from almoner_dev.processes import Child

READY_SECONDS: Final = 60.0
LOOPBACK: Final = "127.0.0.1"


class Service:
    """The ledger service over a fresh database. Use as a context manager."""

    def __init__(self, *, sqlite: bool, meters: int) -> None:
        self._sqlite = sqlite
        self._postgres: Postgres | None = None
        self._directory: Path | None = None
        self._child: Child | None = None
        self._url = ""
        self._meters = tuple(Meter(str(uuid.uuid4()), secrets.token_urlsafe(24)) for _ in range(meters))
        self._operator_token = secrets.token_urlsafe(24)
        self._target: Target | None = None

    @property
    def target(self) -> Target:
        """Where the service is, and who may speak to it."""
        assert self._target is not None
        return self._target

    @property
    def directory(self) -> Path:
        """The scratch folder, once started."""
        assert self._directory is not None
        return self._directory

    @property
    def database_version(self) -> str:
        """The database's name and version."""
        if self._sqlite:
            return f"SQLite {sqlite3.sqlite_version}"
        connection = psycopg2.connect(self._libpq_url())
        try:
            number = connection.info.server_version
        finally:
            connection.close()
        return f"PostgreSQL {number // 10000}.{number % 10000}, fsync on"

    def __enter__(self) -> Self:
        try:
            self._start()
        except BaseException:
            self._stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop()

    def rss_mb(self) -> float | None:
        """Give the most memory that the service's process had resident, in MB."""
        return rss_mb(self._pid())

    def cpu_seconds(self) -> float:
        """Give the processor time that the service's process has used, in seconds."""
        return cpu_seconds(self._pid())

    def raw_rows_per_s(self, *, seconds: float, processes: int, connections: int, batch: int, seed: int) -> float:
        """Measure the same database without the service."""
        if self._sqlite:
            return raw.sqlite_rows_per_s(self.directory / "ledger.db", seconds=seconds, batch=batch, seed=seed)
        return raw.postgres_rows_per_s(
            self._libpq_url(),
            seconds=seconds,
            processes=processes,
            connections=connections,
            batch=batch,
            seed=seed,
        )

    # -- starting and stopping -----------------------------------------------------------------------

    def _pid(self) -> int:
        assert self._child is not None
        return self._child.pid

    def _libpq_url(self) -> str:
        return self._url.replace("+psycopg2", "", 1)

    def _start(self) -> None:
        self._directory = processes.scratch_directory("almoner-bench-ledger-")
        if self._sqlite:
            self._url = f"sqlite:///{self._directory / 'ledger.db'}"
        else:
            self._postgres = Postgres(fsync=True)
            self._postgres.start()
            self._url = self._postgres.create_database("bench")
        port = processes.free_port(LOOPBACK)
        address = f"http://{LOOPBACK}:{port}"
        self._child = processes.start(
            "almoner-ledger",
            [sys.executable, "-m", "almoner_ledger", "serve", "--listen", f"{LOOPBACK}:{port}", *self._arguments()],
            log_path=self._directory / "ledger.log",
            env=ledger_environment(self._url),
        )
        processes.wait_until(
            lambda: _answers(f"{address}/readyz"),
            seconds=READY_SECONDS,
            children=[self._child],
            what="the ledger to be ready",
        )
        self._target = Target(address, self._operator_token, run_async(self._take_epoch(address)), self._meters)

    def _arguments(self) -> list[str]:
        entries: list[dict[str, str]] = [{"token": self._operator_token, "role": "operator", "name": "bench"}]
        entries += [{"token": each.token, "role": "meter", "pod_uid": each.pod_uid} for each in self._meters]
        tokens = self.directory / "tokens.json"
        tokens.touch(mode=0o600)
        tokens.write_text(json.dumps(entries))
        return ["--static-tokens", str(tokens)]

    async def _take_epoch(self, address: str) -> int:
        async with Caller(address, connections=1) as caller:
            body = {"operation_id": Maker(0).id(), "holder": "bench"}
            return int((await caller.post("/v1/epochs", body, self._operator_token))["epoch"])

    def _stop(self) -> None:
        if self._child is not None:
            self._child.stop()
        if self._postgres is not None:
            self._postgres.close()
        if self._directory is not None:
            shutil.rmtree(self._directory, ignore_errors=True)


def _answers(url: str) -> bool:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(url, timeout=2.0) as response:
            return bool(response.status == 200)
    except (OSError, urllib.error.URLError):
        return False
