"""The operator as a whole: elected, given an epoch, filled, reconciled, then at work until it is told to stop.

Order matters. Nothing is written before this process leads; nothing is admitted before the cache is full and the
ledger's open allotments were compared with it. A lost lease or a newer epoch ends the process at once: what it had
under way is finished by the next leader.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import sys
import time
from collections.abc import AsyncIterator, Mapping
from typing import Any, Final, NoReturn, cast
from uuid import uuid4

import kopf

from almoner_operator import credentials, deep_json, demand, live_metrics, metrics, news, sync
from almoner_operator.accounts import Accounts
from almoner_operator.admit import Admitter
from almoner_operator.cache import Cache
from almoner_operator.certificate_keeper import CertificateKeeper
from almoner_operator.compute import MachineTime
from almoner_operator.configuration_log import ConfigurationLog
from almoner_operator.context import Context, OperatorSettings
from almoner_operator.errors import ApiError, LeadershipLostError, LedgerError, fix_of
from almoner_operator.events import EventRecorder
from almoner_operator.handlers import register_all
from almoner_operator.health import Health, HealthServer
from almoner_operator.kubernetes import KubernetesClient
from almoner_operator.leader import Leader
from almoner_operator.ledger_client import LedgerClient
from almoner_operator.ledger_trust import LedgerTrust
from almoner_operator.lifecycle import Lifecycle
from almoner_operator.loop import Loop
from almoner_operator.observe import Observer
from almoner_operator.pins import Pins
from almoner_operator.secret_facts import Secrets
from almoner_operator.settle import Settler
from almoner_operator.writer import StatusWriter, Target

log = logging.getLogger(__name__)

EXIT_LEADERSHIP_LOST: Final = 3
LEASE_NAME: Final = "almoner-operator"
RETRY_SECONDS: Final = 1.0
STOP_SECONDS: Final = 8.0
STILL_SECONDS: Final = 120.0
WATCH_SECONDS: Final = 600


class Operator:
    """One operator process."""

    def __init__(self, settings: OperatorSettings) -> None:
        self._settings = settings
        self._health = Health()
        self._trust = LedgerTrust(settings.ledger_ca_file)
        self._stop = asyncio.Event()

    async def run(self) -> None:
        """Work until SIGTERM or SIGINT. Raises OSError where a port is taken."""
        settings = self._settings
        access = credentials.load(settings.kubeconfig)
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop.set)
        server = HealthServer(self._health)
        await server.start(settings.listen_address, settings.health_port, settings.metrics_port)
        try:
            async with (
                KubernetesClient(access, concurrent_max=settings.api_concurrent, rate=settings.api_rate) as client,
                LedgerClient(settings.ledger_url, token_file=settings.ledger_token_file, trust=self._trust) as ledger,
            ):
                identity = settings.identity or f"{socket.gethostname()}-{os.getpid()}-{uuid4().hex[:6]}"
                leader = Leader(
                    client,
                    namespace=settings.own_namespace,
                    name=LEASE_NAME,
                    identity=identity,
                    seconds=settings.lease_seconds,
                )
                self._health.heard = leader.unheard
                async with self._certificate(client) as there:
                    if not there or not await self._unless_stopped(leader.acquire()):
                        return
                    try:
                        await self._lead(access, client, ledger, leader)
                    finally:
                        self._health.leader = False
                        metrics.LEADER.set(0)
        finally:
            await server.stop()

    @contextlib.asynccontextmanager
    async def _certificate(self, client: KubernetesClient) -> AsyncIterator[bool]:
        """Keep the ledger's certificate meanwhile, where that is ours to do; False: stopped before it was there.

        Every process does, whether it leads or not: a ledger that nobody can verify is worth no leader.
        """
        secret = self._settings.ledger_certificate_secret
        if not secret:
            yield True
            return
        keeper = CertificateKeeper(client, self._settings.own_namespace, secret)
        heard, self._health.heard = self._health.heard, lambda: keeper.problem
        if not await self._unless_stopped(keeper.first(self._trust)):
            yield False
            return
        self._health.heard = heard
        keeping = asyncio.create_task(keeper.keep(self._trust), name="the ledger's certificate")
        try:
            yield True
        finally:
            keeping.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await keeping

    async def _unless_stopped(self, work: Any) -> bool:
        """Wait for some work, or for the order to stop; say whether the work was done."""
        task = asyncio.ensure_future(work)
        stopped = asyncio.ensure_future(self._stop.wait())
        try:
            await asyncio.wait({task, stopped}, return_when=asyncio.FIRST_COMPLETED)
            if task.done():
                await task
                return True
            return False
        finally:
            for each in (task, stopped):
                if not each.done():
                    each.cancel()
                    with contextlib.suppress(asyncio.CancelledError):
                        await each

    async def _lead(
        self, access: credentials.Credentials, client: KubernetesClient, ledger: LedgerClient, leader: Leader
    ) -> None:
        self._health.leader = True
        metrics.LEADER.set(1)
        context, parts = self._assemble(client, ledger, leader)
        context.spawn(leader.keep(), "leadership")
        # An unexpected error in the keeper must not leave a process that only believes that it leads.
        context.spawn(self._watch_leader(context, leader), "leadership watch")
        context.fatal.add_done_callback(lambda fatal: end_at_once(fatal.result()) if not fatal.cancelled() else None)
        if not await self._unless_stopped(self._prepare(context, leader, parts)):
            await leader.release()
            return
        watching, stop_flag = await self._watch(access, context.cache, leader.identity)
        for work, name in (
            (parts.accounts.run(), "accounts"),
            (parts.observer.run(), "observer"),
            (parts.settler.follow(), "the ledger's changes"),
            (parts.lifecycle.tick(), "clock"),
            (parts.machines.run(), "machine time"),
            (parts.loop.sweep(), "queue statuses"),
            (sync.sweep(context), "sweep"),
            (context.events.run(), "events"),
            (parts.configuration.run(), "log of the configuration"),
        ):
            context.spawn(work, name)
        deciding = context.spawn(parts.loop.run(), "scheduling")
        context.cache.synced = self._health.synced = True
        context.cache.wake()
        self._health.alive = lambda: _standing_still(parts.loop)
        self._health.ledger = lambda: context.cache.ledger_ready
        stopped = asyncio.ensure_future(self._stop.wait())
        ends: set[asyncio.Future[Any]] = {stopped, watching}
        await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
        if watching.done():
            raise RuntimeError("the watches ended by themselves")
        log.info("stopping")
        deciding.cancel()
        await self._finish(context)
        stop_flag.set()
        with contextlib.suppress(TimeoutError, asyncio.CancelledError):
            async with asyncio.timeout(STOP_SECONDS):
                await watching
        await leader.release()

    def _assemble(self, client: KubernetesClient, ledger: LedgerClient, leader: Leader) -> tuple[Context, _Parts]:
        runner, compute = self._settings.runner, self._settings.compute
        cache = Cache(
            meter=runner.meter_requests,
            wake=lambda: None,
            ahead=lambda run, agent, added: demand.ahead(run, agent, runner, compute, added),
        )

        def gone(target: Target) -> None:
            # A patch found no such object: the watch will say the same, or a sweep.
            if target.resource.kind in ("Execution", "TrainingJob"):
                cache.forget_run(target.uid)

        sync.count_live(cache)
        live_metrics.register(cache)
        observers = {resource: observe for resource, _, observe in sync.observers(cache)}

        def seen(target: Target, raw: Mapping[str, Any]) -> None:
            observers[target.resource]("MODIFIED", raw)
            news.believe(target.record, raw)

        context = Context(
            settings=self._settings,
            client=client,
            ledger=ledger,
            cache=cache,
            writer=StatusWriter(client, gone=gone, seen=seen, leads=leader.certain),
            events=EventRecorder(client, instance=leader.identity),
            pins=Pins(client),
            secrets=Secrets(client),
            trust=self._trust,
            fatal=asyncio.get_running_loop().create_future(),
        )
        parts = _Parts(context)
        cache.wake = parts.wake
        return context, parts

    async def _prepare(self, context: Context, leader: Leader, parts: _Parts) -> None:
        """Take an epoch, fill the cache, compare with the ledger; as long as that takes."""
        operation = str(uuid4())
        ledger, client = context.ledger, context.client
        await self._until_done(
            lambda: ledger.take_epoch(operation_id=operation, holder=leader.identity), "taking an epoch in the ledger"
        )
        log.info("epoch %d", ledger.epoch)
        await self._until_done(lambda: sync.wait_served(client), "looking for the CRDs")
        await self._until_done(lambda: sync.fill(context), "filling the cache")
        await self._until_done(parts.lifecycle.reconcile, "comparing with the ledger")
        context.cache.set_ledger_ready(True)
        await parts.observer.judge()

    async def _until_done(self, work: Any, what: str) -> None:
        """Do some work, as often as that takes; meanwhile the probe says what is waited for."""
        self._health.waiting_for, said = what, False
        while True:
            try:
                await work()
                return
            except (ApiError, LedgerError) as error:
                told = f"{what}: {error}{fix_of(error)}"
                self._health.waiting_for = told
                (log.debug if said else log.warning)("%s; trying again", told)
                said = True
                await asyncio.sleep(RETRY_SECONDS)

    async def _watch(
        self, access: credentials.Credentials, cache: Cache, identity: str
    ) -> tuple[asyncio.Task[None], asyncio.Event]:
        """Start kopf's watches."""
        deep_json.install()
        registry = kopf.OperatorRegistry()
        register_all(registry)

        @kopf.on.login(registry=registry)
        async def login(**_: Any) -> kopf.ConnectionInfo:
            return access.for_kopf()

        stop_flag = asyncio.Event()
        settings = kopf_settings()
        tasks = await kopf.spawn_tasks(
            registry=registry,
            settings=settings,
            clusterwide=not self._settings.namespaces,
            namespaces=list(self._settings.namespaces),
            standalone=True,
            # Else kopf looks up the user's name, and an image's numeric user has none.
            identity=cast("Any", identity),
            stop_flag=stop_flag,
            memo=kopf.Memo(cache=cache),
        )
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop.set)
        return asyncio.ensure_future(_run_kopf(tasks)), stop_flag

    async def _watch_leader(self, context: Context, leader: Leader) -> None:
        while True:
            await asyncio.sleep(1)
            if not leader.certain():
                context.end(LeadershipLostError("the lease ran out"))

    async def _finish(self, context: Context) -> None:
        """Let what is under way come to its end: admissions and ends, each in a few writes."""
        short = [
            task
            for task in context.tasks
            if task.get_name().split(" ")[0] in ("admit", "resume", "settle", "finish", "stop")
        ]
        if short:
            await asyncio.wait(short, timeout=STOP_SECONDS)
        await context.writer.drain(STOP_SECONDS)


class _Parts:
    """The parts that work on one context."""

    def __init__(self, context: Context) -> None:
        self._cache = context.cache
        self.machines = MachineTime(context)
        self.admitter = Admitter(context, self.machines)
        self.settler = Settler(context, self.machines)
        self.lifecycle = Lifecycle(context, self.admitter, self.settler, self.machines)
        self.machines.stop = self.lifecycle.stop
        self.accounts = Accounts(context)
        self.observer = Observer(context)
        self.configuration = ConfigurationLog(context)
        self.loop = Loop(context, self.admitter, self.lifecycle, self.accounts)

    def wake(self) -> None:
        """Wake whoever has something to look at."""
        self.loop.wake()
        if self._cache.agents_changed or self._cache.providers_changed or self._cache.tool_providers_changed:
            self.observer.wake()
        if self._cache.quotas_changed or self._cache.providers_changed:
            self.accounts.wake()


def end_at_once(error: BaseException) -> NoReturn:
    """End without another write: whoever leads now must not be disturbed."""
    log.critical("leadership lost, ending at once: %s", error)
    sys.stderr.flush()
    os._exit(EXIT_LEADERSHIP_LOST)


def kopf_settings() -> kopf.OperatorSettings:
    """Give kopf's settings: only watches are used, so nothing of kopf's is ever written to an object."""
    settings = kopf.OperatorSettings()
    settings.posting.level = logging.WARNING
    settings.posting.enabled = False
    settings.peering.standalone = True
    settings.watching.server_timeout = WATCH_SECONDS
    settings.watching.label_selectors[lambda resource: resource.group == "" and resource.plural == "pods"] = (
        sync.POD_SELECTOR
    )
    settings.queueing.worker_limit = None
    settings.queueing.idle_timeout = 1.0
    settings.persistence.finalizer = "almoner.dev/finalizer"
    settings.persistence.progress_storage = kopf.StatusProgressStorage(name="almoner.dev", field="status.kopf")
    settings.persistence.diffbase_storage = _NoDiffBase()
    return settings


class _NoDiffBase(kopf.DiffBaseStorage):
    """Remembers nothing: kopf copies every object for its differences, which nobody here asks for."""

    def build(self, **_: Any) -> kopf.BodyEssence:
        return cast("kopf.BodyEssence", {})

    def fetch(self, **_: Any) -> kopf.BodyEssence | None:
        return None

    def store(self, **_: Any) -> None:
        return None


async def _run_kopf(tasks: Any) -> None:
    await kopf.run_tasks(tasks, ignored=asyncio.all_tasks() - set(tasks))


def _standing_still(loop: Loop) -> str:
    if loop.decided_at is None or time.monotonic() - loop.decided_at < STILL_SECONDS:
        return ""
    return "the scheduling loop stands still"
