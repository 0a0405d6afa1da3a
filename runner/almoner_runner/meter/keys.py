"""The keys of the providers: read from mounted files, or handed over by the ledger and kept in memory alone.

A ClusterModelProvider's key is in no volume and no variable of the pod: the meter asks the ledger for it before it is
ready, again every few minutes, and at once where a provider answers that it does not know the key, since it may have
been rotated. What was handed over stays until something newer is: a run under way does not need the ledger for it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from pathlib import Path
from typing import Any, Final

from almoner_runner.meter import waits
from almoner_runner.meter.config import Config
from almoner_runner.meter.ledger import LedgerClient, LedgerError, LedgerUnreachableError, Secret

logger = logging.getLogger(__name__)

START_SECONDS: Final = 20.0
"""So long keys are asked for at the start; then the meter says which it lacks, ends, and is started again."""
REFRESH_SECONDS: Final = 240.0
REFUSED_SECONDS: Final = 10.0
"""A key that a provider refused is asked for again at most this often."""


class KeysMissingError(Exception):
    """The ledger did not hand a key over in time; the message says whose, and why."""


class Keys:
    """Gives the key of each provider."""

    def __init__(self, config: Config, providers_dir: Path, client: LedgerClient) -> None:
        self._files = {
            each.name: Secret(providers_dir / each.key_file if each.key_file else None)
            for each in config.providers
            if not each.ledger_key
        }
        self._handed: dict[str, str | None] = {each.name: None for each in config.providers if each.ledger_key}
        self._client = client
        self._wanted = asyncio.Event()
        self.lacking: str | None = None
        """What kept the last answer from having every key; None: nothing."""

    def __repr__(self) -> str:
        return f"Keys({sorted([*self._files, *self._handed])})"

    def read(self, provider: str) -> str:
        """Give a provider's key; empty where it asks for none. Raises OSError, ValueError."""
        if provider not in self._handed:
            return self._files[provider].read()
        key = self._handed[provider]
        if key is None:
            raise ValueError("the ledger has not handed the key over")
        return key

    def refused(self, provider: str) -> None:
        """Note that a provider did not take its key."""
        if provider in self._handed:
            self._wanted.set()

    async def start(self, seconds: float = START_SECONDS) -> None:
        """Get every key that the ledger has to hand over. Raises KeysMissingError."""
        if not self._handed:
            return
        try:
            async with asyncio.timeout(seconds):
                for wait in waits.backoff():
                    await self._fetch()
                    if self.lacking is None:
                        return
                    logger.warning("%s; trying again", self.lacking)
                    await asyncio.sleep(wait)
        except TimeoutError:
            raise KeysMissingError(f"{self.lacking or 'the ledger did not answer'} (for {seconds:.0f} s)") from None

    async def run(self) -> None:
        """Keep the keys fresh, until cancelled."""
        if not self._handed:
            await asyncio.Event().wait()
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(REFRESH_SECONDS * (0.75 + random.random() / 2)):  # noqa: S311 - jitter
                    await self._wanted.wait()
            self._wanted.clear()
            await self._fetch()
            if self.lacking is not None:
                logger.warning("%s; the key that is known stays", self.lacking)
            await asyncio.sleep(REFUSED_SECONDS)

    async def _fetch(self) -> None:
        """Ask for all keys once; what is handed over is kept."""
        self.lacking = "the ledger did not answer when it was asked for keys"
        try:
            answer = await self._client.exchange("POST", "keys", {"providers": list(self._handed)})
        except LedgerUnreachableError as error:
            self.lacking = f"keys of {_named(self._handed)}: the ledger cannot be reached: {error}"
            return
        except LedgerError as error:
            self.lacking = f"keys of {_named(self._handed)}: the ledger hands none over: {error}"
            return
        problems = dict.fromkeys(self._handed, "the ledger's answer has no key")
        for handed in _entries(answer):
            name, key = handed.get("provider"), handed.get("key")
            if name not in problems:
                continue
            if isinstance(key, str) and key:
                self._handed[name] = key
                del problems[name]
            else:
                problems[name] = _said(handed.get("error"))
        said = [f"the key of provider {name}: {problem}" for name, problem in problems.items()]
        self.lacking = "; ".join(said) or None


def _named(names: dict[str, Any]) -> str:
    return f"provider{'s' if len(names) > 1 else ''} {', '.join(names)}"


def _entries(answer: dict[str, Any]) -> list[dict[str, Any]]:
    entries = answer.get("keys")
    return [each for each in entries if isinstance(each, dict)] if isinstance(entries, list) else []


def _said(error: Any) -> str:
    """Say why a key was not handed over, in the ledger's words."""
    if not isinstance(error, dict):
        return "the ledger's answer has no key"
    return f"{error.get('code')}: {str(error.get('message'))[:512]}"
