"""The command line's filters are those of history."""

from __future__ import annotations

from almoner_ledger.commands import questions
from almoner_ledger.history import asking


def options(names: tuple[asking.By, ...]) -> tuple[str, ...]:
    return tuple(name.value.replace("_", "-") for name in names)


def test_every_filter_of_history_is_an_option_and_no_other() -> None:
    assert options(asking.OF_USAGE) == questions.OF_USAGE
    assert options(asking.OF_EXECUTIONS) == questions.OF_EXECUTIONS
    assert options(asking.QUALIFIED) == questions._QUALIFIED
