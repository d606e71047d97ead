"""Plans of changes to many runs, and the operations that carry them out.

A plan has the ids of its runs in arrays of up to a thousand, so that 100,000 runs take 100 rows.
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import ARRAY, JSONB, TIMESTAMP

revision = "0013"
down_revision = "0012"

INSTANT = TIMESTAMP(timezone=True)
NOW = sa.text("clock_timestamp()")


def upgrade() -> None:
    op.create_table(
        "rota_operations",
        sa.Column("id", sa.BigInteger, sa.Identity(always=True), primary_key=True),
        sa.Column("action", sa.Text, nullable=False),
        sa.Column("state", sa.Text, nullable=False, server_default="planned"),
        sa.Column("options", JSONB, nullable=False),
        sa.Column("by_job", JSONB, nullable=False, server_default="{}"),
        sa.Column("total", sa.Integer, nullable=False, server_default="0"),
        sa.Column("digest", sa.Text, nullable=False, server_default=""),
        sa.Column("created_at", INSTANT, nullable=False, server_default=NOW),
        sa.Column("created_by", sa.Text, nullable=False),
        sa.Column("expires_at", INSTANT, nullable=False),
        sa.Column("actor", JSONB),
        sa.Column("confirmed_at", INSTANT),
        sa.Column("audit_id", sa.BigInteger),
        sa.Column("run_id", sa.BigInteger),
        sa.Column("position", sa.Integer, nullable=False, server_default="0"),
        sa.Column("changed", sa.Integer, nullable=False, server_default="0"),
        sa.Column("finished_at", INSTANT),
        sa.Column("ended_by", sa.Text),
        sa.Column("ended_because", sa.Text),
        sa.CheckConstraint(
            "state IN ('planned', 'running', 'stopped', 'done', 'cancelled')", name="rota_operations_state"
        ),
        sa.CheckConstraint("action IN ('retry', 'drop', 'cancel', 'adopt', 'cleanup')", name="rota_operations_action"),
    )
    op.create_table(
        "rota_operation_items",
        sa.Column(
            "operation_id",
            sa.BigInteger,
            sa.ForeignKey("rota_operations.id", ondelete="CASCADE"),
            primary_key=True,
        ),
        sa.Column("chunk", sa.Integer, primary_key=True),
        sa.Column("ids", ARRAY(sa.BigInteger), nullable=False, server_default="{}"),
        sa.Column("versions", ARRAY(sa.BigInteger), nullable=False, server_default="{}"),
        sa.Column("places", ARRAY(sa.Text), nullable=False, server_default="{}"),
        sa.Column("left_out", ARRAY(sa.Text), nullable=False, server_default="{}"),
        sa.Column("left_because", ARRAY(sa.Text), nullable=False, server_default="{}"),
    )


def downgrade() -> None:
    op.drop_table("rota_operation_items")
    op.drop_table("rota_operations")
