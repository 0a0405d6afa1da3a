"""Text that has to fit: cut by characters where a schema counts those, by bytes where Kubernetes counts bytes.

The maxLength of a custom resource counts characters, as Python does. An event's note and a termination message are
measured in bytes of UTF-8, three of them for a Chinese character; what is a byte too long is refused or torn.

PURE: no I/O.
"""

from __future__ import annotations

import codecs
from typing import Final

CUT_MARK: Final = "…"
EVENT_NOTE_BYTES_MAX: Final = 1024
"""What the API server takes of an event's note (events.k8s.io/v1)."""
LOG_TAIL_BYTES_MAX: Final = 2048
"""What the kubelet keeps of the end of a log as a termination message (FallbackToLogsOnError)."""


def short(text: str, chars_max: int) -> str:
    """Give the text, or its beginning and a mark: at most so many characters."""
    return text if len(text) <= chars_max else text[: chars_max - len(CUT_MARK)] + CUT_MARK


def short_bytes(text: str, bytes_max: int) -> str:
    """Give the text, or its beginning and a mark: at most so many bytes of UTF-8, cut between two characters."""
    data = text.encode("utf-8", "replace")
    if len(data) <= bytes_max:
        return clean(text)
    return whole(data[: bytes_max - len(CUT_MARK.encode())]) + CUT_MARK


def clean(text: str) -> str:
    """Give the text with every lone surrogate, which JSON can bring and UTF-8 has no bytes for, replaced by `?`."""
    return text.encode("utf-8", "replace").decode()


def storable(text: str) -> str:
    """Give the text as the ledger can store it: clean, and U+FFFD for NUL, which PostgreSQL's text cannot hold."""
    return clean(text).replace("\0", "\ufffd")


def whole(data: bytes) -> str:
    """Decode UTF-8 that was cut somewhere: the character that the cut went through is left out, other faults marked."""
    return codecs.getincrementaldecoder("utf-8")("replace").decode(data)
