"""Cut a stream of server-sent events into whole events, byte for byte as they came. Pure.

An event ends with a blank line; a line ends with LF, CRLF or CR, in any mixture (WHATWG HTML, server-sent events).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final

EVENT_BYTES_MAX: Final = 8 * 1024 * 1024
_BLANK_LINE: Final = re.compile(rb"(?:\r\n|\n|\r(?!\n)){2}")
_HALVES: Final = (b"\n\r", b"\r\n\r")
"""At the end of what came: the LF of the last CRLF may be still to come."""
_OVERLAP: Final = 3


class Splitter:
    """Feed it chunks, get events with their blank line. What is not whole yet waits, up to a bound."""

    __slots__ = ("_buffer", "_looked")

    def __init__(self) -> None:
        self._buffer = b""
        self._looked = 0

    def feed(self, chunk: bytes) -> Iterator[bytes]:
        """Give the events that are whole now. A monster without an end is handed on in pieces, unread."""
        self._buffer = self._buffer + chunk if self._buffer else chunk
        while self._buffer:
            end = _BLANK_LINE.search(self._buffer, self._looked)
            if end is None or (end.end() == len(self._buffer) and end[0] in _HALVES):
                self._looked = max(0, len(self._buffer) - _OVERLAP)
                break
            event, self._buffer, self._looked = self._buffer[: end.end()], self._buffer[end.end() :], 0
            yield event
        if len(self._buffer) > EVENT_BYTES_MAX:
            yield self.rest()

    def rest(self) -> bytes:
        """Give what never became whole."""
        rest, self._buffer, self._looked = self._buffer, b"", 0
        return rest
