"""/readyz of the operator means it: not ready, and what it waits for, until it can do its work."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from kubernetes import client, config

from almoner_dev.stack import Stack
from tests.support.polling import until

if TYPE_CHECKING:
    from almoner_dev.controlplane import ControlPlane
    from almoner_dev.simnode import SimulatedNode

SECONDS = 60.0
SYSTEM, SECRET = "almoner-system", "almoner-ledger-tls"


def test_an_operator_that_waits_for_the_ledger_is_not_ready_and_says_so(
    bare_plane: ControlPlane, simulated: SimulatedNode
) -> None:
    with Stack(bare_plane, with_operator=False) as stack:
        stack.kill_ledger()
        stack.start_operator(wait=False)

        def look() -> dict[str, Any] | None:
            state = stack.operator_state()
            return state if state.get("leader") and "ledger" in state["problem"] else None

        waiting = until(look, SECONDS, "it to say what it waits for")
        assert waiting is not None
        assert waiting["problem"].startswith("leads, and is not ready yet: taking an epoch in the ledger")
        assert not waiting["ok"]
        stack.start_ledger()
        stack.wait_operator()
        assert stack.operator_state() | {"ledger": True} == {
            "ok": True,
            "problem": "",
            "leader": True,
            "synced": True,
            "ledger": True,
        }


def test_an_operator_that_cannot_make_the_ledgers_certificate_says_so(
    bare_plane: ControlPlane, simulated: SimulatedNode
) -> None:
    core = client.CoreV1Api(config.new_client_from_config(str(bare_plane.kubeconfig)))
    with Stack(bare_plane, with_operator=False, operator_args=["--ledger-certificate-secret", SECRET]) as stack:
        theirs = {"tls.crt": "theirs", "tls.key": "theirs"}
        core.create_namespaced_secret(
            SYSTEM, {"metadata": {"name": SECRET}, "type": "kubernetes.io/tls", "stringData": theirs}
        )
        try:
            stack.start_operator(wait=False)

            def look() -> dict[str, Any] | None:
                state = stack.operator_state()
                return state if "has no ca.crt" in state.get("problem", "") else None

            waiting = until(look, SECONDS, "it to say what is wrong with the Secret")
            assert waiting is not None
            assert (waiting["ok"], waiting["leader"]) == (False, False)
            core.delete_namespaced_secret(SECRET, SYSTEM)
            stack.wait_operator()
            # Made with the rights of the operator's own service account.
            assert (
                core.read_namespaced_secret(SECRET, SYSTEM).metadata.labels["app.kubernetes.io/managed-by"] == "almoner"
            )
        finally:
            core.delete_collection_namespaced_secret(SYSTEM, field_selector=f"metadata.name={SECRET}")


def test_an_operator_without_a_right_says_which_one_and_what_to_apply(
    bare_plane: ControlPlane, simulated: SimulatedNode
) -> None:
    api = config.new_client_from_config(str(bare_plane.kubeconfig))
    roles = client.RbacAuthorizationV1Api(api)
    with Stack(bare_plane, with_operator=False) as stack:
        role = roles.read_cluster_role("almoner-operator")
        less = api.sanitize_for_serialization(role)
        own = less["rules"][0]
        assert own["resources"][1] == "executions"
        own["resources"].remove("executions")
        try:
            roles.patch_cluster_role("almoner-operator", {"rules": less["rules"]})
            stack.start_operator(wait=False)

            def look() -> str | None:
                problem = str(stack.operator_state().get("problem", ""))
                return problem if "forbidden" in problem else None

            said = until(look, SECONDS, "it to say what it may not do")
            assert said is not None
            assert 'cannot list resource "executions" in API group "almoner.dev"' in said
            assert "apply the roles of this version (deploy/rbac.yaml)" in said
            assert "apply the roles of this version (deploy/rbac.yaml)" in stack.operator_log.read_text()
        finally:
            roles.patch_cluster_role("almoner-operator", {"rules": api.sanitize_for_serialization(role)["rules"]})
        stack.wait_operator()
    api.close()
