"""Time-ordered ids (UUIDv7, RFC 9562): records sort by when their try began."""

from __future__ import annotations

import os
import time


def uuid7() -> str:
    """Give a fresh UUIDv7: 48 bits of Unix milliseconds, then 74 random bits."""
    number = time.time_ns() // 1_000_000 << 80 | int.from_bytes(os.urandom(10))
    number = number & ~(0xF << 76) | 0x7 << 76
    number = number & ~(0x3 << 62) | 0x2 << 62
    text = f"{number:032x}"
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"
