"""A request's body as the meter reads, changes and sends it: one meaning, the client's own spelling."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from almoner_runner.meter.body import NESTING_MAX, NUMBER_CHARS_MAX, growth, read_body, read_json
from almoner_runner.meter.refusals import InvalidCallError


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b"1",
        b"{} {}",
        b'{"a":1,}',
        b'{"a" 1}',
        b"{1:2}",
        b'{"a":1 "b":2}',
        b"{'a':1}",
        b'{"a":tru}',
        b'{"a":"line\nend"}',
        b"\xef\xbb\xbf{}",
        "{}".encode("utf-16"),
        b'{"a":"\xff"}',
        b'{"a":"\xed\xa0\xbd"}',
    ],
)
def test_a_body_that_is_no_utf_8_json_object(content: bytes) -> None:
    with pytest.raises(InvalidCallError, match=r"is not JSON in UTF-8|not a JSON object"):
        read_body(content)


@pytest.mark.parametrize(
    "content",
    [
        b'{"max_tokens":1,"max_tokens":9}',
        b'{"max_tokens":1,"max\\u005ftokens":9}',
        b'{"messages":[{"content":"a","content":"b"}]}',
        b'{"messages":[{"a":{"b":1,"c":2,"b":3}}]}',
    ],
)
def test_a_key_given_twice_is_refused_by_name_wherever_it_is(content: bytes) -> None:
    with pytest.raises(InvalidCallError, match="is given twice") as refused:
        read_body(content)
    assert refused.value.param in ("max_tokens", "content", "b")


@pytest.mark.parametrize(
    ("content", "at"),
    [(b'{"a":tru}', 5), (b'{"a" 1}', 5), (b'{"a":1 "b":2}', 7), (b"{", 1), (b'{"a":1} x', 8), (b"{1:2}", 1)],
)
def test_what_is_no_json_is_shown(content: bytes, at: int) -> None:
    with pytest.raises(InvalidCallError, match=f"look at character {at}$"):
        read_body(content)


def test_a_number_that_is_too_long_is_said() -> None:
    with pytest.raises(InvalidCallError, match="thousands of digits"):
        read_body(b'{"a":' + b"9" * 5000 + b"}")


@pytest.mark.parametrize("number", [b"NaN", b"Infinity", b"-Infinity"])
def test_what_is_no_number_in_json_is_refused_by_name(number: bytes) -> None:
    with pytest.raises(InvalidCallError, match=f"there is no {number.decode()} in JSON"):
        read_body(b'{"tools":[{"minimum":' + number + b"}]}")


@pytest.mark.parametrize("opening", [b"[", b'{"a":'])
@pytest.mark.parametrize("levels", [NESTING_MAX + 1, 900, 5_000, 500_000])
def test_deep_nesting_is_refused_and_never_ends_the_interpreter(opening: bytes, levels: int) -> None:
    closing = b"]" if opening == b"[" else b"}"
    deep = opening * levels + b"1" + closing * levels
    for content in (b'{"tools":' + deep + b"}", deep):
        with pytest.raises(InvalidCallError, match=r"nested deeper|not a JSON object|not JSON"):
            read_body(content)
    with pytest.raises(InvalidCallError, match="nested deeper"):
        read_json(deep)


@pytest.mark.parametrize("filler", ["", "x" * 10_000])
def test_nesting_within_the_limit_passes(filler: str) -> None:
    levels = NESTING_MAX - 1
    content = b'{"a":' + b"[" * levels + b"]" * levels + b',"b":' + json.dumps(filler).encode() + b"}"
    assert read_body(content).content() == content
    with pytest.raises(InvalidCallError, match="nested deeper than 128 levels"):
        read_body(content.replace(b"[]", b"[[]]"))


@pytest.mark.parametrize(
    ("given_text", "sent"),
    [
        (r"abc \ud83d", r"abc \ufffd"),
        (r"\ude00 abc", r"\ufffd abc"),
        (r"\uD83Dx", r"\ufffdx"),
        (r"\ud83d\ud83d\ude00", r"\ufffd\ud83d\ude00"),
        (r"\ud83d\ude00", r"\ud83d\ude00"),  # a pair
        (r"\\ud83d", r"\\ud83d"),  # a backslash and letters
        (r"\\\ud83d", r"\\\ufffd"),
        (r"\n\ud83d\n", r"\n\ufffd\n"),
        (r"\u00e9", r"\u00e9"),
    ],
)
def test_half_an_emoji_becomes_the_replacement_character(given_text: str, sent: str) -> None:
    content = '{"a":"%s","%s":1}'
    body = read_body((content % (given_text, given_text)).encode())
    assert body.content() == (content % (sent, sent)).encode()
    assert json.loads(body.content()) == body.fields
    assert read_json((content % (given_text, given_text)).encode()) == body.fields


def test_what_the_client_wrote_goes_on_byte_for_byte() -> None:
    content = (
        ' {"z" : 1e15,\n"a":[1E400,-0.0,-0,0.1000000000000000055511151231257827,1.50,1234567890123456789012,1e-7],'
        '"\\u0061b":"\\u00e9é\\/","temperature":0.70,"m":{"k":null}} '
    ).encode()
    assert read_body(content).content() == content.rstrip()


def test_changed_fields_are_spliced_in() -> None:
    body = read_body(b'{"max_tokens": 1e3 , "a":{"max_tokens":5}, "n":null,"x":1}')
    body.set("max_tokens", 7)
    body.set("n", [1])
    body.set("service_tier", "default")
    body.set("x", 1)
    assert body.content() == b'{"max_tokens": 7 , "a":{"max_tokens":5}, "n":[1],"x":1,"service_tier":"default"}'
    body.set("max_tokens", 12)
    assert json.loads(body.content()) == body.fields
    assert body.get("max_tokens") == 12


@pytest.mark.parametrize("content", [b"{}", b" { } ", b'{"b":1}'])
def test_fields_can_be_added_to_any_object(content: bytes) -> None:
    body = read_body(content)
    body.set("a", 1)
    body.set("c", "é")
    assert json.loads(body.content()) == {**json.loads(content), "a": 1, "c": "é"}


def test_true_and_one_are_not_the_same_value() -> None:
    body = read_body(b'{"a":true,"b":1.0}')
    body.set("a", 1)
    body.set("b", 1)
    assert body.content() == b'{"a":1,"b":1}'


def test_a_value_that_is_no_json_is_refused_before_anything_is_held() -> None:
    body = read_body(b'{"stream_options":{"x":1e999}}')
    with pytest.raises(InvalidCallError, match=r"stream_options: .* beyond a double"):
        body.set("stream_options", {**body.get("stream_options"), "include_usage": True})


ANY_TEXT = st.text(st.characters(exclude_categories=()))  # half surrogate pairs too
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=12,
)


@given(
    st.dictionaries(st.text(max_size=5), JSON | ANY_TEXT, max_size=5),
    st.dictionaries(st.sampled_from(["a", "b", "é", ""]), JSON),
    st.booleans(),
    st.sampled_from([None, 1]),
)
def test_any_fields_changed_mean_what_they_were_set_to(
    fields: dict[str, Any], changes: dict[str, Any], ascii_only: bool, indent: int | None
) -> None:
    text = json.dumps(fields, ensure_ascii=ascii_only, indent=indent).encode("utf-8", "surrogatepass")
    try:
        body = read_body(text)
    except InvalidCallError:
        # Half a surrogate pair that is not even escaped: that is no UTF-8.
        assert any("\ud800" <= letter <= "\udfff" for letter in json.dumps(fields, ensure_ascii=False))
        return
    for name, value in changes.items():
        body.set(name, value)
    assert json.loads(body.content()) == json.loads(json.dumps(body.fields))
    assert {name: body.fields[name] for name in changes} == changes


# --- what servers make of it ------------------------------------------------------------------------------------------


def rendered(value: Any) -> list[str]:
    """Ways in which servers are known to write JSON into a prompt, white space apart: a token takes much of it."""
    ways = [json.dumps(value), json.dumps(value, ensure_ascii=False), json.dumps(value, indent=4)]
    return [*ways, json.dumps(value, indent=4, ensure_ascii=False)]


def tokens(text: str) -> int:
    """A token a byte, but for indentation, where four spaces make one."""
    return sum((len(line) - len(bare := line.lstrip(" "))) // 4 + len(bare.encode()) + 1 for line in text.split("\n"))


@given(JSON)
def test_a_schema_is_bounded_however_a_server_writes_it(value: Any) -> None:
    content = json.dumps({"tools": [value]}, ensure_ascii=True, separators=(",", ":")).encode()
    body = read_body(content)
    most = body.text_bytes() + body.schema_bytes("tools")
    assert all(tokens(text) <= most for text in rendered(body.get("tools")))


@pytest.mark.parametrize(
    "value",
    [
        pytest.param("[" + ",".join(["1e15"] * 100) + "]", id="numbers-in-full"),
        pytest.param("[" * 100 + "]" * 100, id="indentation"),
        pytest.param('["' + "é" * 100 + '"]', id="escapes"),
        pytest.param("[" + ",".join(["1"] * 100) + "]", id="spaces"),
    ],
)
def test_json_that_a_server_writes_anew_is_bounded(value: str) -> None:
    body = read_body(f'{{"tools":{value}}}'.encode())
    most = body.text_bytes() + body.schema_bytes("tools")
    assert all(tokens(text) <= most for text in rendered(json.loads(value)))
    # And as the arguments of a call, which are JSON in a text, or JSON.
    assert len(json.dumps(json.loads(value))) <= len(value.encode()) + growth(value)
    numbers = NUMBER_CHARS_MAX * value.count("e15")
    assert len(json.dumps(json.loads(value))) <= len(value.encode()) + growth(json.loads(value)) + numbers


def test_what_is_not_there_does_not_grow() -> None:
    assert growth(None) == growth("") == growth("{}") == growth({}) == 0
    assert read_body(b"{}").schema_bytes("tools") == 0
    assert read_body(b'{"tools":[]}').schema_bytes("tools") == 0
