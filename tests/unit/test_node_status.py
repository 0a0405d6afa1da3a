from __future__ import annotations

from typing import Any

import pytest

from almoner_dev.node.status import (
    Kind,
    Record,
    conditions,
    exit_code_of,
    phase,
    records_of,
    terminated,
    waiting,
    with_times,
)

W = waiting("PodInitializing")
R: dict[str, Any] = {"running": {"startedAt": "t"}}


def ended(code: int) -> dict[str, Any]:
    return terminated(code, started="t", finished="u")


def record(kind: Kind, state: dict[str, Any], **more: Any) -> Record:
    return Record("c", "image", kind, state=state, **more)


def of(text: str) -> list[Record]:
    """Records written as `i0 sR mW m1`: kind (init, sidecar, main), then W, R or an exit code; `m!` was restarted."""
    result = []
    for word in text.split():
        kind = {"i": Kind.INIT, "s": Kind.SIDECAR, "m": Kind.MAIN}[word[0]]
        if word[1:] == "!":
            result.append(record(kind, waiting("CrashLoopBackOff"), last_state=ended(1)))
            continue
        state = {"W": W, "R": R}.get(word[1:]) or ended(int(word[1:]))
        up = word[1:] == "R"
        result.append(record(kind, state, started=up, ready=up))
    return result


@pytest.mark.parametrize(
    ("containers", "policy", "over", "expected"),
    [
        ("mW", "Never", False, "Pending"),
        ("iW mW", "Never", False, "Pending"),
        ("iR mW", "Never", False, "Pending"),
        ("i0 mW", "Never", False, "Pending"),
        ("i! mW", "OnFailure", False, "Pending"),
        ("i1 mW", "Never", False, "Pending"),
        ("i1 mW", "Never", True, "Failed"),
        ("sR mW", "Never", False, "Pending"),
        ("sR mR", "Never", False, "Running"),
        ("i0 sR mR", "Never", False, "Running"),
        ("sR m0", "Never", False, "Running"),
        ("s143 m0", "Never", True, "Succeeded"),
        ("s0 m1", "Never", True, "Failed"),
        ("m0 mR", "Never", False, "Running"),
        ("m1 mR", "Never", False, "Running"),
        ("m0 mW", "Never", False, "Running"),
        ("m0 m0", "Never", True, "Succeeded"),
        ("m0 m2", "OnFailure", True, "Failed"),
        ("m!", "OnFailure", False, "Running"),
        ("m!", "Always", False, "Running"),
        ("m0", "Always", True, "Running"),
    ],
)
def test_phase(containers: str, policy: str, over: bool, expected: str) -> None:
    assert phase(of(containers), policy, ended=over) == expected


def test_a_verdict_holds_only_once_nothing_runs() -> None:
    assert phase(of("mR"), "Never", ended=False, verdict="Failed") == "Running"
    assert phase(of("m0"), "Never", ended=True, verdict="Failed") == "Failed"


@pytest.mark.parametrize(
    ("containers", "pod_phase", "expected"),
    [
        # (Initialized, Ready, ContainersReady, PodReadyToStartContainers)
        ("iR mW", "Pending", "False False False True"),
        ("i0 mW", "Pending", "True False False True"),
        ("sW mW", "Pending", "False False False True"),
        ("sR mW", "Pending", "True False False True"),
        ("sR mR", "Running", "True True True True"),
        ("s! mR", "Running", "True False False True"),
        ("s143 m0", "Succeeded", "True False False False"),
        ("s143 m1", "Failed", "True False False False"),
        ("i1 mW", "Failed", "False False False False"),
    ],
)
def test_conditions(containers: str, pod_phase: str, expected: str) -> None:
    found = {c["type"]: c["status"] for c in conditions(of(containers), pod_phase, sandbox_ready=True)}
    kinds = ("Initialized", "Ready", "ContainersReady", "PodReadyToStartContainers")
    assert " ".join(found[kind] for kind in kinds) == expected
    assert found["PodScheduled"] == "True"


def test_conditions_say_which_container_is_waited_for() -> None:
    found = {c["type"]: c for c in conditions(of("sW mW"), "Pending", sandbox_ready=True)}
    assert found["Initialized"]["message"] == "containers with incomplete status: [c]"
    assert found["Ready"]["reason"] == "ContainersNotReady"


def test_transition_times_change_with_the_status_alone() -> None:
    earlier = [
        {"type": "Ready", "status": "False", "lastTransitionTime": "old", "reason": "A"},
        {"type": "Initialized", "status": "False", "lastTransitionTime": "old"},
    ]
    fresh = [{"type": "Ready", "status": "False", "reason": "B"}, {"type": "Initialized", "status": "True"}]
    assert with_times(fresh, earlier, "new") == [
        {"type": "Ready", "status": "False", "reason": "B", "lastTransitionTime": "old"},
        {"type": "Initialized", "status": "True", "lastTransitionTime": "new"},
    ]


def test_records_know_sidecars_from_init_containers() -> None:
    pod = {
        "spec": {
            "initContainers": [{"name": "a"}, {"name": "b", "restartPolicy": "Always"}],
            "containers": [{"name": "c", "image": "i"}],
        }
    }
    assert [(r.name, r.kind) for r in records_of(pod)] == [("a", Kind.INIT), ("b", Kind.SIDECAR), ("c", Kind.MAIN)]


def test_a_termination_message_is_bounded_in_bytes_and_stays_text() -> None:
    state = terminated(1, started="t", finished="u", message="ü" * 4000)["terminated"]
    assert len(state["message"].encode()) == 4096
    assert state["reason"] == "Error"


def test_an_init_container_is_ready_once_it_succeeded() -> None:
    assert [r.status()["ready"] for r in of("i0 i1 iR mR mW")] == [True, False, False, True, False]


@pytest.mark.parametrize(("code", "expected"), [(0, 0), (1, 1), (255, 255), (-9, 137), (-15, 143)])
def test_exit_codes(code: int, expected: int) -> None:
    assert exit_code_of(code) == expected
