"""The most that a text grows by where a tokenizer normalizes it, against the interpreter's Unicode data."""

from __future__ import annotations

import json
import sys
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from almoner_runner.meter.body import read_body
from almoner_runner.meter.normalization import normalization_growth

CHARACTERS = [chr(code) for code in range(sys.maxunicode + 1) if not 0xD800 <= code < 0xE000]


def size(text: str) -> int:
    return len(text.encode())


def test_every_character_alone() -> None:
    growing = [each for each in CHARACTERS if size(unicodedata.normalize("NFKC", each)) > size(each)]
    assert len(growing) > 500
    wrong = [
        hex(ord(each))
        for each in growing
        if size(unicodedata.normalize("NFKC", each)) > size(each) + normalization_growth(each)
    ]
    assert wrong == []


def test_what_is_ordinary_costs_nothing() -> None:
    for text in (
        "hello",
        "naïve façade",
        "漢字、这是",
        "한국어",
        "日本語のテキスト",
        "привет",
        "🎉👍",
        "हिन्दी",
        "שלום",
        "مرحبا",
    ):
        assert normalization_growth(text) == 0, text


@given(st.text(st.characters(codec="utf-8") | st.sampled_from("ﷺ㌖½ำ𝅘𝅥𝅮⨌‴ཷ")), st.booleans())
def test_any_text_as_it_is_or_in_escapes(text: str, escaped: bool) -> None:
    content = json.dumps(text, ensure_ascii=escaped)
    assert size(unicodedata.normalize("NFKC", text)) <= size(content) + normalization_growth(content)


@pytest.mark.parametrize("escaped", [False, True])
def test_it_counts_in_a_requests_bound(escaped: bool) -> None:
    content = json.dumps({"input": "ﷺ" * 1000}, ensure_ascii=escaped).encode()
    assert read_body(content).text_bytes() >= 33 * 1000
