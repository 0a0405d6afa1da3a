"""Which keys of providers a meter may ask for: what the operator said when it opened the meter's allotment.

Reads only. Boundary: names of Secrets and keys; what is in them is provider_keys' business.
"""

from __future__ import annotations

import json

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from almoner_core.wire import AllotmentState, ErrorCode, KeyGrant, Purpose
from almoner_ledger import schema
from almoner_ledger.errors import LedgerError

_FIELD = "allotment"


def of(connection: Connection, allotment: str, pod_uid: str) -> dict[str, KeyGrant]:
    """Give the keys that the meter of a pod may have, by provider.

    Raises LedgerError unless the allotment is active and the operator bound it to that very pod.
    """
    table = schema.allotments
    columns = (table.c.state, table.c.pod_uid, table.c.purpose, table.c.final_sequence, table.c.provider_keys)
    row = connection.execute(sa.select(*columns).where(table.c.id == allotment)).first()
    if row is None:
        raise LedgerError(ErrorCode.NOT_FOUND, "allotment: there is no such allotment", field=_FIELD)
    state = AllotmentState(row.state)
    if row.pod_uid is None and state is AllotmentState.OFFERED:
        raise LedgerError(ErrorCode.NOT_BOUND, "allotment: it is not bound to a pod yet; try again soon", field=_FIELD)
    if row.pod_uid != pod_uid or row.purpose != Purpose.RUN.value:
        raise LedgerError(ErrorCode.FORBIDDEN, "allotment: it belongs to another pod", field=_FIELD)
    if state is not AllotmentState.ACTIVE or row.final_sequence is not None:
        said = "returned" if state is AllotmentState.ACTIVE else state.value
        text = f"allotment: it is {said}, and keys are handed over while it is active"
        raise LedgerError(ErrorCode.WRONG_STATE, text, field=_FIELD)
    grants = (KeyGrant.model_validate(each) for each in json.loads(row.provider_keys or "[]"))
    return {each.provider: each for each in grants}
