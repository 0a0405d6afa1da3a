"""Alembic's entry: runs in the connection and the transaction that the caller opened."""

from __future__ import annotations

from alembic import context

from almoner_ledger.schema import metadata

connection = context.config.attributes["connection"]
context.configure(
    connection=connection,
    target_metadata=metadata,
    render_as_batch=connection.dialect.name == "sqlite",
    transactional_ddl=True,
)
with context.begin_transaction():
    context.run_migrations()
