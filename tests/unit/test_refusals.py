"""What people read of a refusal of the ledger's."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from almoner_core.api.execution import WaitReason
from almoner_core.wire import Dimension, Refusal
from almoner_operator.refusals import FULL_SECONDS, SHAPE_SECONDS, explain, pod_refusal

NOW = datetime(2026, 3, 4, 12, tzinfo=UTC)
CENT = 10_000_000


def refusal(account: str, **more: Any) -> Refusal:
    values = {"dimension": Dimension.USD, "limit": 100 * CENT, "spent": 60 * CENT, "reserved": 40 * CENT}
    return Refusal(account=account, **{**values, "needed": 5 * CENT, **more})


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (
            refusal("team/daily", retry_after_seconds=43_200),
            (
                "budget of ResourceQuota daily has no room: 0.60 spent and 0.40 reserved of 1.00 USD, 0.05 needed; "
                "resets at 2026-03-05T00:00:00Z"
            ),
        ),
        (
            refusal("team/each/ann", may_free_up=True),
            (
                "budget of ResourceQuota each (owner ann) has no room: 0.60 spent and 0.40 reserved of 1.00 USD, 0.05 "
                "needed; others hold some of it and are asked to return what is idle"
            ),
        ),
        (
            refusal("execution", dimension=Dimension.TOKENS, limit=10, spent=8, reserved=0, needed=3),
            (
                "the execution itself (its own limits, or a quota's maxPerExecution) has no room: 8 used and 0 "
                "reserved of 10 tokens, 3 needed"
            ),
        ),
    ],
)
def test_a_refusal_names_the_limit_its_numbers_and_when_it_changes(given: Refusal, said: str) -> None:
    assert explain(given, NOW) == said


LACKING = 'pods "p" is forbidden: failed quota: compute: must specify '


@pytest.mark.parametrize(
    ("refused", "reason", "fixes"),
    [
        ('pods "p" is forbidden: exceeded quota: compute, requested: pods=1, used: pods=2', "WaitingForQuota", []),
        (f"{LACKING}limits.cpu for: meter", "PodRefused", ["--meter-cpu-limit"]),
        (
            f"{LACKING}limits.cpu for: agent,meter; limits.memory for: agent",
            "PodRefused",
            ["runner.resources.limits.cpu", "--meter-cpu-limit", "runner.resources.limits.memory"],
        ),
        ('pods "p" is forbidden: violates PodSecurity "restricted:latest"', "PodRefused", []),
        ('pods "p" is forbidden: maximum cpu usage per Container is 1, but limit is 2', "PodRefused", []),
    ],
)
def test_a_pod_that_is_refused_waits_only_for_what_passes_by_itself(
    refused: str, reason: str, fixes: list[str]
) -> None:
    found, message, seconds = pod_refusal(refused)
    assert found is WaitReason(reason)
    assert refused in message
    assert all(fix in message for fix in fixes)
    assert message.count("set ") == len(fixes)
    assert seconds == (FULL_SECONDS if reason == "WaitingForQuota" else SHAPE_SECONDS)
