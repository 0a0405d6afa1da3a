"""A real ledger service process, and short words to speak to it over HTTP."""

from __future__ import annotations

import json
import ssl
import sys
from pathlib import Path
from typing import Any

import httpx

from almoner_dev import processes
from almoner_dev.ledger_environment import ledger_environment
from almoner_dev.processes import Child
from tests.support.books import new_id
from tests.support.polling import until

OPERATOR, READER = "operator-token", "reader-token"
READY_SECONDS = 30.0


def meter_token(pod_uid: str) -> str:
    return f"meter-{pod_uid}"


class LedgerService:
    """One replica. `pods` get a static token each, unless tokens are judged by the API server of `kubeconfig`.

    HTTPS where `tls_dir` has a pair, which the client knows by `trusted`.
    """

    def __init__(
        self,
        directory: Path,
        database: str,
        *,
        pods: list[str] | None = None,
        kubeconfig: Path | None = None,
        port: int | None = None,
        name: str = "ledger",
        tls_dir: Path | None = None,
        trusted: ssl.SSLContext | None = None,
        host: str = "127.0.0.1",
    ) -> None:
        self.directory, self.database, self.name = directory, database, name
        self.host = host
        self.port = port or processes.free_port(host)
        named = "localhost" if host == "127.0.0.1" else host
        self.url = f"http://{host}:{self.port}" if tls_dir is None else f"https://{named}:{self.port}"
        self.arguments: list[str | Path] = [] if tls_dir is None else ["--tls-dir", tls_dir]
        if kubeconfig is not None:
            self.arguments += ["--kubeconfig", kubeconfig]
        else:
            tokens = [{"token": OPERATOR, "role": "operator"}, {"token": READER, "role": "reader"}]
            tokens += [{"token": meter_token(pod), "role": "meter", "pod_uid": pod} for pod in pods or []]
            path = directory / f"{name}-tokens.json"
            path.write_text(json.dumps(tokens))
            self.arguments += ["--static-tokens", path]
        self.child: Child | None = None
        self.client = httpx.Client(base_url=self.url, timeout=60, verify=trusted or True)

    def launch(self) -> None:
        argv = [sys.executable, "-m", "almoner_ledger", "serve", "--listen", f"{self.host}:{self.port}"]
        self.child = processes.start(
            self.name,
            [*argv, *self.arguments],
            env=ledger_environment(self.database),
            log_path=self.directory / f"{self.name}.log",
        )

    def start(self) -> LedgerService:
        self.launch()
        until(self.ready, READY_SECONDS, "the ledger to be ready")
        return self

    def ready(self) -> bool:
        assert self.child is not None
        if not self.child.running():
            raise self.child.failure("it ended")
        try:
            return self.client.get("/readyz").status_code == 200
        except httpx.TransportError:
            return False

    def kill(self) -> None:
        assert self.child is not None
        self.child.kill()

    def stop(self) -> int:
        assert self.child is not None
        return self.child.stop()

    def close(self) -> None:
        self.client.close()
        if self.child is not None:
            self.child.stop()

    def request(self, method: str, path: str, token: str | None = OPERATOR, **more: Any) -> httpx.Response:
        headers = {"Authorization": f"Bearer {token}"} if token is not None else {}
        return self.client.request(method, path, headers=headers, **more)

    def ask(self, method: str, path: str, body: Any = None, token: str | None = OPERATOR) -> Any:
        """Make a call that has to succeed; gives the answer."""
        answer = self.request(method, path, token, **({"json": body} if body is not None else {}))
        assert answer.status_code == 200, answer.text
        return answer.json()

    def refusal(self, method: str, path: str, body: Any = None, token: str | None = OPERATOR) -> tuple[int, Any]:
        """Make a call that has to be refused; gives the status and the error."""
        answer = self.request(method, path, token, **({"json": body} if body is not None else {}))
        assert answer.status_code >= 400, answer.text
        return answer.status_code, answer.json()["error"]

    # -- the operator's road to an active allotment ------------------------------------------------------

    def epoch(self) -> int:
        return int(self.ask("POST", "/v1/epochs", {"operation_id": new_id(), "holder": "test"})["epoch"])

    def limit(self, epoch: int, limits: dict[str, int], quota: str = "quota") -> None:
        account = {"key": account_key(quota), "generation": 1, "limits": limits}
        body = {"epoch": epoch, "operation_id": new_id(), "accounts": [account]}
        self.ask("POST", "/v1/accounts:update", body)

    def open_items(self, epoch: int, items: list[dict[str, Any]]) -> list[dict[str, Any]]:
        found = []
        for start in range(0, len(items), 100):
            batch = {"epoch": epoch, "items": items[start : start + 100]}
            found += self.ask("POST", "/v1/allotments:open", batch)["answers"]
        return found

    def bind(self, epoch: int, allotment: str, pod_uid: str) -> None:
        item = {"operation_id": new_id(), "allotment": allotment, "pod_uid": pod_uid}
        (answer,) = self.ask("POST", "/v1/allotments:bind", {"epoch": epoch, "items": [item]})["answers"]
        assert answer["error"] is None, answer

    def active(self, epoch: int, pod_uid: str, need: dict[str, int], token: str | None = None, **more: Any) -> str:
        item = open_item(need, **more)
        (answer,) = self.open_items(epoch, [item])
        assert answer["error"] is None, answer
        self.bind(epoch, item["allotment"], pod_uid)
        path = f"/v1/allotments/{item['allotment']}/activate"
        self.ask("POST", path, {"operation_id": new_id()}, token or meter_token(pod_uid))
        return str(item["allotment"])


def account_key(quota: str = "quota") -> dict[str, str]:
    return {"namespace": "team", "quota": quota}


def open_item(need: dict[str, int], **more: Any) -> dict[str, Any]:
    execution = {
        "namespace": "team",
        "name": "run",
        "uid": more.pop("uid", None) or new_id(),
        "attempt": 1,
        "agent": "agent",
        "owner": "owner",
    }
    return {
        "operation_id": new_id(),
        "allotment": new_id(),
        "execution": execution,
        "pod": "pod",
        "accounts": [account_key()],
        "need": need,
        **more,
    }


def record_body(sequence: int, cost: int | None, **more: Any) -> dict[str, Any]:
    return {
        "id": new_id(),
        "sequence": sequence,
        "provider": "provider",
        "model": "model",
        "operation": "chat",
        "cost_nanos": cost,
        "started_unix_ms": 1_800_000_000_000,
        "duration_ms": 5,
        "outcome": "ok",
        "price_version": "test" if cost else None,
        **more,
    }
