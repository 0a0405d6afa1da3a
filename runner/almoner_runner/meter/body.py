"""A request's body: read once and strictly, changed in top-level fields alone, sent as the client wrote it.

Role: what the meter judges, what it bounds and what it sends are the same text. So a body has to have one meaning,
whoever reads it: a key that is given twice, NaN, and nesting beyond NESTING_MAX are refused; half a surrogate pair (an
emoji that was cut) becomes U+FFFD, as Unicode advises, because no UTF-8 could carry it. Everything else goes on byte
for byte: numbers in the client's spelling, escapes, the order of keys. Fields that the meter sets are spliced in.

Servers may write JSON anew before a model reads it: tools, output schemas, arguments of calls. `schema_bytes` and
`growth` say how much longer that can get.

Pure. Nothing here can fail after the body was read, so nothing can fail between a call's hold and its sending.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable
from typing import Any, Final

from almoner_runner.meter.normalization import normalization_growth
from almoner_runner.meter.refusals import InvalidCallError

# Schemas of real tools reach 40 levels; the interpreter's own limit is a thousand.
NESTING_MAX: Final = 128
# Of so short a body it is quicker to count brackets than to look.
SMALL_BYTES: Final = 4096
# The longest way to write a double that is in use, as in -1.7976931348623157e+308; `1e20` may come out as 21 digits.
NUMBER_CHARS_MAX: Final = 24

# Made once: json.dumps with settings of its own makes an encoder a call.
_encode: Final = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode
_plain: Final = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode
_exponents: Final = re.compile(r"[0-9][eE]").findall
_skip_space: Final = re.compile(r"[ \t\n\r]*").match
_HALF_PAIRS: Final = re.compile(
    r"(?<!\\)((?:\\\\)*\\u)"  # an escape, and not an escaped backslash before a "u"
    r"(?:([dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2})|[dD][89a-fA-F][0-9a-fA-F]{2})"
)


class _Reader:
    """Reads values with the interpreter's C scanner, and counts what spells a number shorter than others would.

    One for all bodies: reading is never interrupted.
    """

    def __init__(self) -> None:
        self.exponents = 0
        decoder = json.JSONDecoder(
            object_pairs_hook=self._object, parse_float=self._float, parse_constant=self._constant
        )
        self.read = decoder.raw_decode

    def _object(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        value = dict(pairs)
        if len(value) != len(pairs):
            names = [name for name, _ in pairs]
            raise _twice(next(name for name in names if names.count(name) > 1))
        return value

    def _float(self, text: str) -> float:
        if "e" in text or "E" in text:
            self.exponents += 1
        return float(text)

    def _constant(self, text: str) -> float:
        raise InvalidCallError(f"the request's body is not JSON: there is no {text} in JSON; leave it out or send null")


_reader: Final = _Reader()


class Body:
    """A request's body. Read `fields`, never write them: `set` does."""

    __slots__ = ("_content", "_end", "_exponents", "_spans", "_text", "_written", "fields", "when_released")

    def __init__(
        self, text: str, fields: dict[str, Any], spans: dict[str, tuple[int, int]], end: int, exponents: int
    ) -> None:
        self.fields = fields
        self._text = text
        self._spans = spans  # where the value of each field is
        self._end = end  # of the object, before its closing bracket
        self._exponents = exponents
        self._written: dict[str, str] = {}
        self._content: bytes | None = None
        self.when_released: Callable[[], None] | None = None

    def get(self, name: str) -> Any:
        """Give the value of a field; None where it is absent or null."""
        return self.fields.get(name)

    def set(self, name: str, value: Any) -> None:
        """Send another value of a field, or one that the client left out. Raises InvalidCallError: no JSON."""
        if name in self.fields and type(self.fields[name]) is type(value) and self.fields[name] == value:
            return
        try:
            written = _encode(value)
        except ValueError:
            raise InvalidCallError(f"{name}: holds a number that is beyond a double's range", param=name) from None
        self.fields[name] = value
        self._written[name] = written
        self._content = None

    def drop(self, name: str) -> None:
        """Leave out a field that the meter had set, and the client had not."""
        if name in self._written and name not in self._spans:
            del self.fields[name], self._written[name]
            self._content = None

    def content(self) -> bytes:
        """Give what is sent."""
        if self._content is None:
            self._content = self._spliced().encode()
        return self._content

    def _spliced(self) -> str:
        text, at = self._text, 0
        parts: list[str] = []
        for (start, end), name in sorted((self._spans[name], name) for name in self._written if name in self._spans):
            parts += (text[at:start], self._written[name])
            at = end
        parts.append(text[at : self._end])
        empty = not self._spans
        for name, written in self._written.items():
            if name not in self._spans:
                parts.append(f"{'' if empty else ','}{_encode(name)}:{written}")
                empty = False
        parts.append("}")
        return "".join(parts)

    def text_bytes(self) -> int:
        """Give the most bytes that what is sent has, wherever its numbers are written anew, and its text normalized."""
        return len(self.content()) + NUMBER_CHARS_MAX * self._exponents + normalization_growth(self._text)

    def release(self) -> None:
        """Keep what is sent, and nothing else: for a call that is under way, which may take minutes."""
        self.content()
        self.fields, self._text, self._spans, self._written = {}, "", {}, {}
        if self.when_released is not None:
            self.when_released()

    def is_ascii(self, name: str) -> bool:
        """Say whether a field's value, as the client wrote it, is ASCII without escapes; so is one that is absent."""
        start, end = self._spans.get(name, (0, 0))
        written = self._text[start:end]
        return name not in self._written and written.isascii() and "\\" not in written

    def schema_bytes(self, *names: str) -> int:
        """Give the bytes to count once more for fields that a server writes anew: tools and output schemas.

        Servers write them as JSON with spaces and escapes, and some of them one value a line, indented by four.
        Tokenizers take a line's end and four spaces for a token at least, so a line that is `depth` deep costs up to
        `1 + depth` beside its text. The text was counted once already, as it was sent, and covers what is indented a
        little; the rest is added.
        """
        total = 0
        for name in names:
            value = self.fields.get(name)
            if value:
                start, end = self._spans.get(name, (0, 0))
                total += schema_growth(value, end - start)
        return total


def schema_growth(value: Any, sent: int = 0) -> int:
    """Give the bytes to count once more for a schema that a server writes anew; `sent` were counted, as they came."""
    written = len(json.dumps(value))
    return max(written, written + _indentation(value) - sent)


def growth(value: Any) -> int:
    """Give the most bytes by which arguments of a call grow when they are written anew: JSON, or JSON in a text.

    With spaces and escapes, that is, and numbers in full (of JSON in the body itself, `text_bytes` counts those).
    """
    if type(value) is not str:
        return len(json.dumps(value)) - len(_plain(value).encode()) if value else 0
    more = value.count(",") + value.count(":") + NUMBER_CHARS_MAX * len(_exponents(value))
    return more if value.isascii() else more + len(json.dumps(value)) - len(_plain(value).encode())


def read_body(content: bytes) -> Body:
    """Read a request's body: UTF-8, because in another encoding text may have fewer bytes than tokens.

    Raises InvalidCallError, which names what is wrong.
    """
    body = _read(_decoded(content))
    _check_nesting(content, body.fields)
    return body


def read_json(content: bytes) -> Any:
    """Read what is said to the meter itself. Raises InvalidCallError."""
    text = _decoded(content)
    try:
        value = json.loads(text)
    except ValueError:
        raise _no_json() from None
    except RecursionError:
        raise _too_deep() from None
    _check_nesting(content, value)
    return value


def _decoded(content: bytes) -> str:
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError:
        raise _no_json() from None
    if "\\u" in text and ("\\ud" in text or "\\uD" in text):
        return _HALF_PAIRS.sub(lambda found: found[0] if found[2] else f"{found[1]}fffd", text)
    return text


def _read(text: str) -> Body:
    fields: dict[str, Any] = {}
    spans: dict[str, tuple[int, int]] = {}
    _reader.exponents = 0
    try:
        end, closed = _read_members(text, fields, spans)
    except json.JSONDecodeError as error:
        raise _no_json(error.pos) from None
    except IndexError:
        raise _no_json(len(text)) from None
    except ValueError:
        raise InvalidCallError("the request's body holds a number with thousands of digits: send it as text") from None
    except RecursionError:
        raise _too_deep() from None
    if (rest := _after(text, closed + 1)) != len(text):
        raise _no_json(rest)
    return Body(text, fields, spans, end, _reader.exponents)


def _read_members(text: str, fields: dict[str, Any], spans: dict[str, tuple[int, int]]) -> tuple[int, int]:
    """Read the object's members; gives where the last one ends, and where the object is closed."""
    at = _after(text, 0)
    if text[at] != "{":
        json.loads(text)  # tells what is no JSON
        raise InvalidCallError("the request's body is not a JSON object")
    end = at + 1
    at = _after(text, end)
    while text[at] != "}" or fields:
        name, end = _reader.read(text, at)
        if type(name) is not str:
            raise _no_json(at)
        start = _after(text, _past(text, _after(text, end), ":"))
        value, end = _reader.read(text, start)
        if name in fields:
            raise _twice(name)
        fields[name], spans[name] = value, (start, end)
        at = _after(text, end)
        if text[at] == "}":
            break
        at = _after(text, _past(text, at, ","))
    return end, at


def _after(text: str, at: int) -> int:
    """Give where the next character is that is no white space."""
    found = _skip_space(text, at)
    assert found is not None
    return found.end()


def _past(text: str, at: int, expected: str) -> int:
    if text[at] != expected:
        raise _no_json(at)
    return at + 1


def _check_nesting(content: bytes, value: Any) -> None:
    if len(content) < SMALL_BYTES and content.count(b"{") + content.count(b"[") <= NESTING_MAX:
        return
    level = [value]
    for _ in range(NESTING_MAX):
        level = [child for each in level for child in _children(each) if type(child) is dict or type(child) is list]
        if not level:
            return
    raise _too_deep()


def _indentation(value: Any) -> int:
    """Give the tokens of line ends and indentation where every value stands on a line of its own."""
    total, depth, level = 0, 0, [value]
    while level:
        depth += 1
        children = [child for each in level for child in _children(each)]
        total += len(children) * (1 + depth) + len(level) * depth
        level = [child for child in children if type(child) in (dict, list)]
    return total


def _children(value: Any) -> Iterable[Any]:
    return value.values() if type(value) is dict else value if type(value) is list else ()


def _no_json(at: int | None = None) -> InvalidCallError:
    where = "" if at is None else f": look at character {at}"
    return InvalidCallError(f"the request's body is not JSON in UTF-8{where}")


def _too_deep() -> InvalidCallError:
    return InvalidCallError(f"the request's body is nested deeper than {NESTING_MAX} levels: flatten it")


def _twice(name: str) -> InvalidCallError:
    shown = name[:64]
    return InvalidCallError(
        f"{shown!r} is given twice in one object of the request, so it may mean two things: send it once", param=shown
    )
