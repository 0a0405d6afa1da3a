"""Which fields of a request cost nothing beyond its bound, whatever model serves it, and what is at fault in the rest.

Pure. A field that a dialect's list knows passes. So does any field whose value asks for nothing (null, false, an empty
text or list), and a few by their value: labels, and settings that only shrink a call. What is left may raise
the cost, and is refused by name; all faults of a request in one answer, so that nobody finds them one by one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

from almoner_runner.meter.refusals import InvalidCallError

Free = Mapping[str, Callable[[Any], bool]]
NAMES_SHOWN: Final = 5
FAULTS_SHOWN: Final = 8
LABELS_MAX: Final = 64
CLEARING: Final = ("clear_thinking_", "clear_tool_uses_")


def asks_for_nothing(value: Any) -> bool:
    """Say whether a value is null, false, or an empty text or list.

    Zero is a number, and an empty object is often a feature with its defaults: both ask for something.
    """
    return value is None or value is False or (type(value) in (str, list) and not value)


def labels(value: Any) -> bool:
    """Say whether a value is an object of short texts, which only marks a call."""
    return type(value) is dict and len(value) <= LABELS_MAX and all(type(each) is str for each in value.values())


def only_text(value: Any) -> bool:
    """Say whether modalities are text alone, which is the default."""
    return type(value) is list and value == ["text"]


def standard(value: Any) -> bool:
    """Say whether a speed is the one of the list price."""
    return type(value) is str and value == "standard"


def only_clears(value: Any) -> bool:
    """Say whether context management removes input and does nothing else: compaction samples, and costs."""
    if type(value) is not dict or value.keys() - {"edits"}:
        return False
    edits = value.get("edits")
    return type(edits) is list and all(
        type(edit) is dict and str(edit.get("type", "")).startswith(CLEARING) for edit in edits
    )


def unknown(fields: Mapping[str, Any], known: frozenset[str], free: Free) -> list[str]:
    """Give the fields that may raise a call's cost, sorted."""
    return sorted(
        name
        for name in fields.keys() - known
        if not asks_for_nothing(fields[name]) and not (name in free and free[name](fields[name]))
    )


class Faults:
    """What is at fault in one request."""

    __slots__ = ("_found",)

    def __init__(self) -> None:
        self._found: list[tuple[str, str]] = []

    def add(self, param: str, message: str) -> None:
        """Note a fault of a field."""
        self._found.append((param, message))

    def add_unknown(self, names: list[str], operation: str) -> None:
        """Note the fields that are not known."""
        if names:
            shown = ", ".join(name[:64] for name in names[:NAMES_SHOWN])
            more = f" and {len(names) - NAMES_SHOWN} more" if len(names) > NAMES_SHOWN else ""
            self.add(
                names[0][:64],
                f"{operation}: under a budget the meter lets through only fields whose cost it knows, and not: "
                f"{shown}{more} (allowFields of the ModelProvider lets more through)",
            )

    def check(self) -> None:
        """Refuse the request where anything is at fault. Raises InvalidCallError, with every fault."""
        if self._found:
            message = "; ".join(message for _, message in self._found[:FAULTS_SHOWN])
            if len(self._found) > FAULTS_SHOWN:
                message += f"; and {len(self._found) - FAULTS_SHOWN} more"
            raise InvalidCallError(message, code="unsupported_parameter", param=self._found[0][0])
