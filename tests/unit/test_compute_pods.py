"""Machine time as it is read from pods, and what is asked for it before they start."""

from __future__ import annotations

from typing import Any

import pytest

from almoner_core.compute import ComputePrices, Machine
from almoner_operator import demand
from almoner_operator.__main__ import parser, settings_of
from almoner_operator.cache import Cache
from almoner_operator.machines import ComputeSettings, pod_time, records_of, unix_seconds
from almoner_operator.pods import RunnerSettings
from almoner_operator.records import ProviderRecord, Run, parse_provider, parse_run
from almoner_operator.scheduling.model import EXECUTION, Requests

Json = dict[str, Any]
START = "2026-01-02T03:04:05Z"
START_SECONDS = 1_767_323_045
GIB = 1024**3
MEBIBYTE = 1024**2


def ended(name: str, finished: str) -> Json:
    return {"name": name, "state": {"terminated": {"exitCode": 0, "finishedAt": finished}}}


def pod(*, status: Json | None = None, **spec: Any) -> Json:
    return {
        "spec": {
            "initContainers": [{"name": "meter", "resources": {"requests": {"cpu": "50m", "memory": "96Mi"}}}],
            "containers": [
                {
                    "name": "agent",
                    "resources": {
                        "requests": {"cpu": "1", "memory": "1Gi", "nvidia.com/gpu": "2"},
                        "limits": {"cpu": "4", "memory": "2Gi", "nvidia.com/gpu": "2", "ephemeral-storage": "1Gi"},
                    },
                }
            ],
            "terminationGracePeriodSeconds": 35,
            **spec,
        },
        "status": {"startTime": START, **(status or {})},
    }


def test_a_pod_is_charged_for_what_all_its_containers_request() -> None:
    seen = pod_time(pod())
    assert seen.machine == Machine(cpu=1050, memory=GIB + 96 * MEBIBYTE, gpu=2)
    assert (seen.start, seen.end, seen.grace_seconds) == (START_SECONDS, None, 35)


def test_a_limit_stands_for_a_missing_request() -> None:
    limits = {"resources": {"limits": {"cpu": "2", "memory": "1Gi"}}}
    assert pod_time(pod(containers=[{"name": "agent", **limits}], initContainers=[])).machine == Machine(2000, GIB, 0)


def test_time_runs_until_the_last_container_has_ended() -> None:
    status = {
        "initContainerStatuses": [ended("meter", "2026-01-02T03:04:20Z")],
        "containerStatuses": [ended("agent", "2026-01-02T03:04:15Z")],
    }
    assert pod_time(pod(status=status)).end == START_SECONDS + 15


@pytest.mark.parametrize(
    "status",
    [
        {"containerStatuses": [ended("agent", START)]},
        {
            "initContainerStatuses": [{"name": "meter", "state": {"running": {"startedAt": START}}}],
            "containerStatuses": [ended("agent", START)],
        },
        {"initContainerStatuses": [ended("meter", "soon")], "containerStatuses": [ended("agent", START)]},
    ],
)
def test_an_end_that_is_not_known_is_none(status: Json) -> None:
    assert pod_time(pod(status=status)).end is None


def test_a_pod_that_no_node_has_taken_has_no_time() -> None:
    assert pod_time(pod(status={"startTime": None})).start is None
    assert pod_time({}).start is None


def test_parts_of_a_second_are_cut_off_at_the_start_and_added_at_the_end() -> None:
    assert unix_seconds("2026-01-02T03:04:05.7Z") == START_SECONDS
    assert unix_seconds("2026-01-02T03:04:05.7Z", up=True) == START_SECONDS + 1
    assert unix_seconds(START, up=True) == START_SECONDS
    assert unix_seconds("2026-01-02T03:04:05") is None, "a time without a zone is none"
    assert unix_seconds(7) is None


def test_a_stretch_that_begins_where_another_did_has_its_ids() -> None:
    prices = ComputePrices.parse("0.031", "0.004", None)
    machine = Machine(1000, GIB, 0)
    first = records_of("a", machine, 100, 110, after=0, prices=prices)
    longer = records_of("a", machine, 100, 160, after=6, prices=prices)
    assert [each.id for each in first] == [each.id for each in longer]
    assert [each.sequence for each in longer] == [7, 8]
    ids = {
        each.id
        for start, name in ((100, "a"), (110, "a"), (100, "b"))
        for each in first[:0] + records_of(name, machine, start, 200, after=0, prices=prices)
    }
    assert len(ids) == 6
    assert [each.started_unix_ms + each.duration_ms for each in first] == [110_000, 110_000]
    assert not records_of("a", machine, 100, 100, after=0, prices=prices)
    assert all(each.requests == 0 for each in first)


# --- before a pod starts ----------------------------------------------------------------------------------------------

DEAR = ComputeSettings(ComputePrices.parse("3600", None, None), interval_seconds=10)
RUNNER = RunnerSettings(image="image", ledger_url="http://ledger")


def run_of(**spec: Any) -> Run:
    raw = {
        "metadata": {"name": "one", "namespace": "ns", "uid": "uid", "resourceVersion": "1", "generation": 1},
        "spec": {"agentRef": {"name": "agent"}, "input": {"text": "hi"}, **spec},
    }
    parsed = parse_run(EXECUTION, raw)
    assert isinstance(parsed, Run)
    return parsed


def agent_of(**spec: Any) -> Any:
    from almoner_core.api.agent import AgentSpec

    model = {"provider": "local", "name": "small"}
    return AgentSpec.model_validate({"type": "Simulation", "model": model, "instructions": "x", **spec})


def local_provider() -> ProviderRecord:
    spec = {
        "type": "OpenAICompatible",
        "baseURL": "http://model/v1",
        "models": [{"name": "small", "contextWindow": 8000}],
        "prices": [{"model": "small", "inputPerMillion": "1000", "outputPerMillion": "1000"}],
    }
    metadata = {"name": "local", "namespace": "ns", "uid": "p", "resourceVersion": "1", "generation": 1}
    return parse_provider({"metadata": metadata, "spec": spec})


def test_an_interval_and_the_time_to_stop_are_held_before_the_start() -> None:
    agent = agent_of(runner={"resources": {"requests": {"cpu": "950m"}}, "terminationGracePeriodSeconds": 20})
    # 10 s, an outage of 60 s, 20 s and the meter's 30 s of grace, 3 probes each 5 s and 2 s twice, 15 s of margin: for
    # a whole core at a dollar a second.
    ahead = 10 + 60 + 20 + 30 + 3 * 5 + 2 * 2 + 15
    assert demand.ahead(run_of(), agent, RUNNER, DEAR) == pytest.approx(ahead * 10**9, abs=30)
    assert demand.ahead(run_of(), agent, RUNNER, ComputeSettings()) == 0


def test_the_ledger_is_told_what_it_needs_to_hold_more_by_itself() -> None:
    terms = DEAR.terms(Machine(cpu=1000), 25)
    assert terms is not None
    assert terms.per_hour == 3600 * 10**9
    assert terms.ahead_seconds == DEAR.ahead(25)
    # Once the operator is 10 s late; long before the pod has to end.
    assert terms.late_seconds == DEAR.ahead(25) - 10 - 10 > DEAR.end_seconds(25)
    assert DEAR.terms(Machine(memory=1024), 25) is None, "memory costs nothing here"


def test_the_first_call_leaves_room_for_machine_time_under_a_runs_own_limit() -> None:
    run, providers = run_of(limits={"maxCost": "1.00"}), {"local": local_provider()}
    free = demand.first_call(run, agent_of(), providers).need["usd"]
    assert 0 < free < 10**9
    assert demand.first_call(run, agent_of(), providers, 10**9 - 5).need["usd"] == 5
    assert demand.first_call(run, agent_of(), providers, 2 * 10**9).need["usd"] == 0


def test_the_scheduler_asks_for_the_call_and_the_machine_together() -> None:
    cache = Cache(meter=Requests(), wake=lambda: None, ahead=lambda _run, _agent, _added: 700)
    raw = {
        "metadata": {"name": "one", "namespace": "ns", "uid": "u", "resourceVersion": "1", "generation": 1},
        "spec": {"agentRef": {"name": "agent"}, "input": {"text": "hi"}},
    }
    cache.observe_run(EXECUTION, None, raw)
    (workload,) = cache.snapshot().namespaces["ns"].workloads
    assert workload.need == 700


# --- settings ---------------------------------------------------------------------------------------------------------

NEEDED = ["--ledger-url", "http://ledger", "--runner-image", "image"]


def test_prices_are_read_from_the_command_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALMONER_COMPUTE_PRICE_GPU_HOUR", "2.50")
    told = settings_of(parser().parse_args([*NEEDED, "--compute-price-cpu-hour", "0.031"])).compute
    assert told == ComputeSettings(ComputePrices(cpu_hour=31_000_000, gpu_hour=2_500_000_000), 60)
    assert not settings_of(parser().parse_args([*NEEDED, "--compute-price-cpu-hour", ""])).compute.prices.cpu_hour


def test_a_price_that_is_none_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        settings_of(parser().parse_args([*NEEDED, "--compute-price-cpu-hour", "1e-3"]))
    assert "not an amount of US dollars" in capsys.readouterr().err
