"""How requests come in: whole, in any of HTTP's encodings, as large as their provider takes them.

Role: reads a body piece by piece under a budget of bytes that all calls share. Reading JSON takes several times a
body's bytes (`weight`), and more where a character beyond Latin-1 makes every character wide; until a call is on its
way its text and its fields are kept, then its bytes alone. A body waits for room; where none comes the refusal is a
passing one. Boundary: what a body means is body.py's. Compressed bodies are unpacked below this, in pieces, so that
only what they unpack to counts.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Final

from aiohttp import web

from almoner_runner.meter.refusals import RefusedError

MIB: Final = 1024 * 1024
BUDGET_BYTES: Final = 544 * MIB
"""Where nothing limits the meter's memory."""
OWN_BYTES: Final = 96 * MIB
"""Of the container's memory this much is for all else."""
BUDGET_LEAST_BYTES: Final = 64 * MIB
WAIT_SECONDS: Final = 30.0
READ_SECONDS: Final = 60.0
STEP_BYTES: Final = MIB
ENCODINGS: Final = ("gzip", "deflate", "br", "zstd", "identity", "")
CGROUPS: Final = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")
# Measured: memory at most while a body is read, bounded and spliced, as multiples of its bytes.
_PLAIN, _WIDE, _WIDEST = 5, 8, 14
SENDING: Final = 2
"""... and while it is under way: here, and in the connection's buffer."""
_NOT_WIDE: Final = bytes(range(0xC4))
_NOT_WIDEST: Final = bytes(range(0xF0))


def weight(content: bytes | bytearray) -> int:
    """Give the most memory that a body takes while it is read: what makes text wide are characters beyond Latin-1."""
    if content.isascii() or not content.translate(None, _NOT_WIDE):
        return _PLAIN * len(content)
    return (_WIDEST if content.translate(None, _NOT_WIDEST) else _WIDE) * len(content)


def budget_bytes(files: tuple[str, ...] = CGROUPS) -> int:
    """Give the bytes that bodies may take, by the container's limit."""
    for name in files:
        try:
            limit = int(Path(name).read_text(encoding="ascii"))
        except (OSError, ValueError):
            continue
        return max(BUDGET_LEAST_BYTES, min(BUDGET_BYTES, limit - OWN_BYTES))
    return BUDGET_BYTES


class Claim:
    """What one body has of the budget. Give it back with `to(0)`."""

    def __init__(self, budget: Budget) -> None:
        self._budget = budget
        self.size = 0

    async def at_least(self, size: int) -> None:
        """Wait until it has so much. Raises RefusedError."""
        if size > self.size:
            await self._budget.take(size - self.size)
            self.size = size

    def to(self, size: int) -> None:
        """Give back what is above so much."""
        if size < self.size:
            self._budget.give(self.size - size)
            self.size = size


class Budget:
    """The bytes that all bodies share."""

    def __init__(self, size: int = BUDGET_BYTES, wait_seconds: float = WAIT_SECONDS) -> None:
        self.size = size
        self.left = size
        self._wait_seconds = wait_seconds
        self._freed = asyncio.Event()

    async def take(self, size: int) -> None:
        """Wait for so much room. Raises RefusedError."""
        if size > self.left:
            try:
                async with asyncio.timeout(self._wait_seconds):
                    while size > self.left:
                        self._freed.clear()
                        await self._freed.wait()
            except TimeoutError:
                raise RefusedError(
                    503, "meter_busy", "other calls' bodies take the memory of the meter: try again", retry_after=1
                ) from None
        self.left -= size

    def give(self, size: int) -> None:
        """Give room back."""
        self.left += size
        self._freed.set()


async def read(request: web.BaseRequest, claim: Claim, budget: Budget, most: int) -> bytes:
    """Read a body of at most `most` bytes, unpacked. Raises RefusedError.

    The claim then covers what reading it takes, and is the caller's to give back.
    """
    encoding = request.headers.get("content-encoding", "").strip().lower()
    if encoding not in ENCODINGS:
        known = ", ".join(ENCODINGS[:4])
        raise RefusedError(415, "unsupported_encoding", f"content-encoding {encoding[:64]!r}: send one of {known}")
    length = request.content_length or 0
    if length > most:
        raise _too_large(most)
    content = bytearray()
    try:
        async with asyncio.timeout(READ_SECONDS):
            await claim.at_least(length)
            async for piece in request.content.iter_any():
                if len(content) + len(piece) > most:
                    raise _too_large(most)
                if len(content) + len(piece) > claim.size:
                    await claim.at_least(len(content) + len(piece) + STEP_BYTES)
                content += piece
    except TimeoutError:
        raise RefusedError(408, "body_too_slow", f"the body did not come within {READ_SECONDS:g} s") from None
    except web.RequestPayloadError:
        raise RefusedError(400, "invalid_request", f"the body is not {encoding or 'whole'}") from None
    needed = weight(content)
    if needed > budget.size:
        raise RefusedError(
            413,
            "body_too_large",
            f"reading this body takes {needed // MIB} MiB, and the meter has {budget.size // MIB}: have its memory "
            "limit raised (--meter-memory-limit of the operator)",
        )
    await claim.at_least(needed)
    return bytes(content)


def _too_large(most: int) -> RefusedError:
    return RefusedError(413, "body_too_large", f"at most {most} bytes, as the provider takes them")


async def go_on(request: web.BaseRequest) -> None:
    """Answer `Expect: 100-continue`: some clients send no body before. Raises RefusedError."""
    expected = request.headers.get("expect")
    if expected is None:
        return
    if expected.strip().lower() != "100-continue":
        raise RefusedError(417, "unknown_expectation", f"expect {expected[:64]!r}: only 100-continue is known")
    if request.transport is not None:
        request.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
