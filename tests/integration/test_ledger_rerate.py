"""Rating a period again on both databases, and the commands by which people correct and settle."""

from __future__ import annotations

import datetime as dt
import json
from typing import Any

import pytest
import sqlalchemy as sa

from almoner_core.usage import Outcome, ResourceType, Tokens
from almoner_ledger import cli, correcting, price_lists, rerating, schema
from almoner_ledger.rerating import Period
from tests.support.books import USD, Books, Clock, new_id, record

DAY = 86_400
# Clock() begins on this day.
FIRST = dt.datetime.fromtimestamp(1_800_000_000, dt.UTC).date()
MICRO = 1000  # nano-dollars: a dollar a million tokens


def prices(version: str = "list 2", **changes: Any) -> price_lists.PriceList:
    price = {"model": "model", "inputPerMillion": 1, "outputPerMillion": 2, **changes}
    return price_lists.read(json.dumps({"version": version, "prices": [price]}).encode())


def usage(clock: Clock, sequence: int, cost: int | None, given: int = 10, taken: int = 5, **changes: Any) -> Any:
    changes.setdefault("tokens", Tokens(input=given, output=taken))
    return record(sequence, cost, started_unix_ms=clock(), price_version="list 1", **changes)


def whole(days: int = 1, **changes: Any) -> Period:
    return Period(FIRST, FIRST + dt.timedelta(days=days - 1), **changes)


def corrections(books: Books) -> list[Any]:
    table = schema.records
    query = sa.select(table).where(table.c.kind == "correction").order_by(table.c.id)
    return books.store.read(lambda connection: list(connection.execute(query)))


def total(books: Books, column: str = "cost_nanos") -> int:
    query = sa.select(sa.func.coalesce(sa.func.sum(schema.agents.c[column]), 0))
    return books.store.read(lambda connection: int(connection.execute(query).scalar_one()))


@pytest.fixture
def filled(books: Books, clock: Clock) -> list[Any]:
    """Four calls of 10 + 5 tokens on the first day, one of unknown cost; one on the second day."""
    books.limits(limits={USD: 10**9})
    records = [usage(clock, n, cost) for n, cost in ((1, 5000), (2, None), (3, 20 * MICRO), (4, 90_000))]
    books.post(books.active(need={USD: 10**6}), records)
    clock.now += DAY
    other = usage(clock, 1, 7000)
    books.post(books.active(need={USD: 10**6}), [other])
    return [*records, other]


def test_a_period_is_rated_again_as_new_entries(books: Books, filled: list[Any]) -> None:
    found = rerating.rerate(books.store, whole(), prices())
    sums = found.models["provider", "model"]
    assert (sums.records, sums.corrected, sums.unknown_before, sums.unknown_after) == (4, 3, 1, 0)
    assert (sums.before_nanos, sums.after_nanos) == (115_000, 80_000)
    assert (total(books), total(books, "unpriced")) == (87_000, 0)
    made = {row.corrects: row for row in corrections(books)}
    assert {filled[0].id: 15_000, filled[1].id: 20_000, filled[3].id: -70_000} == {
        each: row.cost_nanos for each, row in made.items()
    }
    assert {row.price_version for row in made.values()} == {"list 2"}


def test_rating_again_by_the_same_list_changes_nothing(books: Books, filled: list[Any]) -> None:
    rerating.rerate(books.store, whole(), prices())
    again = rerating.rerate(books.store, whole(), prices())
    assert again.models["provider", "model"].corrected == 0
    assert len(corrections(books)) == 3


def test_rating_to_and_fro_is_not_taken_for_a_retry(books: Books, filled: list[Any]) -> None:
    for version, per_million, cost in (("a", 1, 10_000), ("b", 2, 20_000), ("a", 1, 10_000)):
        rerating.rerate(books.store, whole(2), prices(version, inputPerMillion=per_million, outputPerMillion=0))
        assert total(books) == 5 * cost
    assert len(corrections(books)) == 15


def test_it_can_be_stopped_at_any_moment(books: Books, filled: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rerating, "PAGE_RECORDS", 2)
    execute = books.store.execute
    done: list[Any] = []

    def once(commands: Any) -> Any:
        if done:
            raise KeyboardInterrupt
        done.append(execute(commands))
        return done[0]

    monkeypatch.setattr(books.store, "execute", once)
    with pytest.raises(KeyboardInterrupt):
        rerating.rerate(books.store, whole(2), prices())
    assert 0 < len(corrections(books)) < 4
    monkeypatch.setattr(books.store, "execute", execute)
    rerating.rerate(books.store, whole(2), prices())
    assert total(books) == 5 * 20_000
    assert len(corrections(books)) == 4


def test_a_dry_run_changes_nothing(books: Books, filled: list[Any]) -> None:
    found = rerating.rerate(books.store, whole(), prices(), dry_run=True)
    assert found.models["provider", "model"].after_nanos == 80_000
    assert corrections(books) == []


def test_only_what_was_asked_for(books: Books, clock: Clock, filled: list[Any]) -> None:
    assert rerating.rerate(books.store, whole(provider="other"), prices()).models == {}
    assert rerating.rerate(books.store, whole(model="other"), prices()).models == {}
    yesterday = FIRST - dt.timedelta(days=1)
    assert rerating.rerate(books.store, Period(yesterday, yesterday), prices()).models == {}
    with pytest.raises(ValueError, match="is after"):
        Period(FIRST, yesterday)


def test_what_has_no_price_and_what_a_person_said_is_left_alone(books: Books, filled: list[Any]) -> None:
    from almoner_core.money import Money

    assert correcting.correct(books.store, filled[0].id, Money(1), "the bill") == 0
    sums = rerating.rerate(books.store, whole(), prices()).models["provider", "model"]
    assert (sums.kept_by_hand, sums.corrected) == (1, 2)
    assert next(row for row in corrections(books) if row.corrects == filled[0].id).cost_nanos == 1 - 5000
    elsewhere = rerating.rerate(books.store, whole(), prices("list 3", provider="another"))
    assert elsewhere.models["provider", "model"].without_price == 4 - 1
    assert elsewhere.models["provider", "model"].corrected == 0


@pytest.mark.parametrize(
    ("changes", "cost"),
    [
        ({"tokens": Tokens(input=100, cached_input=60, cache_write=20, output=10)}, 20_000 + 6_000 + 40_000 + 20_000),
        # Tiers hold for all tokens of a call.
        ({"tokens": Tokens(input=1000)}, 3_000_000),
        # An estimate is the most that its tokens can cost: all of it written to the cache.
        ({"tokens": Tokens(input=100, output=10), "outcome": Outcome.ESTIMATED}, 200_000 + 20_000),
        (
            {"tokens": Tokens(input=100), "outcome": Outcome.ESTIMATED, "metadata": {"estimated": "output"}},
            100_000,
        ),
        # Slow processing: as it was served; the dearer of both where nobody said.
        ({"tokens": Tokens(input=100), "metadata": {"service_tier": "flex"}}, 50_000),
        ({"tokens": Tokens(input=100), "metadata": {"service_tier": "default"}}, 100_000),
        ({"tokens": Tokens(input=100), "metadata": {"service_tier": None}}, 100_000),
        ({"tokens": Tokens(input=100), "resource_type": ResourceType.EMBEDDING}, 100_000),
        # Cache entries of an hour have a price of their own.
        ({"tokens": Tokens(input=20, cache_write=20), "metadata": {"cache_write_long": 5}}, 15 * 2_000 + 5 * 4_000),
        (
            {"tokens": Tokens(input=100), "outcome": Outcome.ESTIMATED, "metadata": {"long_cache": True}},
            400_000,
        ),
    ],
)
def test_every_kind_of_price(books: Books, clock: Clock, changes: dict[str, Any], cost: int) -> None:
    books.limits(limits={USD: 10**9})
    books.post(books.active(need={USD: 10**6}), [usage(clock, 1, 1, **changes)])
    tiers = [{"inputTokensMin": 1000, "inputPerMillion": 3, "outputPerMillion": 3}]
    by = prices(
        cachedInputPerMillion="0.1",
        cacheWritePerMillion=2,
        longCacheWritePerMillion=4,
        tiers=tiers,
        batch={"discountPercent": 50},
        perRequest=0,
    )
    rerating.rerate(books.store, whole(), by)
    assert total(books) == cost


def test_prices_per_request(books: Books, clock: Clock) -> None:
    books.limits(limits={USD: 10**9})
    refused = usage(clock, 2, 0, 0, 0, outcome=Outcome.ERROR, requests=1)
    never_sent = usage(clock, 3, 0, 0, 0, outcome=Outcome.ERROR, requests=0)
    tool = usage(clock, 4, 0, 0, 0, resource_type=ResourceType.TOOL, tool_calls=1)
    books.post(books.active(need={USD: 10**6}), [usage(clock, 1, 1), refused, never_sent, tool])
    rerating.rerate(books.store, whole(), prices(perRequest="0.001"))
    assert total(books) == 20_000 + 1_000_000


def test_many_records_go_in_bounded_transactions(books: Books, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rerating, "PAGE_RECORDS", 70)
    monkeypatch.setattr(rerating, "TRANSACTION_RECORDS", 30)
    books.limits(limits={USD: 10**12})
    for _ in range(3):
        allotment = books.active(need={USD: 10**6})
        books.post(allotment, [usage(clock, n, 1) for n in range(1, 51)])
    sizes = []
    execute = books.store.execute

    def watched(commands: Any) -> Any:
        sizes.append(sum(len(each.body.corrections) for each in commands))
        return execute(commands)

    monkeypatch.setattr(books.store, "execute", watched)
    rerating.rerate(books.store, whole(), prices())
    assert sum(sizes) == 150
    assert max(sizes) <= 30
    assert total(books) == 150 * 20_000


def test_public_prices_need_a_name_that_the_data_knows(books: Books, clock: Clock) -> None:
    books.limits(limits={USD: 10**9})
    call = usage(clock, 1, None, 1000, 100, model="gpt-4.1", provider="ours")
    books.post(books.active(need={USD: 10**6}), [call])
    unnamed = rerating.rerate(books.store, whole(), price_lists.public([]))
    assert unnamed.models["ours", "gpt-4.1"].without_price == 1
    rerating.rerate(books.store, whole(), price_lists.public(["ours=openai"]))
    (made,) = corrections(books)
    assert made.cost_nanos == 1000 * 2000 + 100 * 8000
    assert made.price_version.startswith("genai-prices ")
    with pytest.raises(ValueError, match="PROVIDER=ID"):
        price_lists.public(["ours"])


# --- the command line -------------------------------------------------------------------------------------------------


def test_the_commands(
    books: Books,
    filled: list[Any],
    tmp_path: Any,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("ALMONER_LEDGER_DATABASE", books.database.engine.url.render_as_string(hide_password=False))

    def ledger(*arguments: str) -> tuple[int, str, str]:
        code = cli.main([*arguments])
        return code, *capsys.readouterr()

    listed = tmp_path / "prices.yaml"
    listed.write_text('version: "list 9"\nprices:\n  - {model: model, inputPerMillion: "1", outputPerMillion: "2"}\n')
    period = ("--from", str(FIRST), "--to", str(FIRST), "--prices", str(listed))
    code, out, _ = ledger("rerate", *period, "--dry-run", "-o", "json")
    assert code == 0
    assert json.loads(out)["models"][0] == {
        "provider": "provider",
        "model": "model",
        "records": 4,
        "corrected": 3,
        "unknown_before": 1,
        "unknown_after": 0,
        "before_nanos": 115_000,
        "after_nanos": 80_000,
        "kept_by_hand": 0,
        "without_price": 0,
    }
    code, out, _ = ledger("rerate", *period)
    assert code == 0
    assert out.splitlines()[1].split() == (
        ["provider", "model", "4", "3", "0.000115", "0.00008", "1", "->", "0", "0", "0"]
    )
    one = filled[0].id
    code, out, _ = ledger("correct", one, "--cost", "0.0123", "--reason", "the bill says so")
    assert (code, out.partition(" (entry")[0]) == (0, f"{one}: 0.00002 -> 0.0123")
    code, out, _ = ledger("correct", one, "--cost", "0.0123", "--reason", "the bill says so")
    assert (code, out) == (0, f"{one}: costs 0.0123 already\n")
    code, _, err = ledger("correct", new_id(), "--cost", "1", "--reason", "x")
    assert (code, "there is no entry" in err) == (1, True)
    code, _, err = ledger("correct", one, "--cost", "0.1e3", "--reason", "x")
    assert (code, "not an amount" in err) == (2, True)
    vanished = books.active(need={USD: 100_000_000})
    books.end(vanished)
    code, out, _ = ledger("settle", vanished, "--cost", "0.025", "--reason", "seen on the bill")
    assert (code, out.partition(" (entry")[0]) == (0, f"{vanished}: 0.10 unaccounted -> 0.025 spent")
    again = ledger("settle", vanished, "--cost", "0.025", "--reason", "seen on the bill")
    assert again[:2] == (0, out)
    code, _, err = ledger("settle", vanished, "--cost", "0.03", "--reason", "seen on the bill")
    assert (code, "record_conflict" in err) == (1, True)
    code, out, _ = ledger("verify")
    assert code == 0, out


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "not YAML"),
        ("[]", "the file"),
        ("version: v\nprices: []", "prices"),
        ("version: v\nprices: [{model: m, inputPerMillion: 0.5, outputPerMillion: 1}]", "inputPerMillion"),
        ("version: v\nprices: [{model: m, inputPerMillion: 1}]", "outputPerMillion"),
        ("version: v\nprices: [{model: m, inputPerMillion: 1, outputPerMillion: 1, what: 1}]", "what"),
        (
            "version: v\nprices: [{model: m, inputPerMillion: 1, outputPerMillion: 1, batch: {}}]",
            "prices.0.batch: must be either",
        ),
        (
            f"version: v\nprices: [{', '.join(['{model: m, inputPerMillion: 1, outputPerMillion: 1}'] * 2)}]",
            "listed twice",
        ),
    ],
)
def test_a_price_list_is_checked(content: str, message: str) -> None:
    with pytest.raises(ValueError, match=f"--prices.*{message}"):
        price_lists.read(content.encode())
