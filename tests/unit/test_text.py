"""Text that is cut: by characters or by bytes, never within a character, and with a mark."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from almoner_core.environment import TERMINATION_MESSAGE_BYTES_MAX
from almoner_core.text import CUT_MARK, LOG_TAIL_BYTES_MAX, clean, short, short_bytes, whole
from almoner_operator.events import EventRecorder
from almoner_runner.agent.failures import one_line
from almoner_runner.meter.files import write_error

ANY_TEXT = st.text(st.characters(codec=None), max_size=60)  # lone surrogates included


@given(ANY_TEXT, st.integers(3, 80))
def test_bytes_are_cut_between_characters(text: str, bytes_max: int) -> None:
    cut = short_bytes(text, bytes_max)
    assert len(cut.encode()) <= bytes_max
    if len(clean(text).encode()) <= bytes_max:
        assert cut == clean(text)
    else:
        assert cut.endswith(CUT_MARK)
        assert clean(text).startswith(cut.removesuffix(CUT_MARK))
        assert len(cut.encode()) > bytes_max - 4, "as much as fits is kept"


@given(ANY_TEXT, st.integers(1, 80))
def test_characters_are_cut_with_a_mark(text: str, chars_max: int) -> None:
    cut = short(text, chars_max)
    assert len(cut) == min(len(text), chars_max)
    assert cut == text or cut == text[: chars_max - 1] + CUT_MARK


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"", ""),
        ("a字".encode(), "a字"),
        ("a字".encode()[:-1], "a"),
        ("a字".encode()[:-2], "a"),
        ("😀".encode()[:3], ""),
        (b"a\xffb", "a\N{REPLACEMENT CHARACTER}b"),
        (b"\x80\x80\x80\x80", "\N{REPLACEMENT CHARACTER}" * 4),
        ("\xff".encode() + "字".encode()[:1], "\xff"),
    ],
)
def test_a_torn_character_is_left_out_and_other_faults_are_marked(data: bytes, text: str) -> None:
    assert whole(data) == text


@pytest.mark.parametrize("letter", ["x", "é", "字", "😀", '"', "\x01"])
def test_what_kubernetes_measures_in_bytes_fits(letter: str, tmp_path: Path) -> None:
    """Sibling of C30: an event's note, the agent's last line (the kubelet keeps a log's end), the meter's last word."""
    recorder = EventRecorder(SimpleNamespace(), instance="i")  # type: ignore[arg-type]
    recorder.tell("Execution", "ns", f"{'n' * 199}.x", "uid", reason="R", note=letter * 3000, once="o")
    recorder.tell("Execution", "ns", f"{'n' * 199}-x", "uid", reason="R", note=letter * 2999)
    told = [sending.body for sending in recorder._queue if sending.body is not None]
    assert len(told) == 2
    for body in told:
        assert len(body["note"].encode()) <= 1024
        assert body["note"].endswith(CUT_MARK)
        assert body["metadata"]["name"].startswith(f"{'n' * 199}.")
    assert len(one_line(letter * 3000).encode()) < LOG_TAIL_BYTES_MAX
    word = tmp_path / "word"
    write_error(word, letter * 3000)
    assert word.stat().st_size <= TERMINATION_MESSAGE_BYTES_MAX
    assert json.loads(word.read_text())["error"].startswith(letter * 100)
