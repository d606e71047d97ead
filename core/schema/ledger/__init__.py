"""The ledger's schema history, as Alembic revisions."""
