"""What of a body's text the ledger's database cannot hold."""

from __future__ import annotations

import json

from hypothesis import given
from hypothesis import strategies as st

from almoner_ledger.parsing import without_nul


@given(st.lists(st.sampled_from(["\0", "\\", "u0000", "\\u0000", '"', "n", "\ufffd", "é"]), max_size=12).map("".join))
def test_nul_is_replaced_and_nothing_else(text: str) -> None:
    body = json.dumps({"content": text}).encode()
    assert json.loads(without_nul(body)) == {"content": text.replace("\0", "\ufffd")}
