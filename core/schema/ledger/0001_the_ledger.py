"""Creates the tables of runs, of the processes that work on them, and of the schedules' watermarks."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import ARRAY, JSONB, TIMESTAMP

revision = "0001"
down_revision = None

INSTANT = TIMESTAMP(timezone=True)
NOW = sa.text("clock_timestamp()")
ZERO = sa.text("0")
WAITING = "state IN ('queued', 'retrying')"


def upgrade() -> None:
    op.execute("CREATE SEQUENCE rota_tokens")
    op.execute("CREATE SEQUENCE rota_process_ids AS integer CYCLE")
    op.create_table(
        "rota_runs",
        sa.Column("id", sa.BigInteger, sa.Identity(always=True), primary_key=True),
        sa.Column("job", sa.Text, nullable=False),
        sa.Column("key", sa.Text, nullable=False, server_default=""),
        sa.Column("slot", INSTANT),
        sa.Column("queue", sa.Text, nullable=False),
        sa.Column("state", sa.Text, nullable=False, server_default="queued"),
        sa.Column("reason", sa.Text),
        sa.Column("args", JSONB, nullable=False, server_default=sa.text("'{}'")),
        sa.Column("exclusive", sa.Boolean, nullable=False, server_default=sa.true()),
        sa.Column("attempt", sa.Integer, nullable=False, server_default=ZERO),
        sa.Column("failures", sa.Integer, nullable=False, server_default=ZERO),
        sa.Column("crashes", sa.Integer, nullable=False, server_default=ZERO),
        sa.Column("token", sa.BigInteger),
        sa.Column("process_id", sa.BigInteger),
        sa.Column("worker", sa.Text),
        sa.Column("queued_at", INSTANT, nullable=False, server_default=NOW),
        sa.Column("due_at", INSTANT, nullable=False, server_default=NOW),
        sa.Column("sent_at", INSTANT),
        sa.Column("started_at", INSTANT),
        sa.Column("finished_at", INSTANT),
        sa.Column("progress", JSONB),
        sa.Column("result", JSONB),
        sa.Column("error", sa.Text),
        sa.CheckConstraint(
            "state IN ('queued', 'running', 'retrying', 'succeeded', 'dead', 'skipped', 'missed', 'orphaned')",
            name="rota_runs_state",
        ),
        sa.CheckConstraint(
            "(state IN ('queued', 'running', 'retrying')) = (finished_at IS NULL)", name="rota_runs_finished_when_final"
        ),
    )
    op.create_index(
        "rota_runs_slot", "rota_runs", ["job", "key", "slot"], unique=True, postgresql_where="slot IS NOT NULL"
    )
    op.create_index("rota_runs_history", "rota_runs", ["job", "id"])
    op.create_index("rota_runs_unsent", "rota_runs", ["due_at"], postgresql_where=f"{WAITING} AND sent_at IS NULL")
    op.create_index("rota_runs_sent", "rota_runs", ["sent_at"], postgresql_where=f"{WAITING} AND sent_at IS NOT NULL")
    op.create_index("rota_runs_late", "rota_runs", ["slot"], postgresql_where="state = 'queued' AND slot IS NOT NULL")
    op.create_index(
        "rota_runs_lease", "rota_runs", ["job", "key"], unique=True, postgresql_where="state = 'running' AND exclusive"
    )
    op.create_index("rota_runs_running", "rota_runs", ["process_id"], postgresql_where="state = 'running'")
    op.create_index("rota_runs_finished", "rota_runs", ["finished_at"], postgresql_where="finished_at IS NOT NULL")
    op.create_table(
        "rota_processes",
        sa.Column("id", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("kind", sa.Text, nullable=False),
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("broker_id", sa.Text),
        sa.Column("application", sa.Text, nullable=False),
        sa.Column("queues", ARRAY(sa.Text), nullable=False, server_default=sa.text("'{}'")),
        sa.Column("started_at", INSTANT, nullable=False, server_default=NOW),
        sa.Column("expires_at", INSTANT, nullable=False),
    )
    op.create_table(
        "rota_schedules",
        sa.Column("job", sa.Text, primary_key=True),
        sa.Column("spec", sa.Text, nullable=False),
        sa.Column("accounted_until", INSTANT, nullable=False),
    )


def downgrade() -> None:
    op.drop_table("rota_schedules")
    op.drop_table("rota_processes")
    op.drop_table("rota_runs")
    op.execute("DROP SEQUENCE rota_process_ids")
    op.execute("DROP SEQUENCE rota_tokens")
