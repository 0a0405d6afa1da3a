"""Runs the service: migrates, listens, and shuts down in order on SIGTERM."""

from __future__ import annotations

import asyncio
import functools
import gc
import logging
import signal
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

from aiohttp import web

from almoner_ledger import kubernetes
from almoner_ledger.auth import Authenticator, Policy, load_static_tokens
from almoner_ledger.database import Database
from almoner_ledger.doors import Doors
from almoner_ledger.kubernetes import AccessReviewer
from almoner_ledger.leasing import LeasePolicy
from almoner_ledger.maintenance import SEAL_SECONDS, Maintenance
from almoner_ledger.provider_keys import ProviderKeys
from almoner_ledger.readers import KEPT_SECONDS, Readers
from almoner_ledger.secret_reader import SecretReader
from almoner_ledger.service import Service
from almoner_ledger.store import Store
from almoner_ledger.tls import Pair, Site

log = logging.getLogger(__name__)

SHUTDOWN_SECONDS = 20.0
SWITCH_SECONDS = 0.0005


def split_address(text: str, flag: str = "--listen") -> tuple[str, int]:
    """Read HOST:PORT; an IPv6 host stands in brackets. Raises ValueError."""
    host, _, port = text.rpartition(":")
    if not host or not port.isdigit() or int(port) > 65_535:
        raise ValueError(f"{flag}: {text!r} is no HOST:PORT")
    return host.strip("[]"), int(port)


def authenticator(kubeconfig: Path | None, static_tokens: Path | None, policy: Policy) -> Authenticator:
    """Make the judge of tokens. Raises ValueError where there is nothing to judge them by."""
    access = kubernetes.from_kubeconfig(kubeconfig) if kubeconfig is not None else kubernetes.in_cluster()
    static = load_static_tokens(static_tokens) if static_tokens is not None else {}
    if access is None and not static:
        raise ValueError("no API server to check tokens: give --kubeconfig, or --static-tokens for local use")
    if static:
        log.warning("%d static tokens are accepted: for local use only", len(static))
    return Authenticator(access, policy, static)


async def serve(
    store: Store,
    judge: Authenticator,
    host: str,
    port: int,
    *,
    seal_seconds: float = SEAL_SECONDS,
    metrics_at: tuple[str, int] | None = None,
    pair: Pair | None = None,
    reading_seconds: float = KEPT_SECONDS,
    keys_namespace: str | None = None,
) -> None:
    """Serve until SIGTERM or SIGINT; then refuse new requests, finish those that run, and return.

    `metrics_at`: host and port of /metrics, which are then not served beside the API. `pair`: serve HTTPS with it.
    `reading_seconds`: for so long an answer holds whether somebody may read. `keys_namespace`: where Secrets with keys
    of cluster-scoped providers lie; None: the pod's own.
    """
    readers = Readers(AccessReviewer(judge.access) if judge.access is not None else None, reading_seconds)
    keys = ProviderKeys(SecretReader(judge.access, keys_namespace) if judge.access is not None else None)
    service = Service(
        store, judge, version=version("almoner"), with_metrics=metrics_at is None, readers=readers, keys=keys
    )
    machines = await _serve_metrics(service, *metrics_at) if metrics_at is not None else None
    application = service.application()
    application.cleanup_ctx.append(Maintenance(store, seal_seconds=seal_seconds).running)
    if pair is not None:
        application.cleanup_ctx.append(pair.watching)
    doors = Doors()
    application.middlewares.append(doors.middleware)
    runner = web.AppRunner(application, access_log=None, handle_signals=False, shutdown_timeout=SHUTDOWN_SECONDS)
    await runner.setup()
    assert runner.server is not None
    doors.guard(runner.server)
    tls = pair.context if pair is not None else None
    await Site(runner, host, port, backlog=1024, reuse_address=True, ssl_context=tls).start()
    # What was made until now stays: the collector need not walk it again and again.
    gc.collect()
    gc.freeze()
    addresses = ", ".join(f"{address[0]}:{address[1]}" for address in runner.addresses)
    log.info("ledger listens on %s, %s", addresses, "HTTP, unencrypted" if tls is None else "HTTPS")
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    await stop.wait()
    log.info("ledger shuts down")
    service.stopping.set()
    await service.watch.close()
    await runner.cleanup()
    if machines is not None:
        await machines.cleanup()


async def _serve_metrics(service: Service, host: str, port: int) -> web.AppRunner:
    """Serve /metrics alone. Raises OSError where the port is taken."""
    runner = web.AppRunner(service.metrics_application(), access_log=None, handle_signals=False)
    await runner.setup()
    await web.TCPSite(runner, host, port, reuse_address=True).start()
    log.info("metrics are at %s:%d", host, port)
    return runner


def _ahead_ms(file: Path) -> int:
    return time.time_ns() // 1_000_000 + int(file.read_text()) * 1000


def run(
    database_url: str,
    host: str,
    port: int,
    judge: Authenticator,
    *,
    migrate: bool,
    patience_seconds: float,
    lease: LeasePolicy | None = None,
    clock_ahead_file: Path | None = None,
    seal_seconds: float = SEAL_SECONDS,
    metrics_at: tuple[str, int] | None = None,
    tls_dir: Path | None = None,
    reading_seconds: float = KEPT_SECONDS,
    keys_namespace: str | None = None,
) -> None:
    """Open the database, migrate it unless told not to, and serve; HTTPS where `tls_dir` has a pair.

    `clock_ahead_file` is for tests: the clock is then this machine's, ahead by the seconds in the file.
    """
    pair = Pair(tls_dir) if tls_dir is not None else None
    database = Database(database_url, patience_seconds=patience_seconds)
    clock = functools.partial(_ahead_ms, clock_ahead_file) if clock_ahead_file is not None else None
    store = Store(database, clock=clock, lease=lease)
    if migrate:
        store.migrate()
    try:
        # The writer's thread comes back from the database dozens of times in a transaction; at the default of 5 ms it
        # would wait that long each time for the thread that serves requests to let go of the interpreter.
        sys.setswitchinterval(SWITCH_SECONDS)
        with asyncio.Runner(loop_factory=_loop_factory()) as runner:
            serving = serve(
                store,
                judge,
                host,
                port,
                seal_seconds=seal_seconds,
                metrics_at=metrics_at,
                pair=pair,
                reading_seconds=reading_seconds,
                keys_namespace=keys_namespace,
            )
            runner.run(serving)
    finally:
        database.dispose()


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """Give uvloop's loop where it is installed: it takes a fifth off what a request costs."""
    try:
        import uvloop  # noqa: PLC0415 - not on every platform
    except ImportError:
        return None
    factory: Callable[[], asyncio.AbstractEventLoop] = uvloop.new_event_loop
    return factory
