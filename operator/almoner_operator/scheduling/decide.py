"""Decide: a snapshot and a moment in, decisions out. Pure: the same input gives the same output, in the same order."""

from __future__ import annotations

from datetime import datetime

from almoner_operator.scheduling.model import Decisions, Settings, Snapshot

_DEFAULT = Settings()


def decide(
    snapshot: Snapshot, now: datetime, settings: Settings = _DEFAULT, previous: Decisions | None = None
) -> Decisions:
    """Decide what is admitted, rejected, stopped, and why the rest waits.

    `previous` saves the work for namespaces that are the same object as then and whose decisions still hold.
    """
    raise NotImplementedError
