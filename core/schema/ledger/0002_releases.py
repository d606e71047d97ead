"""Adds the jobs of each release, and the former state of orphaned runs."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB, TIMESTAMP

revision = "0002"
down_revision = "0001"

INSTANT = TIMESTAMP(timezone=True)
NOW = sa.text("clock_timestamp()")


def upgrade() -> None:
    op.create_table(
        "rota_releases",
        sa.Column("fingerprint", sa.Text, primary_key=True),
        sa.Column("jobs", JSONB, nullable=False),
        sa.Column("first_seen_at", INSTANT, nullable=False, server_default=NOW),
        sa.Column("last_seen_at", INSTANT, nullable=False, server_default=NOW),
    )
    op.add_column("rota_processes", sa.Column("release", sa.Text))
    op.add_column("rota_runs", sa.Column("former_state", sa.Text))
    op.add_column("rota_runs", sa.Column("former_reason", sa.Text))
    op.create_index("rota_runs_orphaned", "rota_runs", ["job", "id"], postgresql_where="state = 'orphaned'")


def downgrade() -> None:
    op.drop_index("rota_runs_orphaned", "rota_runs")
    op.drop_column("rota_runs", "former_reason")
    op.drop_column("rota_runs", "former_state")
    op.drop_column("rota_processes", "release")
    op.drop_table("rota_releases")
