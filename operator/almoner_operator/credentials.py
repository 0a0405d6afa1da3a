"""How the operator proves to the API server who it is: in a cluster, or by a kubeconfig.

Role: one `Credentials` that both kopf and our own client use. Tokens are read again from their files, because the
kubelet (and the development tools) replace them before they expire.

Boundary: reads files, opens no connection. What a kubeconfig may hold beyond a token file (exec plugins,
certificates) is left to the official client's loader.
"""

from __future__ import annotations

import ssl
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import kopf
import yaml
from kubernetes import client as official
from kubernetes import config as official_config

TOKEN_REREAD_SECONDS: Final = 10.0
SERVICE_ACCOUNT_DIR: Final = Path("/var/run/secrets/kubernetes.io/serviceaccount")


class CredentialsError(RuntimeError):
    """The credentials cannot be used; the message says what to correct."""


@dataclass
class TokenFile:
    """A bearer token in a file that somebody else replaces before it expires."""

    path: Path
    _value: str = ""
    _read_at: float = field(default=-TOKEN_REREAD_SECONDS)

    def read(self, *, fresh: bool = False) -> str:
        """Give the token, at most ten seconds old. Raises CredentialsError where there is none."""
        now = time.monotonic()
        if fresh or now - self._read_at >= TOKEN_REREAD_SECONDS:
            try:
                value = self.path.read_text(encoding="utf-8").strip()
            except OSError as error:
                if self._value:  # Being replaced at this moment: the old one is still good.
                    return self._value
                raise CredentialsError(f"cannot read the token file {self.path}: {error.strerror}") from error
            if not value and not self._value:
                raise CredentialsError(f"the token file {self.path} is empty")
            self._value, self._read_at = value or self._value, now
        return self._value


@dataclass
class Credentials:
    """The API server's address and how to authenticate there."""

    server: str
    ca_file: str | None = None
    certificate_file: str | None = None
    key_file: str | None = None
    verify: bool = True
    token_file: TokenFile | None = None
    loaded: Any = None
    """The official client's Configuration, whose hooks renew what they know how to renew."""

    def authorization(self) -> str | None:
        """Give the Authorization header's value, or None where a certificate does it."""
        if self.token_file is not None:
            return f"Bearer {self.token_file.read()}"
        if self.loaded is not None:
            value = self.loaded.get_api_key_with_prefix("authorization") or self.loaded.get_api_key_with_prefix(
                "BearerToken"
            )
            return str(value) if value else None
        return None

    def ssl_context(self) -> ssl.SSLContext | bool:
        """Give what a TLS connection to the server needs; False for plain HTTP."""
        if not self.server.startswith("https:"):
            return False
        context = ssl.create_default_context(cafile=self.ca_file)
        if not self.verify:
            context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        if self.certificate_file:
            context.load_cert_chain(self.certificate_file, self.key_file)
        return context

    def for_kopf(self) -> kopf.ConnectionInfo:
        """Give the same in kopf's form; kopf asks again when the server answers 401."""
        header = self.authorization() or ""
        return kopf.ConnectionInfo(
            server=self.server,
            ca_path=self.ca_file,
            insecure=not self.verify,
            token=header.removeprefix("Bearer ") or None,
            certificate_path=self.certificate_file,
            private_key_path=self.key_file,
        )


def load(kubeconfig: Path | None) -> Credentials:
    """Give the credentials of a kubeconfig's current context, or of the pod's service account where None.

    Raises CredentialsError with what is missing.
    """
    if kubeconfig is None and (SERVICE_ACCOUNT_DIR / "token").exists():
        return _in_cluster()
    configuration = official.Configuration()
    try:
        official_config.load_kube_config(
            config_file=str(kubeconfig) if kubeconfig else None, client_configuration=configuration
        )
    except (official_config.ConfigException, OSError) as error:
        raise CredentialsError(f"no usable kubeconfig ({kubeconfig or 'default locations'}): {error}") from error
    return Credentials(
        server=str(configuration.host).rstrip("/"),
        ca_file=configuration.ssl_ca_cert,
        certificate_file=configuration.cert_file,
        key_file=configuration.key_file,
        verify=bool(configuration.verify_ssl),
        token_file=_token_file(kubeconfig) if kubeconfig else None,
        loaded=configuration,
    )


def _in_cluster() -> Credentials:
    configuration = official.Configuration()
    try:
        official_config.load_incluster_config(client_configuration=configuration)
    except official_config.ConfigException as error:
        raise CredentialsError(f"not usable inside this cluster: {error}") from error
    return Credentials(
        server=str(configuration.host).rstrip("/"),
        ca_file=configuration.ssl_ca_cert,
        token_file=TokenFile(SERVICE_ACCOUNT_DIR / "token"),
        loaded=configuration,
    )


def _token_file(kubeconfig: Path) -> TokenFile | None:
    """Find the current user's `tokenFile`, which the official loader reads only once."""
    document = yaml.safe_load(kubeconfig.read_text(encoding="utf-8")) or {}
    context_name = document.get("current-context")
    contexts = {entry["name"]: entry.get("context") or {} for entry in document.get("contexts") or []}
    users = {entry["name"]: entry.get("user") or {} for entry in document.get("users") or []}
    path = users.get(contexts.get(context_name, {}).get("user"), {}).get("tokenFile")
    if not path:
        return None
    found = Path(path)
    return TokenFile(found if found.is_absolute() else kubeconfig.parent / found)
