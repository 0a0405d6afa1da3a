"""Real meters on a real ledger service over either database, with a scripted provider that counts its calls."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import anthropic
import httpx
import openai
import sqlalchemy as sa

from almoner_core.contract import MeterModel
from almoner_dev.ledger_environment import ledger_environment
from almoner_dev.scripted import ScriptedProvider, Usage
from almoner_ledger import schema
from almoner_ledger.store import Database
from tests.support.books import new_id
from tests.support.ledger_service import LedgerService, meter_token, open_item
from tests.support.meter import DOLLAR, MODEL, Meter, meter_config, provider_config
from tests.support.polling import until

T = TypeVar("T")
Json = dict[str, Any]

MICRO = 1000
"""Nano-dollars of a token of input by the tests' price card; output costs two."""
HI: Any = [{"role": "user", "content": "hi"}]
PODS_MAX = 240
REFUSALS = (openai.APIStatusError, anthropic.APIStatusError, httpx.HTTPStatusError)


class Metered:
    """One ledger service, shared by a module's tests: each has quotas and pods of its own."""

    def __init__(self, folder: Path, database: str, *, ledger_ca: str | None = None, **service: Any) -> None:
        self.folder, self.ledger_ca = folder, ledger_ca
        self.pods = [f"pod-{number}" for number in range(PODS_MAX)]
        self.service = LedgerService(folder, database, pods=self.pods, **service).start()
        self.database = Database(database)
        self.epoch = self.service.epoch()
        self.generation = 0

    def close(self) -> None:
        self.service.close()
        self.database.dispose()

    def rows(self, statement: sa.Select[Any]) -> list[Any]:
        return self.database.read(lambda connection: list(connection.execute(statement).all()))

    def execute(self, *statements: str) -> None:
        """Meddle with the database directly."""
        self.database.write(lambda connection: [connection.exec_driver_sql(each) for each in statements])

    def audit(self) -> None:
        """Run `almoner-ledger verify` as a person would: it must find nothing."""
        command = [sys.executable, "-m", "almoner_ledger", "verify"]
        environment = ledger_environment(self.service.database)
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode == 0, done.stdout + done.stderr


class Team:
    """What one test has: a quota, a provider, runs with their meters."""

    def __init__(self, metered: Metered, provider: ScriptedProvider, **provider_changes: Any) -> None:
        self.metered, self.provider, self.provider_changes = metered, provider, provider_changes
        self.quota = f"quota-{new_id()[:8]}"
        self.meters: list[Meter] = []
        self.executions: list[str] = []

    # -- what the operator does --------------------------------------------------------------------------------------

    def key(self, **more: str) -> dict[str, str]:
        return {"namespace": "team", "quota": self.quota, **more}

    def limit(self, limits: dict[str, int] | None = None, *, key: dict[str, str] | None = None, **more: Any) -> None:
        """Put limits of the quota in force; without any there is room for all."""
        self.metered.generation += 1
        given = {"usd": 1000 * DOLLAR} if limits is None and "rates" not in more else limits or {}
        account = {"key": key or self.key(), "generation": self.metered.generation, "limits": given, **more}
        body = {"epoch": self.metered.epoch, "operation_id": new_id(), "accounts": [account]}
        self.metered.service.ask("POST", "/v1/accounts:update", body)

    def run(self, need: dict[str, int] | None = None, models: Sequence[MeterModel] = (), **more: Any) -> Meter:
        """Open and bind an allotment as the operator would, and start the meter of its pod."""
        return self.runs(1, need, models, **more)[0]

    def runs(
        self, count: int, need: dict[str, int] | None = None, models: Sequence[MeterModel] = (), **more: Any
    ) -> list[Meter]:
        """Start several at once."""
        started = [self._spawn(need or {}, models, more) for _ in range(count)]
        for meter in started:
            until(meter.healthy, 60, f"the meter's health: {meter.log}")
        return started

    def _spawn(self, need: dict[str, int], models: Sequence[MeterModel], more: Json) -> Meter:
        metered, pod = self.metered, self.metered.pods.pop()
        item = open_item(need, **{"accounts": [self.key()], **more})
        (answer,) = metered.service.open_items(metered.epoch, [item])
        assert answer["error"] is None, answer
        metered.service.bind(metered.epoch, item["allotment"], pod)
        folder = metered.folder / pod
        folder.mkdir()
        changes = self.provider_changes | ({"models": tuple(models)} if models else {})
        config = meter_config(
            metered.service.url,
            provider_config(self.provider.base_url, **changes),
            allotment=item["allotment"],
            execution_uid=item["execution"]["uid"],
            ledger_ca=metered.ledger_ca,
        )
        meter = Meter(folder, config)
        (folder / "token").write_text(meter_token(pod))
        self.meters.append(meter)
        self.executions.append(item["execution"]["uid"])
        meter.spawn()
        return meter

    # -- what the books say ------------------------------------------------------------------------------------------

    def account(self, dimension: str = "usd") -> Any:
        """The quota's current window."""
        accounts, windows = schema.accounts, schema.windows
        joined = sa.select(windows).join(accounts, accounts.c.id == windows.c.account_id)
        wanted = joined.where(accounts.c.name == self.quota, windows.c.dimension == dimension)
        (row,) = self.metered.rows(wanted.order_by(windows.c.starts_at.desc()).limit(1))
        return row

    def records(self, meter: Meter | None = None) -> list[Any]:
        """The entries of all runs, or of one, in order."""
        ids = [each.config.allotment for each in (self.meters if meter is None else [meter])]
        table = schema.records
        return self.metered.rows(
            sa.select(table).where(table.c.allotment_id.in_(ids)).order_by(table.c.allotment_id, table.c.sequence)
        )

    def posted(self, count: int) -> list[Any]:
        """Wait until so many entries are in the books; gives them."""
        return until(lambda: len(found := self.records()) >= count and found, 30, f"{count} entries in the books") or []

    def finish(self) -> None:
        """End all runs as their pods would: everything is settled, posted and returned."""
        for meter in self.meters:
            until(lambda meter=meter: not any(meter.get("/usage")["in_flight"].values()), 30, "no call in flight")  # type: ignore[misc]
            assert meter.stop() == 0, meter.log
            assert meter.last_word["final"] is True, meter.log

    def kill(self) -> None:
        """End what a failed test left."""
        for meter in self.meters:
            meter.discard()

    def asked(self) -> int:
        """How many calls reached the provider."""
        return len(self.provider.requests)


# -- what agents do --------------------------------------------------------------------------------------------------


def chat(
    meter: Meter, output: int = 16, *, stream: bool = False, retries: int = 0, model: str = MODEL, text: str = "hi"
) -> Any:
    """One call with OpenAI's client; a stream is read to its end."""
    with openai.OpenAI(base_url=f"{meter.url}/openai/v1", api_key="x", max_retries=retries) as client:
        asked: Any = [{"role": "user", "content": text}]
        answer = client.chat.completions.create(model=model, messages=asked, max_tokens=output, stream=stream)
        return list(answer) if stream else answer


def message(
    meter: Meter, output: int = 16, *, stream: bool = False, retries: int = 0, model: str = MODEL, text: str = "hi"
) -> Any:
    """One call with Anthropic's client; a stream is read to its end."""
    with anthropic.Anthropic(base_url=f"{meter.url}/anthropic", api_key="x", max_retries=retries) as client:
        asked: Any = [{"role": "user", "content": text}]
        if not stream:
            return client.messages.create(model=model, max_tokens=output, messages=asked)
        with client.messages.stream(model=model, max_tokens=output, messages=asked) as events:
            return events.get_final_message()


def tried(call: Callable[[], T]) -> T | Exception:
    """What a call gives, or the answer that refused it; anything else is raised."""
    try:
        return call()
    except REFUSALS as error:
        return error


def together(calls: Sequence[Callable[[], T]], threads: int) -> list[T | Exception]:
    """Make calls in parallel; gives what each got, or the answer that refused it."""
    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(tried, calls))


def refused(answers: Sequence[Any]) -> list[Any]:
    return [answer for answer in answers if isinstance(answer, Exception)]


def cost(usage: Usage) -> int:
    """What the provider bills for one answer, in nano-dollars by the tests' price card; nothing cached."""
    return (usage.input_tokens + 2 * usage.output_tokens) * MICRO
