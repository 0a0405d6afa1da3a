"""The two calls to the Kubernetes API: TokenReview and SubjectAccessReview, with a kubeconfig or as a pod."""

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
ACCESS_PATH: Final = "/apis/authorization.k8s.io/v1/subjectaccessreviews"
REVIEW_SECONDS: Final = 5


class KubernetesUnavailableError(Exception):
    """The API server did not answer, or not as it should."""


@dataclass(frozen=True, slots=True)
class Subject:
    """A user as the API server told of it in a TokenReview, and wants it back in a SubjectAccessReview."""

    username: str
    uid: str = ""
    groups: tuple[str, ...] = ()
    extra: tuple[tuple[str, tuple[str, ...]], ...] = ()


@dataclass(frozen=True, slots=True)
class Review:
    """What the API server says of a token."""

    authenticated: bool
    subject: Subject = Subject("")
    pod_uid: str | None = None
    error: str = ""

    @property
    def username(self) -> str:
        """The user's name."""
        return self.subject.username


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


class _ApiServer:
    """Posts reviews to the API server, over connections that are kept."""

    def __init__(self, access: Access) -> None:
        self._access = access
        self._session: aiohttp.ClientSession | None = None

    async def close(self) -> None:
        """Close the connections."""
        if self._session is not None:
            await self._session.close()

    async def post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        """Post a review; gives its status. Raises KubernetesUnavailableError where there is none."""
        what = body["kind"]
        if self._session is None:
            self._session = aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=REVIEW_SECONDS))
        try:
            # Reading the token file blocks for microseconds; it is a mounted file of a kilobyte.
            headers = self._access.authorization()
            tls = self._access.tls if self._access.tls is not None else True
            async with self._session.post(self._access.server + path, json=body, headers=headers, ssl=tls) as answer:
                if answer.status == 403:
                    raise KubernetesUnavailableError(
                        f"the ledger may not ask for a {what}: apply the installation's roles"
                    )
                if answer.status not in (200, 201):
                    raise KubernetesUnavailableError(f"{what} answered {answer.status}")
                document = await answer.json()
        except (aiohttp.ClientError, OSError, TimeoutError, ValueError) as error:
            raise KubernetesUnavailableError(f"{what} failed: {type(error).__name__}") from error
        status = document.get("status") if isinstance(document, dict) else None
        if not isinstance(status, dict):
            raise KubernetesUnavailableError(f"{what} was answered without a status")
        return status


class TokenReviewer(_ApiServer):
    """Asks the API server whose token it is, for one audience. `audience` None: for the API server's own."""

    def __init__(self, access: Access, audience: str | None) -> None:
        super().__init__(access)
        self._audience = audience

    async def review(self, token: str) -> Review:
        """Judge a token. Raises KubernetesUnavailableError where the API server cannot be asked."""
        spec: dict[str, Any] = {"token": token}
        if self._audience is not None:
            spec["audiences"] = [self._audience]
        body = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview", "spec": spec}
        return self._judge(await self.post(REVIEW_PATH, body))

    def _judge(self, status: dict[str, Any]) -> Review:
        if status.get("authenticated") is not True:
            return Review(authenticated=False, error=str(status.get("error", ""))[:200])
        # An authenticator that knows no audiences would leave them out: then it is a token for the API server itself.
        if self._audience is not None and self._audience not in status.get("audiences", []):
            return Review(authenticated=False, error=f"the token is not for the audience {self._audience}")
        user = status.get("user") or {}
        extra = user.get("extra") or {}
        return Review(
            authenticated=True,
            subject=Subject(
                username=str(user.get("username", "")),
                uid=str(user.get("uid", "")),
                groups=tuple(sorted(user.get("groups") or [])),
                extra=tuple(sorted((str(key), tuple(values)) for key, values in extra.items())),
            ),
            pod_uid=next(iter(extra.get("authentication.kubernetes.io/pod-uid") or []), None),
        )


class AccessReviewer(_ApiServer):
    """Asks the API server whether a user may get a resource."""

    async def may_get(self, subject: Subject, group: str, resource: str, namespace: str) -> bool:
        """Ask; `namespace` empty: in all of them. Raises KubernetesUnavailableError where there is no answer."""
        wanted = {"verb": "get", "group": group, "resource": resource}
        spec = {
            "user": subject.username,
            "uid": subject.uid,
            "groups": [*subject.groups],
            "extra": {key: [*values] for key, values in subject.extra},
            "resourceAttributes": {**wanted, "namespace": namespace} if namespace else wanted,
        }
        status = await self.post(
            ACCESS_PATH,
            {"apiVersion": "authorization.k8s.io/v1", "kind": "SubjectAccessReview", "spec": spec},
        )
        return status.get("allowed") is True and status.get("denied") is not True
