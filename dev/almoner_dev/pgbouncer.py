"""PgBouncer in front of a PostgreSQL server, from the binary that is installed, for tests.

Role: runs the pooler on loopback in transaction mode, otherwise as its defaults have it: so it refuses parameters of a
connection's start that it does not know. It does not run as root, so root's processes start it as an unprivileged user.

    with PgBouncer(server) as pooler:
        url = pooler.url("books")
"""

from __future__ import annotations

import os
import shutil
import socket
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

from sqlalchemy.engine import make_url

from almoner_dev import processes
from almoner_dev.postgres import LOOPBACK, Postgres, unprivileged
from almoner_dev.processes import Child

READY_SECONDS = 30.0
CLIENTS_MAX = 200
POOL_SIZE = 10


class PgBouncerMissing(RuntimeError):  # noqa: N818 - the name says what is the matter
    """No PgBouncer is installed; the message says what to install."""


def find_binary(environ: Mapping[str, str] = os.environ) -> Path:
    """Returns the program on the PATH or in /usr/sbin. Raises PgBouncerMissing."""
    path = os.pathsep.join((environ.get("PATH", ""), "/usr/sbin"))
    found = shutil.which("pgbouncer", path=path)
    if found is None:
        raise PgBouncerMissing(
            "No PgBouncer found on the PATH or in /usr/sbin: install Debian's package pgbouncer "
            "(apt-get install pgbouncer)"
        )
    return Path(found)


class PgBouncer:
    """A pooler of all databases of one server, started by entering it as a context.

    `settings` are further ones of its section [pgbouncer].
    """

    def __init__(self, server: Postgres, settings: Mapping[str, str | int] | None = None) -> None:
        self._server = server
        self._settings = dict(settings or {})
        self._port = processes.free_port(LOOPBACK)
        self._directory: Path | None = None
        self._child: Child | None = None

    def url(self, database: str) -> str:
        """Returns SQLAlchemy's URL of a database through the pooler, password included."""
        return make_url(self._server.url(database)).set(port=self._port).render_as_string(hide_password=False)

    def __enter__(self) -> Self:
        binary, user = find_binary(), unprivileged()
        self._directory = processes.scratch_directory("almoner-pgbouncer-")
        configuration, users = self._directory / "pgbouncer.ini", self._directory / "users.txt"
        for path, text in ((users, self._users()), (configuration, self._configuration(users))):
            path.touch(mode=0o600)
            path.write_text(text)
        if user is not None:
            for path in (self._directory, configuration, users):
                os.chown(path, *user)
        self._child = processes.start(
            "pgbouncer",
            [binary, configuration],
            log_path=self._directory / "pgbouncer.log",
            cwd=self._directory,
            user=user[0] if user is not None else None,
            group=user[1] if user is not None else None,
        )
        processes.wait_until(
            self._listens, seconds=READY_SECONDS, children=[self._child], what="PgBouncer to take connections"
        )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._child is not None:
            self._child.stop()
        if self._directory is not None:
            shutil.rmtree(self._directory, ignore_errors=True)

    def _users(self) -> str:
        url = make_url(self._server.url())
        return f'"{url.username}" "{url.password}"\n'

    def _configuration(self, users: Path) -> str:
        settings: dict[str, str | int] = {
            "listen_addr": LOOPBACK,
            "listen_port": self._port,
            "unix_socket_dir": "",
            "auth_type": "scram-sha-256",
            "auth_file": str(users),
            "pool_mode": "transaction",
            "max_client_conn": CLIENTS_MAX,
            # Databases of tests come and go.
            "server_idle_timeout": 5,
            "default_pool_size": POOL_SIZE,
            **self._settings,
        }
        lines = "".join(f"{name} = {value}\n" for name, value in settings.items())
        return f"[databases]\n* = host={LOOPBACK} port={self._server.port}\n\n[pgbouncer]\n{lines}"

    def _listens(self) -> bool:
        try:
            socket.create_connection((LOOPBACK, self._port), timeout=1).close()
        except OSError:
            return False
        return True
