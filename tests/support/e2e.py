"""The whole road in tests: control plane, node, ledger and operator as one site; a small world of a test's own on it.

A world has a namespace, a scripted provider that keeps a bill of what it answered, and the hands of a user: kubectl
and the `almoner` command. Sums are compared as integers of nano-dollars; no product code does the arithmetic.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import sqlite3
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any, Self

import yaml
from kubernetes import watch
from kubernetes.client import ApiException
from urllib3.exceptions import HTTPError

from almoner_dev.controlplane import ControlPlane
from almoner_dev.node import ProcessNode
from almoner_dev.scripted import Reply, Script, ScriptedProvider, Usage
from almoner_dev.stack import Stack
from tests.support.cluster import Cluster, open_allotments, verify_ledger
from tests.support.e2e_scripts import PRELUDE
from tests.support.polling import until

Json = dict[str, Any]
NANOS = 1_000_000_000
# Prices that no other number in the tests resembles: nano-dollars a token, and what the manifest says for them.
INPUT_NANOS, CACHED_NANOS, OUTPUT_NANOS = 3_210, 321, 12_345
PRICE = {"inputPerMillion": "3.21", "cachedInputPerMillion": "0.321", "outputPerMillion": "12.345"}
MODEL = "scripted-1"
USAGE = Usage(input_tokens=37, output_tokens=11)
DONE = (Reply(text="done", usage=USAGE),)
POD_SECONDS = 60.0
SETTLE_SECONDS = 15.0
COMMAND_SECONDS = 60


def cost_of(usage: Usage) -> int:
    """What a call costs, in nano-dollars, by the arithmetic of a reader."""
    plain = usage.input_tokens - usage.cached_input_tokens
    return plain * INPUT_NANOS + usage.cached_input_tokens * CACHED_NANOS + usage.output_tokens * OUTPUT_NANOS


def nanos(dollars: str | int | None) -> int:
    """A dollar amount as the API has it, in nano-dollars."""
    value = Decimal(str(dollars or 0)) * NANOS
    assert value == value.to_integral_value(), dollars
    return int(value)


class Provider(ScriptedProvider):
    """A scripted provider that keeps its own bill: every answer that it gave out with a usage."""

    @property
    def billed(self) -> list[Usage]:
        """The usage of every answer that had one."""
        return [reply.usage for reply in self.replies if reply.status < 400 and reply.usage is not None]

    @property
    def bill(self) -> int:
        """Nano-dollars."""
        return sum(cost_of(usage) for usage in self.billed)

    def calls(self, text: str = "") -> list[Json]:
        """The calls whose body has the text."""
        return [each for each in self.requests if text in json.dumps(each["body"], ensure_ascii=False)]


@dataclass
class Site:
    """What a world stands on."""

    plane: ControlPlane
    node: ProcessNode
    stack: Stack

    @property
    def kubectl(self) -> str:
        """The user's kubectl, or the control plane's own."""
        found = shutil.which("kubectl")
        binaries = self.plane.binaries
        own = binaries.directory / "kubectl" if binaries is not None else Path("kubectl")
        assert found or own.exists(), "kubectl is neither on PATH nor with the control plane's binaries"
        return found or str(own)

    def almoner(self, *arguments: str, check: bool = True) -> str:
        """Run the `almoner` command, on the stack's ledger; gives what it printed."""
        # In the environment: its password is not for the list of processes.
        environment = {**os.environ, "ALMONER_LEDGER_DATABASE": self.stack.database}
        done = subprocess.run(
            [sys.executable, "-m", "almoner_cli.main", *arguments],
            capture_output=True,
            text=True,
            timeout=COMMAND_SECONDS,
            check=False,
            env=environment,
        )
        assert not check or done.returncode == 0, f"almoner {arguments}:\n{done.stdout}\n{done.stderr}"
        return done.stdout


class World(Cluster):
    """A namespace with a scripted provider of its own, which asks for a key that meters alone hold."""

    def __init__(self, site: Site, replies: Script | Sequence[Reply] = DONE) -> None:
        super().__init__(site.plane)
        self.site = site
        self.key = f"sk-{secrets.token_hex(16)}"
        self.model = Provider(replies, host=site.node.host_address)
        self.model.__enter__()
        # Before it is there, the API server refuses pods.
        until(
            lambda: any(
                each.metadata.name == "default"
                for each in self.core.list_namespaced_service_account(self.namespace).items
            ),
            90,
            "the default service account",
        )

    def close(self) -> None:
        self.model.__exit__(None, None, None)
        super().close()

    # -- as a user -----------------------------------------------------------------------------------

    def kubectl(self, *arguments: str, given: str | None = None, check: bool = True) -> str:
        """Run kubectl in the namespace; gives its standard output, with standard error where it may fail."""
        done = subprocess.run(
            [self.site.kubectl, "--kubeconfig", self.site.plane.kubeconfig, "-n", self.namespace, *arguments],
            input=given,
            capture_output=True,
            text=True,
            timeout=COMMAND_SECONDS,
            check=False,
        )
        if check:
            assert done.returncode == 0, f"kubectl {' '.join(arguments)}:\n{done.stdout}\n{done.stderr}"
            return done.stdout
        return done.stdout + done.stderr

    def apply(self, *documents: Json) -> None:
        """`kubectl apply -f -`."""
        self.kubectl("apply", "-f", "-", given=yaml.safe_dump_all(documents))

    # -- manifests -----------------------------------------------------------------------------------

    def manifest(self, kind: str, name: str, spec: Json, **metadata: Any) -> Json:
        return {
            "apiVersion": "almoner.dev/v1alpha1",
            "kind": kind,
            "metadata": {"name": name, **metadata},
            "spec": spec,
        }

    def provider_manifests(self, name: str = "scripted", **spec: Any) -> list[Json]:
        """A Secret with the key, and a ModelProvider that speaks both dialects."""
        secret = {
            "apiVersion": "v1",
            "kind": "Secret",
            "metadata": {"name": f"{name}-key"},
            "stringData": {"key": self.key},
        }
        whole = {
            "type": "OpenAICompatible",
            "apis": ["OpenAI", "Anthropic"],
            "baseURL": f"{self.model.base_url}/v1",
            "credentials": {"name": f"{name}-key", "key": "key"},
            "models": [{"name": MODEL, "contextWindow": 8000}],
            "prices": [{"model": MODEL, **PRICE}],
            **spec,
        }
        return [secret, self.manifest("ModelProvider", name, whole)]

    def loop_manifest(self, name: str, api: str = "OpenAI", **spec: Any) -> Json:
        """An Agent of our own loop."""
        model = {"provider": "scripted", "name": MODEL, "api": api, "settings": {"maxOutputTokens": 64}}
        return self.manifest("Agent", name, {"type": "Evaluation", "model": model, "instructions": "Be brief.", **spec})

    def script_manifest(self, name: str, script: str, *, prelude: bool = True, **spec: Any) -> Json:
        """An Agent that is a Python script; with the prelude (see e2e_scripts) unless said otherwise."""
        runner = {"image": "python:3.12-slim", "command": ["python", "-c", (PRELUDE if prelude else "") + script]}
        runner.update(spec.pop("runner", {}))
        model = {"provider": "scripted", "name": MODEL, "settings": {"maxOutputTokens": 64}}
        return self.manifest("Agent", name, {"type": "Evaluation", "model": model, "runner": runner} | spec)

    def ready(self, *agents: Json) -> None:
        """Apply a provider and agents, and wait until they are ready."""
        self.apply(*self.provider_manifests(), *agents)
        for agent in agents:
            self.wait_ready("Agent", agent["metadata"]["name"])

    def script(self, name: str, script: str, **spec: Any) -> None:
        """Apply a provider and one agent that is a script, and wait until they are ready."""
        self.ready(self.script_manifest(name, script, **spec))

    def more(self, *agents: Json) -> None:
        """Apply further agents, and wait until they are ready."""
        self.apply(*agents)
        for agent in agents:
            self.wait_ready("Agent", agent["metadata"]["name"])

    # -- looking -------------------------------------------------------------------------------------

    def succeeded(self, *names: str, kind: str = "Execution", seconds: float = POD_SECONDS) -> list[Json]:
        """Wait until all have succeeded; gives their statuses."""
        return [self.ended(name, "Succeeded", kind=kind, seconds=seconds) for name in names]

    def ended(self, name: str, phase: str, *, kind: str = "Execution", seconds: float = POD_SECONDS) -> Json:
        """Wait until it has ended, and see that it ended so."""

        def look() -> Json | None:
            status = self.status(name, kind)
            return status if status.get("phase") in ("Succeeded", "Failed", "Cancelled") else None

        try:
            status = until(look, seconds, f"the end of {name}") or {}
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.describe(name, kind)}") from error
        assert status["phase"] == phase, self.describe(name, kind)
        return status

    def failed(self, name: str, reason: str, *, seconds: float = POD_SECONDS) -> Json:
        """Wait until it has failed for the reason; gives its Failed condition."""
        self.ended(name, "Failed", seconds=seconds)
        found = self.condition("Execution", name, "Failed")
        assert found["reason"] == reason, self.describe(name)
        return found

    def describe(self, name: str, kind: str = "Execution") -> str:
        """All that helps to see why a test failed."""
        parts = [json.dumps(self.status(name, kind), indent=1)]
        try:
            uid = self.get(kind, name)["metadata"]["uid"]
            for pod in self.pods():
                if pod.metadata.labels["almoner.dev/execution-uid"] == uid:
                    parts.append(f"pod {pod.metadata.name}: {pod.status.phase} {pod.status.reason}")
                    parts += [self.log(pod.metadata.name, part)[-3000:] for part in ("agent", "meter")]
        except ApiException as error:
            parts.append(str(error))
        return "\n".join(parts)

    def log(self, pod: str, container: str = "agent") -> str:
        """The log of a pod's container; why there is none where there is none."""
        try:
            return f"--- {container}\n{self.core.read_namespaced_pod_log(pod, self.namespace, container=container)}"
        except ApiException as error:
            return f"--- {container}: {error.reason}"

    def events(self, name: str) -> list[Json]:
        """Events about an object of that name."""
        found = json.loads(self.kubectl("get", "events", "-o", "json"))["items"]
        return [each for each in found if each["involvedObject"]["name"] == name]

    def statuses(self) -> dict[str, Json]:
        """All Executions' and TrainingJobs' statuses by name."""
        found = json.loads(self.kubectl("get", "executions,trainingjobs", "-o", "json"))["items"]
        return {each["metadata"]["name"]: each.get("status") or {} for each in found}

    # -- sums ----------------------------------------------------------------------------------------

    def ledger_rows(self, by: str) -> list[Json]:
        """`almoner ledger costs --by ... -o json`."""
        rows: list[Json] = json.loads(self.site.almoner("ledger", "costs", "--by", by, "-o", "json"))
        return rows

    def history(self, command: str, name: str) -> list[Json]:
        """What `almoner ledger executions` or `records` has of an execution of this namespace."""
        argv = ("--execution", f"{self.namespace}/{name}", "-o", "json")
        rows: list[Json] = json.loads(self.site.almoner("ledger", command, *argv))
        return rows

    def ledger_nanos(self) -> int:
        """What the ledger has for this namespace, in nano-dollars, from its daily sums."""
        return sum(nanos(r["cost_usd"]) for r in self.ledger_rows("namespace") if r["namespace"] == self.namespace)

    def status_nanos(self) -> int:
        """The sum of all statuses, in nano-dollars."""
        return sum(nanos((status.get("usage") or {}).get("cost")) for status in self.statuses().values())

    def settled(self, *, bill: int | None = None) -> int:
        """Wait until nothing is held any more, then see that statuses, ledger and the provider's bill agree.

        Gives the sum in nano-dollars. `bill` replaces the provider's own, where more was rightly charged.
        """
        self.nothing_open()
        expected = self.model.bill if bill is None else bill
        until(lambda: self.status_nanos() == expected, SETTLE_SECONDS, f"the statuses to sum to {expected}")
        assert self.ledger_nanos() == expected
        verify_ledger(self.site.stack)
        return expected

    def open(self) -> list[Json]:
        """This namespace's open allotments."""
        return [e for e in open_allotments(self.site.stack) if e["execution"]["namespace"] == self.namespace]

    def nothing_open(self, seconds: float = SETTLE_SECONDS) -> None:
        """Wait until no allotment of this namespace is open."""
        until(lambda: not self.open(), seconds, f"no allotment to be open: {self.open()}")

    def limit(self, quota: str, name: str = "budget") -> Json:
        """One limit of a quota's status; {} where it is not there yet."""
        limits = self.status(quota, "ResourceQuota").get("limits") or []
        return next((each for each in limits if each["name"] == name), {})

    def books(self) -> dict[str, Json]:
        """Money as the ledger's database has it for each quota of the namespace: limit, spent, reserved, excess."""
        database = str(self.site.stack.directory / "ledger.db")
        query = (
            'SELECT a.name, a.subject, w."limit", w.spent, w.reserved, w.excess FROM windows w '
            "JOIN accounts a ON a.id = w.account_id WHERE w.dimension = 'usd' AND a.namespace = ? AND a.kind = 'quota'"
        )
        with contextlib.closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True, timeout=10)) as connection:
            rows = connection.execute(query, (self.namespace,)).fetchall()
        keys = ("limit", "spent", "reserved", "excess")
        return {"/".join(filter(None, row[:2])): dict(zip(keys, row[2:], strict=True)) for row in rows}


def conditions(status: Mapping[str, Any]) -> dict[str, str]:
    """Condition types with their statuses."""
    return {each["type"]: each["status"] for each in status.get("conditions") or []}


class PodDiary:
    """Every pod that a namespace ever had, however short it lived: (uid, name, execution's uid, attempt)."""

    def __init__(self, world: World) -> None:
        self._namespace = world.namespace
        self._core = world.core
        self._watch = watch.Watch()
        self._seen: dict[str, tuple[str, str, str]] = {}
        self._thread = threading.Thread(target=self._follow, name="pod diary", daemon=True)

    def _follow(self) -> None:
        label = "app.kubernetes.io/component=runner"
        # An error ends the thread: what is there at the end is then missing here, and `attempts` says so.
        with contextlib.suppress(HTTPError):
            for event in self._watch.stream(
                self._core.list_namespaced_pod, self._namespace, label_selector=label, timeout_seconds=300
            ):
                self._note(event["object"])

    def _note(self, pod: Any) -> None:
        labels = pod.metadata.labels
        self._seen[pod.metadata.uid] = (
            pod.metadata.name,
            labels["almoner.dev/execution-uid"],
            labels["almoner.dev/attempt"],
        )

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._watch.stop()

    def attempts(self) -> Counter[tuple[str, str]]:
        """How many pods there ever were for each attempt (execution's uid, number)."""
        label = "app.kubernetes.io/component=runner"
        now = self._core.list_namespaced_pod(self._namespace, label_selector=label).items
        until(lambda: {pod.metadata.uid for pod in now} <= set(self._seen), 10, "the diary to have what is there")
        return Counter((uid, number) for _, uid, number in self._seen.values())


def meter_pids(uid: str) -> list[int]:
    """Processes on this machine that are the meter of an execution."""
    found = []
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit():
            continue
        try:
            command = (folder / "cmdline").read_bytes()
            environment = (folder / "environ").read_bytes()
        except OSError:
            continue
        if b"meter" in command and b"ALMONER_METER_CONFIG" in environment and uid.encode() in environment:
            found.append(int(folder.name))
    return found
