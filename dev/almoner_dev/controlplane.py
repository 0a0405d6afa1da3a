"""A real Kubernetes control plane on this machine's loopback, for tests, the demo and developers.

Role: starts etcd, kube-apiserver, kube-controller-manager and kube-scheduler on free ports with a
scratch folder of their own, waits until they serve, hands out an administrator's kubeconfig, and
stops them. Several can run side by side. No node: pods stay Pending until something runs them.

Boundary: knows how the components are configured, and nothing of Almoner's own resources. Where the
binaries come from is binaries.py's business.

    with ControlPlane() as cluster:
        subprocess.run(["kubectl", "--kubeconfig", cluster.kubeconfig, "get", "namespaces"])
"""

from __future__ import annotations

import atexit
import base64
import contextlib
import ipaddress
import json
import os
import secrets
import shutil
import ssl
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import yaml

from almoner_dev import binaries, processes
from almoner_dev.certificates import Authority, service_account_keys, write_private
from almoner_dev.processes import Child, ProcessError

LOOPBACK = "127.0.0.1"
SERVICE_CIDR = "10.96.0.0/16"
SERVICE_IP = "10.96.0.1"
"""The first address of the range: the API server's own Service, `kubernetes.default.svc`."""
READY_SECONDS = 120.0
STOP_SECONDS = 5.0
"""After this long a component is killed: its data is scratch, and nothing waits for it."""
REQUEST_SECONDS = 5.0

ETCD = "etcd"
API_SERVER = "kube-apiserver"
CONTROLLER_MANAGER = "kube-controller-manager"
SCHEDULER = "kube-scheduler"
RELAY = "relay"


class ControlPlane:
    """A control plane, started by `start()` or by entering it as a context.

    `directory` is its scratch folder; None makes a temporary one that `stop()` removes. A folder given
    is kept, and what it holds (keys, etcd's data) is used again. `bind_addresses` are further addresses
    of this machine, such as a bridge's, on which the API server answers under the same port number, for
    pods in network namespaces. `detached` lets the components outlive this process; `on_start` is
    told of each one at once, to record it. `apiserver_args` are further flags of the API server.
    """

    def __init__(
        self,
        *,
        directory: Path | None = None,
        with_controller_manager: bool = True,
        with_scheduler: bool = True,
        bind_addresses: Sequence[str] = (),
        detached: bool = False,
        on_start: Callable[[Child], None] | None = None,
        fsync: bool = False,
        apiserver_args: Sequence[str] = (),
        ready_seconds: float = READY_SECONDS,
    ) -> None:
        self.bind_addresses = [str(ipaddress.ip_address(address)) for address in bind_addresses]
        self.with_controller_manager = with_controller_manager
        self.with_scheduler = with_scheduler
        self.detached = detached
        self.children: dict[str, Child] = {}
        self.binaries: binaries.Binaries | None = None
        self._on_start = on_start
        self._fsync = fsync
        self._apiserver_args = list(apiserver_args)
        self._ready_seconds = ready_seconds
        self._own_directory = directory is None
        self._directory = directory
        self._ports: dict[str, int] = {}
        self._token = ""
        self._lock = threading.RLock()

    @property
    def directory(self) -> Path:
        """The scratch folder, once started."""
        if self._directory is None:
            raise ProcessError("the control plane is not started: it has no folder, address or token yet")
        return self._directory

    @property
    def kubeconfig(self) -> Path:
        """A kubeconfig of an administrator (system:masters), mode 0600."""
        return self.directory / "kubeconfig"

    @property
    def url(self) -> str:
        """The API server's address on loopback."""
        return f"https://{LOOPBACK}:{self.port}"

    @property
    def port(self) -> int:
        """The API server's port, the same on every address."""
        return self._ports[API_SERVER]

    @property
    def token(self) -> str:
        """The administrator's bearer token."""
        return self._token

    @property
    def ca_file(self) -> Path:
        """The certificate authority that signed the API server's certificate, in PEM."""
        return self._authority.certificate_path

    @property
    def service_account_issuer(self) -> str:
        """The issuer, and default audience, of service account tokens."""
        return "https://kubernetes.default.svc"

    def url_at(self, address: str) -> str:
        """The API server's address as seen through one of `bind_addresses`."""
        return f"https://{_bracketed(address)}:{self.port}"

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def start(self) -> None:
        """Starts everything and returns when it serves.

        Raises binaries.BinariesMissing when there are no binaries and none can be made, and ProcessError,
        with the end of the failing component's log, when one does not start.
        """
        with self._lock:
            if self.children:
                return
            needed = [ETCD, API_SERVER]
            needed += [CONTROLLER_MANAGER] if self.with_controller_manager else []
            needed += [SCHEDULER] if self.with_scheduler else []
            self.binaries = binaries.find(needed)
            if self._directory is None:
                self._directory = processes.scratch_directory("almoner-controlplane-")
            atexit.register(self.stop)
            try:
                self._prepare()
                for name in needed:
                    self._launch(name)
                for address in self.bind_addresses:
                    self._relay(address)
                self._wait(needed)
                for address in self.bind_addresses:
                    self._wait_for_address(address)
            except BaseException:
                # ^C included: whatever was started is stopped before anybody hears of it.
                if self.detached:
                    self._stop_children()
                self.stop()
                raise

    def stop(self) -> None:
        """Stops what runs, and removes the scratch folder if it is temporary. May be called again.

        A detached control plane is left alone; see almoner_dev.state.
        """
        with self._lock:
            atexit.unregister(self.stop)
            if self.detached:
                self.children.clear()
                return
            self._stop_children()
            if self._own_directory and self._directory is not None:
                shutil.rmtree(self._directory, ignore_errors=True)

    def kill(self, name: str) -> None:
        """Kills a component ("etcd", "kube-apiserver", ...) at once, as a fault would."""
        with self._lock:
            self.children[name].kill()

    def restart(self, name: str) -> None:
        """Starts a component again on the same port and data, stopping it first if it runs, and waits until ready."""
        with self._lock:
            self.children[name].stop(deadline_s=STOP_SECONDS)
            self._launch(name)
            self._wait([each for each in (ETCD, API_SERVER, CONTROLLER_MANAGER, SCHEDULER) if each in self.children])

    def listen_on(self, address: str) -> str:
        """Makes the API server answer on one more address of this machine too; returns the URL there.

        For a bridge that was made after the control plane. The certificate is issued anew with the
        address in it; the API server takes it up by itself, within a few seconds.
        """
        with self._lock:
            address = str(ipaddress.ip_address(address))
            if address not in self.bind_addresses:
                self.bind_addresses.append(address)
                self._issue_serving_certificate()
                self._relay(address)
                self._wait_for_address(address)
            return self.url_at(address)

    # -- preparation ---------------------------------------------------------------------------------

    @property
    def _authority(self) -> Authority:
        return Authority(self.directory / "pki")

    def _prepare(self) -> None:
        pki = self.directory / "pki"
        pki.mkdir(mode=0o700, parents=True, exist_ok=True)
        (self.directory / "logs").mkdir(exist_ok=True)
        for name in (ETCD, "etcd-peer", API_SERVER, CONTROLLER_MANAGER, SCHEDULER):
            self._ports.setdefault(name, processes.free_port(LOOPBACK))
        self._authority.ensure()
        self._issue_serving_certificate()
        service_account_keys(pki)
        token_file = pki / "tokens.csv"
        if token_file.exists():
            self._token = token_file.read_text().partition(",")[0]
        else:
            self._token = secrets.token_urlsafe(32)
            write_private(token_file, f"{self._token},admin,admin,system:masters\n".encode())
        write_private(self.kubeconfig, self.kubeconfig_text().encode())
        self._write_scheduler_config()

    def _issue_serving_certificate(self) -> None:
        names = ["kubernetes", "kubernetes.default", "kubernetes.default.svc", "localhost", LOOPBACK, SERVICE_IP]
        self._authority.issue("apiserver", "kube-apiserver", names=[*names, *self.bind_addresses])

    def kubeconfig_text(self, *, address: str | None = None, token: str | None = None) -> str:
        """Returns a kubeconfig, for another of the addresses or another bearer token if asked."""
        cluster = {
            "server": self.url if address is None else self.url_at(address),
            "certificate-authority-data": _base64(self.ca_file.read_bytes()),
        }
        name = "almoner-dev"
        document = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": name, "cluster": cluster}],
            "users": [{"name": name, "user": {"token": token or self._token}}],
            "contexts": [{"name": name, "context": {"cluster": name, "user": name, "namespace": "default"}}],
            "current-context": name,
        }
        return yaml.safe_dump(document, sort_keys=False)

    def _write_scheduler_config(self) -> None:
        document = {
            "apiVersion": "kubescheduler.config.k8s.io/v1",
            "kind": "KubeSchedulerConfiguration",
            "clientConnection": {"kubeconfig": str(self.kubeconfig), "qps": 500, "burst": 1000},
            "leaderElection": {"leaderElect": False},
        }
        (self.directory / "scheduler.yaml").write_text(yaml.safe_dump(document))

    # -- the components ------------------------------------------------------------------------------

    def _launch(self, name: str) -> None:
        assert self.binaries is not None
        arguments = {
            ETCD: self._etcd_arguments,
            API_SERVER: self._apiserver_arguments,
            CONTROLLER_MANAGER: self._controller_manager_arguments,
            SCHEDULER: self._scheduler_arguments,
        }[name]()
        self._begin(name, [self.binaries.path(name), *arguments])

    def _begin(self, name: str, argv: Sequence[str | Path], env: dict[str, str] | None = None) -> None:
        child = processes.start(
            name,
            argv,
            log_path=self.directory / "logs" / f"{name.replace(' ', '-').replace(':', '-')}.log",
            cwd=self.directory,
            env=env,
            detached=self.detached,
        )
        self.children[name] = child
        if self._on_start is not None:
            self._on_start(child)

    def _etcd_arguments(self) -> list[str]:
        client, peer = (f"http://{LOOPBACK}:{self._ports[name]}" for name in (ETCD, "etcd-peer"))
        return [
            f"--data-dir={self.directory / 'etcd'}",
            f"--listen-client-urls={client}",
            f"--advertise-client-urls={client}",
            f"--listen-peer-urls={peer}",
            f"--initial-advertise-peer-urls={peer}",
            f"--initial-cluster=default={peer}",
            "--log-level=warn",
            *([] if self._fsync else ["--unsafe-no-fsync"]),
        ]

    def _apiserver_arguments(self) -> list[str]:
        pki = self.directory / "pki"
        outside = self.bind_addresses[:1]
        admission = [] if self.with_controller_manager else ["--disable-admission-plugins=ServiceAccount"]
        return [
            f"--etcd-servers=http://{LOOPBACK}:{self._ports[ETCD]}",
            f"--bind-address={LOOPBACK}",
            f"--secure-port={self.port}",
            f"--advertise-address={outside[0] if outside else LOOPBACK}",
            # The `kubernetes` Service has endpoints only where they can be reached: loopback is refused.
            f"--endpoint-reconciler-type={'lease' if outside else 'none'}",
            f"--service-cluster-ip-range={SERVICE_CIDR}",
            f"--cert-dir={pki}",
            f"--tls-cert-file={pki / 'apiserver.crt'}",
            f"--tls-private-key-file={pki / 'apiserver.key'}",
            f"--client-ca-file={self.ca_file}",
            f"--token-auth-file={pki / 'tokens.csv'}",
            "--authorization-mode=Node,RBAC",
            f"--service-account-issuer={self.service_account_issuer}",
            f"--service-account-signing-key-file={pki / 'service-account.key'}",
            f"--service-account-key-file={pki / 'service-account.pub'}",
            "--allow-privileged=true",
            # Twice and four times the defaults: one test process is many clients at once. Priority and
            # fairness stay on, and share these out.
            "--max-requests-inflight=1600",
            "--max-mutating-requests-inflight=800",
            "--profiling=false",
            *admission,
            *self._apiserver_args,
        ]

    def _controller_manager_arguments(self) -> list[str]:
        pki = self.directory / "pki"
        return [
            f"--kubeconfig={self.kubeconfig}",
            f"--authentication-kubeconfig={self.kubeconfig}",
            f"--authorization-kubeconfig={self.kubeconfig}",
            f"--bind-address={LOOPBACK}",
            f"--secure-port={self._ports[CONTROLLER_MANAGER]}",
            f"--cert-dir={pki / 'controller-manager'}",
            "--leader-elect=false",
            f"--service-account-private-key-file={pki / 'service-account.key'}",
            f"--root-ca-file={self.ca_file}",
            f"--cluster-signing-cert-file={self.ca_file}",
            f"--cluster-signing-key-file={self._authority.key_path}",
            "--kube-api-qps=500",
            "--kube-api-burst=1000",
            "--profiling=false",
        ]

    def _scheduler_arguments(self) -> list[str]:
        return [
            f"--config={self.directory / 'scheduler.yaml'}",
            f"--authentication-kubeconfig={self.kubeconfig}",
            f"--authorization-kubeconfig={self.kubeconfig}",
            f"--bind-address={LOOPBACK}",
            f"--secure-port={self._ports[SCHEDULER]}",
            f"--cert-dir={self.directory / 'pki' / 'scheduler'}",
        ]

    def _relay(self, address: str) -> None:
        command = [sys.executable, "-m", "almoner_dev.relay", address, str(self.port), LOOPBACK, str(self.port)]
        self._begin(f"{RELAY} {address}", command, _environment_with_this_package())

    # -- waiting and stopping ------------------------------------------------------------------------

    def _wait(self, names: Sequence[str]) -> None:
        conditions: dict[str, tuple[str, Callable[[], bool]]] = {
            API_SERVER: ("the API server to be ready", lambda: self._answers("/readyz")),
            # Before this, pods in the default namespace are refused: the controllers are not at work yet.
            CONTROLLER_MANAGER: (
                "the controllers to make the default service account",
                lambda: self._answers("/api/v1/namespaces/default/serviceaccounts/default"),
            ),
            SCHEDULER: (
                "the scheduler to be healthy",
                lambda: self._answers("/healthz", port=self._ports[SCHEDULER], verified=False),
            ),
        }
        for name in (API_SERVER, CONTROLLER_MANAGER, SCHEDULER):
            if name in names:
                what, condition = conditions[name]
                children = [child for each, child in self.children.items() if each != name]
                children.append(self.children[name])
                processes.wait_until(condition, seconds=self._ready_seconds, children=children, what=what)

    def _wait_for_address(self, address: str) -> None:
        processes.wait_until(
            lambda: self._answers("/readyz", address=address),
            seconds=self._ready_seconds,
            children=list(self.children.values()),
            what=f"the API server to answer on {address}",
        )

    def _answers(self, path: str, *, address: str = LOOPBACK, port: int | None = None, verified: bool = True) -> bool:
        if verified:
            context = ssl.create_default_context(cafile=str(self.ca_file))
        else:
            # The scheduler signs its own certificate at every start; only its health is asked for.
            context = ssl.create_default_context()
            context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        url = f"https://{_bracketed(address)}:{port or self.port}{path}"
        headers = {"Authorization": f"Bearer {self._token}"} if verified else {}
        request = urllib.request.Request(url, headers=headers)
        # No proxy from the environment: these are addresses of this machine.
        opener = urllib.request.build_opener(
            urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=context)
        )
        try:
            with opener.open(request, timeout=REQUEST_SECONDS) as response:
                return bool(response.status == 200)
        except (OSError, urllib.error.URLError, ValueError):
            return False

    def _stop_children(self) -> None:
        # Clients before the servers they talk to; the reverse of the order they were started in.
        for name in reversed(list(self.children)):
            with contextlib.suppress(ProcessLookupError):
                self.children[name].stop(deadline_s=STOP_SECONDS)
        self.children.clear()

    def describe(self) -> str:
        """Returns one line of JSON: what runs where, for people and scripts. No secrets."""
        return json.dumps(
            {
                "url": self.url,
                "kubeconfig": str(self.kubeconfig),
                "binaries": self.binaries.source if self.binaries else None,
                "pids": {name: child.pid for name, child in self.children.items()},
            }
        )


def _environment_with_this_package() -> dict[str, str]:
    """The environment, such that a child Python finds this package as this process does."""
    folder = str(Path(__file__).resolve().parent.parent)
    path = os.environ.get("PYTHONPATH")
    return {**os.environ, "PYTHONPATH": folder if not path else f"{folder}{os.pathsep}{path}"}


def _bracketed(address: str) -> str:
    return f"[{address}]" if ":" in address else address


def _base64(content: bytes) -> str:
    return base64.b64encode(content).decode()
