"""Keys of cluster-scoped providers, handed over by the real ledger service from Secrets of a real API server."""

from __future__ import annotations

import base64
import json
import socket
import ssl
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from kubernetes import client

from almoner_core.wire import KeyGrant
from almoner_dev.certificates import Authority
from almoner_dev.scripted import Reply, ScriptedProvider, Usage
from almoner_ledger.errors import LedgerError
from almoner_ledger.provider_keys import BURST
from almoner_ledger.store import granted_keys
from tests.conftest import missing
from tests.support.books import Books, new_id
from tests.support.ledger_service import LedgerService, meter_token, open_item
from tests.support.meter import Meter, meter_config, provider_config
from tests.support.metered import chat
from tests.support.polling import until

Json = dict[str, Any]
KEY, ROTATED = "sk-of-the-whole-cluster", "sk-that-was-rotated"
LABEL = {"almoner.dev/provider-key": "true"}
GRANTS = [
    {"provider": name, "secret": secret, "key": key}
    for name, secret, key in (
        ("good", "good", "key"),
        ("unlabelled", "unlabelled", "key"),
        ("mislabelled", "mislabelled", "key"),
        ("missing", "missing", "key"),
        ("keyless", "good", "other"),
        ("lines", "lines", "key"),
        ("bytes", "bytes", "key"),
    )
]
PODS = [f"keys-pod-{number}" for number in range(12)]


class Desk:
    """A ledger service that reads Secrets of a namespace of its own, and what the operator tells it."""

    def __init__(self, service: LedgerService, core: client.CoreV1Api, namespace: str) -> None:
        self.service, self.core, self.namespace = service, core, namespace
        self.epoch = service.epoch()
        self.pods = list(PODS)

    def secret(self, name: str, value: bytes, labels: Json) -> None:
        data = {"key": base64.b64encode(value).decode()}
        self.core.create_namespaced_secret(self.namespace, {"metadata": {"name": name, "labels": labels}, "data": data})

    def rotate(self, name: str, value: str) -> None:
        self.core.patch_namespaced_secret(name, self.namespace, {"stringData": {"key": value}})

    def open(self, **more: Any) -> str:
        item = open_item({}, accounts=[], **{"keys": GRANTS, **more})
        (answer,) = self.service.open_items(self.epoch, [item])
        assert answer["error"] is None, answer
        return str(item["allotment"])

    def activate(self, allotment: str, pod: str) -> None:
        self.service.bind(self.epoch, allotment, pod)
        path = f"/v1/allotments/{allotment}/activate"
        self.service.ask("POST", path, {"operation_id": new_id()}, meter_token(pod))

    def active(self, **more: Any) -> tuple[str, str]:
        allotment, pod = self.open(**more), self.pods.pop()
        self.activate(allotment, pod)
        return allotment, pod

    def asked(self, allotment: str, pod: str, *providers: str) -> Json:
        """Ask as the pod's meter does; gives each provider's part of the answer."""
        path = f"/v1/allotments/{allotment}/keys"
        answer = self.service.ask("POST", path, {"providers": list(providers)}, meter_token(pod))
        return {each["provider"]: each for each in answer["keys"]}

    def refusal(self, allotment: str, pod: str) -> tuple[int, Json]:
        path = f"/v1/allotments/{allotment}/keys"
        return self.service.refusal("POST", path, {"providers": ["good"]}, meter_token(pod))


@pytest.fixture
def desk(kubernetes_api: Any, control_plane: Any, namespace: str, tmp_path: Path) -> Iterator[Desk]:
    service = LedgerService(tmp_path, f"sqlite:///{tmp_path}/ledger.db", pods=PODS)
    service.arguments += ["--kubeconfig", control_plane.kubeconfig, "--keys-namespace", namespace]
    made = Desk(service.start(), client.CoreV1Api(kubernetes_api), namespace)
    made.secret("good", f" {KEY}\n".encode(), LABEL)
    made.secret("unlabelled", b"postgresql://almoner:password@db", {})
    made.secret("mislabelled", b"x", {"almoner.dev/provider-key": "yes"})
    made.secret("lines", b"one\ntwo", LABEL)
    made.secret("bytes", b"\xff\xfe", LABEL)
    yield made
    service.kill()  # What it would say to meters that are gone takes its time.
    service.close()


def test_a_bound_pod_is_handed_its_keys_and_no_other(desk: Desk) -> None:
    allotment, pod = desk.active()
    answer = desk.service.request(
        "POST", f"/v1/allotments/{allotment}/keys", meter_token(pod), json={"providers": ["good"]}
    )
    assert answer.status_code == 200
    assert answer.headers["cache-control"] == "no-store"
    assert answer.json()["keys"] == [{"provider": "good", "key": KEY, "error": None}]
    names = [each["provider"] for each in GRANTS[1:]]
    handed = desk.asked(allotment, pod, *names, "of-another-team")
    assert all(each["key"] is None for each in handed.values())
    said = {name: (each["error"]["code"], each["error"]["message"]) for name, each in handed.items()}
    place = f"in namespace {desk.namespace}"
    assert said == {
        "unlabelled": ("forbidden", f'Secret unlabelled {place} lacks the label almoner.dev/provider-key: "true"'),
        "mislabelled": ("forbidden", f'Secret mislabelled {place} lacks the label almoner.dev/provider-key: "true"'),
        "missing": ("not_found", f"Secret missing {place} does not exist"),
        "keyless": ("not_found", f"Secret good {place} has no key other"),
        "lines": ("invalid", f"Secret lines {place}, key key: it is not one line of at most 16384 characters"),
        "bytes": ("invalid", f"Secret bytes {place}, key key: it is not one line of at most 16384 characters"),
        "of-another-team": ("forbidden", "provider of-another-team: this attempt may not have its key"),
    }


def test_who_may_not_ask_is_refused_by_name(desk: Desk) -> None:
    unbound, thief = desk.open(), desk.pods.pop()
    assert desk.refusal(unbound, thief)[1]["code"] == "not_bound"
    desk.service.bind(desk.epoch, unbound, owner := desk.pods.pop())
    status, error = desk.refusal(unbound, owner)
    assert (status, error["code"]) == (409, "wrong_state")
    assert error["message"] == "allotment: it is offered, and keys are handed over while it is active"
    desk.activate(unbound, owner)
    assert desk.asked(unbound, owner, "good")["good"]["key"] == KEY
    status, error = desk.refusal(unbound, thief)
    assert (status, error["code"]) == (403, "forbidden")
    assert error["message"] == "allotment: it belongs to another pod"
    assert desk.refusal(new_id(), thief)[1]["code"] == "not_found"
    final = {"operation_id": new_id(), "last_sequence": 0, "settled": {}, "final": True}
    desk.service.ask("POST", f"/v1/allotments/{unbound}/return", final, meter_token(owner))
    status, error = desk.refusal(unbound, owner)
    assert (status, error["code"]) == (409, "wrong_state")
    assert "closed" in error["message"]
    # Neither the operator nor a reader is handed any.
    for token in ("operator-token", "reader-token"):
        path = f"/v1/allotments/{unbound}/keys"
        assert desk.service.refusal("POST", path, {"providers": ["good"]}, token)[0] == 403


def test_an_attempt_without_keys_is_handed_none(desk: Desk) -> None:
    allotment, pod = desk.active(keys=None)
    assert desk.asked(allotment, pod, "good")["good"]["error"]["code"] == "forbidden"


def test_a_rotated_key_is_the_one_that_is_handed_over(desk: Desk) -> None:
    allotment, pod = desk.active()
    assert desk.asked(allotment, pod, "good")["good"]["key"] == KEY
    desk.rotate("good", ROTATED)

    def handed() -> bool:
        path = f"/v1/allotments/{allotment}/keys"
        answer = desk.service.request("POST", path, meter_token(pod), json={"providers": ["good"]})
        if answer.status_code != 200:
            assert "too often" in answer.text, answer.text
            return False
        return bool(answer.json()["keys"][0]["key"] == ROTATED)

    until(handed, 60, "the new key")


def test_a_pod_that_asks_without_end_is_refused(desk: Desk) -> None:
    allotment, pod = desk.active()
    path, body = f"/v1/allotments/{allotment}/keys", {"providers": ["good"]}
    answers = [desk.service.request("POST", path, meter_token(pod), json=body) for _ in range(BURST * 2)]
    refused = [answer.json()["error"] for answer in answers if answer.status_code != 200]
    assert {error["code"] for error in refused} == {"unavailable"}
    assert "too often" in refused[0]["message"]
    # The others' turn does not suffer.
    other, other_pod = desk.active()
    assert desk.asked(other, other_pod, "good")["good"]["key"] == KEY


def test_a_key_is_in_no_log_metric_or_database(desk: Desk, tmp_path: Path) -> None:
    allotment, pod = desk.active()
    assert desk.asked(allotment, pod, "good", "lines")["good"]["key"] == KEY
    metrics = desk.service.client.get("/metrics").text
    assert 'almoner_ledger_keys_asked_total{result="handed over"} 1.0' in metrics
    log = (tmp_path / "ledger.log").read_text()
    assert f"key of provider good for allotment {allotment}: handed over" in log
    for path in tmp_path.iterdir():
        for secret in (KEY.encode(), b"one\\ntwo", base64.b64encode(KEY.encode())):
            assert secret not in path.read_bytes(), path
    assert KEY not in metrics


@pytest.mark.parametrize("encrypted", [False, True], ids=["HTTP", "HTTPS"])
def test_over_the_network_keys_go_by_tls_alone(
    kubernetes_api: Any, control_plane: Any, namespace: str, tmp_path: Path, encrypted: bool
) -> None:
    core, host = client.CoreV1Api(kubernetes_api), own_address()
    tls: Json = {}
    if encrypted:
        authority = Authority(tmp_path / "authority")
        authority.directory.mkdir()
        authority.ensure()
        pair = authority.issue("ledger", "almoner-ledger", names=("localhost", host))
        folder = tmp_path / "tls"
        folder.mkdir()
        for name, path in zip(("tls.crt", "tls.key"), pair, strict=True):
            (folder / name).write_bytes(path.read_bytes())
        trusted = ssl.create_default_context(cadata=authority.certificate_path.read_text())
        tls = {"tls_dir": folder, "trusted": trusted}
    service = LedgerService(tmp_path, f"sqlite:///{tmp_path}/ledger.db", pods=PODS, host=host, **tls)
    service.arguments += ["--kubeconfig", control_plane.kubeconfig, "--keys-namespace", namespace]
    try:
        far = Desk(service.start(), core, namespace)
        far.secret("good", KEY.encode(), LABEL)
        allotment, pod = far.active()
        if encrypted:
            assert far.asked(allotment, pod, "good")["good"]["key"] == KEY
        else:
            status, error = far.refusal(allotment, pod)
            assert (status, error["code"]) == (403, "insecure")
            assert "give the ledger a certificate (--tls-dir)" in error["message"]
    finally:
        service.close()


def own_address() -> str:
    """An address of this machine that is not its loopback's."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asked:
        try:
            asked.connect(("203.0.113.1", 9))  # Sends nothing.
        except OSError as error:
            missing(error)
        return str(asked.getsockname()[0])


def test_without_the_right_to_read_secrets_it_says_so(
    desk: Desk, kubernetes_api: Any, control_plane: Any, namespace: str, tmp_path: Path
) -> None:
    """The ledger's account may read Secrets where its Role is, and nowhere else."""
    desk.core.create_namespaced_service_account(namespace, {"metadata": {"name": "poor"}})
    body = {"spec": {"expirationSeconds": 600}}
    token = desk.core.create_namespaced_service_account_token("poor", namespace, body).status.token
    document = yaml.safe_load(control_plane.kubeconfig.read_text())
    document["users"][0]["user"] = {"token": token}
    poor = tmp_path / "poor.kubeconfig"
    poor.write_text(yaml.safe_dump(document))
    service = LedgerService(tmp_path, f"sqlite:///{tmp_path}/other.db", pods=PODS, name="poor")
    service.arguments += ["--kubeconfig", poor, "--keys-namespace", namespace]
    try:
        allotment, pod = (other := Desk(service.start(), desk.core, namespace)).active()
        error = other.asked(allotment, pod, "good")["good"]["error"]
    finally:
        service.close()
    assert error["code"] == "unavailable"
    assert f"answered 403: grant the ledger get on secrets in {namespace}" in error["message"]


def test_grants_are_kept_with_the_allotment_on_both_databases(books: Books) -> None:
    grant = KeyGrant(provider="shared", secret="s", key="k")
    kept = books.active(need={}, keys=[grant], uid=new_id(), accounts=[])
    without = books.active(need={}, uid=new_id(), accounts=[])
    pods = {
        row.id: row.pod_uid
        for row in books.store.read(lambda c: c.exec_driver_sql("SELECT id, pod_uid FROM allotments").all())
    }
    given = books.store.read(lambda c: granted_keys.of(c, kept, pods[kept]))
    assert given == {"shared": grant}
    assert books.store.read(lambda c: granted_keys.of(c, without, pods[without])) == {}
    with pytest.raises(LedgerError, match="another pod"):
        books.store.read(lambda c: granted_keys.of(c, kept, pods[without] + "x"))


# --- meters -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def meter_for(desk: Desk, tmp_path: Path) -> Iterator[Callable[..., Meter]]:
    """Starts the real meter of an attempt whose provider's key the ledger hands over."""
    meters: list[Meter] = []

    def make(provider: str, base_url: str, *, grants: list[Json] = GRANTS) -> Meter:
        allotment, pod = desk.open(keys=grants or None), desk.pods.pop()
        desk.service.bind(desk.epoch, allotment, pod)
        folder = tmp_path / pod
        folder.mkdir()
        told = provider_config(base_url, name=provider, key_file=None, ledger_key=True)
        meter = Meter(folder, meter_config(desk.service.url, told, allotment=allotment))
        (folder / "token").write_text(meter_token(pod))
        meters.append(meter)
        meter.spawn()
        return meter

    yield make
    for meter in meters:
        meter.discard()


def sent_key(provider: ScriptedProvider) -> str:
    return str(provider.requests[-1]["headers"]["authorization"])


def test_a_meter_has_the_key_in_its_memory_alone(desk: Desk, meter_for: Callable[..., Meter], tmp_path: Path) -> None:
    with ScriptedProvider([Reply(text="hello", usage=Usage(input_tokens=10, output_tokens=5))]) as provider:
        meter = meter_for("good", provider.base_url)
        until(meter.healthy, 30, f"the meter's health: {meter.log}")
        assert chat(meter).choices
        assert sent_key(provider) == f"Bearer {KEY}"
        assert meter.child is not None
        process = Path("/proc") / str(meter.child.process.pid)
        for name in ("environ", "cmdline"):
            assert KEY.encode() not in (process / name).read_bytes()
        assert meter.stop() == 0, meter.log
        assert meter.last_word["final"] is True
        files = [each for each in tmp_path.rglob("*") if each.is_file() and each.suffix != ".kubeconfig"]
        assert len(files) > 5
        assert [each for each in files if KEY.encode() in each.read_bytes()] == []


def test_a_meter_takes_a_rotated_key_when_the_provider_knows_the_old_one_no_more(
    desk: Desk, meter_for: Callable[..., Meter]
) -> None:
    taken = Reply(text="hello", usage=Usage(input_tokens=10, output_tokens=5))

    def guard(_path: str, _body: object) -> Reply:
        return taken if sent_key(provider) == f"Bearer {ROTATED}" else Reply(status=401)

    with ScriptedProvider(choose=guard) as provider:
        meter = meter_for("good", provider.base_url)
        until(meter.healthy, 30, f"the meter's health: {meter.log}")
        desk.rotate("good", ROTATED)
        body = {"model": "test-model", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 5}
        until(lambda: meter.post("/openai/v1/chat/completions", body)[0] == 200, 60, "a call with the new key")
        assert meter.post("/openai/v1/chat/completions", body)[0] == 200


@pytest.mark.parametrize("provider", ["unlabelled", "missing"])
def test_a_meter_without_its_key_says_whose_and_why(desk: Desk, meter_for: Callable[..., Meter], provider: str) -> None:
    meter = meter_for(provider, "http://127.0.0.1:9")
    until(lambda: f"the key of provider {provider}" in meter.log, 30, f"the meter to say it: {meter.log}")
    assert meter.get_health("/healthz") == (
        503,
        "not ready: keys of providers: the ledger has not handed them over\n",
    )
    if provider == "missing":
        # It is asked for as long as the meter waits: what comes late is taken.
        desk.secret("missing", KEY.encode(), LABEL)
        until(meter.healthy, 60, f"the meter's health: {meter.log}")
        return
    assert meter.child is not None
    assert meter.child.process.wait(90) == 69
    word = meter.last_word
    assert "the key of provider unlabelled: forbidden: Secret unlabelled" in word["error"]
    assert json.dumps(word).count("password") == 0
    # Nothing was spent, and the books are told so.
    assert word["complete"] is True
    assert word["totals"]["cost_nanos"] == 0
