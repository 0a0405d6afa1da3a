"""/readyz of the operator means it: not ready, and what it waits for, until it can do its work."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from almoner_dev.stack import Stack
from tests.support.polling import until

if TYPE_CHECKING:
    from almoner_dev.controlplane import ControlPlane
    from almoner_dev.simnode import SimulatedNode

SECONDS = 60.0


def test_an_operator_that_waits_for_the_ledger_is_not_ready_and_says_so(
    bare_plane: ControlPlane, simulated: SimulatedNode
) -> None:
    with Stack(bare_plane, with_operator=False) as stack:
        stack.kill_ledger()
        stack.start_operator(wait=False)

        def look() -> dict[str, Any] | None:
            state = stack.operator_state()
            return state if state.get("leader") and "ledger" in state["problem"] else None

        waiting = until(look, SECONDS, "it to say what it waits for")
        assert waiting is not None
        assert waiting["problem"].startswith("leads, and is not ready yet: taking an epoch in the ledger")
        assert not waiting["ok"]
        stack.start_ledger()
        stack.wait_operator()
        assert stack.operator_state() | {"ledger": True} == {
            "ok": True,
            "problem": "",
            "leader": True,
            "synced": True,
            "ledger": True,
        }
