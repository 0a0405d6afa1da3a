"""The benchmark `meter`: what a call costs in time when it goes through the meter, beside a bare pass-through proxy.

Everything is a process of its own, as in a pod: the model server (a fixed answer), a ledger that always grants, the
bare proxy (aiohttp on uvloop, which copies body and answer and nothing else) and the meter. The same client asks the
three roads in turns, so that a slow moment of the machine hits all of them alike. `added_*` and `passthrough_*` are the
percentiles of a road minus the same percentile of the direct road, in milliseconds.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Final
from uuid import uuid4

import aiohttp
from aiohttp import web

from almoner_core import contract
from almoner_core.contract import Dialect, MeterConfig, MeterModel, MeterProvider, PriceCard, PriceTier
from almoner_dev import processes

IN_FLIGHT: Final = (1, 8, 32)
WARM_UP_CALLS: Final = 100
ROUND_CALLS: Final = 200  # calls on one road before the next has its turn
MODEL: Final = "bench-model"
REQUEST: Final = json.dumps(
    {
        "model": MODEL,
        "max_tokens": 256,
        "messages": [
            {"role": "system", "content": "You are a helpful assistant. " * 10},
            {"role": "user", "content": "Say something about the sea, please. " * 20},
        ],
    }
).encode()
ANSWER: Final = json.dumps(
    {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1_700_000_000,
        "model": MODEL,
        "choices": [
            {"index": 0, "message": {"role": "assistant", "content": "The sea is wide. " * 20}, "finish_reason": "stop"}
        ],
        "usage": {"prompt_tokens": 300, "completion_tokens": 100, "total_tokens": 400},
    }
).encode()
JSON: Final = {"content-type": "application/json"}


# --- the servers, each in a process of its own ------------------------------------------------------------------------


async def _model(request: web.BaseRequest) -> web.StreamResponse:
    await request.read()
    return web.Response(body=ANSWER, content_type="application/json")


def _ledger() -> Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]:
    held = 0

    async def handle(request: web.BaseRequest) -> web.StreamResponse:
        nonlocal held
        verb = request.path.rsplit("/", 1)[1]
        body = json.loads(await request.read() or b"{}")
        if verb == "signals":
            await asyncio.sleep(min(20.0, float(request.query.get("timeout_seconds", "0"))))
            return web.json_response({"recall": False, "cancel": False})
        if verb == "activate":
            held = 10**9
            answer: dict[str, Any] = {
                "limited": ["usd"],
                "remaining": {},
                "lease_seconds": 60,
                "next_sequence": 1,
                "settled": {},
            }
        elif verb == "extend":
            granted = {d: max(body["need"].get(d, 0), n) for d, n in body["want"].items()}
            held += granted.get("usd", 0)
            answer = {"granted": granted, "window_ends_in_seconds": None}
        elif verb == "records":
            held -= sum(record["cost_nanos"] for record in body["records"])
            answer = {"last_sequence": body["records"][-1]["sequence"]}
        else:
            held -= body.get("amounts", {}).get("usd", 0)
            answer = {"state": "active"}
        return web.json_response({**answer, "held": {"usd": held}})

    return handle


def _proxy(target: str) -> Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]:
    session: list[aiohttp.ClientSession] = []

    async def handle(request: web.BaseRequest) -> web.StreamResponse:
        if not session:
            session.append(aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=256)))
        body = await request.read()
        async with session[0].post(target + request.path, data=body, headers=JSON) as answer:
            data = await answer.read()
            return web.Response(status=answer.status, body=data, content_type=answer.content_type)

    return handle


async def _serve(handler: Callable[[web.BaseRequest], Awaitable[web.StreamResponse]], port: int) -> None:
    runner = web.ServerRunner(web.Server(handler, access_log=None))
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", port).start()
    await asyncio.Event().wait()


def serve(role: str, port: int, target: str) -> None:
    """Be one of the servers until killed."""
    import uvloop  # noqa: PLC0415 - only the servers need it

    handler = _model if role == "model" else _ledger() if role == "ledger" else _proxy(target)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_serve(handler, port))


# --- the measurement --------------------------------------------------------------------------------------------------


def _environment(folder: Path, model_url: str, ledger_url: str, port: int, health_port: int) -> dict[str, str]:
    rate = 1_000_000_000
    card = PriceCard(version="bench", tiers=(PriceTier(input=rate, cached_input=rate, cache_write=rate, output=rate),))
    provider = MeterProvider(
        name="bench",
        type="OpenAICompatible",
        base_url=f"{model_url}/v1",
        dialects=(Dialect.OPENAI,),
        models=(MeterModel(name=MODEL, price=card),),
    )
    config = MeterConfig(
        execution_namespace="bench",
        execution_name="bench",
        execution_uid=str(uuid4()),
        attempt=1,
        agent="bench",
        owner="bench",
        allotment=str(uuid4()),
        ledger_url=ledger_url,
        providers=(provider,),
        input="",
    )
    return {
        "PATH": os.environ["PATH"],
        "ALMONER_LOG_LEVEL": "WARNING",
        contract.ENV_METER_CONFIG: config.model_dump_json(),
        contract.ENV_METER_ADDRESS: f"127.0.0.1:{port}",
        contract.ENV_POD_IP: "127.0.0.1",
        contract.ENV_HEALTH_PORT: str(health_port),
        contract.ENV_SPOOL_DIR: str(folder / "spool"),
        contract.ENV_INPUT_FILE: str(folder / "input"),
        contract.ENV_OUTPUT_FILE: str(folder / "output"),
        contract.ENV_TERMINATION_LOG: str(folder / "last-word"),
    }


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=1) as answer:
            return bool(answer.status == 200)
    except urllib.error.HTTPError as error:
        return error.code != 503
    except OSError:
        return False


def _rss_mb(pid: int) -> float:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    kilobytes = next(int(line.split()[1]) for line in lines if line.startswith("VmRSS"))
    return round(kilobytes / 1024, 1)


async def _round(session: aiohttp.ClientSession, url: str, calls: int, in_flight: int) -> list[float]:
    """Make calls with so many in flight; gives each one's milliseconds."""
    took: list[float] = []
    left = calls

    async def worker() -> None:
        nonlocal left
        while left > 0:
            left -= 1
            began = time.perf_counter()
            async with session.post(url, data=REQUEST, headers=JSON) as answer:
                await answer.read()
                if answer.status != 200:
                    raise RuntimeError(f"{url} answered HTTP {answer.status}")
            took.append((time.perf_counter() - began) * 1000)

    await asyncio.gather(*(worker() for _ in range(in_flight)))
    return took


async def _measure(roads: dict[str, str], calls: int) -> dict[int, dict[str, list[float]]]:
    samples: dict[int, dict[str, list[float]]] = {}
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=64)) as session:
        for url in roads.values():
            await _round(session, url, WARM_UP_CALLS, 8)
        for in_flight in IN_FLIGHT:
            print(f"bench: {in_flight} in flight, {calls} calls on each of {', '.join(roads)}", file=sys.stderr)
            took: dict[str, list[float]] = {road: [] for road in roads}
            for _ in range(max(1, calls // ROUND_CALLS)):
                for road, url in roads.items():
                    took[road] += await _round(session, url, min(calls, ROUND_CALLS), in_flight)
            samples[in_flight] = took
    return samples


def _percentiles(took: list[float]) -> tuple[float, float]:
    cuts = statistics.quantiles(took, n=100)
    return cuts[49], cuts[98]


def _figures(samples: dict[int, dict[str, list[float]]]) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for key in ("added_ms_p50", "added_ms_p99", "passthrough_ms_p50", "passthrough_ms_p99", "direct_ms_p50"):
        result[key] = {}
    result["direct_ms_p99"] = {}
    for in_flight, took in samples.items():
        name = str(in_flight)
        direct, meter, proxy = (_percentiles(took[road]) for road in ("direct", "meter", "passthrough"))
        for index, percentile in enumerate(("p50", "p99")):
            result[f"direct_ms_{percentile}"][name] = round(direct[index], 3)
            result[f"added_ms_{percentile}"][name] = round(meter[index] - direct[index], 3)
            result[f"passthrough_ms_{percentile}"][name] = round(proxy[index] - direct[index], 3)
    return result


def _starts_ms(folder: Path, model_url: str, ledger_url: str, times: int) -> list[float]:
    """Start fresh meters and give the milliseconds from exec to a passing probe."""
    took = []
    for number in range(times):
        home = folder / f"start-{number}"
        home.mkdir()
        port, health = processes.free_port("127.0.0.1"), processes.free_port("127.0.0.1")
        began = time.perf_counter()
        child = _start_meter(home, _environment(home, model_url, ledger_url, port, health), health)
        took.append((time.perf_counter() - began) * 1000)
        child.stop()
    return took


def _start_meter(folder: Path, environment: dict[str, str], health_port: int) -> processes.Child:
    command = [sys.executable, "-m", "almoner_runner.meter"]
    child = processes.start("meter", command, log_path=folder / "meter.log", env=environment)
    deadline = time.monotonic() + 20
    while not _answers(f"http://127.0.0.1:{health_port}/healthz"):
        if not child.running() or time.monotonic() > deadline:
            raise child.failure("the meter did not start")
        time.sleep(0.005)
    return child


def run(argv: list[str]) -> dict[str, Any]:
    """Measure; gives the figures."""
    parser = argparse.ArgumentParser(prog="python -m almoner_dev.bench meter", description="Latency of the meter.")
    parser.add_argument("--calls", type=int, default=2000, help="calls a road and number in flight (%(default)s)")
    parser.add_argument("--starts", type=int, default=5, help="starts to take the median of (%(default)s)")
    options = parser.parse_args(argv)
    if not 100 <= options.calls <= 1_000_000 or not 1 <= options.starts <= 100:
        parser.error("--calls must lie between 100 and 1000000, --starts between 1 and 100")
    children: list[processes.Child] = []
    with tempfile.TemporaryDirectory(prefix="almoner-bench-") as scratch:
        folder = Path(scratch)
        try:
            return _run(folder, children, options.calls, options.starts)
        finally:
            for child in reversed(children):
                child.stop()


def _run(folder: Path, children: list[processes.Child], calls: int, starts: int) -> dict[str, Any]:
    urls: dict[str, str] = {}
    for role in ("model", "ledger", "proxy"):
        port = processes.free_port("127.0.0.1")
        command = [sys.executable, "-m", "almoner_dev.bench_meter", role, str(port), urls.get("model", "")]
        child = processes.start(role, command, log_path=folder / f"{role}.log")
        children.append(child)
        urls[role] = f"http://127.0.0.1:{port}"
    _await_listening([urls["model"] + "/", urls["ledger"] + "/v1/allotments/x/return", urls["proxy"] + "/"], children)
    port, health = processes.free_port("127.0.0.1"), processes.free_port("127.0.0.1")
    meter = _start_meter(folder, _environment(folder, urls["model"], urls["ledger"], port, health), health)
    children.append(meter)
    idle_mb = _rss_mb(meter.pid)
    path = "/v1/chat/completions"
    roads = {
        "direct": urls["model"] + path,
        "passthrough": urls["proxy"] + path,
        "meter": f"http://127.0.0.1:{port}/openai{path}",
    }
    result = _figures(asyncio.run(_measure(roads, calls)))
    result["rss_mb"] = _rss_mb(meter.pid)
    result["rss_idle_mb"] = idle_mb
    result["start_ms"] = round(statistics.median(_starts_ms(folder, urls["model"], urls["ledger"], starts)), 1)
    result["calls"] = calls
    return result


def _await_listening(urls: list[str], children: list[processes.Child]) -> None:
    deadline = time.monotonic() + 20
    for url in urls:
        while not _answers(url):
            if time.monotonic() > deadline:
                raise children[0].failure(f"{url} does not answer")
            time.sleep(0.02)


if __name__ == "__main__":
    serve(sys.argv[1], int(sys.argv[2]), sys.argv[3])
