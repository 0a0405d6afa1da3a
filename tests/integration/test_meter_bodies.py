"""The real meter and bodies as clients send them: large, compressed, after a question, and more than fit."""

from __future__ import annotations

import gzip
import json
import socket
import sys
import urllib.error
import urllib.request
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import brotli  # type: ignore[import-untyped]
import pytest

from almoner_dev.scripted import Reply, ScriptedProvider, Usage
from tests.support.calls import settled
from tests.support.ledger_double import LedgerDouble
from tests.support.meter import MODEL, Meter, meter_config, provider_config

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

LONG = "/openai/v1/chat/completions"
PACKERS: dict[str, Callable[[bytes], bytes]] = {
    "gzip": gzip.compress,
    "deflate": zlib.compress,
    "br": brotli.compress,
    "zstd": zstd.compress,
    "identity": bytes,
    "GZIP": gzip.compress,
}


def body(text: str, **more: Any) -> bytes:
    return json.dumps(
        {"model": MODEL, "max_tokens": 5, "messages": [{"role": "user", "content": text}], **more}
    ).encode()


@pytest.fixture(scope="module")
def scripted() -> Iterator[ScriptedProvider]:
    with ScriptedProvider([Reply(text="3", usage=Usage(input_tokens=3, output_tokens=1))]) as provider:
        yield provider


@pytest.fixture(scope="module")
def books() -> Iterator[LedgerDouble]:
    with LedgerDouble({}) as ledger:
        yield ledger


@pytest.fixture(scope="module")
def meter(tmp_path_factory: pytest.TempPathFactory, scripted: ScriptedProvider, books: LedgerDouble) -> Iterator[Meter]:
    config = meter_config(books.url, provider_config(scripted.base_url))
    with Meter(tmp_path_factory.mktemp("bodies"), config) as started:
        yield started


def post(meter: Meter, content: bytes, path: str = LONG, **headers: str) -> tuple[int, dict[str, Any]]:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    request = urllib.request.Request(meter.url + path, content, {"content-type": "application/json", **named})
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, json.loads(answer.read())
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read())


@pytest.mark.parametrize("encoding", PACKERS)
def test_bodies_are_taken_in_each_encoding(meter: Meter, scripted: ScriptedProvider, encoding: str) -> None:
    status, answer = post(meter, PACKERS[encoding](body(f"in {encoding}")), content_encoding=encoding)
    assert (status, answer["choices"][0]["message"]["content"]) == (200, "3")
    sent = scripted.requests[-1]
    assert sent["body"]["messages"][0]["content"] == f"in {encoding}"
    assert "content-encoding" not in sent["headers"]


@pytest.mark.parametrize(
    ("encoding", "content", "status", "says"),
    [
        ("snappy", b"x", 415, "send one of gzip, deflate, br, zstd"),
        ("gzip, zstd", b"x", 415, "send one of"),
        ("zstd", b"no zstd at all", 400, "the body is not zstd"),
        ("gzip", gzip.compress(body("cut"))[:-12], 400, "not JSON"),
        ("gzip", gzip.compress(bytes(60_000_000)), 413, "at most 50000000 bytes"),
        ("zstd", zstd.compress(bytes(60_000_000)), 413, "at most 50000000 bytes"),
        ("br", brotli.compress(bytes(60_000_000), quality=1), 413, "at most 50000000 bytes"),
    ],
    ids=["unknown", "two", "no zstd", "cut gzip", "gzip bomb", "zstd bomb", "br bomb"],
)
def test_what_cannot_be_unpacked_or_is_a_bomb_is_refused(
    meter: Meter, encoding: str, content: bytes, status: int, says: str
) -> None:
    got, answer = post(meter, content, content_encoding=encoding)
    assert got == status, answer
    assert says in answer["error"]["message"]


def test_c32_a_body_as_large_as_the_provider_takes_it_passes_and_memory_stays_bounded(
    meter: Meter, scripted: ScriptedProvider
) -> None:
    # The double takes 32 MiB: what Anthropic takes, with an emoji, which makes each character of the text wide.
    large = "\U0001f600" + "A" * 31_000_000
    status, _ = post(meter, body(large), "/anthropic/v1/messages")
    assert status == 200
    assert scripted.requests[-1]["body"]["messages"][0]["content"] == large
    scripted._player.requests.clear()  # it keeps what it was asked
    status, answer = post(meter, b"[" + b" " * 32_000_000, "/anthropic/v1/messages")
    assert (status, answer["error"]["type"]) == (413, "request_too_large")
    status, answer = post(meter, b"[" + b" " * 50_000_000)
    assert status == 413
    assert "at most 50000000 bytes" in answer["error"]["message"]
    assert meter.child is not None
    fields = Path(f"/proc/{meter.child.process.pid}/status").read_text().splitlines()
    (peak,) = [int(line.split()[1]) for line in fields if line.startswith("VmHWM")]
    assert peak < 640 * 1024


def test_a_client_that_asks_before_it_sends_is_told_to_go_on(meter: Meter) -> None:
    content = body("after a question")
    head = f"POST {LONG} HTTP/1.1\r\nHost: meter\r\nContent-Length: {len(content)}\r\nConnection: close\r\n"
    with socket.create_connection(("127.0.0.1", meter.port), timeout=20) as connection:
        connection.sendall(f"{head}Expect: 100-continue\r\n\r\n".encode())
        assert connection.recv(1024) == b"HTTP/1.1 100 Continue\r\n\r\n"
        connection.sendall(content)
        answer = b""
        while piece := connection.recv(65536):
            answer += piece
    assert answer.startswith(b"HTTP/1.1 200")
    status, _ = post(meter, content, expect="gold")
    assert status == 417


def test_every_call_that_was_made_has_a_record(meter: Meter, books: LedgerDouble) -> None:
    assert post(meter, body("last"))[0] == 200
    made = meter.get("/usage")["used"]["requests"]
    settled(meter, books, made)
