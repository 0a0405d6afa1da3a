"""Returns that come late: found by the simulation, where a message is delayed past the life of its sender."""

from __future__ import annotations

from typing import Any

from almoner_core import wire
from almoner_ledger.store import Verb
from tests.support.books import USD, Books, new_id


def give_back(books: Books, allotment: str, amount: int, activation: int, *, final: bool = False) -> Any:
    body = wire.Return(
        operation_id=new_id(),
        last_sequence=0,
        settled={},
        amounts={} if final else {USD: amount},
        final=final,
        activation=activation,
    )
    return books.run(Verb.RETURN, body, allotment=allotment, pod_uid="pod-uid")


def test_a_return_of_a_meter_that_was_started_again_takes_nothing(ledger_url: str) -> None:
    """The new life was told that it holds 100, and spends them: an old life's return must not release them."""
    books = Books(ledger_url)
    books.limits(limits={USD: 1000})
    allotment = books.active(need={USD: 100})
    first, second = books.activate(allotment), books.activate(allotment)
    assert second.activation > first.activation
    assert give_back(books, allotment, 60, first.activation).held == {USD: 100}
    # Nor is its last word the last: what comes after it would be refused.
    assert give_back(books, allotment, 0, first.activation, final=True).state == "active"
    assert books.state().reserved == 100
    assert give_back(books, allotment, 60, second.activation).held == {USD: 40}
    assert books.violations() == []
    books.close()


def test_a_return_that_comes_after_the_last_one_takes_nothing(ledger_url: str) -> None:
    """What is held then is for records that are still under way."""
    books = Books(ledger_url)
    books.limits(limits={USD: 1000})
    allotment = books.active(need={USD: 100})
    activation = books.activate(allotment).activation
    assert books.give_back(allotment, 1, {USD: 70}, final=True).held == {USD: 70}
    assert give_back(books, allotment, 70, activation).held == {USD: 70}
    assert books.violations() == []
    books.close()
