"""Adds counts of the runs that ``keep="failures"`` has deleted, and an index that finds the runs to delete.

Creating the index reads the whole table and blocks writes to it: for about a second with a million runs of history. The
index contains only slots of schedules made at run time that have succeeded at their first attempt without a result.
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import TIMESTAMP

revision = "0009"
down_revision = "0008"

INSTANT = TIMESTAMP(timezone=True)
IS_FORGETTABLE = "state = 'succeeded' AND slot IS NOT NULL AND key <> '' AND attempt = 1 AND result IS NULL"


def upgrade() -> None:
    op.create_table(
        "rota_success_counts",
        sa.Column("job", sa.Text, primary_key=True),
        sa.Column("minute", INSTANT, primary_key=True),
        sa.Column("runs", sa.BigInteger, nullable=False),
        sa.Column("first_at", INSTANT, nullable=False),
        sa.Column("last_at", INSTANT, nullable=False),
        sa.Column("first_slot", INSTANT, nullable=False),
        sa.Column("last_slot", INSTANT, nullable=False),
    )
    op.create_index("rota_success_counts_minute", "rota_success_counts", ["minute"])
    op.execute(f"CREATE INDEX rota_runs_forgettable ON rota_runs (job, finished_at) WHERE {IS_FORGETTABLE}")


def downgrade() -> None:
    op.execute("DROP INDEX rota_runs_forgettable")
    op.drop_table("rota_success_counts")
