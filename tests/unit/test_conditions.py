"""The truth table of phases and conditions, read as kstatus reads it."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from almoner_core.api.agent import AgentReason
from almoner_core.api.base import Condition, ConditionStatus
from almoner_core.api.execution import ExecutionPhase, ExecutionReason, FailureReason, WaitReason
from almoner_core.api.model_provider import ProviderReason
from almoner_core.api.resource_quota import QuotaReason
from almoner_operator.conditions import (
    COLUMNS,
    TRUTH_TABLE,
    Row,
    Source,
    Standing,
    agent_conditions,
    conditions_for,
    provider_conditions,
    quota_conditions,
)

NOW = datetime(2026, 6, 1, 12, 0, tzinfo=UTC)
PHASE = ExecutionPhase

# What each standing must come to: kstatus' word, then Accepted, Admitted, Complete, Failed, Suspended, Ready,
# Reconciling, Stalled ("-": absent).
EXPECTED: dict[str, tuple[Standing, str, str]] = {
    "Pending": (Standing(PHASE.PENDING), "InProgress", "UFFF-FTF"),
    "Queued": (Standing(PHASE.QUEUED, wait=WaitReason.WAITING_FOR_QUOTA), "InProgress", "TFFF-FTF"),
    "Queued, suspended": (Standing(PHASE.QUEUED, suspended=True), "InProgress", "TFFFTFFF"),
    "Pending, suspended": (Standing(PHASE.PENDING, suspended=True), "InProgress", "TFFFTFFF"),
    "Queued again": (Standing(PHASE.QUEUED, admitted=True, wait=WaitReason.BACKOFF), "InProgress", "TFFF-FTF"),
    "Admitted": (Standing(PHASE.ADMITTED, admitted=True), "InProgress", "TTFF-FTF"),
    "Running": (Standing(PHASE.RUNNING, admitted=True), "InProgress", "TTFF-FTF"),
    "Running, about to be suspended": (
        Standing(PHASE.RUNNING, admitted=True, suspended=True),
        "InProgress",
        "TTFF-FTF",
    ),
    "Succeeded": (Standing(PHASE.SUCCEEDED, admitted=True), "Current", "TTTF-TFF"),
    "Failed": (Standing(PHASE.FAILED, admitted=True, failure=FailureReason.TIMEOUT), "Failed", "TTFT-FFT"),
    "Rejected": (Standing(PHASE.FAILED, failure=FailureReason.REJECTED), "Failed", "TFFT-FFT"),
    "Invalid": (Standing(PHASE.FAILED, accepted=False), "Failed", "FFFT-FFT"),
    "Cancelled": (Standing(PHASE.CANCELLED, admitted=True), "Current", "TTFF-TFF"),
    "Cancelled while it waited": (Standing(PHASE.CANCELLED), "Current", "TFFF-TFF"),
}
LETTERS = {"T": "True", "F": "False", "U": "Unknown"}


def states(conditions: list[Condition]) -> dict[str, str]:
    return {condition.type: condition.status.value for condition in conditions}


def reasons(conditions: list[Condition]) -> dict[str, str]:
    return {condition.type: condition.reason for condition in conditions}


def made(standing: Standing, previous: list[Condition] | None = None, now: datetime = NOW) -> list[Condition]:
    return conditions_for(standing, generation=7, previous=previous or [], now=now)


def kstatus(conditions: list[Condition]) -> str:
    """What kstatus computes for a custom resource whose observedGeneration is current."""
    state = states(conditions)
    if state.get("Stalled") == "True":
        return "Failed"
    if state.get("Reconciling") == "True" or state.get("Ready") in ("False", "Unknown"):
        return "InProgress"
    return "Current"


@pytest.mark.parametrize("case", EXPECTED)
def test_every_standing_has_its_conditions(case: str) -> None:
    standing, word, letters = EXPECTED[case]
    conditions = made(standing)
    expected = {str(column): LETTERS[letter] for column, letter in zip(COLUMNS, letters, strict=True) if letter != "-"}
    assert states(conditions) == expected
    assert kstatus(conditions) == word
    assert {condition.observed_generation for condition in conditions} == {7}


def test_every_row_of_the_table_is_met_and_every_phase_has_one() -> None:
    assert {standing.row for standing, _, _ in EXPECTED.values()} == set(Row) == set(TRUTH_TABLE)
    assert {standing.phase for standing, _, _ in EXPECTED.values()} == set(ExecutionPhase)


@pytest.mark.parametrize("row", Row)
def test_reasons_in_the_table_are_documented_ones(row: Row) -> None:
    for cell in TRUTH_TABLE[row].values():
        assert isinstance(cell.reason, (ExecutionReason, FailureReason, Source))


@pytest.mark.parametrize(
    ("standing", "expected"),
    [
        (EXPECTED["Queued"][0], {"Admitted": "WaitingForQuota", "Ready": "WaitingForQuota", "Reconciling": "Queued"}),
        (Standing(PHASE.QUEUED), {"Admitted": "Queued"}),
        (
            EXPECTED["Failed"][0],
            {"Failed": "Timeout", "Stalled": "Timeout", "Ready": "Timeout", "Admitted": "Admitted"},
        ),
        (EXPECTED["Rejected"][0], {"Failed": "Rejected", "Admitted": "NotAdmitted"}),
        (EXPECTED["Cancelled"][0], {"Ready": "Cancelled", "Complete": "Cancelled"}),
        (EXPECTED["Invalid"][0], {"Accepted": "InvalidSpec", "Stalled": "InvalidSpec"}),
        (EXPECTED["Queued, suspended"][0], {"Ready": "Suspended", "Suspended": "Suspended"}),
    ],
)
def test_reasons(standing: Standing, expected: dict[str, str]) -> None:
    assert reasons(made(standing)).items() >= expected.items()


def test_the_message_is_where_people_look_and_is_bounded() -> None:
    standing = Standing(PHASE.QUEUED, "waiting for 2 GPUs", wait=WaitReason.WAITING_FOR_QUOTA)
    said = {condition.type: condition.message for condition in made(standing)}
    assert said["Admitted"] == said["Ready"] == "waiting for 2 GPUs"
    assert said["Accepted"] == ""
    long = made(Standing(PHASE.FAILED, "x" * 5000, admitted=True, failure=FailureReason.AGENT_FAILED))
    assert max(len(condition.message) for condition in long) == 1024


def test_a_transition_time_stays_while_the_status_does() -> None:
    first = made(Standing(PHASE.QUEUED, "one", wait=WaitReason.WAITING_FOR_QUOTA))
    later = NOW + timedelta(minutes=5)
    second = made(Standing(PHASE.RUNNING, "two", admitted=True), first, later)
    moved = {condition.type for condition in second if condition.last_transition_time == later}
    assert moved == {"Admitted"}
    assert reasons(second)["Ready"] == "Running"


def test_resuming_leaves_suspended_false_and_nothing_before() -> None:
    suspended = made(Standing(PHASE.QUEUED, suspended=True))
    resumed = made(Standing(PHASE.QUEUED), suspended, NOW + timedelta(seconds=1))
    assert states(resumed)["Suspended"] == "False"
    assert reasons(resumed)["Suspended"] == "Resumed"
    assert "Suspended" not in states(made(Standing(PHASE.QUEUED)))


def test_conditions_of_others_are_kept() -> None:
    foreign = Condition(
        type="Audited", status=ConditionStatus.TRUE, last_transition_time=NOW, reason="Done", message="by someone"
    )
    assert made(Standing(PHASE.RUNNING, admitted=True), [foreign])[-1] == foreign


def test_making_them_twice_changes_nothing() -> None:
    for standing, _, _ in EXPECTED.values():
        first = made(standing)
        assert made(standing, first, NOW + timedelta(hours=1)) == first


@pytest.mark.parametrize(
    ("reason", "word"),
    [
        (AgentReason.READY, "Current"),
        (AgentReason.PROVIDER_NOT_FOUND, "InProgress"),
        (AgentReason.INVALID_SPEC, "Failed"),
    ],
)
def test_an_agents_conditions(reason: AgentReason, word: str) -> None:
    conditions = agent_conditions(reason, "said", generation=1, previous=[], now=NOW)
    assert kstatus(conditions) == word
    assert reasons(conditions)["Ready"] == str(reason)
    assert [condition.type for condition in conditions] == ["Ready", "Reconciling", "Stalled"]


@pytest.mark.parametrize(
    ("reason", "word"),
    [
        (QuotaReason.IN_FORCE, "Current"),
        (QuotaReason.LEDGER_UNAVAILABLE, "InProgress"),
        (QuotaReason.NOT_SUPPORTED, "Failed"),
    ],
)
def test_a_quotas_conditions(reason: QuotaReason, word: str) -> None:
    assert kstatus(quota_conditions(reason, "said", generation=1, previous=[], now=NOW)) == word


@pytest.mark.parametrize(
    ("reason", "bypassable", "word"),
    [
        (ProviderReason.READY, True, "Current"),
        (ProviderReason.READY, False, "Current"),
        (ProviderReason.SECRET_NOT_FOUND, False, "InProgress"),
        (ProviderReason.CREDENTIALS_MISSING, True, "Failed"),
    ],
)
def test_a_providers_conditions(reason: ProviderReason, bypassable: bool, word: str) -> None:
    conditions = provider_conditions(reason, "", bypassable=bypassable, generation=1, previous=[], now=NOW)
    assert kstatus(conditions) == word
    assert states(conditions)["Bypassable"] == str(bypassable)
