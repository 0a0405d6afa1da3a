"""Cut a stream of server-sent events into whole events, byte for byte as they came. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

EVENT_BYTES_MAX: Final = 8 * 1024 * 1024
_ENDS: Final = (b"\n\n", b"\r\n\r\n", b"\r\r")


class Splitter:
    """Feed it chunks, get events with their blank line. What is not whole yet waits, up to a bound."""

    __slots__ = ("_buffer",)

    def __init__(self) -> None:
        self._buffer = b""

    def feed(self, chunk: bytes) -> Iterator[bytes]:
        """Give the events that are whole now. A monster without an end is handed on in pieces, unread."""
        self._buffer = self._buffer + chunk if self._buffer else chunk
        while self._buffer:
            end = _event_end(self._buffer)
            if end < 0:
                break
            event, self._buffer = self._buffer[:end], self._buffer[end:]
            yield event
        if len(self._buffer) > EVENT_BYTES_MAX:
            yield self.rest()

    def rest(self) -> bytes:
        """Give what never became whole."""
        rest, self._buffer = self._buffer, b""
        return rest


def _event_end(data: bytes) -> int:
    ends = [at + len(mark) for mark in _ENDS if (at := data.find(mark)) >= 0]
    return min(ends, default=-1)
