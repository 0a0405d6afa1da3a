"""The one call to the Kubernetes API: TokenReview, with a kubeconfig or as a pod."""

from __future__ import annotations

import base64
import os
import ssl
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import aiohttp
import yaml

IN_CLUSTER: Final = Path("/var/run/secrets/kubernetes.io/serviceaccount")
REVIEW_PATH: Final = "/apis/authentication.k8s.io/v1/tokenreviews"
REVIEW_SECONDS: Final = 5


class KubernetesUnavailableError(Exception):
    """The API server did not answer, or not as it should."""


@dataclass(frozen=True, slots=True)
class Review:
    """What the API server says of a token."""

    authenticated: bool
    username: str = ""
    groups: frozenset[str] = frozenset()
    pod_uid: str | None = None
    pod_name: str | None = None
    error: str = ""


@dataclass(frozen=True)
class Access:
    """Where the API server is, and how to speak to it. The token file is read anew each time: it is rotated."""

    server: str
    tls: ssl.SSLContext | None
    token: str | None = None
    token_file: Path | None = None

    def authorization(self) -> dict[str, str]:
        """The header that names us; none where the client certificate does."""
        token = self.token_file.read_text().strip() if self.token_file is not None else self.token
        return {"Authorization": f"Bearer {token}"} if token else {}


def in_cluster() -> Access | None:
    """Access as a pod's service account; None outside a cluster."""
    host, port = os.environ.get("KUBERNETES_SERVICE_HOST"), os.environ.get("KUBERNETES_SERVICE_PORT", "443")
    if not host or not (IN_CLUSTER / "token").exists():
        return None
    literal = f"[{host}]" if ":" in host else host
    context = ssl.create_default_context(cafile=str(IN_CLUSTER / "ca.crt"))
    return Access(f"https://{literal}:{port}", context, token_file=IN_CLUSTER / "token")


def from_kubeconfig(path: Path) -> Access:
    """Access as a kubeconfig's current context has it: tokens, token files and client certificates.

    Raises ValueError for what it cannot use, such as exec plugins.
    """
    document = yaml.safe_load(path.read_text())
    try:
        current = _named(document["contexts"], document["current-context"])["context"]
        cluster = _named(document["clusters"], current["cluster"])["cluster"]
        user = _named(document["users"], current["user"])["user"]
        server = str(cluster["server"]).rstrip("/")
    except (KeyError, TypeError, StopIteration) as error:
        raise ValueError(f"kubeconfig {path}: no complete current context: {error!r}") from error
    context = _tls(cluster, user, path) if server.startswith("https") else None
    token_file = user.get("tokenFile")
    if not (user.get("token") or token_file or user.get("client-certificate") or user.get("client-certificate-data")):
        raise ValueError(f"kubeconfig {path}: the user needs a token or a client certificate")
    return Access(server, context, user.get("token"), Path(token_file) if token_file else None)


def _named(entries: list[dict[str, Any]], name: str) -> dict[str, Any]:
    return next(entry for entry in entries if entry["name"] == name)


def _tls(cluster: dict[str, Any], user: dict[str, Any], path: Path) -> ssl.SSLContext:
    authority = _pem(cluster, "certificate-authority", path)
    context = ssl.create_default_context(cadata=authority)
    if cluster.get("insecure-skip-tls-verify"):
        raise ValueError(f"kubeconfig {path}: insecure-skip-tls-verify is not supported; give the authority")
    certificate, key = _pem(user, "client-certificate", path), _pem(user, "client-key", path)
    if certificate and key:
        with tempfile.NamedTemporaryFile("w", suffix=".pem") as both:
            both.write(certificate + "\n" + key)
            both.flush()
            context.load_cert_chain(both.name)
    return context


def _pem(part: dict[str, Any], name: str, path: Path) -> str | None:
    if data := part.get(f"{name}-data"):
        return base64.b64decode(str(data)).decode()
    if file := part.get(name):
        return (path.parent / str(file)).read_text()
    return None


class TokenReviewer:
    """Asks the API server whose token it is, for one audience."""

    def __init__(self, access: Access, audience: str) -> None:
        self._access = access
        self._audience = audience
        self._session: aiohttp.ClientSession | None = None

    async def close(self) -> None:
        """Close the connections."""
        if self._session is not None:
            await self._session.close()

    async def review(self, token: str) -> Review:
        """Judge a token. Raises KubernetesUnavailableError where the API server cannot be asked."""
        if self._session is None:
            self._session = aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=REVIEW_SECONDS))
        body = {
            "apiVersion": "authentication.k8s.io/v1",
            "kind": "TokenReview",
            "spec": {"token": token, "audiences": [self._audience]},
        }
        try:
            # Reading the token file blocks for microseconds; it is a mounted file of a kilobyte.
            headers = self._access.authorization()
            tls = self._access.tls if self._access.tls is not None else True
            url = self._access.server + REVIEW_PATH
            async with self._session.post(url, json=body, headers=headers, ssl=tls) as answer:
                if answer.status not in (200, 201):
                    raise KubernetesUnavailableError(f"TokenReview answered {answer.status}")
                document = await answer.json()
        except (aiohttp.ClientError, OSError, TimeoutError, ValueError) as error:
            raise KubernetesUnavailableError(f"TokenReview failed: {type(error).__name__}") from error
        return self._judge(document.get("status") or {})

    def _judge(self, status: dict[str, Any]) -> Review:
        if not status.get("authenticated"):
            return Review(authenticated=False, error=str(status.get("error", ""))[:200])
        # An authenticator that knows no audiences would leave them out: then it is a token for the API server itself.
        if self._audience not in status.get("audiences", []):
            return Review(authenticated=False, error=f"the token is not for the audience {self._audience}")
        user = status.get("user") or {}
        extra = user.get("extra") or {}
        return Review(
            authenticated=True,
            username=str(user.get("username", "")),
            groups=frozenset(user.get("groups") or []),
            pod_uid=next(iter(extra.get("authentication.kubernetes.io/pod-uid") or []), None),
            pod_name=next(iter(extra.get("authentication.kubernetes.io/pod-name") or []), None),
        )
