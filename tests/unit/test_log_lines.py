"""Log lines: one JSON object each, the same fields everywhere, bounded."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator

import pytest

from almoner_core import log_lines

ALLOTMENT = "5B0F8A4E-0c0d-4c8e-9d59-0f7c1e6a2b3c"


@pytest.fixture(autouse=True)
def _loggers_as_they_were() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:], root.level = handlers, level


def written(style: str, *, fields: dict[str, str | int] | None = None) -> tuple[logging.Logger, io.StringIO]:
    stream = io.StringIO()
    log_lines.configure("info", style, stream=stream, fields=fields)
    return logging.getLogger("almoner_test"), stream


def test_a_line_is_one_json_object_with_the_fields_of_the_process_and_its_own() -> None:
    log, stream = written("json", fields={"namespace": "team", "attempt": 2})
    log.warning("admitted %s", "run\nwith a break", extra={"run": "run", "odd": object(), "seconds": 1.5})
    line = json.loads(stream.getvalue())
    assert stream.getvalue().count("\n") == 1
    assert line.pop("time").endswith("+00:00")
    assert line == {
        "level": "warning",
        "logger": "almoner_test",
        "message": "admitted run\nwith a break",
        "namespace": "team",
        "attempt": 2,
        "run": "run",
        "seconds": 1.5,
    }


def test_lines_are_bounded() -> None:
    log, stream = written("json")
    try:
        raise ValueError("e" * 50_000)
    except ValueError:
        log.exception("m" * 50_000, extra={"run": "r" * 50_000})
    line = json.loads(stream.getvalue())
    assert len(line["message"]) == len(line["error"]) == log_lines.LINE_CHARS_MAX
    assert len(line["run"]) == log_lines.FIELD_CHARS_MAX


def test_text_is_for_people() -> None:
    log, stream = written("text")
    log.info("admitted", extra={"namespace": "team", "run": "daily"})
    assert stream.getvalue().endswith("INFO    almoner_test: admitted namespace=team run=daily\n")


@pytest.mark.parametrize(
    ("allotment", "trace"), [(ALLOTMENT, "5b0f8a4e0c0d4c8e9d590f7c1e6a2b3c"), (None, ""), ("", "")]
)
def test_the_trace_is_the_allotment(allotment: str | None, trace: str) -> None:
    assert log_lines.trace_id(allotment) == trace
