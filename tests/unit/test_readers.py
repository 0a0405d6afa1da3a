"""Who may read what: how long answers of the API server hold, and that no call to the ledger forgets to ask."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Any

import pytest

from almoner_core.wire import ErrorCode
from almoner_ledger import readers as module
from almoner_ledger.auth import STALE_SECONDS, Caller, Policy, Role, person
from almoner_ledger.errors import LedgerError
from almoner_ledger.history.asking import By, Question
from almoner_ledger.kubernetes import KubernetesUnavailableError, Review, Subject
from almoner_ledger.readers import KEPT_SECONDS, Readers, Reading, Resource
from almoner_ledger.routes import ROUTES
from almoner_ledger.service import READING, _permitted

ANN = Caller("ann", frozenset({Role.READER}), subject=Subject("ann", groups=("system:authenticated",)))
OPERATOR = Caller("op", frozenset({Role.OPERATOR, Role.READER}), reads_all=True)


@dataclass
class Server:
    """An API server that lets people read some namespaces; may be away. Counts what it is asked."""

    allowed: set[tuple[str, str]] = field(default_factory=set)
    away: bool = False
    asked: list[tuple[str, str]] = field(default_factory=list)
    now: float = 1000.0

    async def may_get(self, subject: Subject, group: str, resource: str, namespace: str) -> bool:
        assert (group, resource) == ("almoner.dev", "executions")
        self.asked.append((subject.username, namespace))
        await asyncio.sleep(0)
        if self.away:
            raise KubernetesUnavailableError("away")
        return (subject.username, namespace) in self.allowed

    async def close(self) -> None:
        pass


def demand(readers: Readers, namespaces: list[str] | None, caller: Caller = ANN) -> str:
    """Demand; gives `permitted` or the code of the refusal."""
    reading = Reading(readers, caller)
    try:
        asyncio.run(reading.demand(Resource.EXECUTIONS, namespaces))
    except LedgerError as error:
        assert not reading.permitted
        return error.code.value
    assert reading.permitted
    return "permitted"


def made(*namespaces: str) -> tuple[Server, Readers]:
    server = Server({("ann", namespace) for namespace in namespaces})
    return server, Readers(server, clock=lambda: server.now)


@pytest.mark.parametrize(
    ("may", "asked", "said"),
    [
        (["a"], ["a"], "permitted"),
        (["a"], ["b"], "forbidden"),
        (["a"], ["a", "b"], "forbidden"),
        (["a", "b"], ["a", "b"], "permitted"),
        (["a"], None, "forbidden"),
        ([""], None, "permitted"),
        ([], ["a"], "forbidden"),
        (["a"], ["a" * 254], "forbidden"),
    ],
)
def test_each_namespace_that_is_asked_about_is_demanded(may: list[str], asked: list[str] | None, said: str) -> None:
    _, readers = made(*may)
    assert demand(readers, asked) == said


def test_whoever_reads_all_is_not_asked_about_and_who_has_no_subject_reads_nothing() -> None:
    server, readers = made()
    assert demand(readers, None, OPERATOR) == "permitted"
    assert demand(readers, ["a"], Caller("x", frozenset({Role.READER}))) == "forbidden"
    assert demand(Readers(None), ["a"]) == "forbidden"
    assert server.asked == []


@pytest.mark.parametrize("allowed", [True, False])
def test_an_answer_holds_for_seconds_and_is_asked_for_again(*, allowed: bool) -> None:
    server, readers = made(*(["a"] if allowed else []))
    before, after = ("permitted", "forbidden") if allowed else ("forbidden", "permitted")
    assert demand(readers, ["a"]) == before
    server.allowed ^= {("ann", "a")}
    server.now += KEPT_SECONDS - 0.1
    assert demand(readers, ["a"]) == before
    assert len(server.asked) == 1
    server.now += 0.2
    assert demand(readers, ["a"]) == after
    assert len(server.asked) == 2


def test_while_the_api_server_is_away_only_what_was_allowed_still_is_and_not_for_ever() -> None:
    server, readers = made("a")
    assert demand(readers, ["a"]) == "permitted"
    assert demand(readers, ["b"]) == "forbidden"
    server.away = True
    server.now += KEPT_SECONDS + 1
    assert demand(readers, ["a"]) == "permitted"
    assert demand(readers, ["b"]) == "unavailable"
    assert demand(readers, ["c"]) == "unavailable"
    server.now += STALE_SECONDS
    assert demand(readers, ["a"]) == "unavailable"
    server.away = False
    server.now += module.FAILED_SECONDS
    assert demand(readers, ["a"]) == "permitted"


def test_many_questions_of_one_user_are_one_review_at_a_time_and_the_same_one_is_asked_once() -> None:
    server, readers = made("a")

    async def ask() -> list[bool]:
        return await asyncio.gather(*(readers.may(ANN, Resource.EXECUTIONS, "a") for _ in range(50)))

    assert asyncio.run(ask()) == [True] * 50
    assert server.asked == [("ann", "a")]


def test_after_a_failure_the_others_in_line_do_not_wait_for_another_one() -> None:
    server, readers = made("a")
    server.away = True

    async def ask() -> list[Any]:
        asked = (readers.may(ANN, Resource.EXECUTIONS, f"n{number}") for number in range(50))
        return await asyncio.gather(*asked, return_exceptions=True)

    assert {error.code for error in asyncio.run(ask())} == {ErrorCode.UNAVAILABLE}
    assert len(server.asked) == 1


def test_what_is_kept_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "KEPT_MAX", 3)
    server, readers = made("n0")
    for number in range(10):
        demand(readers, [f"n{number}"])
    demand(readers, ["n9"])
    assert len(server.asked) == 10
    demand(readers, ["n0"])
    assert len(server.asked) == 11


def test_an_object_that_may_not_be_read_answers_as_one_that_is_not_there() -> None:
    def refusal(namespace: str | None) -> tuple[str, str | None, str]:
        _, readers = made("a")
        with pytest.raises(LedgerError) as raised:
            asyncio.run(Reading(readers, ANN).demand_of_object(Resource.EXECUTIONS, namespace))
        return raised.value.code.value, raised.value.field, raised.value.message

    assert refusal("b") == refusal(None)
    assert refusal(None)[:2] == ("forbidden", "uid")


def test_the_refusal_of_all_namespaces_names_what_to_give() -> None:
    _, readers = made("a")
    with pytest.raises(LedgerError, match="namespace=NAME \\(--namespace NAME\\)") as raised:
        asyncio.run(Reading(readers, ANN).demand(Resource.EXECUTIONS, None))
    assert raised.value.field == "namespace"


@pytest.mark.parametrize(
    ("filters", "namespaces"),
    [
        ({}, None),
        ({By.NAMESPACE: ("a", "b")}, {"a", "b"}),
        ({By.AGENT: ("a/x", "b/y")}, {"a", "b"}),
        ({By.AGENT: ("a/x", "y")}, None),
        ({By.EXECUTION: ("a/x",)}, {"a"}),
        ({By.AGENT: ("x",), By.EXECUTION: ("a/x",)}, {"a"}),
        ({By.NAMESPACE: ("a",), By.EXECUTION: ("b/x",)}, {"a"}),
        ({By.UID: ("u",)}, None),
        ({By.OWNER: ("a/x",)}, None),
    ],
)
def test_which_namespaces_an_answer_can_be_of(filters: Any, namespaces: set[str] | None) -> None:
    assert Question(filters).namespaces() == namespaces


# --- who is what ------------------------------------------------------------------------------------------------------

OPERATOR_USER = "system:serviceaccount:almoner-system:almoner-operator"


@pytest.mark.parametrize(
    ("name", "pod", "roles", "reads_all"),
    [
        (OPERATOR_USER, None, {Role.OPERATOR, Role.READER}, True),
        ("system:serviceaccount:a:default", "pod", {Role.METER}, False),
        ("system:serviceaccount:a:default", None, {Role.READER}, False),
        ("ann", None, {Role.READER}, False),
    ],
)
def test_the_audience_makes_meters_and_the_operator(
    name: str, pod: str | None, roles: set[Role], *, reads_all: bool
) -> None:
    review = Review(authenticated=True, subject=Subject(name), pod_uid=pod)
    ours = Policy().caller(review)
    assert (ours.roles, ours.pod_uid, ours.reads_all) == (frozenset(roles), pod, reads_all)
    theirs = person(review)
    assert (theirs.roles, theirs.pod_uid, theirs.reads_all) == (frozenset({Role.READER}), None, False)
    assert theirs.subject == review.subject


def test_an_answer_that_nobody_asked_about_is_held_back() -> None:
    _, readers = made("a")
    route = next(route for route in ROUTES if route.role is Role.READER)
    reading = Reading(readers, ANN)
    request: Any = {READING: reading}
    with pytest.raises(RuntimeError, match="without asking"):
        _permitted(route, request)
    asyncio.run(reading.demand(Resource.EXECUTIONS, ["a"]))
    _permitted(route, request)


def test_every_call_is_for_somebody_and_few_are_for_anyone() -> None:
    anyone = {route.path for route in ROUTES if route.role is None}
    assert anyone == {"/healthz", "/readyz", "/metrics", "/openapi.json"}
