"""Hands keys of cluster-scoped providers over to meters: to the bound pod's alone, over TLS, in memory.

Role: says who gets which key now. The operator said which Secrets an attempt's meter may have keys of when it opened
the allotment; the Secret's own label says that it is there to be handed over, so that nobody can talk operator or
ledger into giving away another Secret of this namespace (the database's URL, the certificate's key). Boundary: keys are
in no log, no error, no metric, and on no disk.
"""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import socket
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from almoner_core.contract import LABEL_PROVIDER_KEY
from almoner_core.wire import KEY_CHARS_MAX, ErrorCode, HandedKey, HandedKeys, KeyGrant
from almoner_ledger import metrics
from almoner_ledger.errors import LedgerError
from almoner_ledger.kubernetes import KubernetesUnavailableError
from almoner_ledger.secret_reader import SecretReader

log = logging.getLogger(__name__)

BURST: Final = 12
SECONDS_EACH: Final = 5.0
"""A pod may ask so often at once, and once more after so long."""
PODS_MAX: Final = 10_000


class ProviderKeys:
    """Gives keys to who may have them. Use it from one event loop. `reader` None: there is no API server to ask."""

    def __init__(self, reader: SecretReader | None, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._reader = reader
        self._clock = clock
        self._spent: OrderedDict[str, tuple[float, float]] = OrderedDict()
        """By pod: how often it asked beyond what time has given back, and when that was."""

    async def close(self) -> None:
        """Close what it holds open."""
        if self._reader is not None:
            await self._reader.close()

    def pace(self, pod_uid: str) -> None:
        """Count that a pod asks. Raises LedgerError `unavailable` where it asks too often."""
        now = self._clock()
        spent, at = self._spent.pop(pod_uid, (0.0, now))
        spent = max(0.0, spent - (now - at) / SECONDS_EACH)
        refused = spent + 1 > BURST
        self._spent[pod_uid] = (spent if refused else spent + 1, now)
        if len(self._spent) > PODS_MAX:
            self._spent.popitem(last=False)
        if refused:
            metrics.TURNED_AWAY.labels("keys").inc()
            raise LedgerError(ErrorCode.UNAVAILABLE, "this pod asks for keys too often; retry later")

    async def hand_over(self, allotment: str, granted: Mapping[str, KeyGrant], asked: Sequence[str]) -> HandedKeys:
        """Give each key that is asked for, or why not, in the order asked."""
        handed = await asyncio.gather(*(self._one(name, granted.get(name)) for name in asked))
        for each in handed:
            result = "handed over" if each.error is None else each.error.code.value
            metrics.KEYS.labels(result).inc()
            log.info("key of provider %s for allotment %s: %s", each.provider[:253], allotment, result)
        return HandedKeys(keys=handed)

    async def _one(self, provider: str, grant: KeyGrant | None) -> HandedKey:
        try:
            return HandedKey(provider=provider, key=await self._key(provider, grant))
        except LedgerError as error:
            return HandedKey(provider=provider, error=error.to_wire())

    async def _key(self, provider: str, grant: KeyGrant | None) -> str:
        """Give one key. Raises LedgerError."""
        if grant is None:
            raise LedgerError(ErrorCode.FORBIDDEN, f"provider {provider}: this attempt may not have its key")
        if self._reader is None:
            raise LedgerError(ErrorCode.UNAVAILABLE, "the ledger has no API server to read Secrets from")
        try:
            seen = await self._reader.read(grant.secret)
        except KubernetesUnavailableError as error:
            raise LedgerError(ErrorCode.UNAVAILABLE, f"Secret {grant.secret} cannot be read now: {error}") from None
        where = f"Secret {grant.secret} in namespace {self._reader.namespace}"
        if seen is None:
            raise LedgerError(ErrorCode.NOT_FOUND, f"{where} does not exist")
        if seen.labels.get(LABEL_PROVIDER_KEY) != "true":
            raise LedgerError(ErrorCode.FORBIDDEN, f'{where} lacks the label {LABEL_PROVIDER_KEY}: "true"')
        if grant.key not in seen.data:
            raise LedgerError(ErrorCode.NOT_FOUND, f"{where} has no key {grant.key}")
        return _text_of(seen.data[grant.key], f"{where}, key {grant.key}")


def _text_of(data: bytes, where: str) -> str:
    """Give a key as text without surrounding white space. Raises LedgerError, which does not quote it."""
    try:
        text = data.decode("utf-8").strip()
    except UnicodeDecodeError:
        text = ""
    if not text or len(text) > KEY_CHARS_MAX or not text.isprintable():
        raise LedgerError(ErrorCode.INVALID, f"{where}: it is not one line of at most {KEY_CHARS_MAX} characters")
    return text


def check_private(transport: asyncio.BaseTransport | None) -> None:
    """Refuse to hand keys over a connection that others could read. Raises LedgerError `insecure`."""
    if transport is None or not is_private(transport.get_extra_info):
        text = "keys are handed over by TLS, or within one machine: give the ledger a certificate (--tls-dir)"
        raise LedgerError(ErrorCode.INSECURE, text)


def is_private(extra: Callable[[str], Any]) -> bool:
    """Whether a connection, by what its transport tells of it, is TLS or does not leave the machine."""
    if extra("sslcontext") is not None:
        return True
    own = extra("socket")
    if own is not None and own.family == socket.AF_UNIX:
        return True
    # Both ends: where something translates addresses, one of them may look near and be far.
    return all(_is_loopback(extra(name)) for name in ("peername", "sockname"))


def _is_loopback(address: Any) -> bool:
    if not isinstance(address, tuple) or not address:
        return False
    try:
        found = ipaddress.ip_address(str(address[0]).partition("%")[0])
    except ValueError:
        return False
    if isinstance(found, ipaddress.IPv6Address) and found.ipv4_mapped is not None:
        found = found.ipv4_mapped
    return found.is_loopback
