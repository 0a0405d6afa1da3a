"""The Secret with the ledger's certificate, on a real API server: made once, renewed in time, left where not ours."""

from __future__ import annotations

import asyncio
import base64
import datetime as dt
import secrets
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
from kubernetes import client, config

from almoner_dev.controlplane import ControlPlane
from almoner_operator import credentials
from almoner_operator.certificate_keeper import OURS, CertificateKeeper, dns_names
from almoner_operator.certificates import AUTHORITY_KEY, CERTIFICATE, LEAF, RENEW, TRUSTED
from almoner_operator.credentials import CredentialsError
from almoner_operator.kubernetes import KubernetesClient

NAME = "almoner-ledger-tls"
AT_ONCE = 6


@pytest.fixture
def core(bare_plane: ControlPlane) -> client.CoreV1Api:
    return client.CoreV1Api(config.new_client_from_config(str(bare_plane.kubeconfig)))


@pytest.fixture
def namespace(core: client.CoreV1Api) -> Iterator[str]:
    name = f"certificates-{secrets.token_hex(4)}"
    core.create_namespace({"metadata": {"name": name}})
    yield name
    core.delete_namespace(name)


@pytest.fixture
async def api(bare_plane: ControlPlane) -> AsyncIterator[KubernetesClient]:
    async with KubernetesClient(credentials.load(bare_plane.kubeconfig)) as made:
        yield made


def held(core: client.CoreV1Api, namespace: str) -> tuple[str, dict[str, str]]:
    """The Secret's version, and what it holds."""
    found: Any = core.read_namespaced_secret(NAME, namespace)
    return found.metadata.resource_version, {
        name: base64.b64decode(value).decode() for name, value in found.data.items()
    }


async def test_many_at_once_make_one_and_none_makes_it_again(
    api: KubernetesClient, core: client.CoreV1Api, namespace: str
) -> None:
    keepers = [CertificateKeeper(api, namespace, NAME) for _ in range(AT_ONCE)]
    told = set(await asyncio.gather(*(keeper.ensure() for keeper in keepers)))
    version, content = held(core, namespace)
    assert told == {content[TRUSTED]}
    assert {await keeper.ensure() for keeper in keepers} == told
    assert held(core, namespace) == (version, content)
    secret: Any = core.read_namespaced_secret(NAME, namespace)
    assert secret.type == "kubernetes.io/tls"
    assert secret.metadata.labels[OURS[0]] == OURS[1]
    assert dns_names(namespace)[2] == f"almoner-ledger.{namespace}.svc"


async def test_it_is_renewed_in_time_by_one_of_many(
    api: KubernetesClient, core: client.CoreV1Api, namespace: str
) -> None:
    trusted = await CertificateKeeper(api, namespace, NAME).ensure()
    _, first = held(core, namespace)
    then = dt.datetime.now(dt.UTC) + LEAF - RENEW
    later = [CertificateKeeper(api, namespace, NAME, clock=lambda: then) for _ in range(AT_ONCE)]
    assert set(await asyncio.gather(*(keeper.ensure() for keeper in later))) == {trusted}
    version, renewed = held(core, namespace)
    assert renewed[CERTIFICATE] != first[CERTIFICATE]
    assert renewed[AUTHORITY_KEY] == first[AUTHORITY_KEY]
    await later[0].ensure()
    assert held(core, namespace) == (version, renewed)


async def test_one_of_somebody_else_is_left_alone(
    api: KubernetesClient, core: client.CoreV1Api, namespace: str
) -> None:
    data = {"tls.crt": "their certificate", "tls.key": "their key", "ca.crt": "their authority"}
    body = {"metadata": {"name": NAME}, "type": "kubernetes.io/tls", "stringData": data}
    core.create_namespaced_secret(namespace, body)
    before = held(core, namespace)
    keeper = CertificateKeeper(api, namespace, NAME)
    assert await keeper.ensure() == "their authority"
    assert held(core, namespace) == before
    core.patch_namespaced_secret(NAME, namespace, {"data": {"ca.crt": None}})
    with pytest.raises(CredentialsError, match=r"is not Almoner's and has no ca\.crt"):
        await keeper.ensure()


async def test_one_of_ours_that_is_broken_is_made_anew(
    api: KubernetesClient, core: client.CoreV1Api, namespace: str
) -> None:
    keeper = CertificateKeeper(api, namespace, NAME)
    before = await keeper.ensure()
    not_text = base64.b64encode(b"\xff\xfe").decode()
    core.patch_namespaced_secret(NAME, namespace, {"data": {AUTHORITY_KEY: not_text}})
    after = await keeper.ensure()
    assert after != before
    assert held(core, namespace)[1][TRUSTED] == after


def test_the_command_does_the_same(bare_plane: ControlPlane, core: client.CoreV1Api, namespace: str) -> None:
    def ensure(*more: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "almoner_cli.main", "certificates", "ensure", "--namespace", namespace, *more]
        return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)

    given = ("--kubeconfig", str(bare_plane.kubeconfig))
    for _ in range(2):
        done = ensure(*given)
        assert done.returncode == 0, done.stderr
        assert done.stdout == f"the Secret {namespace}/{NAME} is in order\n"
    assert held(core, namespace)[1][TRUSTED]
    nowhere = ensure("--kubeconfig", "/nowhere")
    assert (nowhere.returncode, nowhere.stdout) == (2, "")
    assert "no usable kubeconfig" in nowhere.stderr
