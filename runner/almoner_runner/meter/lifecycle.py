"""From start to last word: allotment, input, listeners; then drain, output, return, termination message.

Order at the start: listeners first (the kubelet's probe is told what is waited for), then the allotment, then keys that
the ledger hands over, then the input file, then ready. At the end, after the agent has exited: refuse, let calls in
flight settle, read the output, post, return, and write the cumulative totals where the kubelet picks them up: the
second witness besides the ledger.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import signal
import socket
import ssl
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import aiohttp
from aiohttp import web

from almoner_core import environment as names
from almoner_runner.meter import waits
from almoner_runner.meter.app import BODY_BYTES_MAX, App
from almoner_runner.meter.books import LAST_RETRY_SECONDS, PASSING_CODES, Books, BooksClosedError
from almoner_runner.meter.config import Config, ConfigError, parse
from almoner_runner.meter.files import read_input, write_error, write_input, write_last_word
from almoner_runner.meter.forward import Forwarder
from almoner_runner.meter.health import Health
from almoner_runner.meter.holds import IN_FLIGHT_MAX, Holds
from almoner_runner.meter.ids import uuid7
from almoner_runner.meter.keys import Keys, KeysMissingError
from almoner_runner.meter.lastword import LastOutput, compose, last_output
from almoner_runner.meter.ledger import LedgerClient, LedgerError, LedgerUnreachableError, Secret
from almoner_runner.meter.limit import CallLimits
from almoner_runner.meter.machine import FOREVER
from almoner_runner.meter.price_lists import with_price_lists
from almoner_runner.meter.progress import Progress
from almoner_runner.meter.refused import RefusedCalls
from almoner_runner.meter.spool import Spool, SpoolError

logger = logging.getLogger(__name__)

GRACE_SECONDS: Final = 30
# How long the last exchanges with the ledger are tried where the operator does not say.
LEDGER_WAIT_SECONDS: Final = 12
# What calls in flight get to settle in, once the agent has ended: a broken stream ends sooner, and others are cut off.
DRAIN_SECONDS_MAX: Final = 18.0
# Kept of the grace period: the meter ends by itself, since what is killed cannot say that it is done.
MARGIN_SECONDS: Final = 1.0
# The kubelet gives a sidecar so long even where the agent has used up the grace period.
LEAST_SECONDS: Final = 2.0
# An idle connection is closed before a server with the usual five seconds closes it under a call.
KEEPALIVE_SECONDS: Final = 3.0
HEADER_BYTES_MAX: Final = 32 * 1024
EXIT_CLOSED: Final = 69  # EX_UNAVAILABLE: the ledger does not let this meter have its allotment

Handler = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]


@dataclass(frozen=True, slots=True)
class Settings:
    """Where things are, by the environment."""

    config: Config
    address: tuple[str, int]
    health_address: tuple[str, int]
    spool_dir: Path
    token_file: Path | None
    providers_dir: Path
    input_file: Path
    output_file: Path
    termination_log: Path

    @classmethod
    def from_environment(cls, env: Mapping[str, str]) -> Settings:
        """Read the environment. Raises ConfigError, which names the variable."""
        text = env.get(names.ENV_METER_CONFIG)
        if not text:
            raise ConfigError(f"{names.ENV_METER_CONFIG} is needed: the configuration as JSON")
        token = env.get(names.ENV_LEDGER_TOKEN_FILE)
        host, _, port = env.get(names.ENV_METER_ADDRESS, names.METER_ADDRESS).rpartition(":")
        health_port = env.get(names.ENV_HEALTH_PORT, str(names.HEALTH_PORT))
        return cls(
            config=with_price_lists(parse(text)),
            address=(host, _port(port, names.ENV_METER_ADDRESS)),
            health_address=(env.get(names.ENV_POD_IP, "127.0.0.1"), _port(health_port, names.ENV_HEALTH_PORT)),
            spool_dir=Path(env.get(names.ENV_SPOOL_DIR, names.SPOOL_DIR)),
            token_file=Path(token) if token else None,
            providers_dir=Path(env.get(names.ENV_PROVIDERS_DIR, names.PROVIDERS_DIR)),
            input_file=Path(env.get(names.ENV_INPUT_FILE, names.INPUT_FILE)),
            output_file=Path(env.get(names.ENV_OUTPUT_FILE, names.OUTPUT_FILE)),
            termination_log=Path(env.get(names.ENV_TERMINATION_LOG, names.TERMINATION_LOG)),
        )


def first_need_of(config: Config) -> dict[str, int] | None:
    """What admission had granted for the first call; None where the operator does not say."""
    given = config.extra.get(names.EXTRA_FIRST_NEED)
    if not isinstance(given, dict):
        return None
    return {str(name): amount for name, amount in given.items() if isinstance(amount, int) and amount > 0}


def end_seconds_of(config: Config) -> int | None:
    """What it takes to end the pod before its machine time is not paid any more; None where that costs nothing."""
    given = config.extra.get(names.EXTRA_END_SECONDS)
    return given if isinstance(given, int) else None


def _port(text: str, name: str) -> int:
    if not text.isdecimal() or not 0 < int(text) < 65536:
        raise ConfigError(f"{name}: {text[:16]!r} is not a port from 1 to 65535")
    return int(text)


def run(settings: Settings) -> int:
    """Run the meter until SIGTERM; gives the exit code."""
    try:
        import uvloop  # noqa: PLC0415 - absent on some platforms

        loop_factory: Callable[[], asyncio.AbstractEventLoop] | None = uvloop.new_event_loop
    except ImportError:
        loop_factory = None
    with asyncio.Runner(loop_factory=loop_factory) as runner:
        return runner.run(Meter(settings).run())


class Meter:
    """One meter's life."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.config = settings.config
        self._stop = asyncio.Event()
        self._grace = self._seconds(names.EXTRA_GRACE_SECONDS, GRACE_SECONDS)
        self._wait = self._seconds(names.EXTRA_LEDGER_WAIT_SECONDS, LEDGER_WAIT_SECONDS)
        # When the kubelet will kill it, by the loop's clock: known once the pod is told to end.
        self._killed_at: float | None = None
        self._paid_left: Callable[[], float] = lambda: FOREVER
        self._refused_calls = RefusedCalls()

    def _seconds(self, key: str, default: int) -> int:
        given = self.config.extra.get(key, default)
        return given if isinstance(given, int) and given >= 1 else default

    def _call_limits(self) -> CallLimits:
        return CallLimits(seconds=self._seconds(names.EXTRA_CALL_SECONDS, names.CALL_SECONDS_MAX))

    async def run(self) -> int:
        """Live; gives the exit code."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop.set)
        spool = Spool(self.settings.spool_dir, self.config.allotment)
        try:
            recovered = spool.open()
        except SpoolError as error:
            return self._fail(str(error))
        try:
            ledger_tls = _trusting(self.config.ledger_ca)
        except (ssl.SSLError, ValueError) as error:
            return self._fail(f"config.ledger_ca: no certificates in PEM: {error}")
        async with _session(ledger_tls) as ledger_session, _session() as provider_session:
            client = LedgerClient(
                self.config.ledger_url, self.config.allotment, Secret(self.settings.token_file), ledger_session
            )
            books = Books(client, spool, first_need_of(self.config), end_seconds_of(self.config))
            books.machine.recover()
            self._paid_left = lambda: books.machine.left
            holds = Holds(books)
            self._refused_calls = holds.refused_calls
            progress = Progress(client)
            keys = Keys(self.config, self.settings.providers_dir, client)
            app = App(self.config, holds, Forwarder(provider_session, holds, self._call_limits()), progress, keys)
            token = self.config.extra.get(names.EXTRA_PRESTOP_TOKEN)
            health = Health(app, lambda: self._prestop(holds), token if isinstance(token, str) else None)
            try:
                async with _serving(health.handle, self.settings.health_address):
                    return await self._live(app, health, books, progress, books.activate(recovered))
            except OSError as error:
                return self._fail(f"cannot listen on {self.settings.health_address}: {error.strerror}")
            finally:
                spool.close()

    async def _live(
        self, app: App, health: Health, books: Books, progress: Progress, activation: Awaitable[None]
    ) -> int:
        background: list[asyncio.Task[Any]] = []
        try:
            async with _serving(app.handle, self.settings.address):
                health.waiting_for = "the allotment: the ledger has not handed it over"
                starting = asyncio.ensure_future(self._start(app, health, activation))
                stopping = asyncio.create_task(self._stop.wait())
                await asyncio.wait((starting, stopping), return_when=asyncio.FIRST_COMPLETED)
                if not starting.done():
                    starting.cancel()
                    return self._last_word(
                        books, LastOutput(), final=False, complete=False, lacking=app.keys.lacking or books.lacking
                    )
                starting.result()
                background = [asyncio.create_task(each.run()) for each in (books, progress, app.keys)]
                health.ready = True
                # What was made at the start stays: the collector need not look at it again and again.
                gc.collect()
                gc.freeze()
                logger.info("ready: allotment %s, limited: %s", books.spool.allotment, books.allotment.limited)
                await asyncio.wait((stopping, *background), return_when=asyncio.FIRST_COMPLETED)
                for task in background:
                    if task.done():
                        logger.error("a background task of the meter failed: ending", exc_info=task.exception())
                await self._drain(app.holds)
        except BooksClosedError as error:
            return self._fail(str(error))
        except KeysMissingError as error:
            # Whole, since the allotment is taken: nothing of it was spent.
            logger.error("%s", error)  # noqa: TRY400 - expected, no trace needed
            self._last_word(books, LastOutput(), final=False, complete=True, lacking=str(error))
            return EXIT_CLOSED
        except (OSError, ValueError) as error:
            return self._fail(f"the meter cannot start: {error}")
        # The agent has exited and its calls are settled or were cut off just now, with their server.
        await _cancel(background)
        return await self._finish(app, books, progress)

    async def _start(self, app: App, health: Health, activation: Awaitable[None]) -> None:
        source = self.config.input_file
        app.input = read_input(self.config.input, Path(source) if source else None)
        await activation
        health.waiting_for = "keys of providers: the ledger has not handed them over"
        await app.keys.start()
        write_input(self.settings.input_file, app.input)

    def _ends(self) -> float:
        """When the kubelet will kill it: the grace period counts from its first word about the end.

        Or sooner, where machine time is not paid for as long.
        """
        if self._killed_at is None:
            self._killed_at = asyncio.get_running_loop().time() + min(self._grace, self._paid_left())
        return self._killed_at

    def _left(self) -> float:
        """Seconds left in which to end."""
        return max(LEAST_SECONDS, self._ends() - asyncio.get_running_loop().time())

    def _prestop(self, holds: Holds) -> None:
        """From now new calls are refused when what is left of the grace period is what the last exchanges need."""
        until = max(asyncio.get_running_loop().time(), self._ends() - self._wait)
        if holds.draining_from is None:
            holds.draining_from = until

    async def _drain(self, holds: Holds) -> None:
        """Refuse new calls and let those in flight settle, as long as the last exchanges still fit."""
        loop = asyncio.get_running_loop()
        holds.draining_from = loop.time()
        left = self._left()
        deadline = loop.time() + max(min(1.0, left / 4), min(DRAIN_SECONDS_MAX, left - self._wait - MARGIN_SECONDS))
        while holds.in_flight and (left := deadline - loop.time()) > 0:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(left):
                    await holds.books.next_settlement().wait()

    async def _finish(self, app: App, books: Books, progress: Progress) -> int:
        if app.holds.in_flight:
            logger.warning("%d calls were cut off and are estimated", app.holds.in_flight)
        output = last_output(self.settings.output_file)
        if output.problem is not None:
            logger.error("%s", output.detail)
        # Said before the ledger is asked: whoever kills it while it waits has the totals and a small output.
        self._last_word(books, output.unsent("the ledger was not reached"), final=False, complete=True)
        seconds = max(0.5, min(self._wait, self._left() - MARGIN_SECONDS))
        output, final = await asyncio.gather(
            self._put_output(books, output, seconds), self._close(books, progress, seconds)
        )
        return self._last_word(books, output, final=final, complete=True)

    async def _close(self, books: Books, progress: Progress, seconds: float) -> bool:
        """Report the last progress, then return everything: a closed allotment makes no progress."""
        loop = asyncio.get_running_loop()
        ends = loop.time() + seconds
        with contextlib.suppress(TimeoutError):
            # Not all of the time: the books matter more.
            async with asyncio.timeout(seconds / 4):
                await progress.flush()
        return await books.close(max(0.5, ends - loop.time()))

    async def _put_output(self, books: Books, output: LastOutput, seconds: float) -> LastOutput:
        """Give the ledger the output, trying for so long; gives what is to be said of it."""
        if output.content is None:
            return output
        if not books.active:
            return output.unsent("the ledger never handed the allotment over")
        # Also where the ledger has ended the allotment, which takes an output still.
        body = {"operation_id": uuid7(), "content": output.content, "truncated": output.truncated}
        why = "no time left"
        try:
            async with asyncio.timeout(seconds):
                for wait in waits.backoff():
                    try:
                        await books.client.exchange("PUT", "output", body)
                        return output.put()
                    except LedgerUnreachableError as error:
                        why = str(error)
                    except LedgerError as error:
                        if error.code not in PASSING_CODES:
                            raise
                        why = str(error)
                    logger.warning("output: %s; trying again", why)
                    await asyncio.sleep(min(wait, LAST_RETRY_SECONDS))
        except TimeoutError:
            pass
        except LedgerError as error:
            why = str(error)
        logger.error("the output was not sent: %s", why)
        return output.unsent(f"the ledger was not reached for {seconds:.0f} s: {why}")

    def _last_word(
        self, books: Books, output: LastOutput, *, final: bool, complete: bool, lacking: str | None = None
    ) -> int:
        word = compose(
            self.config.allotment,
            self.config.attempt,
            books.spool,
            output,
            final=final,
            complete=complete,
            rejected=books.rejected,
            error=None if lacking is None else f"the meter did not start: {lacking}",
            unpaid=books.machine.message if books.machine.denied else None,
            refused=self._refused_calls.by_meter,
            provider_refused=self._refused_calls.by_provider,
        )
        try:
            write_last_word(self.settings.termination_log, word)
        except OSError as error:
            logger.warning("the termination message cannot be written: %s", error.strerror)
        return 0

    def _fail(self, message: str) -> int:
        logger.error("%s", message)
        with contextlib.suppress(OSError):
            write_error(self.settings.termination_log, message)
        return EXIT_CLOSED


def _trusting(certificates: str | None) -> ssl.SSLContext | bool:
    """Trust these alone; None: what the image trusts. Raises ssl.SSLError, ValueError."""
    return True if certificates is None else ssl.create_default_context(cadata=certificates or "none")


def _session(tls: ssl.SSLContext | bool = True) -> aiohttp.ClientSession:
    connector = aiohttp.TCPConnector(
        limit=IN_FLIGHT_MAX,
        keepalive_timeout=KEEPALIVE_SECONDS,
        ttl_dns_cache=30,
        ssl=tls,
        socket_factory=_socket,
    )
    # No cookies, no proxies of the environment: what leaves the pod is what the configuration says.
    return aiohttp.ClientSession(
        connector=connector, cookie_jar=aiohttp.DummyCookieJar(), trust_env=False, auto_decompress=True
    )


def _socket(address: Any) -> socket.socket:
    """Make a socket that finds out, in two minutes, that its other end is gone: calls may be silent for long."""
    family, kind, protocol, _, _ = address
    made = socket.socket(family, kind, protocol)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (("TCP_KEEPIDLE", 60), ("TCP_KEEPINTVL", 15), ("TCP_KEEPCNT", 4)):
        if hasattr(socket, name):
            made.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
    return made


@contextlib.asynccontextmanager
async def _serving(handler: Handler, address: tuple[str, int]) -> Any:
    """Serve on an address; what is under way at the end is cancelled."""

    def make_request(message: Any, payload: Any, protocol: Any, writer: Any, task: Any) -> web.BaseRequest:
        loop = asyncio.get_running_loop()
        return web.BaseRequest(message, payload, protocol, writer, task, loop, client_max_size=BODY_BYTES_MAX)

    server = web.Server(handler, request_factory=make_request, access_log=None, keepalive_timeout=75.0)
    runner = web.ServerRunner(server)
    await runner.setup()
    site = web.TCPSite(runner, *address, shutdown_timeout=0.5)
    await site.start()
    try:
        yield
    finally:
        await runner.cleanup()


async def _cancel(tasks: list[asyncio.Task[Any]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
