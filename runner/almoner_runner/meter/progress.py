"""What a trainer reports: checked, forwarded at most once a second, the last report never lost."""

from __future__ import annotations

import asyncio
import logging
from typing import Any, Final

from almoner_core.environment import PROGRESS_INTERVAL_SECONDS
from almoner_core.text import short, storable
from almoner_runner.meter.ledger import LedgerClient, LedgerError, LedgerUnreachableError

logger = logging.getLogger(__name__)

STEP_MAX: Final = 10**15
MESSAGE_CHARS_MAX: Final = 256
METRICS_MAX: Final = 32
METRIC_NAME_CHARS_MAX: Final = 128
METRIC_VALUE_CHARS_MAX: Final = 64
FIELDS: Final = ("step", "total", "message", "metrics")


def check(data: Any) -> dict[str, Any]:
    """Read a report in the shape of wire.PostProgress; metric values may be numbers. Raises ValueError."""
    if not isinstance(data, dict):
        raise ValueError("progress: must be a JSON object")  # noqa: TRY004 - one kind of error for bad input
    if unknown := sorted(set(data) - set(FIELDS)):
        raise ValueError(f"progress: unknown field {unknown[0][:64]!r}; there are {', '.join(FIELDS)}")
    report: dict[str, Any] = {"step": _whole(data.get("step", 0), "step", 0)}
    if data.get("total") is not None:
        report["total"] = _whole(data["total"], "total", 1)
    if (message := data.get("message")) is not None:
        if not isinstance(message, str):
            raise ValueError("progress.message: must be text")
        report["message"] = short(storable(message), MESSAGE_CHARS_MAX)
    metrics = data.get("metrics") or {}
    if not isinstance(metrics, dict) or len(metrics) > METRICS_MAX:
        raise ValueError(f"progress.metrics: must be an object of at most {METRICS_MAX} entries")
    report["metrics"] = {_metric_name(name): _metric(name, value) for name, value in metrics.items()}
    return report


def _whole(value: Any, name: str, least: int) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= STEP_MAX:
        raise ValueError(f"progress.{name}: must be a whole number from {least} to {STEP_MAX}")
    return value


def _metric_name(name: str) -> str:
    if not 0 < len(name) <= METRIC_NAME_CHARS_MAX:
        raise ValueError(f"progress.metrics: names have 1 to {METRIC_NAME_CHARS_MAX} characters")
    return storable(name)


def _metric(name: str, value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, (str, int, float)):
        raise ValueError(f"progress.metrics.{name[:64]}: must be a number or a decimal string")  # noqa: TRY004 - likewise
    text = storable(str(value))
    if len(text) > METRIC_VALUE_CHARS_MAX:
        raise ValueError(f"progress.metrics.{name[:64]}: at most {METRIC_VALUE_CHARS_MAX} characters")
    return text


class Progress:
    """Keeps the newest report and sends it on."""

    def __init__(self, client: LedgerClient) -> None:
        self._client = client
        self._newest: dict[str, Any] | None = None
        self._arrived = asyncio.Event()

    def report(self, data: Any) -> None:
        """Take a report. Raises ValueError."""
        self._newest = check(data)
        self._arrived.set()

    async def run(self) -> None:
        """Send the newest report, at most one a second, until cancelled."""
        while True:
            await self._arrived.wait()
            self._arrived.clear()
            await self.flush()
            await asyncio.sleep(PROGRESS_INTERVAL_SECONDS)

    async def flush(self) -> None:
        """Send the newest report if it was not sent."""
        report, self._newest = self._newest, None
        if report is None:
            return
        try:
            await self._client.exchange("POST", "progress", report)
        except LedgerUnreachableError as error:
            logger.info("progress: %s", error)
            if self._newest is None:
                self._newest = report
                self._arrived.set()
        except LedgerError as error:
            logger.warning("progress: %s", error)
