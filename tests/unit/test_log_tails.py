"""The end of an agent's log: bounded, whole lines, and nothing waits for it."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from almoner_dev.simulate.clockwork import VirtualLoop
from almoner_operator import log_tails
from almoner_operator.errors import UnavailableError
from almoner_operator.log_tails import LogTails, tail_of
from almoner_operator.records import Pod

BOUND = 2048


@given(st.text(max_size=6000) | st.lists(st.text(max_size=50), max_size=300).map("\n".join))
def test_a_tail_is_the_end_of_the_log_within_its_bound(text: str) -> None:
    tail = tail_of(text)
    assert len(tail.encode()) <= BOUND
    clean = text.encode("utf-8", "replace").decode().replace("\0", "\ufffd").strip()
    assert clean.endswith(tail)
    assert tail or not clean or len(clean.encode()) > BOUND


def test_a_long_log_is_cut_between_lines() -> None:
    lines = [f"line {number:04}" for number in range(1000)]
    tail = tail_of("\n".join(lines)).splitlines()
    assert tail == lines[-len(tail) :]
    assert len(tail) > 150


class Client:
    """A client whose log is a text, an error, or never comes."""

    def __init__(self, log: Any) -> None:
        self.log = log
        self.asked = 0

    async def log_tail(self, *_: Any, **__: Any) -> str:
        self.asked += 1
        if isinstance(self.log, Exception):
            raise self.log
        if self.log is None:
            await asyncio.Event().wait()
        return str(self.log)


def pod(message: str | None = None, *, started: bool = True) -> Pod:
    state: dict[str, Any] = {"running": {"startedAt": "2026-01-01T00:00:00Z"}} if started else {"waiting": {}}
    if message is not None:
        state = {"terminated": {"exitCode": 143, "startedAt": "2026-01-01T00:00:00Z", "message": message}}
    raw = {"metadata": {}, "spec": {}, "status": {"containerStatuses": [{"name": "agent", "state": state}]}}
    return Pod(namespace="n", name="p", uid="u", version=1, run_uid="r", attempt=1, raw=raw, owner="r", nonce="")


async def take(client: Client, before: Pod, after: Pod) -> str | None:
    tails = LogTails(client)  # type: ignore[arg-type]
    await asyncio.wait_for(tails.read(before), 5)
    taken = tails.take(after)
    assert tails.take(pod()) is None, "it is given once"
    return taken


async def test_what_the_kubelet_said_last_is_newest() -> None:
    assert await take(Client("read before"), pod(), pod("the very end")) == "the very end"


async def test_an_agent_that_ends_well_leaves_what_was_read() -> None:
    assert await take(Client("one\ntwo\n"), pod(), pod("")) == "one\ntwo"


@pytest.mark.parametrize("log", [UnavailableError(0, "Timeout", "no kubelet"), None], ids=["an error", "no answer"])
async def test_a_kubelet_that_fails_costs_the_tail_alone(log: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log_tails, "READ_SECONDS", 0.05)
    assert await take(Client(log), pod(), pod("")) is None
    assert await take(Client(log), pod(), pod("its end")) == "its end"


async def test_what_never_started_has_no_log_to_ask_for() -> None:
    client = Client("x")
    assert await take(client, pod(started=False), pod("")) is None
    assert client.asked == 0


def test_nobody_waits_longer_for_other_pods_of_a_node_that_does_not_answer() -> None:
    client = Client(None)

    async def fill_all() -> float:
        tails = LogTails(client)  # type: ignore[arg-type]
        pods = [pod() for _ in range(10 * log_tails.AT_ONCE_MAX)]
        for number, each in enumerate(pods):
            each.uid = f"u{number}"
        loop = asyncio.get_running_loop()
        began = loop.time()
        await asyncio.gather(*(tails.fill(each) for each in [*pods, *pods]))
        return loop.time() - began

    # In virtual time, which is the same however busy the machine is.
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        waited = runner.run(fill_all())
    assert waited == pytest.approx(log_tails.READ_SECONDS)
    assert client.asked == log_tails.AT_ONCE_MAX, "those that found no slot in their time gave up with the first"
