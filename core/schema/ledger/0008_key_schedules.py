"""Adds schedules made at run time, the log of their changes, and gap rows for slots that got no run.

The row of a schedule does not change when a slot comes due. The slots are computed from the interval and the phase of
the row, so the index ``rota_key_schedules_grid`` finds the schedules with due slots.
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB, TIMESTAMP

revision = "0008"
down_revision = "0007"

INSTANT = TIMESTAMP(timezone=True)
NOW = sa.text("clock_timestamp()")
ZERO = sa.text("0")
INDEXES = {
    "rota_key_schedules_grid": ("job, every_seconds, phase", "true"),
    "rota_key_schedules_next": ("job, next_every_seconds, next_phase", "next_spec IS NOT NULL"),
    "rota_key_schedules_unseen": ("job, key", "NOT is_seen"),
    "rota_key_schedules_paused": ("job, paused_until", "paused_at IS NOT NULL"),
    "rota_key_schedules_extra": ("job, extra_at", "extra_at IS NOT NULL"),
}


def upgrade() -> None:
    op.create_table(
        "rota_key_schedules",
        sa.Column("job", sa.Text, primary_key=True),
        sa.Column("key", sa.Text, primary_key=True),
        sa.Column("id", sa.BigInteger, sa.Identity(always=True), nullable=False),
        sa.Column("version", sa.BigInteger, nullable=False, server_default=sa.text("1")),
        sa.Column("plugin", sa.Text, nullable=False),
        sa.Column("spec", sa.Text, nullable=False),
        sa.Column("every_seconds", sa.Integer),
        sa.Column("spread_seconds", sa.Integer, nullable=False, server_default=ZERO),
        sa.Column("phase", sa.Integer, nullable=False),
        sa.Column("next_spec", sa.Text),
        sa.Column("next_every_seconds", sa.Integer),
        sa.Column("next_spread_seconds", sa.Integer),
        sa.Column("next_phase", sa.Integer),
        sa.Column("args", JSONB, nullable=False, server_default=sa.text("'{}'")),
        sa.Column("priority", sa.SmallInteger),
        sa.Column("subject", sa.Text),
        sa.Column("is_seen", sa.Boolean, nullable=False, server_default=sa.false()),
        sa.Column("since", INSTANT),
        sa.Column("extra_at", INSTANT),
        sa.Column("stretch", sa.SmallInteger, nullable=False, server_default=ZERO),
        sa.Column("failures", sa.Integer, nullable=False, server_default=ZERO),
        sa.Column("stretched", sa.SmallInteger, nullable=False, server_default=ZERO),
        sa.Column("stretched_since", INSTANT),
        sa.Column("paused_at", INSTANT),
        sa.Column("paused_until", INSTANT),
        sa.Column("paused_by", sa.Text),
        sa.Column("pause_reason", sa.Text),
        sa.Column("held_since", INSTANT),
        sa.Column("created_at", INSTANT, nullable=False, server_default=NOW),
        sa.Column("changed_at", INSTANT, nullable=False, server_default=NOW),
        sa.Column("changed_by", sa.Text, nullable=False),
    )
    for name, (columns, condition) in INDEXES.items():
        where = "" if condition == "true" else f"WHERE {condition}"
        op.execute(f"CREATE INDEX {name} ON rota_key_schedules ({columns}) {where}")
    op.create_table(
        "rota_key_schedule_log",
        sa.Column("id", sa.BigInteger, sa.Identity(always=True), primary_key=True),
        sa.Column("job", sa.Text, nullable=False),
        sa.Column("key", sa.Text, nullable=False),
        sa.Column("at", INSTANT, nullable=False, server_default=NOW),
        sa.Column("since", INSTANT),
        sa.Column("action", sa.Text, nullable=False),
        sa.Column("spec", sa.Text, nullable=False),
        sa.Column("phase", sa.Integer, nullable=False),
        sa.Column("stretched", sa.SmallInteger, nullable=False, server_default=ZERO),
        sa.Column("extra_at", INSTANT),
        sa.Column("by", sa.Text),
        sa.Column("reason", sa.Text),
    )
    op.create_index("rota_key_schedule_log_key", "rota_key_schedule_log", ["job", "key", "id"])
    op.create_index("rota_key_schedule_log_at", "rota_key_schedule_log", ["at"])
    op.create_index("rota_key_schedule_log_unseen", "rota_key_schedule_log", ["job"], postgresql_where="since IS NULL")
    op.create_table(
        "rota_gaps",
        sa.Column("id", sa.BigInteger, sa.Identity(always=True), primary_key=True),
        sa.Column("job", sa.Text, nullable=False),
        sa.Column("key", sa.Text),
        sa.Column("began_at", INSTANT, nullable=False),
        sa.Column("ended_at", INSTANT, nullable=False),
        sa.Column("reason", sa.Text, nullable=False),
        sa.Column("slots", sa.BigInteger, nullable=False),
    )
    op.create_index("rota_gaps_key", "rota_gaps", ["job", "key", "ended_at"])
    op.create_index("rota_gaps_ended", "rota_gaps", ["ended_at"])
    op.add_column("rota_runs", sa.Column("schedule_id", sa.BigInteger))


def downgrade() -> None:
    op.drop_column("rota_runs", "schedule_id")
    for table in ("rota_gaps", "rota_key_schedule_log", "rota_key_schedules"):
        op.drop_table(table)
