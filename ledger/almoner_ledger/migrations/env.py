"""Alembic's entry: runs in the connection and the transaction that the caller opened."""

from __future__ import annotations

import re
from typing import Any

from alembic import context

from almoner_ledger.schema import metadata

PARTITION = re.compile(r"records_(\d{6}|default)")


def _is_in_code(name: str | None, kind: str, _: Any) -> bool:
    # Partitions come and go with the months.
    return kind != "table" or name is None or PARTITION.fullmatch(name) is None


connection = context.config.attributes["connection"]
context.configure(
    connection=connection,
    target_metadata=metadata,
    render_as_batch=connection.dialect.name == "sqlite",
    transactional_ddl=True,
    include_name=_is_in_code,
)
with context.begin_transaction():
    context.run_migrations()
