"""In an image the operator is a number: a user without a name."""

from __future__ import annotations

import asyncio
import contextlib
import os
from types import SimpleNamespace
from typing import Any, cast

import pytest

from almoner_operator.app import Operator

NOBODY = 2_000_000_001


async def test_a_user_without_a_name_may_watch(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("LOGNAME", "USER", "LNAME", "USERNAME"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr(os, "getuid", lambda: NOBODY)
    operator = Operator(cast("Any", SimpleNamespace(namespaces=(), ledger_ca_file=None)))
    watching, _ = await operator._watch(cast("Any", None), cast("Any", None), "this-process")
    assert not watching.done()
    watching.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await watching
