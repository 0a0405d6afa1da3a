"""The log of who changed which limit, price or provider: on both databases, sealed, audited, and read by command."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import sqlalchemy as sa

from almoner_core import wire
from almoner_core.configuration import canonical, digest
from almoner_core.wire import ErrorCode
from almoner_dev.ledger_environment import ledger_environment
from almoner_ledger import schema, sealing
from almoner_ledger.errors import LedgerError
from almoner_ledger.history import asking, configuration, reading
from almoner_ledger.store import Verb
from almoner_ledger.store.configuration import known
from tests.support.books import DOLLAR, USD, Books, code, new_id, replica
from tests.support.tampering import tamper

CHANGES, CONFIGURED, SEALS = schema.configuration_changes, schema.configured, schema.seals
EDITOR = wire.ManagedSpec(name="kubectl-edit", operation="Update", changed_unix_ms=2000, paths=["budget.amount"])
COLUMNS = (
    "number kind namespace name uid action generation changed_ms seen_ms managers fields left_out before_digest "
    "after_digest"
)


def quota(amount: str | None, uid: str = "u", generation: int = 1, **more: Any) -> wire.ObservedObject:
    """A quota of team-a whose budget has an amount; None: it was deleted."""
    spec = None if amount is None else canonical({"budget": {"amount": amount, "period": "Monthly"}})
    return wire.ObservedObject(
        **{
            "kind": "ResourceQuota",
            "namespace": "team-a",
            "name": f"quota-{uid}",
            "uid": uid,
            "generation": generation,
            "created_unix_ms": 1000,
            "spec": spec,
            "managers": [
                wire.ManagedSpec(name="argocd", operation="Apply", changed_unix_ms=3000, paths=["budget.period"]),
                wire.ManagedSpec(
                    name="kubectl-edit", operation="Update", changed_unix_ms=2000, paths=["budget.amount"]
                ),
            ],
            **more,
        }
    )


def tell(books: Books, *objects: wire.ObservedObject, operation_id: str | None = None) -> Any:
    body = wire.ObserveObjects(epoch=books.epoch, operation_id=operation_id or new_id(), objects=list(objects))
    return books.run(Verb.OBSERVE, body, epoch=books.epoch)


def log(books: Books, **filters: str) -> list[wire.ConfigurationChange]:
    """The changes, the oldest first."""
    question = asking.Question({asking.By(name): (value,) for name, value in filters.items()})
    page = reading.read(books.database, lambda c: configuration.changes(c, question, 100, None))
    return page.changes[::-1]


def told(books: Books) -> list[tuple[str, str, list[tuple[str, str | None, str | None]]]]:
    return [(each.name, each.action, [(f.path, f.before, f.after) for f in each.fields]) for each in log(books)]


def test_every_change_is_entered_once_from_what_to_what_and_by_whom(books: Books) -> None:
    assert tell(books, quota("5")) == wire.Observed(changes=1)
    assert tell(books, quota("5")) == wire.Observed(changes=0)
    assert tell(books, quota("9", generation=2), quota("9", generation=2)) == wire.Observed(changes=1)
    assert tell(books, quota(None, generation=2)) == wire.Observed(changes=1)
    assert tell(books, quota(None, generation=2)) == wire.Observed(changes=0)
    assert told(books) == [
        ("quota-u", "created", [("budget.amount", None, '"5"'), ("budget.period", None, '"Monthly"')]),
        ("quota-u", "changed", [("budget.amount", '"5"', '"9"')]),
        ("quota-u", "deleted", [("budget.amount", '"9"', None), ("budget.period", '"Monthly"', None)]),
    ]
    created, changed, deleted = log(books)
    assert [(by.name, by.operation) for by in changed.managers] == [("kubectl-edit", "Update")]
    assert (created.changed_unix_ms, changed.changed_unix_ms, deleted.changed_unix_ms) == (1000, 2000, None)
    assert deleted.managers == []
    assert changed.before_sha256 == created.after_sha256 == digest(quota("5").spec or "")
    assert [each.number for each in log(books)] == [1, 2, 3]


def test_a_value_that_comes_back_is_a_change_each_time(books: Books) -> None:
    amounts = ["5", "9", "5", "9", "5"]
    tell(books, *(quota(amount, generation=place) for place, amount in enumerate(amounts, 1)))
    assert [each.fields[0].after for each in log(books)] == [f'"{amount}"' for amount in amounts]


def test_an_object_that_was_changed_before_it_was_seen_is_found(books: Books) -> None:
    tell(books, quota("5", generation=7))
    (found,) = log(books)
    assert (found.action, found.changed_unix_ms) == ("found", 3000)


def test_a_repeated_operation_is_answered_as_before_and_another_epoch_goes_on(books: Books) -> None:
    operation = new_id()
    assert tell(books, quota("5"), operation_id=operation) == tell(books, quota("5"), operation_id=operation)
    assert len(log(books)) == 1
    other = replica(books)
    stale, books.epoch = books.epoch, books.epoch - 1
    assert code(tell(books, quota("6"))) is ErrorCode.STALE_EPOCH
    books.epoch = stale
    assert tell(other, quota("5"), quota("6", generation=2)) == wire.Observed(changes=1)
    other.close()


@pytest.mark.parametrize(
    "bad",
    [
        quota("5", kind="Secret"),
        quota("5", spec="[]"),
        quota("5", spec="no json"),
        quota("5", spec="[" * 5000),
        quota("5", uid="u", name="another"),
    ],
    ids=["kind", "list", "text", "deep", "uid of another"],
)
def test_what_cannot_be_taken_in_is_refused_by_place_and_its_neighbours_are_entered(
    books: Books, bad: wire.ObservedObject
) -> None:
    tell(books, quota("5"))
    answer = tell(books, quota("1", "v"), bad, quota("2", "w"))
    assert (answer.changes, [each.index for each in answer.refused]) == (2, [1])
    assert [each.name for each in log(books)] == ["quota-u", "quota-v", "quota-w"]


def test_absurd_specs_are_bounded(books: Books) -> None:
    huge = canonical({f"k{number}": "x" * 5000 for number in range(300)})
    wide = canonical({f"k{number}": number for number in range(5000)})
    tell(books, quota("5", spec=wide), quota("1", "v", spec=huge))
    stored = books.store.read(lambda c: c.execute(sa.select(CHANGES.c.fields, CHANGES.c.left_out)).all())
    assert all(len(row.fields) < 110 * 1100 for row in stored)
    assert sorted(row.left_out for row in stored) == [0, 4900]


def test_what_is_known_is_given_in_pages_without_what_was_deleted(books: Books) -> None:
    tell(books, *(quota("5", f"u{number}") for number in range(5)))
    tell(books, quota(None, "u2"))
    first = books.store.read(lambda c: known(c, "", 2))
    second = books.store.read(lambda c: known(c, first.next or "", 2))
    assert [each.uid for each in [*first.objects, *second.objects]] == ["u0", "u1", "u3", "u4"]
    assert second.next is None
    assert first.objects[0].digest == digest(quota("5").spec or "")


def test_filters_times_and_pages(books: Books) -> None:
    tell(books, quota("5"), quota("6", "v", namespace="team-b"), quota("7", "w", kind="ModelProvider"))
    assert [each.uid for each in log(books, namespace="team-a")] == ["u", "w"]
    assert [each.uid for each in log(books, kind="ModelProvider")] == ["w"]
    assert [each.uid for each in log(books, name="quota-v")] == ["v"]
    with pytest.raises(LedgerError, match="kind: write one of ResourceQuota"):
        log(books, kind="Secret")
    everything = asking.Question()
    first = reading.read(books.database, lambda c: configuration.changes(c, everything, 2, None))
    rest = reading.read(books.database, lambda c: configuration.changes(c, everything, 2, first.next))
    assert [each.number for each in [*first.changes, *rest.changes]] == [3, 2, 1]
    past = asking.Question(times=asking.Times(until_ms=1000))
    assert reading.read(books.database, lambda c: configuration.changes(c, past, 2, None)).changes == []


# --- seals and the audit ----------------------------------------------------------------------------------------------


def seal(books: Books) -> None:
    sealing.seal_all(books.store, wait=True)


def test_changes_are_sealed_in_the_chain_of_the_entries(books: Books) -> None:
    books.limits(limits={USD: DOLLAR})
    tell(books, quota("5"), quota("6", generation=2))
    seal(books)
    books.end(books.active(need={USD: 5}))
    seal(books)
    tell(books, quota("7", generation=3))
    seal(books)
    seal(books)
    rows = books.store.read(lambda c: c.execute(sa.select(SEALS).order_by(SEALS.c.number)).all())
    assert [(row.kind, row.entries) for row in rows] == [("configuration", 2), ("entries", 1), ("configuration", 1)]
    assert books.violations() == []
    with pytest.raises(sa.exc.DBAPIError, match="append-only"):
        books.execute(sa.delete(CHANGES))


def test_the_log_can_be_checked_by_the_protocol(books: Books) -> None:
    """Written out from the docstring of sealing.py."""
    import hashlib

    tell(books, quota("5"), quota("6", generation=2))
    seal(books)
    names = COLUMNS.split()
    rows = books.store.read(lambda c: c.execute(sa.select(CHANGES).order_by(CHANGES.c.number)).mappings().all())
    lines = [
        ",".join("-" if row[name] is None else f"{len(str(row[name]))}:{row[name]}" for name in names) for row in rows
    ]
    content = hashlib.sha256("".join(f"{line}\n" for line in lines).encode()).hexdigest()
    assert books.store.read(lambda c: c.execute(sa.select(SEALS.c.content)).scalars().all()) == [content]
    assert list(sealing.CONFIGURATION_FORM) == names == CHANGES.c.keys()


@pytest.fixture
def sealed(ledger_url: str) -> Any:
    """A log of four changes in two seals, of books that need not be sound at the end."""
    books = Books(ledger_url)
    tell(books, quota("5"), quota("6", "v"))
    seal(books)
    tell(books, quota("7", generation=2), quota("8", "w"))
    seal(books)
    assert books.violations() == []
    yield books
    books.close()


Meddle = Callable[[], sa.Executable]


@pytest.mark.parametrize(
    ("meddle", "named"),
    [
        (lambda: sa.update(CHANGES).where(CHANGES.c.number == 3).values(managers="[]"), {"changes-as-sealed"}),
        (lambda: sa.update(CHANGES).where(CHANGES.c.number == 1).values(seen_ms=1), {"changes-as-sealed"}),
        (lambda: sa.delete(CHANGES).where(CHANGES.c.number == 1), {"changes-as-sealed", "changes-numbered"}),
        (
            lambda: sa.delete(CHANGES).where(CHANGES.c.number == 4),
            {"changes-as-sealed", "changes-numbered", "configuration-as-changed"},
        ),
        (lambda: sa.update(CONFIGURED).where(CONFIGURED.c.uid == "u").values(spec="{}"), {"configuration-as-changed"}),
        (lambda: sa.delete(CONFIGURED).where(CONFIGURED.c.uid == "v"), {"configuration-as-changed"}),
        (lambda: sa.update(CONFIGURED).values(deleted=sa.true()), {"configuration-as-changed"}),
        (lambda: sa.delete(SEALS).where(SEALS.c.number == 2), {"seals-chain"}),
    ],
)
def test_what_was_tampered_with_is_named(sealed: Books, meddle: Meddle, named: set[str]) -> None:
    tamper(sealed, meddle())
    assert {each.invariant for each in sealed.violations()} == named


def test_a_change_that_is_not_sealed_yet_is_missed_too(sealed: Books) -> None:
    tell(sealed, quota("9", "x"))
    tamper(sealed, sa.delete(CHANGES).where(CHANGES.c.number == 5))
    assert "changes-numbered" in {each.invariant for each in sealed.violations()}


# --- the command ------------------------------------------------------------------------------------------------------


def test_the_command_shows_a_row_for_each_field(books: Books) -> None:
    tell(books, quota("5"))
    tell(books, quota("9\x1b[31m", generation=2))
    environment = ledger_environment(books.url)

    def printed(*more: str) -> str:
        argv = [sys.executable, "-m", "almoner_cli.main", "ledger", "changes", *more]
        done = subprocess.run(argv, env=environment, capture_output=True, text=True, check=False, timeout=60)
        assert done.returncode == 0, done.stderr
        return done.stdout

    table = printed("--namespace", "team-a")
    assert "kubectl-edit (Update)" in table
    assert "budget.amount" in table
    assert "\x1b" not in table
    rows = json.loads(printed("-o", "json", "--name", "quota-u"))
    assert [(row["action"], row["field"], row["before"]) for row in rows] == [
        ("changed", "budget.amount", '"5"'),
        ("created", "budget.amount", ""),
        ("created", "budget.period", ""),
    ]
    assert printed("-o", "csv", "--kind", "ModelProvider").count("\n") == 1
