"""How much longer a text gets where a tokenizer normalizes it first.

Pure. Some tokenizers put a text into Unicode's form NFKC before they cut it into tokens (SentencePiece models, Claude's
published one). That writes a few hundred characters out: U+FDFA, 3 bytes, becomes a phrase of 33. A token then stands
for a byte of the longer text. Here is the most that such characters add, in ranges; a test holds the table against the
interpreter's own Unicode data.
"""

from __future__ import annotations

import re
from typing import Final

# First and last character of a range, and the most bytes that one of it grows by.
_RANGES: Final = {
    30: "fdf0-fdfc",
    15: "32ff-3370",
    9: "2057 2a0c 337b-337f",
    8: "1d15e-1d164 1d1bb-1d1c0",
    6: "f73-f81 2033-2037 222c-2230",
    5: "3200-3243 33a7-33af 1f240-1f248",
    3: (
        "a8-be 13f-140 149 1c4-1c6 2d8-2dd 344 37a 384-385 587 675-678 958-95f 9dc-9df a33-a36 a59-a5e b5c-b5d e33 eb3 "
        "edc-edd f43 f4d-f5c f69 f93 f9d-fac fb9 1fc1 1fcd-1fcf 1fdd-1fdf 1fed-1fee 2150-2167 2177 2189 247d-2487 2adc "
        "309b-309f 30ff 327c-327d 32c0-32cb 3389 33c2-33c6 33d8-33fe fa6c facf-fad7 fb13-fb1f fb2a-fb4f fbdd fbea-fd3d "
        "fd50-fdc7 fe71-fe7f fef5-fefc 1f12a 1f200-1f201"
    ),
}


def _pattern(ranges: str) -> str:
    return "".join("-".join(re.escape(chr(int(end, 16))) for end in each.split("-")) for each in ranges.split())


_growing: Final = re.compile("|".join(f"([{_pattern(ranges)}])" for ranges in _RANGES.values()))
_any_growing: Final = re.compile(f"[{''.join(map(_pattern, _RANGES.values()))}]").search
_GROWTH: Final = (0, *_RANGES)
# Escapes of six bytes, of characters that become longer than that: by 27 bytes at most.
_escapes: Final = re.compile(r"\\u(?:0[fF][78]|20[35]|22[23]|2[aA]0|3[23]|[fF][dD][fF])").findall
_ESCAPE_GROWTH: Final = 27


def normalization_growth(text: str) -> int:
    """Give the most bytes that a JSON text grows by in form NFKC, its escapes read."""
    total = 0
    if not text.isascii() and _any_growing(text) is not None:
        total = sum(_GROWTH[found.lastindex or 0] for found in _growing.finditer(text))
    if "\\u" in text:
        total += _ESCAPE_GROWTH * len(_escapes(text))
    return total
