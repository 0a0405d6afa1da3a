"""A load generator's view of the ledger service: messages of the wire protocol, cheap to make and to send.

Role: one `Caller` per load process, and makers of the bodies that operator and meters send. Bodies are plain
dictionaries: pydantic's checks belong to the service under test, and the generator shares its two cores.

Boundary: speaks wire.py's protocol; measures nothing and decides nothing.
"""

from __future__ import annotations

import asyncio
import json
import random
import time
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Final, Self
from urllib.parse import urlsplit

from almoner_dev.bench_http import Pool

NAMESPACE: Final = "bench"
RECORD_COST_NANOS: Final = 1_000
REQUEST_SECONDS: Final = 30.0
BACKOFF_SECONDS: Final = 0.05
TRIES_MAX: Final = 20

# Made once: json.dumps with settings of its own makes an encoder a call.
_encode = json.JSONEncoder(separators=(",", ":")).encode


@dataclass(frozen=True, slots=True)
class Meter:
    """The identity of one metered pod: what the operator binds, and the token that proves it."""

    pod_uid: str
    token: str


@dataclass(frozen=True, slots=True)
class Target:
    """The service under test, and the identities that may speak to it."""

    url: str
    operator_token: str
    epoch: int
    meters: tuple[Meter, ...]


class RefusedError(RuntimeError):
    """The service answered with an error; `code` is its name."""

    def __init__(self, status: int, body: Any) -> None:
        error = body.get("error", {}) if isinstance(body, dict) else {}
        super().__init__(f"{status}: {error.get('code')}: {error.get('message')}")
        self.code = str(error.get("code"))
        refusal = error.get("refusal") or {}
        self.retry_after_seconds: int | None = refusal.get("retry_after_seconds")
        """When the window ends that had no room; None: it never does, or the error is no refusal."""
        self.may_free_up = bool(refusal.get("may_free_up"))
        """Whether the refusal says that others may return something."""


class Caller:
    """A pool of connections to one service. Use as a context manager."""

    def __init__(self, url: str, *, connections: int) -> None:
        parts = urlsplit(url)
        self._pool = Pool(parts.hostname or "127.0.0.1", parts.port or 80, connections=connections)
        self._heads: dict[str, bytes] = {}
        self.retries = 0

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pool.close()

    async def post(self, path: str, body: dict[str, Any], token: str) -> Any:
        """Send a mutation and give its answer; `unavailable` is tried again under the same operation id.

        Raises RefusedError for every other error.
        """
        data = _encode(body).encode()
        head = self._heads.get(token)
        if head is None:
            head = f"Authorization: Bearer {token}\r\nContent-Type: application/json\r\n".encode()
            self._heads[token] = head
        for attempt in range(TRIES_MAX):
            status, content = await self._pool.post(path, data, head, seconds=REQUEST_SECONDS)
            answer = json.loads(content)
            if status == 200:
                return answer
            if status != 503 or attempt == TRIES_MAX - 1:
                raise RefusedError(status, answer)
            self.retries += 1
            await asyncio.sleep(BACKOFF_SECONDS)
        raise AssertionError("unreachable")


class Maker:
    """Makes ids and bodies from a seeded generator: the same seed sends the same content."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)

    def id(self) -> str:
        """Give a UUID of version 7: the time first, as meters make them, so that the index grows at its end."""
        bits = (int(time.time() * 1000) & (2**48 - 1)) << 80 | 0x7 << 76 | self.random.getrandbits(76)
        text = f"{bits & ~(0xC << 60) | 0x8 << 60:032x}"
        return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"

    def record(self, sequence: int, cost_nanos: int = RECORD_COST_NANOS) -> dict[str, Any]:
        """Give one settled call."""
        output = self.random.randint(1, 500)
        return {
            "id": self.id(),
            "sequence": sequence,
            "resource_type": "llm",
            "provider": "openai",
            "model": "gpt-4o-mini",
            "operation": "chat",
            "tokens": {"input": 700, "cached_input": 512, "cache_write": 0, "output": output, "reasoning": 0},
            "requests": 1,
            "cost_nanos": cost_nanos,
            "price_version": "bench-1",
            "started_unix_ms": int(time.time() * 1000),
            "duration_ms": self.random.randint(50, 5000),
            "outcome": "ok",
            "metadata": {"response_id": f"chatcmpl-{self.random.getrandbits(96):024x}", "finish_reason": "stop"},
        }

    def open(self, *, pod: str, accounts: list[dict[str, str]], limit_nanos: int, want_nanos: int) -> dict[str, Any]:
        """Give one item of a batch that opens allotments: an execution of its own, with a limit of its own."""
        uid = self.id()
        return {
            "operation_id": self.id(),
            "allotment": self.id(),
            "execution": {
                "kind": "Execution",
                "namespace": NAMESPACE,
                "name": f"run-{uid}",
                "uid": uid,
                "attempt": 1,
                "agent": "bench",
                "owner": accounts[0].get("subject", ""),
            },
            "pod": pod,
            "accounts": accounts,
            "limits": {"usd": limit_nanos},
            "need": {"usd": 0},
            "want": {"usd": want_nanos},
        }


async def open_and_bind(
    caller: Caller, target: Target, items: list[dict[str, Any]], meters: list[Meter], maker: Maker
) -> list[str]:
    """Open a batch of allotments and bind each to its meter's pod; give their ids. Raises RuntimeError on a refusal."""
    opened = await caller.post("/v1/allotments:open", {"epoch": target.epoch, "items": items}, target.operator_token)
    bindings = [
        {"operation_id": maker.id(), "allotment": item["allotment"], "pod_uid": meter.pod_uid}
        for item, meter in zip(items, meters, strict=True)
    ]
    bound = await caller.post("/v1/allotments:bind", {"epoch": target.epoch, "items": bindings}, target.operator_token)
    for answer in [*opened["answers"], *bound["answers"]]:
        if answer.get("error"):
            raise RuntimeError(f"the ledger refused a benchmark's allotment: {answer['error']}")
    return [item["allotment"] for item in items]


async def activate(caller: Caller, allotment: str, meter: Meter, maker: Maker) -> Any:
    """Activate an allotment as its meter."""
    return await caller.post(f"/v1/allotments/{allotment}/activate", {"operation_id": maker.id()}, meter.token)


async def extend(caller: Caller, allotment: str, meter: Meter, maker: Maker, *, need: int, want: int) -> int:
    """Ask for more; give the nano-dollars granted. Raises RefusedError where there is no room."""
    body = {"operation_id": maker.id(), "need": {"usd": need}, "want": {"usd": want}}
    answer = await caller.post(f"/v1/allotments/{allotment}/extend", body, meter.token)
    return int(answer["granted"].get("usd", 0))


async def post_records(
    caller: Caller, allotment: str, meter: Meter, maker: Maker, records: list[dict[str, Any]]
) -> Any:
    """Post a batch of settled records."""
    body = {"operation_id": maker.id(), "records": records}
    return await caller.post(f"/v1/allotments/{allotment}/records", body, meter.token)


async def give_back(
    caller: Caller,
    allotment: str,
    meter: Meter,
    maker: Maker,
    *,
    last_sequence: int = 0,
    settled: int = 0,
    tokens: int = 0,
    requests: int = 0,
    amount: int | None = None,
) -> Any:
    """Return an amount, or everything for good (`amount` None)."""
    body: dict[str, Any] = {
        "operation_id": maker.id(),
        "last_sequence": last_sequence,
        "settled": {"usd": settled, "tokens": tokens, "requests": requests, "tool_calls": 0},
        "final": amount is None,
    }
    if amount is not None:
        body["amounts"] = {"usd": amount}
    return await caller.post(f"/v1/allotments/{allotment}/return", body, meter.token)
