"""The audit rules of docs/auditing.md, in a real API server: they record who changed a limit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml
from kubernetes import client, config

from almoner_dev import binaries
from almoner_dev.controlplane import ControlPlane
from almoner_dev.crds import install_crds
from tests.conftest import missing
from tests.support.polling import until

ROOT = Path(__file__).resolve().parents[2]
QUOTAS = ("almoner.dev", "v1alpha1", "default", "resourcequotas")
SECONDS = 60.0


def rules() -> str:
    """The policy that the page shows."""
    page = (ROOT / "docs" / "auditing.md").read_text(encoding="utf-8")
    (block,) = [each.partition("```")[0] for each in page.split("```yaml\n")[1:]]
    return block


def events(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def test_the_audit_log_has_the_users_name_for_each_change_of_the_ledgers_log(tmp_path: Path) -> None:
    policy, log = tmp_path / "policy.yaml", tmp_path / "audit.log"
    policy.write_text(rules())
    assert yaml.safe_load(rules())["kind"] == "Policy"
    flags = [f"--audit-policy-file={policy}", f"--audit-log-path={log}"]
    plane = ControlPlane(with_scheduler=False, with_controller_manager=False, apiserver_args=flags)
    try:
        plane.start()
    except binaries.BinariesMissing as error:
        missing(error)
    with plane, config.new_client_from_config(str(plane.kubeconfig)) as api:
        install_crds(plane.kubeconfig)
        api.set_default_header("Impersonate-User", "ann")
        api.set_default_header("Impersonate-Group", "system:masters")
        custom = client.CustomObjectsApi(api)
        body = {
            "apiVersion": "almoner.dev/v1alpha1",
            "kind": "ResourceQuota",
            "metadata": {"name": "team"},
            "spec": {"budget": {"amount": "5.00", "period": "Monthly"}},
        }
        custom.create_namespaced_custom_object(*QUOTAS, body)
        changed = custom.patch_namespaced_custom_object(
            *QUOTAS, "team", {"spec": {"budget": {"amount": "9.00"}}}, field_manager="argocd-controller"
        )
        custom.list_namespaced_custom_object(*QUOTAS)

        def patched() -> dict[str, Any] | None:
            return next((each for each in events(log) if each["verb"] == "patch" and _is_team(each)), None)

        event = until(patched, SECONDS, "the event")
        assert event is not None
        assert event["impersonatedUser"]["username"] == "ann"
        recorded = event["responseObject"]["metadata"]
        assert recorded["generation"] == changed["metadata"]["generation"] == 2
        assert recorded["uid"] == changed["metadata"]["uid"]
        assert not [each for each in events(log) if each["verb"] in ("get", "list", "watch")]


def _is_team(event: dict[str, Any]) -> bool:
    reference = event.get("objectRef") or {}
    return (reference.get("resource"), reference.get("name")) == ("resourcequotas", "team")
