"""docs/troubleshooting.md has an entry for each reason that the programs can give, and for nothing else."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from enum import StrEnum
from pathlib import Path

import pytest

from almoner_core.api.agent import AgentReason
from almoner_core.api.execution import ExecutionReason, FailureReason, WaitReason
from almoner_core.api.model_provider import ProviderReason
from almoner_core.api.resource_quota import BudgetAlertReason, QuotaReason
from almoner_core.api.tool_provider import ToolProviderReason
from almoner_core.environment import OutputProblem
from almoner_core.wire import ErrorCode
from almoner_dev.reference import REASONS
from almoner_operator.conditions import BUDGET_ALERT
from almoner_operator.scheduling.model import StopCause

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "troubleshooting.md").read_text()
SECTIONS: dict[str, tuple[type[StrEnum], ...]] = {
    "What waits": (WaitReason,),
    "What failed": (FailureReason,),
    "Runs under way, and ended": (ExecutionReason,),
    "Agents": (AgentReason,),
    "Providers": (ProviderReason, ToolProviderReason),
    "Quotas": (QuotaReason, BudgetAlertReason),
    "Outputs": (OutputProblem,),
    "What the ledger answers": (ErrorCode,),
}


def rows(section: str) -> dict[str, tuple[str, str]]:
    """The table of a section: meaning and fix by reason."""
    body = re.split(r"^## ", PAGE, flags=re.MULTILINE)
    (text,) = [each for each in body if each.startswith(f"{section}\n")]
    found = re.findall(r"^\| `(\w+)` \| (.+?) \| (.+?) \|$", text, re.MULTILINE)
    assert len({name for name, _, _ in found}) == len(found), "an entry twice"
    return {name: (means, fix) for name, means, fix in found}


@pytest.mark.parametrize("section", SECTIONS)
def test_each_reason_of_an_enum_has_an_entry(section: str) -> None:
    assert set(rows(section)) == {member.value for enum in SECTIONS[section] for member in enum}


def test_no_enum_of_reasons_is_left_out() -> None:
    assert {enum for enum, _ in REASONS} <= {enum for enums in SECTIONS.values() for enum in enums}


@pytest.mark.parametrize("section", [*SECTIONS, "Events", "What agents are told"])
def test_an_entry_is_sentences(section: str) -> None:
    for name, (means, fix) in rows(section).items():
        for text in (means, fix):
            assert text.endswith((".", "`")), f"{name}: {text}"


def calls(folder: Path) -> Iterator[ast.Call]:
    for path in sorted(folder.rglob("*.py")):
        yield from (node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call))


def name_of(call: ast.Call) -> str:
    return call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")


def constants(values: Iterator[ast.expr] | list[ast.expr]) -> list[str]:
    return [each.value for each in values if isinstance(each, ast.Constant) and isinstance(each.value, str)]


def test_each_code_that_the_meter_tells_an_agent_has_an_entry() -> None:
    told: set[str] = set()
    for call in calls(ROOT / "runner" / "almoner_runner" / "meter"):
        if name_of(call) == "RefusedError":
            # status, code, message
            told |= set(constants(call.args[1:2]))
        elif name_of(call) == "InvalidCallError":
            told |= set(constants(keyword.value for keyword in call.keywords if keyword.arg == "code"))
    assert {"insufficient_quota", "unsupported_parameter", "spool_full"} <= told
    assert set(rows("What agents are told")) == told | {"invalid_request"}


def test_each_event_has_an_entry() -> None:
    told: set[str] = {BUDGET_ALERT, *(cause.value for cause in StopCause)}
    for call in calls(ROOT / "operator" / "almoner_operator"):
        if name_of(call) == "tell":
            told |= set(constants(keyword.value for keyword in call.keywords if keyword.arg == "reason"))
    assert {"StrangePod", "StatusOverwritten"} <= told
    reasons = {member.value for enum, _ in REASONS for member in enum}
    events = set(rows("Events"))
    assert told - reasons <= events, "what is the reason of a condition too needs no entry here"
    assert events <= told
