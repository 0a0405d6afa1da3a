from __future__ import annotations

import io
import sqlite3
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from almoner_core.money import Money
from almoner_dev.demo.audit import Account, Audit, Sum, compare, read_accounts, read_sums
from almoner_dev.demo.observe import Picture, picture
from almoner_dev.demo.report import broken_promises, in_order, show
from almoner_dev.demo.view import Lines, choose, fold, summary

EXPECTED = {"red": "Succeeded", "job": "Succeeded"}


def usage(cost: str, tokens: int) -> dict[str, Any]:
    return {"cost": cost, "tokens": {"input": tokens - 1, "output": 1, "total": tokens}}


def execution(name: str, status: dict[str, Any] | None = None, *, priority: int = 5) -> dict[str, Any]:
    return {
        "metadata": {"name": name, "namespace": "demo", "uid": f"uid-{name}"},
        "spec": {"agentRef": {"name": "poet"}, "owner": f"team-{name}", "priority": priority},
        "status": status or {},
    }


def succeeded(second: int, cost: str = "0.001", tokens: int = 50) -> dict[str, Any]:
    return {
        "phase": "Succeeded",
        "startTime": f"2026-01-01T00:00:{second:02d}Z",
        "completionTime": f"2026-01-01T00:00:{second + 2:02d}Z",
        "output": "An\nanswer.",
        "usage": usage(cost, tokens),
    }


def failed(reason: str, cost: str = "0", tokens: int = 0) -> dict[str, Any]:
    condition = {
        "type": "Failed",
        "status": "True",
        "reason": reason,
        "message": "needs $0.002, $0.001 is left",
        "lastTransitionTime": "2026-01-01T00:00:09Z",
    }
    return {"phase": "Failed", "conditions": [condition], "usage": usage(cost, tokens) if tokens else {"cost": cost}}


def training(status: dict[str, Any]) -> dict[str, Any]:
    return {
        "metadata": {"name": "job", "namespace": "demo", "uid": "uid-job"},
        "spec": {"runner": {"image": "python"}, "owner": "team-red"},
        "status": status,
    }


QUOTA = {
    "metadata": {"name": "team-red", "namespace": "demo"},
    "status": {
        "limits": [
            {"name": "executions", "limit": "2", "used": "0", "remaining": "2", "percent": 0},
            {"name": "budget", "limit": "0.005", "used": "0.003", "remaining": "0.002", "percent": 60},
        ]
    },
}
JOB_DONE = succeeded(3, cost="0") | {
    "progress": {"step": 200, "total": 200},
    "metrics": [{"name": "loss", "value": "0.2"}],
    "output": '{"loss": 0.2}',
    "usage": {},
}


RED = Account("quota demo/team-red", limit=5_000_000, spent=3_000_000, reserved=0, excess=0)


def the_end(blue_late: dict[str, Any] | None = None) -> Picture:
    return picture(
        [
            execution("red", succeeded(5), priority=2),
            execution("blue", succeeded(1, "0.002", 70), priority=9),
            execution("late", blue_late or failed("Rejected")),
        ],
        [training(JOB_DONE)],
        [QUOTA],
    )


SUMS = {"uid-red": Sum(1_000_000, 50, 0), "uid-blue": Sum(2_000_000, 70, 0)}


def test_the_picture_counts_and_orders() -> None:
    end = the_end()
    assert end.done
    assert end.spent == Money.parse("0.003")
    assert [item.name for item in in_order(end)] == ["blue", "job", "red"]
    assert in_order(end)[0].seconds == 2
    assert summary(end) == "0 queued, 0 running, 3 done, 1 refused or failed, $0.003 spent"
    assert not picture([execution("red")], [], []).done
    assert not picture([], [], []).done


def test_promises_kept() -> None:
    assert broken_promises(the_end(), EXPECTED) == []


@pytest.mark.parametrize(
    ("late", "expected", "says"),
    [
        (failed("AgentFailed"), EXPECTED, "late is Failed, and not for want of money: AgentFailed"),
        (succeeded(7), EXPECTED, "the small budget never ran out"),
        (failed("Rejected"), {**EXPECTED, "late": "Succeeded"}, "late is Failed, not Succeeded: Rejected"),
        (failed("Rejected"), {**EXPECTED, "blue": "Succeeded"}, "the small budget let nothing through"),
    ],
)
def test_promises_broken(late: dict[str, Any], expected: dict[str, str], says: str) -> None:
    assert any(line.startswith(says) for line in broken_promises(the_end(late), expected))


def test_the_audit_passes_when_everything_agrees() -> None:
    found = compare(the_end(), SUMS, [RED])
    assert found.problems == []
    assert found.ledger == found.statuses == Money.parse("0.003")


@pytest.mark.parametrize(
    ("sums", "account", "says"),
    [
        (SUMS | {"uid-red": Sum(1_000_001, 50, 0)}, None, "red: its status says $0.001, the ledger's entries sum to"),
        (SUMS | {"uid-red": Sum(1_000_000, 51, 0)}, None, "red: its status says 50 tokens, the ledger's entries 51"),
        (SUMS | {"uid-red": Sum(1_000_000, 50, 1)}, None, "red: 0 entries of unknown cost in its status, 1 booked"),
        (SUMS | {"uid-late": Sum(1, 1, 0)}, None, "late: its status says $0.00"),
        ({"uid-blue": SUMS["uid-blue"]}, None, "red: its status says $0.001, the ledger's entries sum to $0.00"),
        (SUMS | {"uid-ghost": Sum(7, 1, 0)}, None, "execution uid-ghost: the ledger has $0.000000007 for it"),
        (SUMS, Account("quota q", 5, 6, 0, 0), "quota q: $0.000000006 spent of $0.000000005"),
        (SUMS, Account("quota q", 5, 5, 0, 1), "quota q: $0.000000005 spent of $0.000000005, $0.000000001 in excess"),
        (SUMS, Account("quota q", 5, 1, 2, 0), "quota q: $0.000000002 still held"),
    ],
)
def test_the_audit_names_what_does_not_agree(sums: dict[str, Sum], account: Account | None, says: str) -> None:
    found = compare(the_end(), sums, [RED, account] if account else [RED])
    assert not found.passed
    assert any(problem.startswith(says) for problem in found.problems)


def test_the_audit_looks_at_the_quotas_too() -> None:
    busy = {
        "metadata": QUOTA["metadata"],
        "status": {
            "limits": [
                {"name": "executions", "limit": "2", "used": "1", "remaining": "1", "percent": 50},
                {"name": "budget", "limit": "0.005", "used": "0.002", "remaining": "0.003", "percent": 40},
            ]
        },
    }
    work = the_end().work
    end = Picture(work, picture([], [], [busy]).quotas)
    assert compare(end, SUMS, [RED]).problems == [
        "team-red: its status says 1 executions in use, and none is",
        "team-red: its status says $0.002 spent, the ledger has $0.003",
    ]
    assert "has no such account" in compare(end, SUMS, []).problems[-1]


def test_the_audit_reads_the_ledger_s_tables(tmp_path: Path) -> None:
    """Against the ledger's own schema, so that a column that is renamed there is noticed here."""
    from sqlalchemy import create_engine

    from almoner_ledger.schema import metadata

    path = tmp_path / "ledger.sqlite"
    engine = create_engine(f"sqlite:///{path}")
    metadata.create_all(engine)
    engine.dispose()
    assert read_sums(path) == {}
    assert read_accounts(path) == []
    with pytest.raises(sqlite3.OperationalError):
        read_sums(tmp_path / "missing.sqlite")


@pytest.mark.parametrize("width", [80, 150])
def test_the_report_shows_everything(width: int) -> None:
    out = io.StringIO()
    show(Console(file=out, width=width), the_end(), Audit(verify="7 invariants hold"), EXPECTED)
    text = out.getvalue()
    for part in (
        "An answer.",
        "late (team-late): Rejected: needs $0.002, $0.001 is left",
        "job: Succeeded, step 200 of 200, loss 0.2; {",
        "executions",
        "almoner ledger verify: 7 invariants hold",
        "passed: every status agrees",
    ):
        assert part in text
    assert "FAILED" not in text


def test_lines_are_printed_on_change_alone() -> None:
    out = io.StringIO()
    view = choose(Console(file=out, width=150))
    assert isinstance(view, Lines)
    waiting = execution("red", {"phase": "Queued", "queue": {"waitingFor": "one of 2 places"}})
    with view:
        for _ in range(3):
            view.show(picture([waiting], [], []), 1)
        running = picture([execution("red", {"phase": "Running"})], [training(JOB_DONE | {"phase": "Running"})], [])
        for _ in range(3):
            view.show(running, 2)
    lines = [line.strip() for line in out.getvalue().splitlines()]
    assert lines == [
        "1.0 s  1 queued, 0 running, 0 done, 0 refused or failed, $0.00 spent",
        "2.0 s  job: Running",
        "2.0 s  red: Running",
        "2.0 s  0 queued, 2 running, 0 done, 0 refused or failed, $0.00 spent",
        "2.0 s  job: step 200 of 200, loss 0.2",
    ]


def test_the_table_draws_every_state() -> None:
    out = io.StringIO()
    console = Console(file=out, force_terminal=True, width=120)
    with choose(console) as view:
        view.show(picture([execution("red")], [], []), 0)
        view.show(the_end(), 10)
    assert "late" in out.getvalue()


def test_fold() -> None:
    assert fold("a\n b", 5) == "a b"
    assert fold("abcdef", 4) == "abc…"
