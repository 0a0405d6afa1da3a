"""What really happened, counted apart from the ledger: the provider's bills, and the limits that were in force.

Role: after a schedule it says what was overspent, what was lost, and what else contradicts. It believes the provider
(each call's bill, noted when the call is made) and the operator's policies; of the ledger it reads the rows. What a
provider bills above a call's bound is declared when it happens, and expected as `excess`.
Boundary: arithmetic and reading; `almoner ledger verify` is asked beside it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from almoner_core.identity import compute_allotment_id
from almoner_core.wire import AccountKey
from almoner_dev.simulate.machines import END_S, NANOS_PER_SECOND, SETTINGS
from almoner_dev.simulate.network import Exchange
from almoner_ledger import schema
from almoner_ledger.store.state import AccountKind, account_id, quota_account_id

DIMENSIONS: Final = ("usd", "tokens", "tool_calls", "requests")
COLUMNS: Final = {"usd": "cost_nanos", "tokens": "total_tokens", "tool_calls": "tool_calls", "requests": "requests"}
UNLIMITED: Final = 10**30
ROUNDING_S: Final = 3.0
POISONED: Final = "poisoned"
"""A quota whose limits nobody can keep: refused, and nothing beside it."""

Amounts = dict[str, int]


@dataclass(slots=True)
class Bill:
    """One call: what the provider billed, its bound, and in which dimensions that was held.

    `exact`: the meter learnt what was billed.
    """

    record: str
    allotment: str
    billed: Amounts
    bound: Amounts
    limited: tuple[str, ...] = ()
    exact: bool = False

    def least(self, dimension: str) -> int:
        """The least that may be entered: where the answer did not come, nobody can know of a bill above the bound."""
        return self.billed[dimension] if self.exact else min(self.billed[dimension], self.bound[dimension])

    def most(self, dimension: str) -> int:
        """The most that may be entered: where the answer did not come, the bound is taken."""
        return self.billed[dimension] if self.exact else max(self.billed[dimension], self.bound[dimension])


@dataclass(slots=True)
class Attempt:
    """One allotment and what became of its pod: whether it `started` to spend, whether its spool went with a node."""

    allotment: str
    namespace: str
    uid: str
    accounts: tuple[str, ...]
    started: bool = False
    spool_lost: bool = False
    word_told: bool = False
    """The operator read its meter's last word: nothing is excused any more."""
    began_s: float | None = None
    """When its node took the pod, its agent began and all had ended (Unix seconds)."""
    agent_began_s: float | None = None
    ended_s: float | None = None
    lost: bool = False
    costs_machine_time: bool = False
    given_up: bool = False
    """Its node was not reached for so long that the run went on without it: what it still ran is not charged."""
    output: int | None = None
    """How long the output was that its meter could not send."""
    refused: bool = False
    """The ledger closed it before its meter could speak: its records count as vanished unless they come late."""


@dataclass(slots=True)
class Cap:
    """The most that an account may have used of a dimension, as limits changed; money beyond it is overspent."""

    limit: int = UNLIMITED
    generation: int = -1
    watched_once: bool = False
    """Whether it was not limited for a while: attempts of that time were never told to hold for it."""


@dataclass
class Findings:
    """What an oracle found wrong. `overspent` by dimension."""

    overspent: Amounts = field(default_factory=lambda: dict.fromkeys(DIMENSIONS, 0))
    lost: int = 0
    problems: list[str] = field(default_factory=list)

    def over(self, dimension: str, used: int, limit: int, where: str) -> None:
        """Count what was used above a limit, if anything was."""
        if used > limit:
            self.overspent[dimension] += used - limit
            self.problems.append(f"overspent: {where}: {used} {dimension} of {limit}")


class Oracle:
    """Counts along, and judges at the end."""

    def __init__(self) -> None:
        self.bills: dict[str, Bill] = {}
        self.attempts: dict[str, Attempt] = {}
        self.periodic: set[str] = set()
        self.problems: list[str] = []
        self._untold: dict[str, set[str | int]] = {}
        self.execution_caps: dict[str, dict[str, int]] = defaultdict(dict)
        self._caps: dict[tuple[str, str], Cap] = defaultdict(Cap)
        self._highest: dict[tuple[str, str], int] = {}
        self._found = Findings()

    # -- along the way -----------------------------------------------------------------------------------

    def bill(self, bill: Bill) -> None:
        """Note what a call costs, as it is made."""
        self.bills[bill.record] = bill

    def problem(self, text: str) -> None:
        """Note that something happened which never may."""
        if len(self.problems) < 50 and text not in self.problems:
            self.problems.append(text)

    def heard(self, exchange: Exchange) -> None:
        """Listen at the ledger's door: what the operator was told of limits, and errors that no sound ledger gives."""
        path, answer = exchange.path, exchange.answer or {}
        if path == "/v1/accounts:update" and exchange.status == 200:
            self._limits_changed(exchange.body["accounts"], answer["accounts"])
        if exchange.status < 400:
            errors = [item["error"] for item in answer.get("answers", []) if item.get("error")]
            errors += [
                item["error"]
                for item in answer.get("refused", [])
                if exchange.body["accounts"][item["index"]]["key"]["quota"] != POISONED
            ]
        else:
            errors = [answer.get("error") or {"code": f"HTTP {exchange.status}"}]
        self._note_records(exchange)
        for error in errors:
            if error["code"] == "record_conflict" and self._came_late(exchange):
                continue
            if error["code"] in ("invalid", "operation_conflict", "record_conflict", "too_large", "unauthenticated"):
                self.problem(f"{path}: {error['code']}: {error.get('message')}")

    def _note_records(self, exchange: Exchange) -> None:
        """Note which records came after the meter was last told what the ledger has."""
        allotment, _, verb = exchange.path.removeprefix("/v1/allotments/").partition("/")
        if exchange.status == HTTPStatus.OK and verb == "activate":
            self._untold[allotment] = set()
        elif exchange.status == HTTPStatus.OK and verb == "records":
            for record in exchange.body["records"]:
                self._untold.setdefault(allotment, set()).update((record["id"], record["sequence"]))

    def _came_late(self, exchange: Exchange) -> bool:
        """Whether a conflict is with what an earlier life of the meter had posted, and the present one was not told of.

        It learns of it by that conflict alone, and asks at once: another one without news in between is a fault.
        """
        allotment = exchange.path.removeprefix("/v1/allotments/").partition("/")[0]
        untold = self._untold.get(allotment, set())
        return any(untold & {record["id"], record["sequence"]} for record in exchange.body.get("records", ()))

    def _limits_changed(self, updates: list[Any], states: list[Any]) -> None:
        used = {
            (account_of(state["key"]), state["dimension"]): state["spent"] + state["reserved"] - state["excess"]
            for state in states
        }
        for update in updates:
            account = account_of(update["key"])
            for dimension in DIMENSIONS:
                limit = update.get("limits", {}).get(dimension)
                if not update.get("enforced", True) or limit is None:
                    limit = UNLIMITED
                self._limit_changed(account, dimension, limit, update["generation"], used.get((account, dimension), 0))

    def _limit_changed(self, account: str, dimension: str, limit: int, generation: int, use: int) -> None:
        key = (account, dimension)
        self._highest[key] = max(limit, self._highest.get(key, 0))
        cap = self._caps[key]
        cap.watched_once = cap.watched_once or limit == UNLIMITED
        if account in self.periodic:
            cap.limit = self._highest[key]
            return
        if generation < cap.generation:
            return
        # Before the change it had to keep to what was in force until then.
        if cap.generation >= 0:
            self._found.over(dimension, use, cap.limit, f"account {account} at generation {generation}")
        if generation > cap.generation:
            cap.limit, cap.generation = max(limit, use), generation

    # -- at the end --------------------------------------------------------------------------------------

    def judge(self, connection: Connection) -> Findings:
        """Compare what the ledger has with what happened."""
        found = self._found
        found.problems += self.problems
        records = _records(connection)
        self._check_records(records, found)
        self._check_windows(connection, found)
        self._check_billed(connection, found)
        self._check_vanished(connection, records, found)
        self._check_words(connection, found)
        self._check_outputs(connection, found)
        self._check_machines(connection, found)
        self._check_settled(connection, found)
        return found

    def _check_records(self, records: Mapping[str, Any], found: Findings) -> None:
        for record, row in records.items():
            bill = self.bills.get(record)
            if bill is None:
                found.problems.append(f"record {record}: nobody made that call")
                continue
            if row["allotment_id"] != bill.allotment:
                found.problems.append(f"record {record}: posted to {row['allotment_id']}, not {bill.allotment}")
            for dimension in DIMENSIONS:
                has, least, most = int(row[COLUMNS[dimension]] or 0), bill.least(dimension), bill.most(dimension)
                if not least <= has <= most:
                    found.problems.append(f"record {record}: {has} {dimension}, expected {least} to {most}")

    def _check_windows(self, connection: Connection, found: Findings) -> None:
        """No window's use, as the ledger has it, is above what its limit let through."""
        windows = schema.windows
        for row in connection.execute(sa.select(windows)).mappings():
            cap = self._caps.get((row["account_id"], row["dimension"]))
            if cap is not None:
                use = row["spent"] + row["reserved"] - row["excess"]
                found.over(row["dimension"], use, cap.limit, f"window {row['account_id']} from {row['starts_at']}")

    def _check_billed(self, connection: Connection, found: Findings) -> None:
        """No account without windows, and no execution, was billed above its limit, whatever the ledger says.

        And `excess` is what providers billed above bounds, or spent before a limit was switched on: never a grant's.
        """
        billed: dict[tuple[str, str], int] = defaultdict(int)
        declared: dict[tuple[str, str], int] = defaultdict(int)
        for bill in self.bills.values():
            attempt = self.attempts[bill.allotment]
            own = account_id(AccountKind.EXECUTION, attempt.namespace, attempt.uid)
            for dimension in DIMENSIONS:
                amount = bill.billed[dimension]
                beyond = max(0, amount - bill.bound[dimension])
                for account in (*attempt.accounts, own):
                    billed[account, dimension] += amount
                    unheld = dimension not in bill.limited and self._was_watched(account, dimension, attempt)
                    declared[account, dimension] += max(amount, bill.bound[dimension]) if unheld else beyond
        self._declare_machine_time(connection, declared)
        for (account, dimension), amount in billed.items():
            if account not in self.periodic:
                limit = self._limit(account, dimension)
                found.over(dimension, amount - declared[account, dimension], limit, f"bills of {account}")
        windows = schema.windows
        columns = (windows.c.account_id, windows.c.dimension)
        query = sa.select(*columns, sa.func.sum(windows.c.excess)).group_by(*columns)
        for account, dimension, excess in connection.execute(query):
            if excess > declared[account, dimension]:
                expected = declared[account, dimension]
                found.problems.append(f"account {account}: excess {excess} {dimension}, declared {expected}")

    def _declare_machine_time(self, connection: Connection, declared: dict[tuple[str, str], int]) -> None:
        """Expect excess of machine time where it was not limited for a while, and so not held."""
        by_compute = {compute_allotment_id(allotment): attempt for allotment, attempt in self.attempts.items()}
        for allotment, (_, cost) in _machine_time(connection).items():
            attempt = by_compute[allotment]
            own = account_id(AccountKind.EXECUTION, attempt.namespace, attempt.uid)
            for account in (*attempt.accounts, own):
                if self._was_watched(account, "usd", attempt):
                    declared[account, "usd"] += cost

    def _limit(self, account: str, dimension: str) -> int:
        cap = self._caps.get((account, dimension))
        return min(self.execution_caps.get(account, {}).get(dimension, UNLIMITED), cap.limit if cap else UNLIMITED)

    def _was_watched(self, account: str, dimension: str, attempt: Attempt) -> bool:
        """Whether an account did not limit at some time, so that a meter could not know to hold for it."""
        if account in attempt.accounts:
            return self._caps[account, dimension].watched_once
        return self._limit(account, dimension) == UNLIMITED

    def _check_vanished(self, connection: Connection, records: Mapping[str, Any], found: Findings) -> None:
        """Every bill is a record; those of pods that took their spools with them are covered by one entry."""
        missing: dict[str, list[Bill]] = defaultdict(list)
        for bill in self.bills.values():
            if bill.record not in records:
                missing[bill.allotment].append(bill)
        covered = _entered(connection, "unaccounted")
        for allotment, bills in missing.items():
            attempt = self.attempts[allotment]
            if attempt.word_told:
                continue
            # Of one whose node was given up nobody hears any more, its meter's last word included.
            if not (attempt.spool_lost or attempt.refused or attempt.given_up):
                found.lost += len(bills)
                found.problems.append(f"allotment {allotment}: {len(bills)} calls have no record")
                continue
            for dimension in DIMENSIONS:
                held = [bill for bill in bills if dimension in bill.limited]
                billed = sum(min(bill.billed[dimension], bill.bound[dimension]) for bill in held)
                accounted = covered.get(allotment, {}).get(dimension, 0)
                if billed > accounted:
                    found.lost += len(held)
                    found.problems.append(
                        f"allotment {allotment}: {billed} {dimension} vanished, {accounted} are accounted for"
                    )
                    break

    def _check_words(self, connection: Connection, found: Findings) -> None:
        """Where a meter's last word arrived, what it and the records say is what was billed, and nothing else is."""
        entered, charged = _entered(connection, "usage", "last_word"), _entered(connection, "unaccounted")
        bills: dict[str, list[Bill]] = defaultdict(list)
        for bill in self.bills.values():
            bills[bill.allotment].append(bill)
        for allotment, attempt in self.attempts.items():
            if not attempt.word_told:
                continue
            for dimension in DIMENSIONS:
                least = sum(bill.least(dimension) for bill in bills[allotment])
                most = sum(bill.most(dimension) for bill in bills[allotment])
                has = entered.get(allotment, {}).get(dimension, 0)
                if has < least:
                    found.lost += 1
                if not least <= has <= most:
                    found.problems.append(f"{allotment}: a word and {has} {dimension}, expected {least} to {most}")
                if over := charged.get(allotment, {}).get(dimension, 0):
                    found.problems.append(f"{allotment}: a word, and {over} {dimension} are charged beside it")

    def _check_machines(self, connection: Connection, found: Findings) -> None:
        """Machine time is charged for as long as agents ran: not for less, and not for what was not."""
        charged = _machine_time(connection)
        for allotment, attempt in self.attempts.items():
            known = attempt.costs_machine_time and not attempt.given_up
            if not known or attempt.began_s is None or attempt.ended_s is None:
                continue
            seconds, _ = charged.get(compute_allotment_id(allotment), (0, 0))
            paid_until = attempt.began_s + seconds
            if attempt.agent_began_s is not None:
                # One whose meter waited for the ledger until nothing was paid any more is ended as soon as it is heard.
                allowed = max(paid_until, attempt.agent_began_s + END_S) + ROUNDING_S
                if self._was_unheld(attempt):
                    # Nothing was held ahead while nothing limited it: it is stopped, which takes its time.
                    allowed += SETTINGS.interval_seconds + END_S
                if attempt.ended_s > allowed:
                    unpaid = attempt.ended_s - paid_until
                    found.overspent["usd"] += int(unpaid * NANOS_PER_SECOND)
                    found.problems.append(f"overspent: {allotment}: {unpaid:.0f} s of machine time, not paid for")
            if not attempt.lost and paid_until > attempt.ended_s + ROUNDING_S:
                found.problems.append(f"{allotment}: {paid_until - attempt.ended_s:.0f} s charged that it did not run")

    def _was_unheld(self, attempt: Attempt) -> bool:
        """Whether machine time of an attempt was not limited at some time, so that a limit came upon it unheld."""
        own = account_id(AccountKind.EXECUTION, attempt.namespace, attempt.uid)
        accounts = (*attempt.accounts, own)
        return all(self._was_watched(account, "usd", attempt) for account in accounts)

    def _check_outputs(self, connection: Connection, found: Findings) -> None:
        """An output that its meter could not send is there: all of a small one, the beginning of others."""
        outputs = schema.outputs
        stored = {row.allotment_id: row for row in connection.execute(sa.select(outputs))}
        for allotment, attempt in self.attempts.items():
            if not attempt.word_told or attempt.output is None:
                continue
            row = stored.get(allotment)
            if row is None:
                found.problems.append(f"{allotment}: its output of {attempt.output} characters is nowhere")
            elif len(row.content) < attempt.output and not row.truncated:
                found.problems.append(f"{allotment}: {len(row.content)} of {attempt.output} characters pass for all")

    def _check_settled(self, connection: Connection, found: Findings) -> None:
        windows, allotments = schema.windows, schema.allotments
        reserved = connection.execute(sa.select(sa.func.coalesce(sa.func.sum(windows.c.reserved), 0))).scalar_one()
        if reserved:
            found.problems.append(f"{reserved} are still reserved, with every pod gone")
        still = connection.execute(
            sa.select(allotments.c.id, allotments.c.state).where(allotments.c.state.in_(("offered", "active")))
        ).all()
        found.problems.extend(f"allotment {row.id} is still {row.state}" for row in still)


def _machine_time(connection: Connection) -> dict[str, tuple[int, int]]:
    """Sum what was charged of machine time by compute allotment: seconds and nano-dollars."""
    table = schema.records
    query = (
        sa.select(table.c.allotment_id, sa.func.sum(table.c.duration_ms), sa.func.sum(table.c.cost_nanos))
        .where(table.c.resource_type == "compute")
        .group_by(table.c.allotment_id)
    )
    return {row[0]: (int(row[1]) // 1000, int(row[2] or 0)) for row in connection.execute(query)}


def account_of(key: Mapping[str, Any]) -> str:
    """Give the id of a quota's account from its key on the wire."""
    return quota_account_id(AccountKey.model_validate(key))


def _records(connection: Connection) -> dict[str, Any]:
    table = schema.records
    rows: Iterable[Any] = connection.execute(
        sa.select(table.c.id, table.c.allotment_id, *(table.c[name] for name in COLUMNS.values())).where(
            table.c.kind == "usage", table.c.resource_type != "compute"
        )
    ).mappings()
    return {row["id"]: dict(row) for row in rows}


def _entered(connection: Connection, *kinds: str) -> dict[str, Amounts]:
    """Sum the entries of some kinds by attempt: `unaccounted` is what was charged without a record."""
    table = schema.records
    sums = {name: sa.func.sum(table.c[column]) for name, column in COLUMNS.items()}
    rows = connection.execute(
        sa.select(table.c.allotment_id, *(sums[name].label(name) for name in DIMENSIONS))
        .where(table.c.kind.in_(kinds))
        .group_by(table.c.allotment_id)
    ).mappings()
    return {row["allotment_id"]: {name: int(row[name] or 0) for name in DIMENSIONS} for row in rows}
