"""Every field of every kind is read, or refused by name: whoever adds a field here must say who reads it.

For each field of a spec, some variant below sets it. Changing or removing it there must change what the operator does
with the object: what the scheduler sees, the pods, the ledger's limits, the verdicts, retries. A field that changes
none of these stands in ELSEWHERE with the module that reads it, which must mention the attribute; one that is for
people alone stands in FOR_PEOPLE.
"""

from __future__ import annotations

import ast
import copy
import functools
import json
import re
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from almoner_core.agent_checks import first_problem
from almoner_core.api.agent import AgentSpec
from almoner_core.api.crd import structural_schema
from almoner_core.api.execution import Attempt, AttemptOutcome, FailureReason
from almoner_core.api.meta import Kind
from almoner_core.api.registry import KINDS
from almoner_operator import demand, outcome, provider_access, rates, tool_providers
from almoner_operator.accounts import Accounts, invalid, unsupported
from almoner_operator.admit import Admitter
from almoner_operator.agents import (
    AgentFacts,
    ProviderFacts,
    SecretFacts,
    ToolProviderFacts,
    agent_verdict,
    provider_verdict,
)
from almoner_operator.cache import Cache
from almoner_operator.ledger_trust import LedgerTrust
from almoner_operator.machines import ComputeSettings
from almoner_operator.records import Run, finished_of, runner_of
from almoner_operator.secret_facts import secrets_of
from tests.support import tables
from tests.support.manifests import COMPANIONS, VARIANTS
from tests.support.pods import SETTINGS

ROOT = Path(__file__).resolve().parents[2]
Json = dict[str, Any]
NOW = datetime(2026, 1, 1, tzinfo=UTC)

# Values that are as good as the one in a variant, where none can be made up from the schema.
OTHERS: dict[str, list[Any]] = {
    "model.api": ["OpenAI"],
    "budget.timeZone": ["Asia/Tokyo"],
    "gpuResourceName": ["example.com/other"],
    "baseURL": ["http://other.example"],
    "mountPath": ["/b"],
    "temperature": ["0.5"],
    "topP": ["0.5"],
    "reasons": [["AgentFailed"]],
    "credentials": [{"name": "other", "key": "k"}],
    "models": [[]],
    "configMapKeyRef.name": ["other"],
    "allow.namespaces": [["other"]],
    "allow.owners": [["other"]],
    "allow.agents": [["other"]],
    "allow.agentTypes": [["Research"]],
}

# Fields for people alone.
FOR_PEOPLE = {"Agent.description", "ToolProvider.prices[].unit", "ClusterToolProvider.prices[].unit"}
# Fields of what is refused as a whole, by the name of the field above them.
REFUSED_ABOVE = {
    "Agent.handoffs[].description": "handoffs[0]",
    "Agent.model.fallbacks[].name": "model.fallbacks",
    "Agent.model.fallbacks[].providerKind": "model.fallbacks",
}
# Fields that the API server refuses: the case of tests/data/malformed that shows it.
REFUSED_BY_SERVER = {
    f"TrainingJob.runner.topologySpreadConstraints[].{field}": "trainingjob/spread-without-an-agent"
    for field in ("maxSkew", "topologyKey", "whenUnsatisfiable")
}
# Fields that the API server bounds to the one value that there is.
ONE_VALUE = {"TrainingJob.parallelism"}
# Fields that the parts beyond this test read: path, module, and the attribute that it must mention.
ELSEWHERE: dict[str, tuple[str, str]] = {
    "Agent.instructions": ("runner/almoner_runner/agent/loop.py", "instructions"),
    "Agent.model.settings.temperature": ("runner/almoner_runner/agent/models.py", "temperature"),
    "Agent.model.settings.topP": ("runner/almoner_runner/agent/models.py", "top_p"),
    "Agent.limits.maxTurns": ("runner/almoner_runner/agent/loop.py", "max_turns"),
    "Agent.tools[].config": ("runner/almoner_runner/tools/registry.py", "config"),
    "Agent.tools[].callsPerMinute": ("runner/almoner_runner/agent/toolset.py", "calls_per_minute"),
    "Agent.tools[].timeoutSeconds": ("runner/almoner_runner/agent/toolset.py", "timeout_seconds"),
    "Agent.output.jsonSchema": ("runner/almoner_runner/agent/output.py", "json_schema"),
    **{
        f"Agent.guardrails.{side}[].{field}": ("runner/almoner_runner/agent/guardrails.py", attribute)
        for side in ("input", "output")
        for field, attribute in {
            "name": "name",
            "action": "action",
            "pattern": "pattern",
            "maxLength": "max_length",
            "jsonSchema": "json_schema",
        }.items()
    },
}


# --- fields and values ------------------------------------------------------------------------------------------------


def leaves(schema: Json, path: str) -> Iterator[tuple[str, Json]]:
    """Every field that holds a value rather than more fields."""
    properties = schema.get("properties")
    if properties:
        for name, below in properties.items():
            yield from leaves(below, f"{path}.{name}")
    elif schema.get("type") == "array" and "properties" in schema["items"]:
        yield from leaves(schema["items"], f"{path}[]")
    else:
        yield path, schema


@functools.cache
def fields_of(kind: str) -> dict[str, Json]:
    found = next(each for each in KINDS if each.kind == kind)
    return dict(leaves(structural_schema(found.spec), kind))


def places(value: Any, path: str, at: tuple[Any, ...] = ()) -> Iterator[tuple[str, tuple[Any, ...]]]:
    """Every place in a variant, with the path of its field."""
    if isinstance(value, dict):
        for name, below in value.items():
            yield f"{path}.{name}", (*at, name)
            yield from places(below, f"{path}.{name}", (*at, name))
    elif isinstance(value, list):
        for index, below in enumerate(value):
            yield from places(below, f"{path}[]", (*at, index))


def others(path: str, schema: Json, value: Any) -> Iterator[Any]:
    """Other values of a field."""
    for end, given in OTHERS.items():
        if path.endswith(end):
            yield from given
    if "enum" in schema:
        yield from (each for each in schema["enum"] if each != value)
    elif isinstance(value, bool):
        yield not value
    elif isinstance(value, int):
        yield from (value + 1, value - 1)
    elif isinstance(value, str):
        yield from (f"{value}1", "3", f"{value}x")
    elif isinstance(value, list):
        yield from ([], value[:-1], [*value, "extra"])
    elif isinstance(value, dict):
        yield from ({}, {**value, "example.com/other": "x"}, {**value, "description": "x"})


def changed(spec: Json, at: tuple[Any, ...], value: Any) -> Json:
    """A spec with another value in one place; None: without it."""
    copied = copy.deepcopy(spec)
    holder: Any = copied
    for step in at[:-1]:
        holder = holder[step]
    if value is None:
        del holder[at[-1]]
    else:
        holder[at[-1]] = value
    return copied


KEYS = {name: SecretFacts(keys=frozenset({"api-key"})) for name in ("key", "key2")}
CLUSTER_KEYS = {name: SecretFacts(keys=frozenset({"api-key"}), provider_key=True) for name in ("key", "key2")}


# --- what is done with objects ----------------------------------------------------------------------------------------


def manifest(name: str, spec: Json, **more: Any) -> Json:
    metadata = {"namespace": "team", "name": name, "uid": f"uid-{name}", "resourceVersion": "1", "generation": 1}
    return {"metadata": {**metadata, "creationTimestamp": "2026-01-01T00:00:00Z", **more}, "spec": spec}


def of_cluster(name: str, spec: Json) -> Json:
    made = manifest(name, spec)
    made["metadata"] = {key: value for key, value in made["metadata"].items() if key != "namespace"}
    made["metadata"]["uid"] = f"uid-cluster-{name}"
    return made


def world(kind: str, spec: Json) -> Cache | None:
    """A cache with one object of each kind, that of `kind` being the given one; None where the spec is not valid."""
    specs = {name: variants[0] for name, variants in VARIANTS.items()} | COMPANIONS.get(kind, {}) | {kind: spec}
    cache = Cache(meter=SETTINGS.meter_requests, wake=lambda: None)
    cache.observe_provider(None, manifest("models", specs["ModelProvider"]))
    tool_providers.observe(cache, None, manifest("tools", specs["ToolProvider"]))
    cache.observe_provider(None, of_cluster("models", specs["ClusterModelProvider"]))
    tool_providers.observe(cache, None, of_cluster("tools", specs["ClusterToolProvider"]))
    cache.observe_quota(None, manifest("quota", specs["ResourceQuota"]))
    cache.observe_agent(None, manifest("agent", specs["Agent"], labels={"team": "a"}))
    cache.observe_run("Execution", None, manifest("run", specs["Execution"]))
    cache.observe_run("TrainingJob", None, manifest("job", specs["TrainingJob"]))
    space = cache.space("team")
    read = {
        "ModelProvider": space.providers["models"].spec,
        "ToolProvider": space.tool_providers["tools"].spec,
        "ClusterModelProvider": cache.cluster.providers["models"].spec,
        "ClusterToolProvider": cache.cluster.tool_providers["tools"].spec,
        "ResourceQuota": space.quotas["quota"].spec,
        "Agent": space.agents["agent"].spec,
        "Execution": cache.runs["uid-run"].spec,
        "TrainingJob": cache.runs["uid-job"].spec,
    }
    return None if read[kind] is None else cache


def observed(cache: Cache) -> list[str]:
    """What the operator does with everything in the cache."""
    space = cache.space("team")
    agent = space.agents["agent"]
    agent.judged = True
    assert agent.spec is not None
    seen = cache.snapshot().namespaces["team"]
    found = sorted(repr(workload) for workload in seen.workloads)
    # When a quota was read is not what it says.
    found += [re.sub(r"changed=datetime\.datetime\([^()]*\)", "", repr(quota)) for quota in seen.quotas]
    found.append(repr(seen.agents))
    provider, tools, quota = space.providers["models"], space.tool_providers["tools"], space.quotas["quota"]
    cluster_provider, cluster_tools = cache.cluster.providers["models"], cache.cluster.tool_providers["tools"]
    assert provider.spec is not None
    assert tools.spec is not None
    assert cluster_provider.spec is not None
    assert cluster_tools.spec is not None
    assert quota.spec is not None
    facts = AgentFacts(
        providers={
            "models": ProviderFacts(provider.spec),
            "spare": ProviderFacts(provider.spec),
            "cluster/models": ProviderFacts(cluster_provider.spec),
        },
        tool_providers={
            "tools": ToolProviderFacts(tools.spec),
            "cluster/tools": ToolProviderFacts(cluster_tools.spec),
        },
        secrets=KEYS,
        budgeted=True,
        namespace="team",
        name="agent",
    )
    found += [
        repr(agent_verdict(agent.spec, facts)),
        repr(provider_verdict(provider.spec, KEYS)),
        repr(tool_providers.verdict(tools.spec, KEYS)),
        repr(provider_verdict(cluster_provider.spec, CLUSTER_KEYS)),
        repr(tool_providers.verdict(cluster_tools.spec, CLUSTER_KEYS)),
        repr(rates.of_provider(cluster_provider)),
        invalid(quota.spec) + unsupported(quota.spec),
        repr(rates.of_provider(provider)),
    ]
    accounts = Accounts(SimpleNamespace(ledger=SimpleNamespace(epoch=1)))  # type: ignore[arg-type]
    found += [
        repr(accounts._limits("team", "quota", subject, quota.spec)) for subject in sorted(accounts._subjects(quota))
    ]
    for run in cache.runs.values():
        found += runs_observed(cache, run)
    return found


def runs_observed(cache: Cache, run: Run) -> Iterator[str]:
    space = cache.space("team")
    agent = space.agents["agent"].spec if run.agent_name == "agent" else None
    asked = demand.demand_of(run, agent, cache.providers_for(space), SETTINGS.meter_requests, 0)
    yield provider_access.refusal(cache, run, agent)
    yield repr((asked, demand.limits_of(run, agent), demand.grace_seconds(run, agent, SETTINGS)))
    yield repr((finished_of(run).ttl_seconds, secrets_of(runner_of(run, agent)), outcome.planned_steps(run.spec)))
    settings = SimpleNamespace(runner=SETTINGS, compute=ComputeSettings())
    admitter = Admitter(SimpleNamespace(cache=cache, settings=settings, trust=LedgerTrust()), None)  # type: ignore[arg-type]
    try:
        pod = admitter._pod(run, agent, 1, {})
    except ValueError as error:
        yield str(error)
    else:
        yield json.dumps(masked(pod))
    attempt = Attempt(number=1, pod="p", outcome=AttemptOutcome.FAILED)
    yield repr(
        [outcome.next_try(run, [attempt] * failures, each, NOW) for each in FailureReason for failures in (1, 3)]
    )


def masked(pod: Json) -> Json:
    """Without what is made up anew each time, and without the spec that our loop is given whole."""
    for container in (*pod["spec"]["containers"], *pod["spec"]["initContainers"]):
        container["env"] = [each for each in container["env"] if each["name"] != "ALMONER_AGENT_SPEC"]
        for each in container["env"]:
            if each["name"] == "ALMONER_METER_CONFIG":
                config = json.loads(each["value"].replace("$$", "$"))
                config["extra"].pop("prestop_token", None)
                each["value"] = json.dumps(config)
    pod["spec"]["initContainers"][0].pop("lifecycle")
    pod["metadata"].pop("annotations")
    return {**pod, "annotations": {}}


def test_the_same_objects_are_observed_alike() -> None:
    """Else every field would seem to be read."""
    for kind, variants in VARIANTS.items():
        for spec in variants:
            first, second = world(kind, spec), world(kind, spec)
            assert first is not None
            assert second is not None
            assert observed(first) == observed(second)


def is_read(kind: str, path: str, schema: Json) -> bool:
    """Whether changing the field, or leaving it out, changes anything in some variant."""
    for spec in VARIANTS[kind]:
        for named, at in places(spec, kind):
            if named != path:
                continue
            value: Any = spec
            for step in at:
                value = value[step]
            before = world(kind, spec)
            assert before is not None, f"{kind}: a variant that is not valid: {spec}"
            was = observed(before)
            for other in (None, *others(path, schema, value)):
                after = world(kind, changed(spec, at, other))
                if after is not None and observed(after) != was:
                    return True
    return False


ALL_FIELDS = [(kind.kind, path) for kind in KINDS for path in fields_of(kind.kind)]


@pytest.mark.parametrize(("kind", "path"), ALL_FIELDS, ids=[path for _, path in ALL_FIELDS])
def test_the_field_is_read_or_refused(kind: str, path: str) -> None:
    set_somewhere = any(named == path for spec in VARIANTS[kind] for named, _ in places(spec, kind))
    assert set_somewhere, f"{path} is set in no variant: add it to VARIANTS, and say who reads it"
    if path in FOR_PEOPLE | ONE_VALUE or path in {**ELSEWHERE, **REFUSED_ABOVE, **REFUSED_BY_SERVER}:
        return
    assert is_read(kind, path, fields_of(kind)[path]), f"{path}: nothing that the operator does depends on it"


@pytest.mark.parametrize("path", REFUSED_ABOVE)
def test_what_is_refused_as_a_whole_is_refused_by_name(path: str) -> None:
    kind = path.split(".", maxsplit=1)[0]
    for spec in VARIANTS[kind]:
        if any(named == path for named, _ in places(spec, kind)):
            problem = first_problem(AgentSpec.model_validate(spec))
            assert problem is not None
            assert problem.field == REFUSED_ABOVE[path]


@pytest.mark.parametrize("path", REFUSED_BY_SERVER)
def test_what_the_server_refuses_is_shown_by_a_malformed_manifest(path: str) -> None:
    cases = {name: case for name, _, case in tables.malformed()}
    field = cases[REFUSED_BY_SERVER[path]]["field"].removeprefix("spec.")
    assert path.startswith(f"TrainingJob.{field}")


def test_one_value_means_one() -> None:
    for path in ONE_VALUE:
        schema = fields_of(path.split(".", maxsplit=1)[0])[path]
        assert schema["minimum"] == schema["maximum"]


def mentioned(module: str) -> set[str]:
    """Attributes that a module mentions, and names that it passes or compares as text."""
    tree = ast.parse((ROOT / module).read_text(encoding="utf-8"))
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            found.add(node.attr)
        elif isinstance(node, ast.keyword) and node.arg is not None:
            found.add(node.arg)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            found.add(node.value)
    return found


@pytest.mark.parametrize("path", ELSEWHERE)
def test_who_is_said_to_read_a_field_mentions_it(path: str) -> None:
    assert path in fields_of(path.split(".", maxsplit=1)[0]), f"{path}: there is no such field any more"
    module, attribute = ELSEWHERE[path]
    tree = ast.parse((ROOT / module).read_text(encoding="utf-8"))
    assert attribute in {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}


def test_a_field_without_a_reader_is_found() -> None:
    """The test itself: a field for people is what nobody reads."""
    for path in FOR_PEOPLE:
        kind = path.split(".", maxsplit=1)[0]
        assert not is_read(kind, path, fields_of(kind)[path])


# --- statuses ---------------------------------------------------------------------------------------------------------


def status_fields(kind: Kind) -> set[str]:
    """Names of all fields of a status, in Python."""
    found: set[str] = set()
    waiting: list[Any] = [kind.status]
    seen: set[Any] = set()
    while waiting:
        model = waiting.pop()
        if model in seen:
            continue
        seen.add(model)
        for name, field in model.model_fields.items():
            found.add(name)
            waiting.extend(models_within(field.annotation))
    return found


def models_within(annotation: Any) -> list[Any]:
    if hasattr(annotation, "model_fields"):
        return [annotation]
    return [model for each in getattr(annotation, "__args__", ()) for model in models_within(each)]


@functools.cache
def written() -> set[str]:
    modules = sorted((ROOT / "operator" / "almoner_operator").rglob("*.py"))
    return set().union(*(mentioned(str(module.relative_to(ROOT))) for module in modules))


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.kind)
def test_every_field_of_a_status_is_written_by_the_operator(kind: Kind) -> None:
    assert not status_fields(kind) - written()
