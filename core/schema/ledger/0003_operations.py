"""Adds pauses, the audit, retries by hand, and the last success of each job."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB, TIMESTAMP

revision = "0003"
down_revision = "0002"

INSTANT = TIMESTAMP(timezone=True)
NOW = sa.text("clock_timestamp()")


def upgrade() -> None:
    op.create_table(
        "rota_pauses",
        sa.Column("id", sa.BigInteger, sa.Identity(always=True), primary_key=True),
        sa.Column("scope", sa.Text, nullable=False),
        sa.Column("reason", sa.Text),
        sa.Column("paused_by", sa.Text, nullable=False),
        sa.Column("paused_at", INSTANT, nullable=False, server_default=NOW),
        sa.Column("until", INSTANT, nullable=False, server_default="infinity"),
    )
    op.create_index("rota_pauses_until", "rota_pauses", ["until"])
    op.create_table(
        "rota_audit",
        sa.Column("id", sa.BigInteger, sa.Identity(always=True), primary_key=True),
        sa.Column("at", INSTANT, nullable=False, server_default=NOW),
        sa.Column("actor", sa.Text, nullable=False),
        sa.Column("via", sa.Text, nullable=False),
        sa.Column("action", sa.Text, nullable=False),
        sa.Column("target", sa.Text, nullable=False),
        sa.Column("details", JSONB, nullable=False, server_default=sa.text("'{}'")),
    )
    op.create_index("rota_audit_at", "rota_audit", ["at"])
    op.add_column("rota_runs", sa.Column("retried_at", INSTANT))
    op.add_column("rota_runs", sa.Column("retried_after", sa.Integer))
    op.create_index("rota_runs_dead", "rota_runs", ["id"], postgresql_where="state = 'dead'")
    op.add_column("rota_schedules", sa.Column("succeeded_slot", INSTANT))
    op.add_column("rota_schedules", sa.Column("succeeded_at", INSTANT))


def downgrade() -> None:
    op.drop_column("rota_schedules", "succeeded_at")
    op.drop_column("rota_schedules", "succeeded_slot")
    op.drop_index("rota_runs_dead", "rota_runs")
    op.drop_column("rota_runs", "retried_after")
    op.drop_column("rota_runs", "retried_at")
    op.drop_table("rota_audit")
    op.drop_table("rota_pauses")
