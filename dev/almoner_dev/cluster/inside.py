"""The process that runs a real node, inside its namespaces: `python -m almoner_dev.cluster.inside`.

Role: prepares mounts and network, starts the control plane, containerd, the kubelet, kube-proxy and kube-router in the
right order, applies what a cluster has from the beginning, and then carries out what the Cluster outside asks for.

It is the first process of a process namespace: when it ends, however it ends, the kernel kills everything else in
there, and with it go the mounts and the network. So it is divided in two: the first waits for every process that
lost its parent (containers do), the second works.

Boundary: one request at a time, one line of JSON each way, on a socket that was inherited. Ends when the socket does.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import subprocess
import sys
import traceback
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

from almoner_dev import processes
from almoner_dev.certificates import Authority
from almoner_dev.cluster import namespaces, requirements, settings
from almoner_dev.controlplane import LOOPBACK, ControlPlane
from almoner_dev.processes import Child

OUTPUT_BYTES_MAX = 2 * 2**20
READY_SECONDS = 180.0
STOP_SECONDS = 5.0
CONTAINERD, KUBELET, PROXY, POLICY = "containerd", "kubelet", "kube-proxy", "kube-router"
KUBELET_HEALTH = "http://127.0.0.1:10248/healthz"

Json = dict[str, Any]


class Node:
    """The parts of a node and its control plane, in this process's namespaces."""

    def __init__(self, directory: Path, plan: Json, listener: int) -> None:
        self.directory = directory
        self.cgroup = str(plan["cgroup"])
        self._tools = {name: Path(path) for name, path in plan["tools"].items()}
        self._images = [Path(path) for path in plan["images"]]
        self._listener = listener
        self._children: dict[str, Child] = {}
        self._environment = {**os.environ, "PATH": requirements.search_path()}
        pki = directory / "control-plane" / "pki"
        self.plane = ControlPlane(
            directory=directory / "control-plane",
            bind_addresses=[settings.NODE_ADDRESS],
            apiserver_args=[
                f"--kubelet-client-certificate={pki / 'kubelet-client.crt'}",
                f"--kubelet-client-key={pki / 'kubelet-client.key'}",
                "--kubelet-preferred-address-types=InternalIP",
                "--enable-admission-plugins=NodeRestriction",
            ],
        )

    # -- starting ------------------------------------------------------------------------------------

    def start(self, tell: Callable[[str], None]) -> None:
        """Starts everything; returns when the node is Ready and names are resolved."""
        self._write_files()
        self._begin(CONTAINERD)
        tell("starting the control plane")
        self.plane.start()
        self._relay_outwards()
        self._write_kubeconfigs()
        self._wait_for(CONTAINERD)
        tell("importing images")
        for archive in self._images:
            self.load(archive)
        tell("starting the kubelet")
        for name in (KUBELET, PROXY):
            self._begin(name)
        self.kubectl("apply", "-f", str(self.directory / "objects.yaml"))
        self._wait_for(KUBELET)
        self._begin(POLICY)  # It looks for its Node once, at its start.
        tell("waiting for DNS")
        try:
            self.kubectl(
                "wait", "-n", "kube-system", "deployment/coredns", *("--for=condition=Available", "--timeout=120s")
            )
        except RuntimeError as error:
            pods = self.run(self._kubectl("describe", "pods", "-n", "kube-system"), 30)
            raise RuntimeError(f"{error}\n{pods['output']}") from error

    def _write_files(self) -> None:
        here = self.directory
        for folder in ("cni", "kubelet", "pod-logs", "volume-plugins"):
            (here / folder).mkdir(exist_ok=True)
        for number in range(settings.VOLUMES):
            (here / "volumes" / str(number)).mkdir(parents=True, exist_ok=True)
        authority = Authority(here / "control-plane" / "pki")
        authority.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        authority.ensure()
        authority.issue("kubelet-client", "kube-apiserver-kubelet-client", organizations=["system:masters"])
        authority.issue(KUBELET, f"system:node:{settings.NODE_NAME}", organizations=["system:nodes"])
        authority.issue(PROXY, "system:kube-proxy")
        snapshotter = namespaces.snapshotter(here)
        cni_folder = requirements.cni_folder()
        texts = {
            "containerd.toml": settings.containerd(here, cni_folder, snapshotter),
            "cni/10-pods.conflist": settings.cni(here),
            "kubelet.yaml": settings.kubelet(here, cgroup=self.cgroup, client_ca=authority.certificate_path),
            "resolv.conf": "",
            "objects.yaml": settings.objects(here),
        }
        for name, text in texts.items():
            (here / name).write_text(text)

    def _write_kubeconfigs(self) -> None:
        pki = self.directory / "control-plane" / "pki"
        for name in (KUBELET, PROXY):
            text = settings.client_kubeconfig(
                self.plane.url, self.plane.ca_file, pki / f"{name}.crt", pki / f"{name}.key"
            )
            self._kubeconfig(name).write_text(text)

    def _kubeconfig(self, name: str) -> Path:
        return self.directory / f"{name}.kubeconfig"

    def _relay_outwards(self) -> None:
        """Leads the machine's port, whose listening socket came with this process, to the API server."""
        command = [sys.executable, "-m", "almoner_dev.relay", LOOPBACK, "0", LOOPBACK, str(self.plane.port)]
        self._children["relay"] = processes.start(
            "relay",
            [*command, f"--listen-fd={self._listener}"],
            log_path=self.directory / "logs" / "relay.log",
            pass_fds=[self._listener],
        )

    def _begin(self, name: str) -> None:
        here = self.directory
        commands: dict[str, list[str | Path]] = {
            CONTAINERD: [requirements.program(CONTAINERD), "--config", here / "containerd.toml"],
            KUBELET: [self._tools["node"], KUBELET, *settings.kubelet_arguments(here, self._kubeconfig(KUBELET))],
            PROXY: [self._tools["node"], PROXY, *settings.proxy_arguments(self._kubeconfig(PROXY))],
            POLICY: [self._tools[POLICY], *settings.policy_arguments(self.plane.kubeconfig)],
        }
        self._children[name] = processes.start(
            name, commands[name], log_path=here / "logs" / f"{name}.log", env=self._environment, cwd=here
        )

    def _wait_for(self, name: str) -> None:
        """Waits until a part works, as far as that can be asked."""
        questions: dict[str, tuple[str, Callable[[], bool]]] = {
            CONTAINERD: ("containerd to answer", lambda: self.run(self._ctr("version"), 10)["code"] == 0),
            KUBELET: ("the node to be Ready", self._node_ready),
        }
        if name in questions:
            what, question = questions[name]
            processes.wait_until(question, seconds=READY_SECONDS, children=[self._children[name]], what=what)

    def _node_ready(self) -> bool:
        # After a restart the node's condition may still be that of the kubelet before.
        try:
            with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(KUBELET_HEALTH, timeout=5):
                pass
        except OSError:
            return False
        path = '{.status.conditions[?(@.type=="Ready")].status}'
        asked = self.run(self._kubectl("get", "node", settings.NODE_NAME, "-o", f"jsonpath={path}"), 30)
        return str(asked["output"]).strip() == "True"

    # -- what the Cluster outside asks for -----------------------------------------------------------

    def answer(self, request: Json) -> Json:
        """Carries out one request."""
        name = str(request.get("name", ""))
        match request["do"]:
            case "kill":
                self._kill(name)
            case "restart":
                self._restart(name)
            case "run":
                return self.run([str(part) for part in request["argv"]], float(request["seconds"]))
            case "load":
                self.load(Path(request["path"]))
            case "components":
                return {"running": self.running()}
            case other:
                raise ValueError(f"nothing here does {other!r}")
        return {}

    def running(self) -> dict[str, bool]:
        """Says of every part whether its process runs."""
        return {name: child.running() for name, child in {**self.plane.children, **self._children}.items()}

    def load(self, archive: Path) -> None:
        """Imports the images of an archive, so that pods can use them under the names in it."""
        done = self.run(self._ctr("-n", "k8s.io", "images", "import", "--local", str(archive)), 300)
        if done["code"] != 0:  # `--local` came with containerd 2; before, the import was always local.
            done = self.run(self._ctr("-n", "k8s.io", "images", "import", str(archive)), 300)
        if done["code"] != 0:
            raise RuntimeError(f"cannot import {archive}: {done['output'].strip()}")

    def kubectl(self, *arguments: str) -> str:
        """Runs kubectl as the administrator; raises RuntimeError with what it said when it fails."""
        done = self.run(self._kubectl(*arguments), READY_SECONDS)
        if done["code"] != 0:
            raise RuntimeError(f"kubectl {' '.join(arguments)}: {done['output'].strip()}")
        return str(done["output"])

    def run(self, argv: list[str], seconds: float) -> Json:
        """Runs a program in these namespaces; returns its exit code and what it printed, at most 2 MiB."""
        try:
            done = subprocess.run(
                argv,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                timeout=seconds,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            return {
                "code": -1,
                "output": f"{(error.stdout or b'').decode(errors='replace')}\nno end after {seconds:g} s",
            }
        return {"code": done.returncode, "output": done.stdout[-OUTPUT_BYTES_MAX:].decode(errors="replace")}

    def _kill(self, name: str) -> None:
        if name in self._children:
            self._children[name].kill()
        else:
            self.plane.kill(name)

    def _restart(self, name: str) -> None:
        if name in self._children:
            self._children[name].stop(deadline_s=STOP_SECONDS)
            self._begin(name)
            self._wait_for(name)
        else:
            self.plane.restart(name)

    def _ctr(self, *arguments: str) -> list[str]:
        return [str(requirements.program("ctr")), "-a", settings.CONTAINERD_SOCKET, *arguments]

    def _kubectl(self, *arguments: str) -> list[str]:
        assert self.plane.binaries is not None
        return [str(self.plane.binaries.path("kubectl")), f"--kubeconfig={self.plane.kubeconfig}", *arguments]


def serve(node: Node, control: socket.socket) -> None:
    """Answers requests until the other end is closed."""
    with control.makefile("rw", encoding="utf-8") as stream:

        def write(message: Json) -> None:
            stream.write(json.dumps(message) + "\n")
            stream.flush()

        def attempt(work: Callable[[], Json]) -> None:
            try:
                write({"ok": work()})
            except Exception as error:  # noqa: BLE001 - the Cluster outside raises it again
                traceback.print_exc()
                write({"error": f"{type(error).__name__}: {error}"})

        def begin() -> Json:
            node.start(lambda message: write({"progress": message}))
            return {"port": node.plane.port}

        attempt(begin)
        for line in stream:
            request = json.loads(line)
            attempt(lambda request=request: node.answer(request))  # type: ignore[misc]


def _divide() -> None:
    """Goes on in a child; the process itself, the first of its namespace, waits for whatever ends, and ends with it."""
    worker = os.fork()
    if worker == 0:
        return
    while True:
        pid, status = os.wait()
        if pid == worker:
            os._exit(os.waitstatus_to_exitcode(status) & 0xFF)


def main() -> None:
    """Prepares the namespaces, starts the node, and serves."""
    parser = argparse.ArgumentParser(description="Runs a real node inside new namespaces; started by Cluster alone.")
    parser.add_argument("directory", type=Path, help="the node's scratch folder, with plan.json in it")
    parser.add_argument("--control-fd", type=int, required=True)
    parser.add_argument("--listen-fd", type=int, required=True)
    options = parser.parse_args()
    if os.getpid() != 1:
        parser.error("this is the first process of new namespaces, and nothing else: use almoner_dev.cluster.Cluster")
    _divide()
    namespaces.prepare_mounts(options.directory)
    namespaces.prepare_network()
    plan = json.loads((options.directory / "plan.json").read_text())
    serve(Node(options.directory, plan, options.listen_fd), socket.socket(fileno=options.control_fd))


if __name__ == "__main__":
    main()
