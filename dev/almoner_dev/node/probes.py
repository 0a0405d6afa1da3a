"""Probes and lifecycle hooks: httpGet, tcpSocket and exec, against a container of a process node.

Role: ask once, or keep asking until a verdict. Boundary: what a verdict leads to is the pod's business.
Why raw HTTP: a probe wants a status line within a second from an address that may not exist, and
nothing else.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl

from almoner_dev.node.api import Json
from almoner_dev.node.container import Container, StartError
from almoner_dev.node.env import ConfigError

RESPONSE_BYTES_MAX = 10_000
QUICK_SECONDS = 0.05
QUICK_FACTOR = 1.3


def _port(handler: Json, container: Container) -> int:
    wanted = handler["port"]
    if isinstance(wanted, int):
        return wanted
    for port in container.manifest.get("ports") or []:
        if port.get("name") == wanted:
            return int(port["containerPort"])
    raise ConfigError(f"probe: container {container.name!r} has no port named {wanted!r}")


async def _http(handler: Json, container: Container) -> tuple[bool, str]:
    host = handler.get("host") or container.around.facts.pod_ip
    tls: ssl.SSLContext | None = None
    if handler.get("scheme") == "HTTPS":
        tls = ssl.create_default_context()
        tls.check_hostname, tls.verify_mode = False, ssl.CERT_NONE
    port = _port(handler, container)
    path = handler.get("path") or "/"
    headers = {
        "Host": f"{host}:{port}",
        "User-Agent": "kube-probe/process-node",
        "Accept": "*/*",
        "Connection": "close",
    }
    headers |= {entry["name"]: entry["value"] for entry in handler.get("httpHeaders") or []}
    lines = [f"GET {path if path.startswith('/') else '/' + path} HTTP/1.1", *(f"{k}: {v}" for k, v in headers.items())]
    reader, writer = await asyncio.open_connection(host, port, ssl=tls, limit=RESPONSE_BYTES_MAX)
    try:
        writer.write(("\r\n".join(lines) + "\r\n\r\n").encode())
        await writer.drain()
        status_line = (await reader.readline()).decode(errors="replace").split()
    finally:
        writer.close()
        with contextlib.suppress(OSError, ssl.SSLError):
            await writer.wait_closed()
    code = int(status_line[1]) if len(status_line) > 1 and status_line[1].isdigit() else 0
    return 200 <= code < 400, f"HTTP probe answered with status {code}"


async def _tcp(handler: Json, container: Container) -> tuple[bool, str]:
    host = handler.get("host") or container.around.facts.pod_ip
    _, writer = await asyncio.open_connection(host, _port(handler, container))
    writer.close()
    return True, ""


async def ask(handler: Json, container: Container, seconds: float) -> tuple[bool, str]:
    """One probe or hook: whether it succeeded, and what to say where it did not. Raises ConfigError."""
    try:
        async with asyncio.timeout(seconds):
            if "httpGet" in handler:
                return await _http(handler["httpGet"], container)
            if "tcpSocket" in handler:
                return await _tcp(handler["tcpSocket"], container)
            if "exec" in handler:
                code, output = await container.beside(list(handler["exec"]["command"]), seconds)
                return code == 0, f"exit code {code}: {output.strip()[:500]}"
            if "sleep" in handler:
                await asyncio.sleep(handler["sleep"]["seconds"])
                return True, ""
    except TimeoutError:
        return False, f"no answer within {seconds:g} s"
    except (OSError, StartError, ValueError) as error:
        return False, str(error) or type(error).__name__
    raise ConfigError(f"probe: {sorted(handler)} is not supported by a process node")


async def until_started(probe: Json, container: Container) -> str | None:
    """Ask a startup probe until it passes (None) or has failed for good (why).

    Faster than its period at first: a failure counts once per period, as with a kubelet, but a container
    that is up after 200 ms need not be kept waiting for a second.
    """
    period = float(probe.get("periodSeconds") or 10)
    threshold = int(probe.get("failureThreshold") or 3)
    loop = asyncio.get_running_loop()
    await asyncio.sleep(float(probe.get("initialDelaySeconds") or 0))
    deadline = loop.time() + period * threshold
    pause = QUICK_SECONDS
    while True:
        passed, why = await ask(probe, container, float(probe.get("timeoutSeconds") or 1))
        if passed:
            return None
        if loop.time() >= deadline:
            return why
        await asyncio.sleep(min(pause, period, max(0.0, deadline - loop.time())))
        pause *= QUICK_FACTOR


async def keep_ready(probe: Json, container: Container) -> None:
    """Follow a readiness probe in the container's record, until cancelled."""
    period = float(probe.get("periodSeconds") or 10)
    good = bad = 0
    await asyncio.sleep(float(probe.get("initialDelaySeconds") or 0))
    while True:
        passed, _ = await ask(probe, container, float(probe.get("timeoutSeconds") or 1))
        good, bad = (good + 1, 0) if passed else (0, bad + 1)
        ready = container.record.ready
        if passed and good >= int(probe.get("successThreshold") or 1):
            ready = True
        elif not passed and bad >= int(probe.get("failureThreshold") or 3):
            ready = False
        if ready != container.record.ready:
            container.record.ready = ready
            container.around.changed()
        await asyncio.sleep(period if container.record.ready else min(period, 1.0))


async def until_dead(probe: Json, container: Container) -> str:
    """Ask a liveness probe until it has failed for good; returns why."""
    period = float(probe.get("periodSeconds") or 10)
    bad = 0
    await asyncio.sleep(float(probe.get("initialDelaySeconds") or 0))
    while True:
        passed, why = await ask(probe, container, float(probe.get("timeoutSeconds") or 1))
        bad = 0 if passed else bad + 1
        if bad >= int(probe.get("failureThreshold") or 3):
            return why
        await asyncio.sleep(period)
