"""The real meter as a process, in a folder of its own, against whatever ledger and providers a test gives it."""

from __future__ import annotations

import json
import os
import sys
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any, Self
from uuid import uuid4

from almoner_core import contract
from almoner_core.contract import Dialect, MeterConfig, MeterModel, MeterProvider, PriceCard, PriceTier
from almoner_dev import processes
from tests.support.polling import until

DOLLAR = 1_000_000_000
MODEL = "test-model"
KEY = "sk-secret-of-the-provider"
# 1,000 nano-dollars a token of input, 2,000 of output: sums that a reader can do in the head.
CARD = PriceCard(
    version="test",
    tiers=(PriceTier(input=1 * DOLLAR, cached_input=100_000_000, cache_write=1_250_000_000, output=2 * DOLLAR),),
)
# Three and fifteen dollars a million tokens, as the models cost that frameworks choose by default.
CLAUDE_CARD = PriceCard(
    version="test",
    tiers=(PriceTier(input=3 * DOLLAR, cached_input=300_000_000, cache_write=3_750_000_000, output=15 * DOLLAR),),
)
START_SECONDS = 20.0


def provider_config(base_url: str, **changes: Any) -> MeterProvider:
    """A provider that speaks both dialects, with one priced model and a key."""
    values: dict[str, Any] = {
        "name": "scripted",
        "type": "OpenAICompatible",
        "base_url": base_url + "/v1",
        "dialects": (Dialect.OPENAI, Dialect.ANTHROPIC),
        "key_file": "scripted/key",
        "models": (MeterModel(name=MODEL, price=CARD, context_window=8000),),
    }
    return MeterProvider(**{**values, **changes})


def meter_config(ledger_url: str, *providers: MeterProvider, **changes: Any) -> MeterConfig:
    """A configuration for one execution."""
    values: dict[str, Any] = {
        "execution_namespace": "team",
        "execution_name": "run-1",
        "execution_uid": str(uuid4()),
        "attempt": 1,
        "agent": "greeter",
        "owner": "alice",
        "allotment": str(uuid4()),
        "ledger_url": ledger_url,
        "providers": providers,
        "input": "the input",
    }
    return MeterConfig(**{**values, **changes})


class Meter:
    """One meter process; `start` it again after `kill` to see it recover from its spool."""

    def __init__(self, folder: Path, config: MeterConfig) -> None:
        self.folder = folder
        self.config = config
        self.port = processes.free_port("127.0.0.1")
        self.health_port = processes.free_port("127.0.0.1")
        self.url = f"http://127.0.0.1:{self.port}"
        self.health_url = f"http://127.0.0.1:{self.health_port}"
        self.child: processes.Child | None = None
        self.starts = 0
        for provider in config.providers:
            if provider.key_file:
                path = folder / "providers" / provider.key_file
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(KEY + "\n")
        (folder / "token").write_text("the-token")

    @property
    def environment(self) -> dict[str, str]:
        """What the operator would put into the container."""
        folder = self.folder
        return {
            contract.ENV_METER_CONFIG: self.config.model_dump_json(),
            contract.ENV_METER_ADDRESS: f"127.0.0.1:{self.port}",
            contract.ENV_POD_IP: "127.0.0.1",
            contract.ENV_HEALTH_PORT: str(self.health_port),
            contract.ENV_SPOOL_DIR: str(folder / "spool"),
            contract.ENV_LEDGER_TOKEN_FILE: str(folder / "token"),
            contract.ENV_PROVIDERS_DIR: str(folder / "providers"),
            contract.ENV_INPUT_FILE: str(folder / "input" / "input"),
            contract.ENV_OUTPUT_FILE: str(folder / "output" / "output"),
            contract.ENV_TERMINATION_LOG: str(folder / "last-word"),
        }

    def spawn(self) -> processes.Child:
        """Starts the process and does not wait."""
        (self.folder / "output").mkdir(exist_ok=True)
        self.starts += 1
        self.child = processes.start(
            "meter",
            [sys.executable, "-m", "almoner_runner.meter"],
            log_path=self.folder / f"meter-{self.starts}.log",
            env={"PATH": os.environ["PATH"], **self.environment},
        )
        return self.child

    def start(self) -> Self:
        """Starts the process and waits until it is ready."""
        child = self.spawn()

        def ready() -> bool:
            assert child.running(), child.failure("ended before it was ready")
            return self.healthy()

        until(ready, START_SECONDS, "the meter's health")
        return self

    def healthy(self) -> bool:
        """Whether /healthz passes."""
        return self.get_health("/healthz")[0] == 200

    def get_health(self, path: str, headers: dict[str, str] | None = None) -> tuple[int, str]:
        """Asks the listener on the pod's address; status 0 where nothing listens."""
        return _ask(self.health_url + path, None, headers)

    def get(self, path: str) -> Any:
        """Asks the loopback and reads JSON."""
        return json.loads(_ask(self.url + path, None)[1])

    def post(self, path: str, body: Any, headers: dict[str, str] | None = None) -> tuple[int, Any]:
        """Posts JSON to the loopback."""
        status, text = _ask(self.url + path, json.dumps(body).encode(), headers)
        return status, json.loads(text) if text else None

    @property
    def log(self) -> str:
        """What all its processes said."""
        return "".join(path.read_text() for path in sorted(self.folder.glob("meter-*.log")))

    @property
    def last_word(self) -> dict[str, Any]:
        """The termination message."""
        data: dict[str, Any] = json.loads((self.folder / "last-word").read_bytes())
        return data

    def kill(self) -> None:
        """SIGKILL."""
        assert self.child is not None
        self.child.kill()

    def discard(self) -> None:
        """SIGKILL where it runs: for the end of a test, whose ledger may be gone."""
        if self.child is not None and self.child.running():
            self.kill()

    def stop(self) -> int:
        """SIGTERM; gives the exit code."""
        if self.child is None:
            return 0
        return self.child.stop(deadline_s=20)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *args: object) -> None:
        self.stop()


def _ask(url: str, data: bytes | None, headers: dict[str, str] | None = None) -> tuple[int, str]:
    request = urllib.request.Request(url, data=data, headers={"content-type": "application/json", **(headers or {})})
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()
    except (urllib.error.URLError, ConnectionError, TimeoutError):
        return 0, ""
