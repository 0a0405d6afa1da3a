"""The ledger as a process: who may call, what is refused by name, and that it keeps serving."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from almoner_dev.ledger_environment import ledger_environment
from tests.support.books import DOLLAR, new_id
from tests.support.ledger_service import (
    OPERATOR,
    READER,
    LedgerService,
    account_key,
    meter_token,
    open_item,
    record_body,
)
from tests.support.polling import until

if TYPE_CHECKING:
    from almoner_dev.controlplane import ControlPlane

MINE, OTHER = "pod-mine", "pod-other"
STRANGE = "00000000-0000-4000-8000-000000000000"
"""An allotment nobody opened: a constant, since it is in the names of tests, which every worker must find alike."""


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LedgerService]:
    directory = tmp_path_factory.mktemp("ledger")
    running = LedgerService(directory, f"sqlite:///{directory}/ledger.db", pods=[MINE, OTHER]).start()
    yield running
    found = verify(running.database)
    running.close()
    assert found.returncode == 0, found.stdout


@pytest.fixture
def epoch(service: LedgerService) -> int:
    number = service.epoch()
    service.limit(number, {"usd": 100 * DOLLAR})
    return number


def verify(database: str) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, "-m", "almoner_ledger", "verify"]
    environment = ledger_environment(database)
    return subprocess.run(argv, env=environment, capture_output=True, text=True, check=False, timeout=60)


def records_path(allotment: str) -> str:
    return f"/v1/allotments/{allotment}/records"


NUL = "%00" * 36


@pytest.mark.parametrize(
    ("method", "path", "token"),
    [
        ("GET", f"/v1/allotments/{NUL}/signals?timeout_seconds=5", meter_token(MINE)),
        ("POST", f"/v1/allotments/{NUL}/activate", meter_token(MINE)),
        ("GET", "/v1/executions/%00/output", READER),
        ("GET", "/v1/allotments?after=%00", OPERATOR),
        ("GET", "/v1/costs?by=agent&agent=%00", READER),
    ],
)
def test_a_name_that_the_database_cannot_hold_is_refused_before_it_spoils_a_common_query(
    service: LedgerService, method: str, path: str, token: str
) -> None:
    """Meters' long polls are asked for in one query, and commands are done in groups."""
    body = {"operation_id": new_id()} if method == "POST" else None
    status, error = service.refusal(method, path, body, token)
    assert (status, error["code"]) == (400, "invalid"), error
    assert "NUL" in error["message"]


ANSWER = "an answer\0 with NUL, and \\u0000 spelt out, \\\0"


def test_the_whole_road_over_http(service: LedgerService, epoch: int) -> None:
    uid = new_id()
    allotment = service.active(epoch, MINE, {"usd": 1000}, uid=uid)
    token = meter_token(MINE)
    base = f"/v1/allotments/{allotment}"
    posted = service.ask("POST", f"{base}/records", {"operation_id": new_id(), "records": [record_body(1, 400)]}, token)
    assert posted == {"last_sequence": 1, "held": {"usd": 600}, "frozen": False, "rates": None}
    service.ask("PUT", f"{base}/output", {"operation_id": new_id(), "content": ANSWER}, token)
    service.ask("POST", f"{base}/progress", {"step": 1}, token)
    signals = service.ask("GET", f"{base}/signals", token=token)
    assert (signals["recall"], signals["cancel"]) == (False, False)
    assert 0 < signals["lease_seconds"] <= 60
    end = {"operation_id": new_id(), "last_sequence": 1, "settled": {"usd": 400}, "final": True}
    assert service.ask("POST", f"{base}/return", end, token)["state"] == "closed"
    assert service.ask("GET", f"{base}/signals?timeout_seconds=20", token=token)["cancel"]
    assert service.request("GET", f"/v1/executions/{uid}/output", READER).text == ANSWER.replace("\0", "\ufffd")
    row = next(
        row for row in service.ask("GET", "/v1/costs?by=execution", token=READER)["rows"] if row["key"][-1] == uid
    )
    assert row["totals"]["cost_nanos"] == 400


@pytest.mark.parametrize(
    ("method", "path", "body", "token", "status", "code", "field"),
    [
        ("POST", "/v1/epochs", {"operation_id": "x", "holder": "h"}, "op", 400, "invalid", "operation_id"),
        ("POST", "/v1/epochs", {"operation_id": new_id(), "holder": "h", "hodler": 1}, "op", 400, "invalid", "hodler"),
        ("POST", "/v1/epochs", {"operation_id": new_id(), "holder": "h\0"}, "op", 400, "invalid", "holder"),
        ("POST", "/v1/epochs", {"operation_id": new_id(), "holder": 5}, "op", 400, "invalid", "holder"),
        ("POST", "/v1/epochs", [], "op", 400, "invalid", "body"),
        ("POST", "/v1/epochs", {"operation_id": new_id(), "holder": "h"}, READER, 403, "forbidden", None),
        ("POST", "/v1/epochs", {"operation_id": new_id(), "holder": "h"}, "nobody", 401, "unauthenticated", None),
        ("POST", "/v1/epochs", {"operation_id": new_id(), "holder": "h"}, None, 401, "unauthenticated", None),
        (
            "POST",
            f"/v1/allotments/{STRANGE}/activate",
            {"operation_id": new_id()},
            MINE,
            404,
            "not_found",
            "allotment",
        ),
        ("POST", "/v1/allotments/short/activate", {"operation_id": new_id()}, MINE, 400, "invalid", "id"),
        ("POST", f"/v1/allotments/{STRANGE}/activate", {"operation_id": new_id()}, "op", 403, "forbidden", None),
        ("GET", "/v1/costs?by=colour", None, READER, 400, "invalid", "by"),
        ("GET", "/v1/costs?from=yesterday", None, READER, 400, "invalid", "from"),
        ("GET", "/v1/costs?until=2026-01-01", None, READER, 400, "invalid", "until"),
        ("GET", "/v1/changes?after=-1", None, "op", 400, "invalid", "after"),
        ("GET", "/v1/changes?after=99999999999999999999", None, "op", 400, "invalid", "after"),
        ("GET", "/v1/executions/nobody/output", None, READER, 404, "not_found", "uid"),
        ("GET", "/v2/anything", None, "op", 404, "not_found", None),
        ("DELETE", "/v1/allotments", None, "op", 404, "not_found", None),
    ],
)
def test_bad_calls_are_refused_by_name(
    service: LedgerService,
    *,
    method: str,
    path: str,
    body: Any,
    token: str | None,
    status: int,
    code: str,
    field: str | None,
) -> None:
    known = {"op": "operator-token", MINE: meter_token(MINE)}
    found, error = service.refusal(method, path, body, known.get(token or "", token))
    assert (found, error["code"], error["field"]) == (status, code, field)


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"cost_nanos": -1}, "records.0.cost_nanos"),
        ({"cost_nanos": 0.5}, "records.0.cost_nanos"),
        ({"cost_nanos": "5"}, "records.0.cost_nanos"),
        ({"cost_nanos": 10**19}, "records.0.cost_nanos"),
        ({"cost_nanos": True}, "records.0.cost_nanos"),
        ({"sequence": 0}, "records.0.sequence"),
        ({"outcome": "fine"}, "records.0.outcome"),
        ({"id": "short"}, "records.0.id"),
        ({"provider": "p" * 300}, "records.0.provider"),
        ({"provider": "p\0"}, "records.0.provider"),
        ({"execution": "somebody-else"}, "records.0.execution"),
        ({"tokens": {"input": 5, "prompt": 5}}, "records.0.tokens.prompt"),
        ({"metadata": {"k": "x" * 5000}}, "records.0.metadata"),
        ({"metadata": {f"k{n}": 1 for n in range(40)}}, "records.0.metadata"),
    ],
)
def test_malformed_records_are_refused_by_name(
    service: LedgerService, epoch: int, change: dict[str, Any], field: str
) -> None:
    allotment = service.active(epoch, MINE, {"usd": 1000})
    body = {"operation_id": new_id(), "records": [{**record_body(1, 1), **change}]}
    status, error = service.refusal("POST", records_path(allotment), body, meter_token(MINE))
    assert (status, error["code"], error["field"]) == (400, "invalid", field)


def test_a_pod_may_not_report_for_another_execution(service: LedgerService, epoch: int) -> None:
    allotment = service.active(epoch, MINE, {"usd": 1000})
    body = {"operation_id": new_id(), "records": [record_body(1, 5)]}
    status, error = service.refusal("POST", records_path(allotment), body, meter_token(OTHER))
    assert (status, error["code"]) == (403, "forbidden")
    for verb, content in (
        ("activate", {"operation_id": new_id()}),
        ("extend", {"operation_id": new_id(), "need": {"usd": 1}}),
        ("return", {"operation_id": new_id(), "last_sequence": 0, "settled": {}, "final": True}),
        ("progress", {"step": 1}),
    ):
        path = f"/v1/allotments/{allotment}/{verb}"
        assert service.refusal("POST", path, content, meter_token(OTHER))[1]["code"] == "forbidden"
    assert service.refusal("GET", f"/v1/allotments/{allotment}/signals", token=meter_token(OTHER))[0] == 403


def test_a_conflicting_record_is_refused_by_name(service: LedgerService, epoch: int) -> None:
    allotment = service.active(epoch, MINE, {"usd": 1000})
    sent = record_body(1, 5)
    service.ask("POST", records_path(allotment), {"operation_id": new_id(), "records": [sent]}, meter_token(MINE))
    body = {"operation_id": new_id(), "records": [{**sent, "cost_nanos": 6}]}
    status, error = service.refusal("POST", records_path(allotment), body, meter_token(MINE))
    assert (status, error["code"], error["field"]) == (409, "record_conflict", "records.0.id")


@pytest.mark.parametrize("chunked", [False, True])
def test_an_oversized_body_is_refused_before_it_is_read(service: LedgerService, *, chunked: bool) -> None:
    huge = b"[" + b" " * (3 * 1024 * 1024)
    content: Any = (huge[start : start + 65536] for start in range(0, len(huge), 65536)) if chunked else huge
    try:
        answer = service.request("POST", "/v1/epochs", content=content)
    except httpx.WriteError:
        # The service answered and closed before all was sent.
        answer = service.request("POST", "/v1/epochs", content=huge)
    assert (answer.status_code, answer.json()["error"]["code"]) == (413, "too_large")


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"\xff\xfe", b'{"operation_id": "\\ud800"}', b"[" * 100_000, b'{"a":' * 50_000, b"null", b"NaN"],
)
def test_what_is_no_message_is_refused(service: LedgerService, body: bytes) -> None:
    answer = service.request("POST", "/v1/epochs", content=body)
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "invalid")


def test_garbage_on_the_socket_and_clients_that_hang_up_harm_nobody(service: LedgerService) -> None:
    for garbage in (b"\x16\x03\x01\x02\x00garbage", b"GET / HTTP/9.9\r\n\r\n", b"POST /v1/epochs HTTP/1.1\r\nContent-"):
        with socket.create_connection(("127.0.0.1", service.port), 5) as connection:
            connection.sendall(garbage)
    head = (
        b"POST /v1/epochs HTTP/1.1\r\nHost: x\r\nContent-Length: 500\r\nAuthorization: Bearer operator-token\r\n\r\n{"
    )
    with socket.create_connection(("127.0.0.1", service.port), 5) as connection:
        connection.sendall(head)
    assert service.epoch() > 0


def test_bad_items_in_a_batch_do_not_fail_their_neighbours(service: LedgerService, epoch: int) -> None:
    items = [open_item({"usd": 5}), open_item({"usd": 5}, accounts=[account_key("unknown")]), open_item({"usd": 5})]
    answers = service.open_items(epoch, items)
    assert [(answer["error"] or {}).get("code") for answer in answers] == [None, "not_found", None]


def test_a_deposed_operator_is_told_at_once(service: LedgerService, epoch: int) -> None:
    service.epoch()
    body = {"epoch": epoch, "items": [open_item({"usd": 5})]}
    status, error = service.refusal("POST", "/v1/allotments:open", body)
    assert (status, error["code"]) == (409, "stale_epoch")


def test_a_long_poll_is_answered_within_a_second_of_a_change(service: LedgerService, epoch: int) -> None:
    allotment = service.active(epoch, MINE, {"usd": 1000})
    after = 0
    while (page := service.ask("GET", f"/v1/changes?after={after}"))["more"] or page["after"] != after:
        after = page["after"]
    answers: list[tuple[float, Any]] = []

    def wait() -> None:
        with httpx.Client(base_url=service.url, timeout=60, headers={"Authorization": "Bearer operator-token"}) as own:
            found = own.get(f"/v1/changes?after={after}&timeout_seconds=20").json()
        answers.append((time.monotonic(), found))

    waiting = threading.Thread(target=wait)
    waiting.start()
    posted = time.monotonic()
    body = {"operation_id": new_id(), "records": [record_body(1, 7)]}
    service.ask("POST", records_path(allotment), body, meter_token(MINE))
    waiting.join(30)
    ((answered, found),) = answers
    assert answered - posted < 1
    assert any(each["totals"]["cost_nanos"] == 7 for each in found["executions"])


def test_a_long_poll_without_news_ends_empty(service: LedgerService) -> None:
    after = 0
    while (page := service.ask("GET", f"/v1/changes?after={after}"))["more"] or page["after"] != after:
        after = page["after"]
    page = service.ask("GET", f"/v1/changes?after={after}&timeout_seconds=1")
    assert (page["executions"], page["after"]) == ([], after)


def test_openapi_describes_every_route(service: LedgerService) -> None:
    document = service.ask("GET", "/openapi.json", token=None)
    assert document["openapi"].startswith("3.1")
    from almoner_ledger.routes import ROUTES

    for route in ROUTES:
        operation = document["paths"][route.path][route.method.lower()]
        if route.body is not None:
            reference = operation["requestBody"]["content"]["application/json"]["schema"]["$ref"]
            assert reference.rpartition("/")[2] in document["components"]["schemas"]
    unresolved = {
        name
        for name in json.dumps(document).split('"#/components/schemas/')[1:]
        if name.partition('"')[0] not in document["components"]["schemas"]
    }
    assert unresolved == set()


def test_health_and_metrics_are_open_to_anyone(service: LedgerService) -> None:
    for path in ("/healthz", "/readyz"):
        assert service.request("GET", path, None).text == "ok\n"
    metrics = service.request("GET", "/metrics", None).text
    assert 'almoner_ledger_requests_total{code="ok",route="/readyz"}' in metrics


def test_it_shuts_down_in_order(tmp_path: Path) -> None:
    running = LedgerService(tmp_path, f"sqlite:///{tmp_path}/ledger.db").start()
    found: list[int] = []

    def wait() -> None:
        with httpx.Client(base_url=running.url, timeout=60, headers={"Authorization": "Bearer operator-token"}) as own:
            found.append(own.get("/v1/changes?after=0&timeout_seconds=50").status_code)

    waiting = threading.Thread(target=wait)
    waiting.start()
    until(lambda: "long_polls 1.0" in running.request("GET", "/metrics", None).text, 5, "the poll to wait")
    began = time.monotonic()
    assert running.stop() == 0
    waiting.join(10)
    assert found == [200]
    assert time.monotonic() - began < 8
    running.close()


def test_verify_names_what_is_wrong_and_exits_1(tmp_path: Path) -> None:
    import sqlite3

    database = tmp_path / "ledger.db"
    running = LedgerService(tmp_path, f"sqlite:///{database}", pods=[MINE]).start()
    number = running.epoch()
    running.limit(number, {"usd": DOLLAR})
    allotment = running.active(number, MINE, {"usd": 1000})
    body = {"operation_id": new_id(), "records": [record_body(1, 5)]}
    running.ask("POST", records_path(allotment), body, meter_token(MINE))
    running.close()
    assert verify(running.database).returncode == 0
    with sqlite3.connect(database) as connection:
        connection.execute("UPDATE windows SET spent = spent + 1")
        connection.execute("UPDATE allotments SET requests = requests + 1")
        connection.execute("UPDATE accounts SET holders = 7")
    found = verify(running.database)
    assert found.returncode == 1
    for name in ("spent-sums-holds", "totals-sum-entries", "holders-are-open"):
        assert f"VIOLATION {name}" in found.stdout


def test_costs_are_printed_as_table_json_and_csv(service: LedgerService, epoch: int) -> None:
    allotment = service.active(epoch, MINE, {"usd": 1000})
    body = {"operation_id": new_id(), "records": [record_body(1, 5, model="special")]}
    service.ask("POST", records_path(allotment), body, meter_token(MINE))
    argv = [
        sys.executable,
        "-m",
        "almoner_cli.main",
        "ledger",
        "costs",
        "--by",
        "model",
    ]

    def printed(*more: str) -> str:
        environment = ledger_environment(service.database)
        return subprocess.run(
            [*argv, *more], env=environment, capture_output=True, text=True, check=True, timeout=60
        ).stdout

    assert "special" in printed()
    assert {"provider": "provider", "model": "special", "cost_usd": "0.000000005"}.items() <= next(
        row for row in json.loads(printed("-o", "json")) if row["model"] == "special"
    ).items()
    assert "provider,special,0.000000005," in printed("-o", "csv")
    assert "special" not in printed("--to", "2020-01-01")


# --- real tokens ------------------------------------------------------------------------------------------------------


def token_of(api: Any, namespace: str, account: str, audience: str, pod: Any = None) -> str:
    from kubernetes import client

    spec: dict[str, Any] = {"audiences": [audience], "expirationSeconds": 600}
    if pod is not None:
        spec["boundObjectRef"] = {
            "kind": "Pod",
            "apiVersion": "v1",
            "name": pod.metadata.name,
            "uid": pod.metadata.uid,
        }
    body = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": spec}
    return str(client.CoreV1Api(api).create_namespaced_service_account_token(account, namespace, body).status.token)


def test_callers_are_judged_by_real_token_reviews(
    control_plane: ControlPlane, kubernetes_api: Any, namespace: str, tmp_path: Path
) -> None:
    from kubernetes import client

    core = client.CoreV1Api(kubernetes_api)
    core.create_namespaced_service_account(namespace, {"metadata": {"name": "operator"}})
    pods = [
        core.create_namespaced_pod(
            namespace,
            {
                "metadata": {"name": name},
                "spec": {"containers": [{"name": "meter", "image": "meter"}], "schedulerName": "nobody"},
            },
        )
        for name in ("mine", "other")
    ]
    mine, other = (token_of(kubernetes_api, namespace, "default", "almoner-ledger", pod) for pod in pods)
    operator = token_of(kubernetes_api, namespace, "operator", "almoner-ledger")
    running = LedgerService(tmp_path, f"sqlite:///{tmp_path}/ledger.db", kubeconfig=control_plane.kubeconfig)
    running.arguments += ["--operator-user", f"system:serviceaccount:{namespace}:operator"]
    running.start()
    try:
        number = running.ask("POST", "/v1/epochs", {"operation_id": new_id(), "holder": "h"}, operator)["epoch"]
        item = open_item({}, accounts=[])
        running.ask("POST", "/v1/allotments:open", {"epoch": number, "items": [item]}, operator)
        bind = {"operation_id": new_id(), "allotment": item["allotment"], "pod_uid": pods[0].metadata.uid}
        running.ask("POST", "/v1/allotments:bind", {"epoch": number, "items": [bind]}, operator)
        path = f"/v1/allotments/{item['allotment']}/activate"
        body = {"operation_id": new_id()}
        assert running.refusal("POST", path, body, other)[1]["code"] == "forbidden"
        assert running.ask("POST", path, body, mine)["lease_seconds"] > 0
        refused = {
            "another audience": token_of(kubernetes_api, namespace, "default", "somebody-else", pods[0]),
            "forged signature": mine[:-20] + ("A" * 20),
            "no token at all": "x",
        }
        for name, token in refused.items():
            status, error = running.refusal("POST", path, {"operation_id": new_id()}, token)
            assert (status, error["code"]) == (401, "unauthenticated"), name
        # A pod is no operator, a token without a pod no meter, and neither reads what others spent.
        assert running.refusal("POST", "/v1/epochs", {"operation_id": new_id(), "holder": "h"}, mine)[0] == 403
        unbound = token_of(kubernetes_api, namespace, "default", "almoner-ledger")
        assert running.refusal("POST", path, {"operation_id": new_id()}, unbound)[0] == 403
        assert running.refusal("GET", "/v1/costs", token=mine)[0] == 403
        assert running.ask("GET", "/v1/costs", token=operator)["rows"] == []
    finally:
        running.close()
