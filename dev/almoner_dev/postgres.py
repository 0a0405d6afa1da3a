"""A PostgreSQL server for tests and development, from the binaries that are installed.

Role: makes a database cluster in a scratch folder, runs the server on loopback and on a socket in that
folder, makes databases, and breaks on request (stop, restart, kill) for fault tests. The server refuses
to run as root, so root's processes start it as an unprivileged user.

Boundary: runs PostgreSQL; knows nothing of the ledger's schema. Wants psycopg2.

    with Postgres() as server:
        url = server.create_database("books")     # postgresql+psycopg2://...
"""

from __future__ import annotations

import atexit
import contextlib
import os
import pwd
import re
import secrets
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

import psycopg2
import psycopg2.errors
from psycopg2 import sql

from almoner_dev import processes
from almoner_dev.processes import Child, ProcessError, ProcessId

LOOPBACK = "127.0.0.1"
ADMIN = "almoner"
READY_SECONDS = 60.0
INITDB_SECONDS = 120.0
STOP_SECONDS = 15.0
CONNECTIONS_MAX = 300
NAME_PATTERN = re.compile(r"[a-z_][a-z0-9_]{0,62}")
UNPRIVILEGED = ("postgres", "nobody")


class PostgresMissing(RuntimeError):  # noqa: N818 - the name says what is the matter
    """No PostgreSQL server is installed, or no user may run it; the message says what to install."""


def find_binaries(environ: Mapping[str, str] = os.environ) -> Path:
    """Returns the folder with initdb, postgres and pg_ctl: the PATH's, Debian's newest, or pg_config's.

    Raises PostgresMissing when no folder has them all.
    """
    path = environ.get("PATH", "")
    candidates = [Path(folder) for folder in path.split(os.pathsep) if folder]
    debian = Path("/usr/lib/postgresql").glob("*/bin")
    candidates += sorted(debian, key=lambda folder: _number(folder.parent.name), reverse=True)
    if config := shutil.which("pg_config", path=path):
        done = subprocess.run([config, "--bindir"], capture_output=True, text=True, check=False)
        candidates += [Path(line) for line in done.stdout.splitlines()]
    for folder in candidates:
        if all(os.access(folder / name, os.X_OK) for name in ("initdb", "postgres", "pg_ctl")):
            return folder
    raise PostgresMissing(
        "No PostgreSQL server found on the PATH, in /usr/lib/postgresql or by pg_config: "
        "install Debian's package postgresql (apt-get install postgresql), or put the folder with initdb on the PATH"
    )


class Postgres:
    """A PostgreSQL server, started by `start()` or by entering it as a context.

    `fsync=False` is faster and survives kill(), but not a power cut; True is for measuring. `settings`
    are further lines of postgresql.conf. `directory` is kept when given; None makes a temporary one that
    `close()` removes. `detached` lets the server outlive this process.
    """

    def __init__(
        self,
        *,
        directory: Path | None = None,
        fsync: bool = False,
        settings: Mapping[str, str | int] | None = None,
        detached: bool = False,
        environ: Mapping[str, str] = os.environ,
    ) -> None:
        self.child: Child | None = None
        self.port = 0
        self._fsync = fsync
        self._settings = dict(settings or {})
        self._detached = detached
        self._environ = dict(environ)
        self._own_directory = directory is None
        self._directory = directory
        self._password = ""
        self._user: tuple[int, int] | None = None
        self._binaries: Path | None = None
        self._lock = threading.RLock()

    @property
    def directory(self) -> Path:
        """The scratch folder, once started."""
        if self._directory is None:
            raise ProcessError("PostgreSQL is not started: it has no folder or address yet")
        return self._directory

    @property
    def socket_directory(self) -> Path:
        """The folder of the Unix socket."""
        return self.directory / "socket"

    def url(self, database: str = "postgres") -> str:
        """Returns SQLAlchemy's URL of a database, password included, through loopback TCP."""
        return f"postgresql+psycopg2://{ADMIN}:{self._password}@{LOOPBACK}:{self.port}/{database}"

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def start(self) -> None:
        """Makes the cluster if there is none, starts the server unless it runs, and waits until it answers.

        Raises PostgresMissing where no server is installed, ProcessError when it does not start.
        """
        with self._lock:
            if self.child is not None and self.child.running():
                return
            if self._binaries is None:
                self._binaries = find_binaries(self._environ)
                self._user = unprivileged()
            if self._directory is None:
                self._directory = processes.scratch_directory("almoner-postgres-")
            atexit.register(self.close)
            try:
                self._initialize()
                self._launch()
            except BaseException:
                self.close()
                raise

    def stop(self) -> None:
        """Stops the server the fast way: sessions are cut, transactions rolled back, data written."""
        with self._lock:
            if self.child is not None:
                self.child.stop(deadline_s=STOP_SECONDS)

    def restart(self) -> None:
        """Stops the server and starts it again on the same port and data."""
        with self._lock:
            self.stop()
            self.start()

    def kill(self) -> None:
        """Kills the server and all its backends at once (SIGKILL); `start()` then recovers from the log.

        Returns when every process is gone, so that the recovery does not find backends that still run.
        """
        with self._lock:
            if self.child is None or not self.child.running():
                return
            # Backends lead sessions of their own: a signal to the server's group would miss them. The
            # server is frozen first, so that it starts no more of them.
            self.child.identity.send(signal.SIGSTOP)
            backends = _children_of(self.child.pid)
            self.child.kill()
            for backend in backends:
                backend.send(signal.SIGKILL)
            deadline = time.monotonic() + STOP_SECONDS
            while any(backend.alive() for backend in backends):
                if time.monotonic() > deadline:
                    raise ProcessError("PostgreSQL's backends outlive SIGKILL")
                time.sleep(processes.POLL_S)

    def close(self) -> None:
        """Stops the server and removes the scratch folder if it is temporary. May be called again."""
        with self._lock:
            atexit.unregister(self.close)
            self.stop()
            self.child = None
            if self._own_directory and self._directory is not None:
                shutil.rmtree(self._directory, ignore_errors=True)
                self._directory = None

    def create_database(self, name: str) -> str:
        """Makes an empty database and returns SQLAlchemy's URL of it.

        Raises ValueError for a name that is not lower-case letters, digits and underscores, up to 63.
        """
        if not NAME_PATTERN.fullmatch(name):
            raise ValueError(f"name: {name!r} is no database name; use up to 63 of a-z, 0-9 and _")
        self.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
        return self.url(name)

    def drop_database(self, name: str) -> None:
        """Drops a database, cutting its sessions; none of that name is fine too."""
        self.execute(sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(name)))

    def execute(self, statement: sql.Composed | str) -> None:
        """Runs one statement as the administrator, outside any transaction."""
        connection = self._connect()
        try:
            connection.autocommit = True
            with connection.cursor() as cursor:
                cursor.execute(statement)
        finally:
            connection.close()

    # -- internals -----------------------------------------------------------------------------------

    def _connect(self) -> psycopg2.extensions.connection:
        return psycopg2.connect(
            host=LOOPBACK, port=self.port, user=ADMIN, password=self._password, dbname="postgres", connect_timeout=5
        )

    def _initialize(self) -> None:
        data, password_file = self.directory / "data", self.directory / "password"
        self.directory.mkdir(parents=True, exist_ok=True)
        self.port = self.port or processes.free_port(LOOPBACK)
        if (data / "PG_VERSION").exists():
            self._password = password_file.read_text().strip()
            return
        self._password = secrets.token_urlsafe(24)
        self.socket_directory.mkdir(mode=0o700, exist_ok=True)
        password_file.touch(mode=0o600)
        password_file.write_text(self._password + "\n")
        if self._user is not None:
            for path in (self.directory, self.socket_directory, password_file):
                os.chown(path, *self._user)
        child = self._start(
            "initdb",
            [
                f"--pgdata={data}",
                f"--username={ADMIN}",
                f"--pwfile={password_file}",
                "--auth=scram-sha-256",
                "--encoding=UTF8",
                "--locale=C",
                "--no-instructions",
                *([] if self._fsync else ["--no-sync"]),
            ],
        )
        try:
            code = child.process.wait(INITDB_SECONDS)
        except subprocess.TimeoutExpired:
            child.kill()
            raise child.failure(f"not done within {INITDB_SECONDS:g} s") from None
        if code != 0:
            raise child.failure("cannot make the database cluster")

    def _launch(self) -> None:
        settings: dict[str, str | int] = {
            "listen_addresses": LOOPBACK,
            "port": self.port,
            "unix_socket_directories": str(self.socket_directory),
            "max_connections": CONNECTIONS_MAX,
            "shared_buffers": "128MB",
            "logging_collector": "off",
            # synchronous_commit stays on: what was committed has to survive kill(), and without fsync that
            # costs no more than a write into the page cache.
            **({} if self._fsync else {"fsync": "off", "full_page_writes": "off"}),
            **self._settings,
        }
        flags = [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]
        self.child = self._start("postgres", ["-D", str(self.directory / "data"), *flags])
        processes.wait_until(
            self._answers, seconds=READY_SECONDS, children=[self.child], what="PostgreSQL to take connections"
        )

    def _start(self, program: str, arguments: list[str]) -> Child:
        assert self._binaries is not None
        user, group = self._user or (None, None)
        return processes.start(
            program,
            [self._binaries / program, *arguments],
            log_path=self.directory / f"{program}.log",
            cwd=self.directory,
            user=user,
            group=group,
            # Neither the caller's PGDATA nor its locale: the same server everywhere.
            env={"PATH": self._environ.get("PATH", ""), "LC_ALL": "C", "TZ": "UTC"},
            detached=self._detached,
            first_signal=signal.SIGINT,
            # Backends notice the death of a killed server by themselves, but would leave its shared memory.
            death_signal=signal.SIGQUIT,
        )

    def _answers(self) -> bool:
        with contextlib.suppress(psycopg2.OperationalError):
            self._connect().close()
            return True
        return False


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return -1.0


def unprivileged() -> tuple[int, int] | None:
    """Returns the user and group to run as: None for our own, which serves unless we are root."""
    if os.geteuid() != 0:
        return None
    for name in UNPRIVILEGED:
        with contextlib.suppress(KeyError):
            entry = pwd.getpwnam(name)
            return entry.pw_uid, entry.pw_gid
    raise PostgresMissing(
        f"PostgreSQL refuses to run as root, and there is no user to run it as: add one of {', '.join(UNPRIVILEGED)}"
    )


def _children_of(pid: int) -> list[ProcessId]:
    try:
        listed = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        return []
    found = (ProcessId.of(int(child)) for child in listed)
    return [child for child in found if child is not None]
