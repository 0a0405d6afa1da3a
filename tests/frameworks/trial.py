"""One client behind a strict meter on a real ledger, in the environment of a runner pod; and what came of it."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from almoner_core import contract
from almoner_core.api.agent import AgentSpec, Limits
from almoner_core.api.runner import Runner
from almoner_core.contract import Dialect, MeterModel, PriceCard
from almoner_dev.frameworks.install import installed
from almoner_dev.frameworks.table import Api, Framework, Language, Scenario
from almoner_dev.node.env import PodFacts, Rewrite, container_environment
from almoner_dev.scripted import Reply, ScriptedProvider, Usage
from almoner_operator.pods import PodProvider, PodRequest, build_pod
from tests.frameworks.mind import CITY, FORECAST, GREETING, SQUARE, Mind
from tests.frameworks.outside import Outside
from tests.support.meter import CARD, CLAUDE_CARD, DOLLAR, Meter
from tests.support.metered import Metered, Team
from tests.support.pods import SETTINGS, UID

Json = dict[str, Any]
Entry = tuple[str, int, int, int, int]
"""Model, tokens of input, of those from a cache, of output, nano-dollars."""

CLIENTS = Path(__file__).parent / "clients"
SECONDS_MAX = 150
FAILS = "fails"
PAID_MODELS = {
    Api.CHAT: MeterModel(name="gpt-4.1-mini", price=CARD, context_window=1_047_576, max_output_tokens=32_768),
    Api.MESSAGES: MeterModel(
        name="claude-sonnet-4-5", price=CLAUDE_CARD, context_window=200_000, max_output_tokens=64_000
    ),
}
PAID_MODELS[Api.RESPONSES] = PAID_MODELS[Api.CHAT]


@dataclass(frozen=True)
class Served:
    """What the provider said of one request."""

    model: str
    usage: Usage | None

    def entry(self, card: PriceCard) -> Entry:
        """The record that must be in the books: model, tokens by kind, nano-dollars."""
        if self.usage is None:
            return (self.model, 0, 0, 0, 0)
        (tier,) = card.tiers
        told = self.usage
        plain = (told.input_tokens - told.cached_input_tokens) * tier.input
        cost = plain + told.cached_input_tokens * tier.cached_input + told.output_tokens * tier.output
        # A million tokens have the price; a part of a nano-dollar is one.
        return (self.model, told.input_tokens, told.cached_input_tokens, told.output_tokens, -(-cost // 1_000_000))


@dataclass(frozen=True)
class Outcome:
    """What came of one process of a client: its lines by scenario, what the meter answered, where else it went."""

    lines: dict[str, Json]
    output: str
    refused: int
    hosts: frozenset[str]
    log: str

    @property
    def all_said(self) -> str:
        """For whoever looks for the reason of a failure."""
        return f"-- the client said --\n{self.output[-4000:]}\n-- the meter said --\n{self.log[-4000:]}"

    def cell(self, scenario: Scenario) -> str:
        """What the table of results says: `ok`, or what is specific, or `fails`."""
        line = self.lines.get(scenario)
        if line is None or not right(scenario, line):
            return FAILS
        if scenario is Scenario.SPENT:
            return f"{self.refused} call{'' if self.refused == 1 else 's'}"
        if scenario is Scenario.LIMITED:
            return "waits" if line.get("error") is None else "tells"
        return "ok"

    def problem(self, scenario: Scenario) -> str | None:
        """Why a scenario did not do what it should; None where it did."""
        if self.cell(scenario) != FAILS:
            return None
        return f"{scenario}: {json.dumps(self.lines.get(scenario, 'it said nothing'))[:1000]}"


def right(scenario: Scenario, line: Json) -> bool:
    """Whether a client's line is what the provider's answer should have become."""
    result, error = line.get("result"), str(line.get("error") or "")
    match scenario:
        case Scenario.PLAIN:
            return bool(GREETING in str(result))
        case Scenario.STREAMED:
            return isinstance(result, list) and len(result) > 1 and GREETING in "".join(result)
        case Scenario.TOOLS:
            return FORECAST in str(result)
        case Scenario.STRUCTURED:
            return bool(result == CITY)
        case Scenario.IMAGE:
            return SQUARE in str(result)
        case Scenario.PARALLEL:
            return isinstance(result, list) and len(result) == 16 and all(GREETING in str(each) for each in result)
        case Scenario.LIMITED:
            return GREETING in str(result) or "429" in error or "rate" in error.lower()
        case Scenario.SPENT:
            return GREETING not in str(result)


def pod_environment(framework: Framework, api: Api, home: Path, meter: Meter, scratch: Path) -> dict[str, str]:
    """The environment that the operator gives to a container with the user's image, and the image's own PATH."""
    model = PAID_MODELS[api]
    agent = AgentSpec.model_validate(
        {"type": "Research", "model": {"provider": "scripted", "name": model.name}, "limits": {"maxCost": "1"}}
    )
    (provider,) = meter.config.providers
    runner = Runner.model_validate({"image": "example/client:1"})
    pod = build_pod(
        PodRequest(
            kind="Execution",
            namespace="team",
            name="run-1",
            uid=UID,
            attempt=1,
            owner="alice",
            runner=runner,
            agent_name="client",
            agent=agent,
            limits=Limits.model_validate({"maxCost": "1"}),
            providers=(PodProvider(meter=provider),),
        ),
        SETTINGS,
    )
    (container,) = pod["spec"]["containers"]
    for entry in container["env"]:  # This machine's loopback is many pods': each meter has a port of its own.
        if entry["name"] == contract.ENV_METER_ADDRESS:
            entry["value"] = f"127.0.0.1:{meter.port}"
    rewrite = Rewrite({contract.SCRATCH_DIR: str(scratch)}, "127.0.0.1")
    facts = PodFacts("127.0.0.1", "127.0.0.1", {})
    own = container_environment(pod, container, facts, lambda _kind, _name: None, rewrite)
    node = Path(shutil.which("node") or "/usr/bin/node").parent
    folders = (home / "bin", home / "node_modules" / ".bin", node, Path("/usr/bin"), Path("/bin"))
    return {"PATH": ":".join(str(folder) for folder in folders), "LANG": "C.UTF-8", **own}


class Trial:
    """One client, with a provider that counts."""

    def __init__(self, metered: Metered, folder: Path, framework: Framework, api: Api) -> None:
        self.metered, self.framework, self.api, self.folder = metered, framework, api, folder
        self.home = installed(framework)
        self.model = PAID_MODELS[api]
        name = Dialect.ANTHROPIC if api is Api.MESSAGES else Dialect.OPENAI
        self.provider: Json = {"type": name, "dialects": (name,)}

    def run(self, scenarios: Sequence[Scenario]) -> Outcome:
        """Run scenarios in one process with a dollar, and compare the books with the provider's word."""
        with ScriptedProvider(choose=Mind()) as provider:
            team = Team(self.metered, provider, **self.provider)
            team.limit({"usd": DOLLAR})
            return self._tried(team, scenarios)

    def run_spent(self) -> Outcome:
        """Have another run spend the budget, then ask for more; the provider hears nothing of it."""
        with ScriptedProvider([Reply(usage=Usage(input_tokens=20, output_tokens=5))]) as provider:
            team = Team(self.metered, provider, **self.provider)
            team.limit({"usd": DOLLAR})
            meter = team.run(models=(self.model,))
            path = "/anthropic/v1/messages" if self.api is Api.MESSAGES else "/openai/v1/chat/completions"
            body = {"model": self.model.name, "max_tokens": 9, "messages": [{"role": "user", "content": "hi"}]}
            status, answer = meter.post(path, body)
            assert status == 200, answer
            team.finish()
            team.limit({"usd": sum(row.cost_nanos for row in team.records())})
            team.meters.clear()
            outcome = self._tried(team, [Scenario.SPENT])
            assert team.asked() == 1, f"{team.asked() - 1} calls reached the provider after the budget was spent"
            return outcome

    def _tried(self, team: Team, scenarios: Sequence[Scenario]) -> Outcome:
        before = team.asked()
        try:
            meter = team.run(models=(self.model,))
            outcome = self._process(team, meter, scenarios)
            team.finish()
        finally:
            team.kill()
        self._compare(team, before)
        return outcome

    def _process(self, team: Team, meter: Meter, scenarios: Sequence[Scenario]) -> Outcome:
        scratch = self.folder / f"{self.api}-{scenarios[0]}"
        shutil.copytree(CLIENTS, scratch / "client", ignore=shutil.ignore_patterns("__pycache__"))
        name = f"with_{self.framework.name.replace('-', '_')}"
        if self.framework.language is Language.PYTHON:
            command = [str(self.home / "bin" / "python"), f"client/{name}.py"]
        else:
            (scratch / "node_modules").symlink_to(self.home / "node_modules")
            command = ["node", f"client/{name}.mjs"]
        environment = pod_environment(self.framework, self.api, self.home, meter, scratch)
        with Outside() as outside:
            proxies = {"HTTP_PROXY": outside.url, "HTTPS_PROXY": outside.url}
            try:
                done = subprocess.run(
                    [*command, self.api, *scenarios],
                    cwd=scratch,
                    env={**proxies, **environment},
                    capture_output=True,
                    timeout=SECONDS_MAX,
                    check=False,
                    stdin=subprocess.DEVNULL,
                )
                output = (done.stdout + b"\n-- stderr --\n" + done.stderr).decode(errors="replace")
                stdout = done.stdout.decode(errors="replace")
            except subprocess.TimeoutExpired as error:
                stdout = (error.stdout or b"").decode(errors="replace")
                output = f"it did not end within {SECONDS_MAX} s\n{stdout}\n{(error.stderr or b'').decode()}"
        return Outcome(_lines(stdout), output, refusals(meter), frozenset(outside.hosts), meter.log)

    def _compare(self, team: Team, before: int) -> None:
        requests, replies = team.provider.requests[before:], team.provider.replies[before:]
        served = [
            Served(str(request["body"].get("model")), reply.usage if reply.status < 400 else None)
            for request, reply in zip(requests, replies, strict=True)
        ]
        card = self.model.price
        assert card is not None
        said = Counter(each.entry(card) for each in served)
        booked: Counter[Entry] = Counter(
            (row.model, row.input_tokens, row.cached_input_tokens, row.output_tokens, row.cost_nanos)
            for row in team.records()
        )
        assert booked == said, f"only in the books: {booked - said}; only the provider's word: {said - booked}"


def refusals(meter: Meter) -> int:
    """How many calls the meter answered with 400 and above."""
    _, text = meter.get_health("/metrics")
    return sum(int(count) for count in re.findall(r'almoner_meter_answers_total{.*status="4xx"} (\d+)', text))


def _lines(text: str) -> dict[str, Json]:
    found: dict[str, Json] = {}
    for line in text.splitlines():
        if line.startswith('{"scenario"'):
            told: Json = json.loads(line)
            found[told["scenario"]] = told
    return found
