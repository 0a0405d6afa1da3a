"""Almoner itself on a local control plane: ledger and operator as the processes that they are in a cluster.

Role: tests, the demo and the benchmarks say `with Stack(control_plane) as stack:` and get the CRDs and RBAC installed,
a ledger (SQLite, or any database by URL) and an operator, each under its own service account's token and nothing more.
Each can be stopped, killed and started again; failpoints are armed by the operator's environment.

Boundary: starts what others wrote; knows their command lines and nothing of their insides.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import shutil
import ssl
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import yaml
from kubernetes import client, config
from kubernetes.client import ApiClient, ApiException

from almoner_core.contract import LEDGER_AUDIENCE
from almoner_dev import processes
from almoner_dev.certificates import Authority
from almoner_dev.controlplane import ControlPlane
from almoner_dev.crds import install_crds
from almoner_dev.ledger_environment import ledger_environment
from almoner_dev.processes import Child

SYSTEM_NAMESPACE: Final = "almoner-system"
OPERATOR_ACCOUNT: Final = "almoner-operator"
LEDGER_ACCOUNT: Final = "almoner-ledger"
RUNNER_IMAGE: Final = "almoner-runner:dev"
TOKEN_SECONDS: Final = 86_400
REFRESH_SECONDS: Final = 1200.0
READY_SECONDS: Final = 60.0
STOP_SECONDS: Final = 20.0
FIELD_MANAGER: Final = "almoner-install"
LOOPBACK: Final = "127.0.0.1"
APPLY_TRIES_MAX: Final = 20


class Stack:
    """Ledger and operator on a running control plane.

    database: an SQLAlchemy URL for the ledger; SQLite in the stack's folder where None. host_address: where the ledger
    listens, as runner pods reach it. runner_image: of runner pods. ledger_args: further arguments of the ledger.
    operator_args, operator_env: further arguments and environment of the operator, such as a failpoint. directory:
    scratch, temporary where None. detached: the processes outlive this one. tls: the ledger serves HTTPS, with a
    certificate of an authority of its own; without it keys of ClusterModelProviders are handed over on loopback alone.
    """

    def __init__(
        self,
        control_plane: ControlPlane,
        *,
        database: str | None = None,
        host_address: str = LOOPBACK,
        runner_image: str = RUNNER_IMAGE,
        namespaces: Sequence[str] = (),
        ledger_args: Sequence[str] = (),
        operator_args: Sequence[str] = (),
        operator_env: Mapping[str, str] | None = None,
        directory: Path | None = None,
        with_operator: bool = True,
        detached: bool = False,
        tls: bool = False,
    ) -> None:
        self.control_plane = control_plane
        self.ledger: Child | None = None
        self.operator: Child | None = None
        self.operator_env: dict[str, str] = dict(operator_env or {})
        self._database = database
        self._host_address = host_address
        self._runner_image = runner_image
        self._namespaces = tuple(namespaces)
        self._ledger_args = tuple(ledger_args)
        self._operator_args = tuple(operator_args)
        self._with_operator = with_operator
        self._detached = detached
        self._tls = tls
        self._temporary = directory is None
        self._directory = directory
        self._ports: dict[str, int] = {}
        self._stopped = threading.Event()
        self._refresher: threading.Thread | None = None

    # -- what is where -------------------------------------------------------------------------------

    @property
    def directory(self) -> Path:
        """The scratch folder, once started: logs, tokens, kubeconfigs, the SQLite database."""
        if self._directory is None:
            raise processes.ProcessError("the stack is not started: it has no folder yet")
        return self._directory

    @property
    def database(self) -> str:
        """The ledger's database."""
        return self._database or f"sqlite:///{self.directory / 'ledger.db'}"

    @property
    def ledger_url(self) -> str:
        """Address of the ledger, for the operator and for pods alike."""
        return f"http{'s' if self._tls else ''}://{self._host_address}:{self._ports['ledger']}"

    @property
    def ledger_ca(self) -> Path | None:
        """The certificate by which the ledger is known; None where it serves HTTP."""
        return self.directory / "ledger-ca" / "ca.crt" if self._tls else None

    @property
    def ledger_context(self) -> ssl.SSLContext | None:
        """What a client needs to ask the ledger."""
        return ssl.create_default_context(cafile=self.ledger_ca) if self._tls else None

    @property
    def health_url(self) -> str:
        """Address of the operator's probes and metrics."""
        return f"http://{LOOPBACK}:{self._ports['operator']}"

    @property
    def operator_log(self) -> Path:
        """The operator's log file."""
        return self.directory / "logs" / "operator.log"

    @property
    def ledger_log(self) -> Path:
        """The ledger's log file."""
        return self.directory / "logs" / "ledger.log"

    # -- starting and stopping -----------------------------------------------------------------------

    def start(self) -> Self:
        """Install and start everything; returns when the operator leads. Raises processes.ProcessError."""
        if self._directory is None:
            self._directory = Path(tempfile.mkdtemp(prefix="almoner-stack-"))
        self._directory.mkdir(parents=True, exist_ok=True)
        try:
            for name in ("ledger", "operator"):
                self._ports.setdefault(name, processes.free_port(self._host_address if name == "ledger" else LOOPBACK))
            install_crds(self.control_plane.kubeconfig)
            install_rbac(self.control_plane.kubeconfig)
            self._write_credentials()
            if self._tls:
                self._write_certificate()
            self._refresher = threading.Thread(target=self._refresh, name="stack-tokens", daemon=True)
            self._refresher.start()
            self.start_ledger()
            if self._with_operator:
                self.start_operator()
        except BaseException:
            self.stop()
            raise
        return self

    def stop(self) -> None:
        """Stop operator and ledger, and remove the scratch folder if it is temporary. Safe to call twice."""
        self._stopped.set()
        self.stop_operator()
        if self.ledger is not None:
            self.ledger.stop(deadline_s=STOP_SECONDS)
            self.ledger = None
        if self._temporary and self._directory is not None:
            shutil.rmtree(self._directory, ignore_errors=True)
            self._directory = None

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def start_ledger(self) -> None:
        """Start the ledger on its port and database, and wait until it serves."""
        self.ledger = processes.start(
            "ledger",
            [
                sys.executable,
                "-m",
                "almoner_ledger",
                "serve",
                "--listen",
                f"{self._host_address}:{self._ports['ledger']}",
                "--kubeconfig",
                self.directory / "ledger.kubeconfig",
                *(("--tls-dir", self.directory / "ledger-tls") if self._tls else ()),
                *self._ledger_args,
            ],
            log_path=self.ledger_log,
            env=ledger_environment(self.database),
            detached=self._detached,
        )
        processes.wait_until(
            lambda: _answers(f"{self.ledger_url}/readyz", self.ledger_context),
            seconds=READY_SECONDS,
            children=[self.ledger],
            what="the ledger to serve",
        )

    def kill_ledger(self) -> None:
        """SIGKILL the ledger, as a fault would."""
        if self.ledger is not None:
            self.ledger.kill()
            self.ledger = None

    def start_operator(self, *, env: Mapping[str, str] | None = None, wait: bool = True, beside: bool = False) -> None:
        """Start the operator; `env` adds to its environment this once. Waits until it leads and knows everything.

        `beside`: a second one, which stands by while the first leads; from then on it is the stack's own, and the first
        is the caller's to end.
        """
        if beside:
            self._ports["operator"] = processes.free_port(LOOPBACK)
        token = self.directory / "operator-ledger.token"
        environment = {**os.environ, **self.operator_env, **(env or {})}
        self.operator = processes.start(
            "operator",
            [
                sys.executable,
                "-m",
                "almoner_operator",
                *("--kubeconfig", self.directory / "operator.kubeconfig"),
                *("--ledger-url", self.ledger_url),
                *("--ledger-token-file", token),
                *(("--ledger-ca-file", self.ledger_ca) if self.ledger_ca is not None else ()),
                *("--runner-image", self._runner_image),
                *("--listen-address", LOOPBACK),
                *("--health-port", str(self._ports["operator"])),
                *("--metrics-port", str(self._ports["operator"])),
                *(("--namespaces", ",".join(self._namespaces)) if self._namespaces else ()),
                *self._operator_args,
            ],
            log_path=self.operator_log,
            env=environment,
            detached=self._detached,
        )
        if beside:
            processes.wait_until(
                lambda: bool(self.operator_state()),
                seconds=READY_SECONDS,
                children=[self.operator],
                what="the second operator to stand by",
            )
        elif wait:
            self.wait_operator()

    def wait_operator(self, seconds: float = READY_SECONDS) -> None:
        """Wait until the operator leads and its cache is full."""
        assert self.operator is not None
        processes.wait_until(
            lambda: bool(self.operator_state().get("synced")),
            seconds=seconds,
            children=[self.operator],
            what="the operator to lead",
        )

    def operator_state(self) -> dict[str, Any]:
        """What the operator says of itself: leader, synced, ledger; empty where it does not answer."""
        try:
            with urllib.request.urlopen(f"{self.health_url}/readyz", timeout=2) as answer:
                state: dict[str, Any] = json.load(answer)
        except urllib.error.HTTPError as error:
            state = json.load(error)  # Not ready, and it says why.
        except (OSError, ValueError):
            return {}
        return state

    def stop_operator(self) -> int | None:
        """Stop the operator as Kubernetes would (SIGTERM); gives its exit code."""
        if self.operator is None:
            return None
        code = self.operator.stop(deadline_s=STOP_SECONDS)
        self.operator = None
        return code

    def kill_operator(self) -> None:
        """SIGKILL the operator, as a fault would."""
        if self.operator is not None:
            self.operator.kill()
            self.operator = None

    def wait_operator_died(self, seconds: float = READY_SECONDS) -> int:
        """Wait until the operator ended by itself (at a failpoint); gives its exit code, negative for a signal."""
        assert self.operator is not None
        code = self.operator.process.wait(seconds)
        self.operator = None
        return code

    def restart_operator(self, *, env: Mapping[str, str] | None = None) -> None:
        """Stop the operator if it runs, and start it again."""
        self.stop_operator()
        self.start_operator(env=env)

    # -- credentials ---------------------------------------------------------------------------------

    def token(self, account: str, *, audience: str | None = None, namespace: str = SYSTEM_NAMESPACE) -> str:
        """Ask for a service account's token (TokenRequest), for the API server where no audience is given."""
        spec: dict[str, Any] = {"expirationSeconds": TOKEN_SECONDS}
        if audience is not None:
            spec["audiences"] = [audience]
        with config.new_client_from_config(str(self.control_plane.kubeconfig)) as api:
            answer = client.CoreV1Api(api).create_namespaced_service_account_token(
                account,
                namespace,
                {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": spec},
            )
        return str(answer.status.token)

    def _write_credentials(self) -> None:
        for name, account in (("operator", OPERATOR_ACCOUNT), ("ledger", LEDGER_ACCOUNT)):
            token_file = self.directory / f"{name}.token"
            _write(token_file, self.token(account))
            _write(self.directory / f"{name}.kubeconfig", self._kubeconfig(token_file))
        _write(self.directory / "operator-ledger.token", self.token(OPERATOR_ACCOUNT, audience=LEDGER_AUDIENCE))

    def _write_certificate(self) -> None:
        authority = Authority(self.directory / "ledger-ca")
        authority.directory.mkdir(exist_ok=True)
        authority.ensure()
        folder = self.directory / "ledger-tls"
        folder.mkdir(exist_ok=True)
        pair = authority.issue("ledger", LEDGER_ACCOUNT, names=("localhost", self._host_address))
        for name, path in zip(("tls.crt", "tls.key"), pair, strict=True):
            _write(folder / name, path.read_text())

    def _kubeconfig(self, token_file: Path) -> str:
        authority = base64.b64encode(self.control_plane.ca_file.read_bytes()).decode()
        cluster = {"server": self.control_plane.url, "certificate-authority-data": authority}
        return yaml.safe_dump(
            {
                "apiVersion": "v1",
                "kind": "Config",
                "clusters": [{"name": "local", "cluster": cluster}],
                "users": [{"name": "account", "user": {"tokenFile": str(token_file)}}],
                "contexts": [{"name": "local", "context": {"cluster": "local", "user": "account"}}],
                "current-context": "local",
            }
        )

    def _refresh(self) -> None:
        """Replace the tokens long before they expire, as the kubelet does."""
        while not self._stopped.wait(REFRESH_SECONDS):
            with contextlib.suppress(ApiException, OSError):
                self._write_credentials()


def install_rbac(kubeconfig: Path) -> None:
    """Apply deploy/rbac.yaml, server-side."""
    documents = [each for each in yaml.safe_load_all(rbac_file().read_text()) if each]
    with config.new_client_from_config(str(kubeconfig)) as api:
        for document in documents:
            apply(api, document)


def rbac_file() -> Path:
    """Where the roles lie: in the checkout, or beside this module in a wheel."""
    here = Path(__file__).resolve()
    for path in (here.parents[2] / "deploy" / "rbac.yaml", here.parent / "_deploy" / "rbac.yaml"):
        if path.exists():
            return path
    raise FileNotFoundError("deploy/rbac.yaml is missing")


_PLURALS: Final = {
    "Namespace": ("/api/v1", "namespaces"),
    "ServiceAccount": ("/api/v1", "serviceaccounts"),
    "ClusterRole": ("/apis/rbac.authorization.k8s.io/v1", "clusterroles"),
    "ClusterRoleBinding": ("/apis/rbac.authorization.k8s.io/v1", "clusterrolebindings"),
    "Role": ("/apis/rbac.authorization.k8s.io/v1", "roles"),
    "RoleBinding": ("/apis/rbac.authorization.k8s.io/v1", "rolebindings"),
}


def apply(api: ApiClient, document: Mapping[str, Any]) -> None:
    """Apply one object of the kinds that an installation has, server-side. Raises ApiException."""
    prefix, plural = _PLURALS[document["kind"]]
    namespace = document["metadata"].get("namespace")
    path = f"{prefix}/namespaces/{namespace}/{plural}" if namespace else f"{prefix}/{plural}"
    path = f"{path}/{document['metadata']['name']}?fieldManager={FIELD_MANAGER}&force=true"
    headers = {"Accept": "application/json", "Content-Type": "application/apply-patch+yaml"}
    for attempt in range(APPLY_TRIES_MAX):
        api.update_params_for_auth(headers, [], ["BearerToken"], path, "PATCH", document)
        answer = api.call_api("PATCH", api.configuration.host + path, header_params=headers, body=document)
        content = answer.read()
        if 200 <= answer.status < 300:
            return
        # A namespace is usable a moment after it was made.
        if answer.status not in (404, 500, 503) or attempt == APPLY_TRIES_MAX - 1:
            raise ApiException(status=answer.status, reason=answer.reason, body=content.decode(errors="replace"))
        time.sleep(0.1)


def _answers(url: str, context: ssl.SSLContext | None) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=2, context=context) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def _write(path: Path, text: str) -> None:
    """Replace a file at once, readable by its owner alone."""
    fresh = path.with_name(f"{path.name}.new")
    fresh.touch(mode=0o600)
    fresh.write_text(text)
    fresh.rename(path)
