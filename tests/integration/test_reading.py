"""People read what the API server lets them: a real one, its roles, and tokens as `kubectl create token` gives them."""

from __future__ import annotations

import json
import os
import secrets
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from almoner_ledger.auth import Role
from almoner_ledger.routes import ROUTES
from tests.support.books import new_id
from tests.support.ledger_service import LedgerService, meter_token, open_item, record_body
from tests.support.pages import blocks_of, sections_of
from tests.support.polling import until
from tests.support.tcp_proxy import TcpProxy

if TYPE_CHECKING:
    from almoner_dev.controlplane import ControlPlane

ROOT = Path(__file__).resolve().parents[2]
POD = "pod"
SYSTEM = "almoner-system"
AUDIENCE = "almoner-ledger"
NOBODYS = "00000000-0000-4000-8000-000000000000"
READING_SECONDS = 1
RBAC = {"apiGroup": "rbac.authorization.k8s.io"}
VIEWER = {**RBAC, "kind": "ClusterRole", "name": "almoner-viewer"}

CALLS = {
    "/v1/usage": "/v1/usage?by=namespace",
    "/v1/executions": "/v1/executions?limit=5",
    "/v1/records": "/v1/records?limit=5",
    "/v1/costs": "/v1/costs?by=agent",
    "/v1/executions/{uid}/output": "/v1/executions/%s/output",
    "/v1/audit/changes": "/v1/audit/changes?limit=5",
}
"""How each call to people is made. A call that is not here is not known to be guarded: add it."""
LISTS = [each for each in CALLS.values() if "%s" not in each and "costs" not in each and "audit" not in each]
AUDIT = CALLS["/v1/audit/changes"]


@dataclass
class Site:
    """A ledger whose books have an execution in each of two namespaces, `a` and `b`; `uids` has both."""

    ledger: LedgerService
    proxy: TcpProxy
    core: Any
    rbac: Any
    a: str
    b: str
    uids: dict[str, str]

    def account(self, namespace: str) -> str:
        """Make a service account; gives its name."""
        name = f"sa-{secrets.token_hex(3)}"
        self.core.create_namespaced_service_account(namespace, {"metadata": {"name": name}})
        return name

    def token(self, namespace: str, account: str, audience: str | None = None, pod: Any = None) -> str:
        """Ask for a token, of the API server's own audience where none is named."""
        spec: dict[str, Any] = {"expirationSeconds": 600}
        if audience is not None:
            spec["audiences"] = [audience]
        if pod is not None:
            bound = {"kind": "Pod", "apiVersion": "v1", "name": pod.metadata.name, "uid": pod.metadata.uid}
            spec["boundObjectRef"] = bound
        body = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": spec}
        return str(self.core.create_namespaced_service_account_token(account, namespace, body).status.token)

    def reader(self, *namespaces: str, everywhere: bool = False) -> str:
        """Make somebody who may view namespaces; gives a token of theirs."""
        account = self.account(self.a)
        self.bind(account, *namespaces, everywhere=everywhere)
        return self.token(self.a, account)

    def bind(self, account: str, *namespaces: str, everywhere: bool = False) -> None:
        """Let a service account of namespace `a` view."""
        subject = {"kind": "ServiceAccount", "name": account, "namespace": self.a}
        body = {"metadata": {"name": account}, "roleRef": VIEWER, "subjects": [subject]}
        for namespace in namespaces:
            self.rbac.create_namespaced_role_binding(namespace, body)
        if everywhere:
            self.rbac.create_cluster_role_binding(body)

    def answer(self, path: str, token: str) -> tuple[int, Any]:
        """Ask; gives the status, and the error if there is one, else what was said."""
        found = self.ledger.request("GET", path, token)
        if found.headers["Content-Type"].startswith("text/plain"):
            return found.status_code, found.text
        return found.status_code, found.json().get("error", found.json())


def ledgers_kubeconfig(plane: ControlPlane, site_port: int, token: str, path: Path) -> Path:
    """Write how the ledger reaches the API server: by its own service account, over a proxy that can be cut."""
    document = yaml.safe_load(plane.kubeconfig_text(token=token))
    for each in document["clusters"]:
        each["cluster"]["server"] = f"https://127.0.0.1:{site_port}"
    path.write_text(yaml.safe_dump(document))
    return path


@pytest.fixture(scope="module")
def site(control_plane: ControlPlane, kubernetes_api: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    from kubernetes import client

    from almoner_dev.stack import install_rbac

    install_rbac(control_plane.kubeconfig)
    folder = tmp_path_factory.mktemp("reading")
    core = client.CoreV1Api(kubernetes_api)
    names = [f"{letter}-{secrets.token_hex(4)}" for letter in "ab"]
    for name in names:
        core.create_namespace({"metadata": {"name": name}})
    ledger = LedgerService(folder, f"sqlite:///{folder}/ledger.db", pods=[POD])
    with TcpProxy(int(control_plane.url.rpartition(":")[2])) as proxy:
        made = Site(ledger, proxy, core, client.RbacAuthorizationV1Api(kubernetes_api), names[0], names[1], {})
        own = made.token(SYSTEM, "almoner-ledger")
        kubeconfig = ledgers_kubeconfig(control_plane, proxy.port, own, folder / "kubeconfig")
        ledger.arguments += ["--kubeconfig", kubeconfig, "--reading-seconds", str(READING_SECONDS)]
        ledger.start()
        _fill(made)
        yield made
        ledger.close()
    for name in names:
        core.delete_namespace(name)


def _fill(site: Site) -> None:
    epoch = site.ledger.epoch()
    for namespace in (site.a, site.b):
        quota = {"kind": "ResourceQuota", "namespace": namespace, "name": "quota", "uid": namespace, "generation": 1}
        told = {"epoch": epoch, "operation_id": new_id(), "objects": [{**quota, "spec": '{"budget":"5"}'}]}
        assert site.ledger.ask("POST", "/v1/configuration:observe", told) == {"changes": 1, "refused": []}
        item = open_item({}, accounts=[])
        execution = {**item["execution"], "namespace": namespace}
        site.uids[namespace] = execution["uid"]
        allotment = site.ledger.active(epoch, POD, {}, accounts=[], execution=execution)
        path, token = f"/v1/allotments/{allotment}", meter_token(POD)
        body: dict[str, Any] = {"operation_id": new_id(), "records": [record_body(1, 100)]}
        site.ledger.ask("POST", f"{path}/records", body, token)
        site.ledger.ask("PUT", f"{path}/output", {"operation_id": new_id(), "content": namespace}, token)


def calls(site: Site, namespace: str) -> list[str]:
    """Every call, about one namespace."""
    found = []
    for route in ROUTES:
        if route.role is Role.READER:
            path = CALLS[route.path]
            if "%s" in path:
                found.append(path % site.uids[namespace])
            elif any(each.name == "namespace" for each in route.parameters):
                found.append(f"{path}&namespace={namespace}")
    return found


def test_every_call_to_people_is_in_the_table() -> None:
    assert {route.path for route in ROUTES if route.role is Role.READER} == CALLS.keys()


@pytest.fixture
def nobody(site: Site) -> str:
    return site.reader()


@pytest.fixture
def as_reader(site: Site) -> str:
    return site.reader(site.a)


def test_a_reader_of_one_namespace_sees_it_and_no_other(site: Site, as_reader: str) -> None:
    for path in calls(site, site.a):
        status, said = site.answer(path, as_reader)
        assert (status, site.b in str(said), site.a in str(said)) == (200, False, True), (path, said)
    for path in calls(site, site.b):
        status, said = site.answer(path, as_reader)
        assert (status, said["code"]) == (403, "forbidden"), path
        assert site.uids[site.b] not in said["message"]


def test_nobody_sees_nothing_and_whoever_views_all_sees_all(site: Site, nobody: str) -> None:
    everyone = site.reader(everywhere=True)
    for path in [*calls(site, site.a), *calls(site, site.b), *LISTS, CALLS["/v1/costs"], AUDIT]:
        assert site.answer(path, nobody)[0] == 403, path
        assert site.answer(path, everyone)[0] == 200, path
    for path in LISTS:
        said = str(site.answer(path, everyone)[1])
        assert (site.a in said, site.b in said) == (True, True)


@pytest.mark.parametrize("path", [*LISTS, CALLS["/v1/costs"], AUDIT])
def test_all_namespaces_are_refused_by_name_to_whoever_may_read_some(site: Site, as_reader: str, path: str) -> None:
    status, error = site.answer(path, as_reader)
    assert (status, error["code"], error["field"]) == (403, "forbidden", "namespace")
    assert "--namespace NAME" in error["message"]


@pytest.mark.parametrize(
    ("filters", "status"),
    [
        ("namespace={a}", 200),
        ("namespace={a}&namespace={b}", 403),
        ("agent={a}/agent", 200),
        ("agent={b}/agent", 403),
        ("agent={a}/agent&agent={b}/agent", 403),
        ("agent=agent", 403),
        ("agent={a}/agent&agent=agent", 403),
        ("execution={a}/run", 200),
        ("execution={b}/run", 403),
        ("owner=owner", 403),
        ("uid={uid}", 403),
        ("uid={uid}&namespace={a}", 200),
        ("namespace=", 403),
        ("namespace={a}&execution={b}/run", 200),
        ("namespace=%F0%9F%92%A9", 403),
        ("namespace={a}/../{b}", 403),
    ],
)
@pytest.mark.parametrize("path", LISTS)
def test_filters_say_which_namespaces_are_asked_about(
    site: Site, as_reader: str, path: str, filters: str, status: int
) -> None:
    asked = filters.format(a=site.a, b=site.b, uid=site.uids[site.b])
    found, said = site.answer(f"{path}&{asked}", as_reader)
    assert found == status, said
    if status == 200 and ("uid=" in asked or ("execution=" in asked and site.b in asked)):
        # Both hold: what is in the other namespace is not there.
        assert [said[name] for name in ("rows", "records", "executions") if name in said] == [[]]


@pytest.mark.parametrize(
    ("filters", "status"),
    [
        ("namespace={a}", 200),
        ("namespace={a}&kind=ResourceQuota&kind=ModelProvider", 200),
        ("namespace={a}&namespace={b}", 403),
        ("namespace={b}&kind=ResourceQuota", 403),
        ("", 403),
        ("uid={b}", 403),
        ("name=quota", 403),
        ("namespace={a}&kind=Secret", 400),
        ("namespace={a}&agent=x", 400),
    ],
)
def test_changes_of_the_configuration_are_for_whoever_may_get_what_changed(
    site: Site, as_reader: str, filters: str, status: int
) -> None:
    found, said = site.answer(f"{AUDIT}&{filters.format(a=site.a, b=site.b)}", as_reader)
    assert found == status, said
    if status == 200:
        assert [(each["namespace"], each["action"]) for each in said["changes"]] == [(site.a, "created")]


def test_the_clusters_providers_are_no_part_of_a_question_about_a_namespace(site: Site, as_reader: str) -> None:
    status, error = site.answer(f"{AUDIT}&kind=ClusterModelProvider", as_reader)
    assert (status, "get clustermodelproviders.almoner.dev in all namespaces" in error["message"]) == (403, True)
    assert site.answer(f"{AUDIT}&kind=ClusterModelProvider", site.reader(everywhere=True))[0] == 200


def test_reading_what_was_spent_is_not_reading_who_changed_a_limit(site: Site) -> None:
    rules = [{"apiGroups": ["almoner.dev"], "resources": ["executions", "modelproviders"], "verbs": ["get"]}]
    account = site.account(site.a)
    site.rbac.create_namespaced_role(site.a, {"metadata": {"name": account}, "rules": rules})
    subjects = [{"kind": "ServiceAccount", "name": account, "namespace": site.a}]
    role = {**RBAC, "kind": "Role", "name": account}
    body = {"metadata": {"name": account}, "roleRef": role, "subjects": subjects}
    site.rbac.create_namespaced_role_binding(site.a, body)
    token = site.token(site.a, account)
    assert site.answer(f"{CALLS['/v1/usage']}&namespace={site.a}", token)[0] == 200
    status, error = site.answer(f"{AUDIT}&namespace={site.a}", token)
    assert (status, "get resourcequotas.almoner.dev" in error["message"]) == (403, True)
    status, said = site.answer(f"{AUDIT}&namespace={site.a}&kind=ModelProvider", token)
    assert (status, said) == (200, {"changes": [], "next": None})


def test_an_output_that_may_not_be_read_is_as_one_that_is_not_there(site: Site, as_reader: str) -> None:
    path = CALLS["/v1/executions/{uid}/output"]
    assert site.answer(path % site.uids[site.b], as_reader) == site.answer(path % NOBODYS, as_reader)
    inside = f"?namespace={site.a}"
    assert site.answer(path % site.uids[site.a] + inside, as_reader) == (200, site.a)
    hidden = site.answer(path % site.uids[site.b] + inside, as_reader)
    assert hidden == site.answer(path % NOBODYS + inside, as_reader)
    assert hidden[0] == 404
    assert site.answer(path % NOBODYS, site.reader(everywhere=True))[0] == 404


def test_a_meters_token_reads_nothing_whatever_its_service_account_may(site: Site) -> None:
    account = site.account(site.a)
    site.bind(account, site.a)
    spec = {"containers": [{"name": "m", "image": "m"}], "schedulerName": "nobody", "serviceAccountName": account}
    pod = site.core.create_namespaced_pod(site.a, {"metadata": {"name": account}, "spec": spec})
    meter = site.token(site.a, account, AUDIENCE, pod)
    for path in [*calls(site, site.a), *LISTS]:
        assert site.answer(path, meter)[0] == 403, path
    # The same pod with a token for the API server is a program that may look; and it is no meter.
    inside = site.token(site.a, account, pod=pod)
    assert {site.answer(path, inside)[0] for path in calls(site, site.a)} == {200}
    body = {"operation_id": new_id()}
    assert site.ledger.refusal("POST", f"/v1/allotments/{NOBODYS}/activate", body, inside)[0] == 401
    assert site.ledger.refusal("POST", f"/v1/allotments/{NOBODYS}/activate", body, meter)[0] == 404


def test_the_operators_own_token_for_the_api_server_does_not_make_it_the_operator(site: Site) -> None:
    body = {"operation_id": new_id(), "holder": "h"}
    assert site.ledger.refusal("POST", "/v1/epochs", body, site.token(SYSTEM, "almoner-operator"))[0] == 401
    assert site.ledger.refusal("GET", "/v1/changes", None, site.token(SYSTEM, "almoner-operator"))[0] == 401
    named = site.token(SYSTEM, "almoner-operator", AUDIENCE)
    assert site.ledger.request("GET", "/v1/changes", named).status_code == 200
    assert site.answer(CALLS["/v1/usage"], named)[0] == 200


def test_a_token_for_the_ledgers_audience_reads_by_the_same_rights(site: Site) -> None:
    account = site.account(site.a)
    site.bind(account, site.a)
    token = site.token(site.a, account, AUDIENCE)
    assert {site.answer(path, token)[0] for path in calls(site, site.a)} == {200}
    assert {site.answer(path, token)[0] for path in calls(site, site.b)} == {403}
    assert site.answer(CALLS["/v1/usage"], site.token(site.a, account, "somebody-else"))[0] == 401


def test_a_right_that_is_taken_away_is_gone_when_the_answer_has_held_its_time(site: Site) -> None:
    account = site.account(site.a)
    token, path = site.token(site.a, account), f"{CALLS['/v1/usage']}&namespace={site.b}"
    assert site.answer(path, token)[0] == 403
    site.bind(account, site.b)
    until(lambda: site.answer(path, token)[0] == 200, 30, "the right to be known")
    site.rbac.delete_namespaced_role_binding(account, site.b)
    until(lambda: site.answer(path, token)[0] == 403, 30, "the right to be gone")


def test_what_the_page_says_to_type_works(site: Site, control_plane: ControlPlane) -> None:
    from almoner_dev import binaries

    account = site.account(site.a)
    site.bind(account, site.a)
    page = (ROOT / "docs" / "history.md").read_text(encoding="utf-8")
    (block,) = blocks_of(sections_of(page)["HTTP"])
    script = "\n".join(block.lines).replace("https://localhost:8780", site.ledger.url).replace("--cacert ca.crt ", "")
    script = script.replace("token ann", f"token {account}").replace("team-a", site.a)
    kubectl = binaries.find(["kubectl"]).path("kubectl")
    environ = {
        **os.environ,
        "KUBECONFIG": str(control_plane.kubeconfig),
        "PATH": f"{kubectl.parent}:{os.environ['PATH']}",
    }
    typed = subprocess.run(
        ["bash", "-euc", script], env=environ, capture_output=True, text=True, timeout=60, check=False
    )
    assert typed.returncode == 0, typed.stderr
    assert json.loads(typed.stdout)["rows"][0]["key"][1:] == [site.a, "agent"]


def test_while_the_api_server_is_away_nothing_new_is_allowed(site: Site, as_reader: str) -> None:
    mine, other = (f"{CALLS['/v1/usage']}&namespace={name}" for name in (site.a, site.b))
    new = site.reader(site.a)
    assert site.answer(mine, as_reader)[0] == 200
    target, site.proxy.target = site.proxy.target, 1
    try:
        site.proxy.cut()
        refused = until(lambda: _unavailable(site.answer(other, as_reader)), 30, "the refusal to be asked about anew")
        assert "could not be asked whether you may read" in refused
        assert site.answer(mine, as_reader)[0] == 200
        assert site.answer(mine, new)[0] == 503
    finally:
        site.proxy.target = target
    until(lambda: site.answer(mine, new)[0] == 200, 30, "the API server to be asked again")
    assert site.answer(other, as_reader)[0] == 403


def _unavailable(answer: tuple[int, Any]) -> str:
    return str(answer[1]["message"]) if answer[0] == 503 else ""
