"""One pod takes its own share of the ledger's connections and turns; a full disk is logged once and loses nothing."""

from __future__ import annotations

import asyncio
import resource
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from pathlib import Path

import aiohttp
import pytest

from almoner_ledger import doors
from tests.support.books import DOLLAR, new_id
from tests.support.ledger_service import LedgerService, meter_token, record_body
from tests.support.polling import until

GREEDY, MODEST = "pod-greedy", "pod-modest"
SECONDS = 60.0


@pytest.fixture
def service(tmp_path: Path) -> Iterator[LedgerService]:
    running = LedgerService(tmp_path, f"sqlite:///{tmp_path}/ledger.db", pods=[GREEDY, MODEST]).start()
    yield running
    running.close()


def test_500_long_polls_of_one_pod_leave_the_others_theirs(service: LedgerService) -> None:
    epoch = service.epoch()
    service.limit(epoch, {"usd": DOLLAR})
    greedy, modest = (service.active(epoch, pod, {"usd": 1000}) for pod in (GREEDY, MODEST))

    async def crowd() -> list[int]:
        url = f"{service.url}/v1/allotments/{greedy}/signals?timeout_seconds=20"
        headers = {"Authorization": f"Bearer {meter_token(GREEDY)}"}
        statuses: list[int] = []
        refused = asyncio.Event()
        connector = aiohttp.TCPConnector(limit=0)
        async with aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(total=60)) as client:

            async def poll() -> None:
                async with client.get(url, headers=headers) as answer:
                    statuses.append(answer.status)
                if len(statuses) == 500 - doors.LONG_POLLS_MAX:
                    refused.set()

            polls = [asyncio.create_task(poll()) for _ in range(500)]
            await refused.wait()
            # While the greedy one waits, the other's life goes on.
            body = {"operation_id": new_id(), "records": [record_body(1, 10)]}
            path = f"/v1/allotments/{modest}"
            await asyncio.to_thread(service.ask, "POST", f"{path}/records", body, meter_token(MODEST))
            await asyncio.to_thread(service.ask, "GET", f"{path}/signals?timeout_seconds=0", None, meter_token(MODEST))
            seen = list(statuses)
            for each in polls:
                each.cancel()
            await asyncio.gather(*polls, return_exceptions=True)
        return seen

    seen = asyncio.run(asyncio.wait_for(crowd(), SECONDS))
    assert seen == [503] * (500 - doors.LONG_POLLS_MAX)


def test_connections_of_one_address_beyond_its_share_are_closed(service: LedgerService) -> None:
    with ExitStack() as stack:
        opened = [
            stack.enter_context(
                socket.create_connection(("127.0.0.1", service.port), timeout=10, source_address=("127.0.0.2", 0))
            )
            for _ in range(doors.CONNECTIONS_MAX + 40)
        ]
        closed = until(lambda: _closed(opened) >= 40 and _closed(opened), SECONDS, "40 connections to be closed")
        assert closed == 40
        assert service.request("GET", "/healthz", None).status_code == 200


def _closed(sockets: list[socket.socket]) -> int:
    count = 0
    for each in sockets:
        each.settimeout(0)
        try:
            count += each.recv(1) == b""
        except BlockingIOError:
            continue
        except OSError:
            count += 1
    return count


def test_whoever_sends_too_slowly_is_sent_away(service: LedgerService) -> None:
    headers = b"POST /v1/allotments/x/records HTTP/1.1\r\nHost: x\r\n"
    body = b"POST /v1/epochs HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer operator-token\r\nContent-Length: 9\r\n\r\n{"
    with ExitStack() as stack:
        slow = [
            stack.enter_context(socket.create_connection(("127.0.0.1", service.port), timeout=SECONDS)) for _ in "ab"
        ]
        for each, sent in zip(slow, (headers, body), strict=True):
            each.sendall(sent)
        assert _all_of(slow[0]) == b""
        assert b"413" in _all_of(slow[1]).splitlines()[0]


def _all_of(connection: socket.socket) -> bytes:
    answer = b""
    with suppress(ConnectionResetError):
        while data := connection.recv(65_536):
            answer += data
    return answer


def test_a_full_disk_makes_it_unready_is_logged_once_and_loses_nothing(service: LedgerService, tmp_path: Path) -> None:
    epoch = service.epoch()
    service.limit(epoch, {"usd": DOLLAR})
    allotment = service.active(epoch, MODEST, {"usd": 100_000})
    path, token = f"/v1/allotments/{allotment}/records", meter_token(MODEST)
    assert service.child is not None
    before = len((tmp_path / "ledger.log").read_text().splitlines())
    # No file of the process may grow beyond what its largest has now: as where no block is free.
    size = max(each.stat().st_size for each in tmp_path.glob("ledger.db*"))
    resource.prlimit(service.child.pid, resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))

    def post(sequence: int) -> None:
        body = {"operation_id": new_id(), "records": [record_body(sequence, 10)]}

        def posted() -> bool:
            answer = service.request("POST", path, token, json=body)
            assert answer.status_code in (200, 503), answer.text
            return answer.status_code == 200

        until(posted, 2 * SECONDS, f"record {sequence} to be posted")

    with ThreadPoolExecutor(8) as pool:
        waiting = [pool.submit(post, sequence) for sequence in range(1, 301)]
        until(lambda: not service.ready(), SECONDS, "readyz to fail while nothing can be written")
        service.ask("GET", "/v1/changes?after=0&timeout_seconds=0&limit=5")
        resource.prlimit(service.child.pid, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        for each in waiting:
            each.result()
    until(service.ready, SECONDS, "readyz")
    (state,) = [
        each
        for each in service.ask("GET", "/v1/changes?after=0&timeout_seconds=0&limit=500")["accounts"]
        if each["dimension"] == "usd"
    ]
    assert state["spent"] == 3000
    log = (tmp_path / "ledger.log").read_text()
    assert "the database takes no writes" in log
    assert "the database takes writes again" in log
    assert len(log.splitlines()) - before < 20, log
