"""Who may use a cluster-scoped provider, how a namespace sees it, and what its pods and the ledger are told of it."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from almoner_core.api.agent import AgentSpec, AgentType
from almoner_core.api.allow import Allow, refusal
from almoner_core.api.cluster_model_provider import ClusterModelProviderSpec
from almoner_core.api.model_provider import ModelProviderSpec, ProviderReason
from almoner_core.api.tool_provider import ToolProviderReason
from almoner_core.wire import KeyGrant
from almoner_operator import observe, provider_access, providers, rates
from almoner_operator.agents import SecretFacts, provider_verdict
from almoner_operator.cache import Cache
from almoner_operator.cluster_providers import Asker, Seen, refused
from almoner_operator.pods import PodError, PodProvider, build_pod
from tests.support.pods import SETTINGS, request

Json = dict[str, Any]
TYPES = [each.value for each in AgentType]
ASKER: Json = {"namespace": "team-a", "agent": "writer", "agent_type": AgentType.RESEARCH, "owner": "ann"}
SHARED: Json = {
    "type": "OpenAICompatible",
    "baseURL": "http://models.example/v1",
    "credentials": {"name": "shared", "key": "k"},
    "allow": {"namespaces": ["team-a"]},
}
MODEL: Json = {"provider": "main", "providerKind": "ClusterModelProvider", "name": "small"}

# Each case: what `allow` says, and which list refuses.
ALLOWS: dict[str, tuple[Json, str | None]] = {
    "the namespace": ({"namespaces": ["team-a"]}, None),
    "one of several namespaces": ({"namespaces": ["team-b", "team-a"]}, None),
    "all namespaces": ({"namespaces": ["*"]}, None),
    "another namespace": ({"namespaces": ["team-b"]}, "namespaces"),
    "the beginning of a namespace's name is none": ({"namespaces": ["team"]}, "namespaces"),
    "the owner": ({"namespaces": ["*"], "owners": ["ann", "bob"]}, None),
    "another owner": ({"namespaces": ["*"], "owners": ["bob"]}, "owners"),
    "no wildcard for owners": ({"namespaces": ["*"], "owners": ["a"]}, "owners"),
    "the agent by name": ({"namespaces": ["*"], "agents": ["writer"]}, None),
    "the agent with its namespace": ({"namespaces": ["*"], "agents": ["team-a/writer"]}, None),
    "the agent of another namespace": ({"namespaces": ["*"], "agents": ["team-b/writer"]}, "agents"),
    "another agent": ({"namespaces": ["*"], "agents": ["reader"]}, "agents"),
    "the type": ({"namespaces": ["*"], "agentTypes": ["Research"]}, None),
    "another type": ({"namespaces": ["*"], "agentTypes": ["Simulation"]}, "agentTypes"),
    "every list must have it": ({"namespaces": ["team-a"], "agents": ["writer"], "owners": ["bob"]}, "owners"),
}


@pytest.mark.parametrize("case", ALLOWS)
def test_who_is_allowed(case: str) -> None:
    said, list_ = ALLOWS[case]
    found = refusal(Allow.model_validate(said), **ASKER)
    assert (found and found[0]) == list_


@pytest.mark.parametrize(
    "said",
    [
        {},
        {"namespaces": []},
        {"owners": ["ann"]},
        {"namespaces": ["*"], "owners": []},
        {"namespaces": ["*"], "agents": []},
        {"namespaces": ["*"], "agentTypes": []},
        {"namespaces": ["team-*"]},
        {"namespaces": ["*"], "agents": ["*"]},
    ],
    ids=json.dumps,
)
def test_an_empty_list_is_no_permission(said: Json) -> None:
    """Taking the last name out of a list must not let everybody in."""
    with pytest.raises(ValidationError):
        Allow.model_validate(said)


def test_a_provider_says_who_may_use_it() -> None:
    with pytest.raises(ValidationError):
        ClusterModelProviderSpec.model_validate({key: value for key, value in SHARED.items() if key != "allow"})


names = st.sampled_from(["a", "b", "c"])
some = st.none() | st.lists(names, min_size=1, max_size=3, unique=True)


@given(
    st.lists(names | st.just("*"), min_size=1, max_size=3, unique=True),
    some,
    some,
    st.none() | st.lists(st.sampled_from(TYPES), min_size=1, unique=True),
    names,
    names,
    st.sampled_from(TYPES),
    names,
)
def test_a_run_is_allowed_where_every_list_that_is_given_has_it(  # noqa: PLR0917 - one of each
    namespaces: list[str],
    owners: list[str] | None,
    agents: list[str] | None,
    types: list[str] | None,
    namespace: str,
    agent: str,
    type_: str,
    owner: str,
) -> None:
    allow = Allow.model_validate({"namespaces": namespaces, "owners": owners, "agents": agents, "agentTypes": types})
    found = refusal(allow, namespace=namespace, agent=agent, agent_type=AgentType(type_), owner=owner)
    lists = [(agents, agent), (types, type_), (owners, owner)]
    may = ("*" in namespaces or namespace in namespaces) and all(each is None or value in each for each, value in lists)
    assert (found is None) == may
    # Whoever adds what the refusal names, is refused for nothing that was found before.
    if found is not None:
        field = {"agentTypes": "agent_types"}.get(found[0], found[0])
        wider = [*(getattr(allow, field) or []), found[1]]
        again = refusal(
            allow.model_copy(update={field: wider}),
            namespace=namespace,
            agent=agent,
            agent_type=AgentType(type_),
            owner=owner,
        )
        assert again is None or again[0] != found[0]


# --- as a namespace sees them -----------------------------------------------------------------------------------------


def agent(**fields: Any) -> AgentSpec:
    return AgentSpec.model_validate({"type": "Research", "model": MODEL, **fields})


def shared(**fields: Any) -> ClusterModelProviderSpec:
    return ClusterModelProviderSpec.model_validate({**SHARED, **fields})


def test_own_and_shared_providers_of_one_name_are_two() -> None:
    seen = Seen({"main": 1}, {"main": 2, "other": 3})
    assert dict(seen) == {"main": 1, "cluster/main": 2, "cluster/other": 3}
    assert len(seen) == 3
    assert seen.get("other") is None
    assert "cluster/main" in seen


def test_the_admission_asks_for_owner_and_every_provider() -> None:
    asker = Asker("team-a", "writer", AgentType.RESEARCH, "ann")
    assert refused(agent(), asker, {"cluster/main": shared()}, {}) == ""
    text = refused(agent(), asker, {"cluster/main": shared(allow={"namespaces": ["*"], "owners": ["bob"]})}, {})
    assert "ClusterModelProvider main does not allow owner ann: it is not in its spec.allow.owners" in text
    # One that is not there any more is for others to find; and nobody's own provider refuses anybody.
    assert refused(agent(), asker, {"main": ModelProviderSpec.model_validate(SHARED)}, {}) == ""
    assert refused(None, asker, {}, {}) == ""


def manifest(spec: Json, namespace: str | None = None, **metadata: Any) -> Json:
    place = {"namespace": namespace} if namespace else {}
    named = {"name": "main", "uid": f"uid-{namespace}", "resourceVersion": "1", "generation": 1}
    return {"metadata": {**named, **place, **metadata}, "spec": spec}


@pytest.fixture
def cache() -> Cache:
    cache = Cache(meter=SETTINGS.meter_requests, wake=lambda: None)
    own = {key: value for key, value in SHARED.items() if key != "allow"}
    cache.observe_provider(None, manifest(own, "team-a"))
    cache.observe_provider(None, manifest({**SHARED, "rateLimits": {"requestsPerMinute": 5}}))
    for namespace, model in (
        ("team-a", MODEL),
        ("team-b", MODEL),
        ("team-c", {**MODEL, "providerKind": "ModelProvider"}),
    ):
        raw = manifest({"type": "Research", "model": model}, namespace, name="writer", uid=f"agent-{namespace}")
        cache.observe_agent(None, raw)
    return cache


def test_a_shared_provider_that_changes_has_every_agent_judged_that_names_it(cache: Cache) -> None:
    cache.agents_changed.clear()
    cache.providers_changed.clear()
    cache.observe_provider("MODIFIED", manifest(SHARED, resourceVersion="2", generation=2))
    assert cache.agents_changed == {("team-a", "writer"), ("team-b", "writer")}
    assert cache.providers_changed == {("", "main")}
    assert set(cache.spaces) == {"team-a", "team-b", "team-c"}
    cache.observe_provider("DELETED", manifest(SHARED, resourceVersion="3", generation=2))
    assert "cluster/main" not in cache.providers_for(cache.space("team-a"))
    assert "main" in cache.providers_for(cache.space("team-a"))


def test_its_rates_are_an_account_of_the_whole_cluster(cache: Cache) -> None:
    record = cache.cluster.providers["main"]
    record.acknowledged = 1
    for namespace in ("team-a", "team-b"):
        (key,) = rates.accounts_for(agent(), cache.providers_for(cache.space(namespace)), ())
        assert (key.namespace, key.quota) == ("*", "main")
    record.acknowledged = 0
    with pytest.raises(rates.RatesNotReadyError, match="ClusterModelProvider main: the ledger does not have"):
        rates.accounts_for(agent(), cache.providers_for(cache.space("team-a")), ())


# --- what pods and the ledger are told --------------------------------------------------------------------------------


def test_its_key_is_granted_and_in_no_volume(cache: Cache) -> None:
    seen = cache.providers_for(cache.space("team-a"))
    assert provider_access.grants(agent(), seen) == [KeyGrant(provider="main", secret="shared", key="k")]
    (provider,) = providers.for_agent(agent(), seen)
    pod = build_pod(request(providers=(provider,)), SETTINGS)
    assert all("secret" not in volume for volume in pod["spec"]["volumes"])
    told = told_meter(pod)
    assert told["ledger_key"] is True
    assert told.get("key_file") is None
    assert "shared" not in json.dumps(pod)
    assert [model.get("price") for model in told["models"]] == [None]


def test_a_namespaces_own_key_is_mounted_and_not_granted(cache: Cache) -> None:
    own = agent(model={**MODEL, "providerKind": "ModelProvider"})
    seen = cache.providers_for(cache.space("team-a"))
    assert provider_access.grants(own, seen) is None
    (provider,) = providers.for_agent(own, seen)
    # An older runner knows nothing of keys that the ledger hands over.
    assert "ledger_key" not in told_meter(build_pod(request(providers=(provider,)), SETTINGS))


def test_a_shared_provider_without_a_key_grants_none(cache: Cache) -> None:
    cache.observe_provider("MODIFIED", manifest({**SHARED, "credentials": None}, resourceVersion="2", generation=2))
    seen = cache.providers_for(cache.space("team-a"))
    assert provider_access.grants(agent(), seen) is None
    (provider,) = providers.for_agent(agent(), seen)
    assert "ledger_key" not in told_meter(build_pod(request(providers=(provider,)), SETTINGS))


def test_two_providers_of_one_name_are_refused(cache: Cache) -> None:
    both = agent(model={**MODEL, "fallbacks": [{**MODEL, "providerKind": "ModelProvider"}]})
    with pytest.raises(PodError, match="of one name"):
        providers.for_agent(both, cache.providers_for(cache.space("team-a")))


def told_meter(pod: Json) -> Json:
    env = {each["name"]: each.get("value") for each in pod["spec"]["initContainers"][0]["env"]}
    config: Json = json.loads(str(env["ALMONER_METER_CONFIG"]).replace("$$", "$"))
    (provider,) = config["providers"]
    return dict(provider)


@pytest.mark.parametrize(
    ("fact", "reason", "says"),
    [
        (SecretFacts(keys=frozenset({"k"}), provider_key=True), ProviderReason.READY, ""),
        (None, ProviderReason.SECRET_NOT_FOUND, "does not exist in Almoner's own namespace"),
        (SecretFacts(keys=frozenset({"k"})), ProviderReason.SECRET_NOT_LABELLED, "almoner.dev/provider-key"),
        (SecretFacts(keys=frozenset({"x"}), provider_key=True), ProviderReason.SECRET_NOT_FOUND, "has no key k"),
        (SecretFacts(unknown="503"), ProviderReason.SECRET_UNKNOWN, "cannot be looked at now"),
        (SecretFacts(unknown="403", forbidden=True), ProviderReason.SECRET_FORBIDDEN, "may not be looked at"),
    ],
)
def test_its_secret_must_carry_the_label(fact: SecretFacts | None, reason: ProviderReason, says: str) -> None:
    verdict = provider_verdict(shared(), {} if fact is None else {"shared": fact})
    assert verdict.reason is reason
    assert says in verdict.message


def test_a_pod_provider_takes_its_key_from_one_place() -> None:
    """The default is the mounted file: nothing that was there before asks the ledger."""
    assert PodProvider.__dataclass_fields__["from_ledger"].default is False


def test_a_secret_that_gets_its_label_later_is_looked_at_again() -> None:
    """Nothing tells the operator of Secrets."""
    assert ProviderReason.SECRET_NOT_LABELLED in observe._PROVIDER_AGAIN
    assert ToolProviderReason.SECRET_NOT_LABELLED in observe._TOOL_PROVIDER_AGAIN
