"""Adds tokens, links and sessions of the HTTP service, and runs that were requested with an idempotency key."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import ARRAY, TIMESTAMP

revision = "0010"
down_revision = "0009"

INSTANT = TIMESTAMP(timezone=True)
NOW = sa.text("clock_timestamp()")


def upgrade() -> None:
    op.create_table(
        "rota_credentials",
        sa.Column("id", sa.BigInteger, sa.Identity(always=True), primary_key=True),
        sa.Column("kind", sa.Text, nullable=False),
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("hash", sa.Text, nullable=False),
        sa.Column("role", sa.Text, nullable=False),
        sa.Column("plugins", ARRAY(sa.Text)),
        sa.Column("queues", ARRAY(sa.Text)),
        sa.Column("sees_arguments", sa.Boolean, nullable=False),
        sa.Column("created_at", INSTANT, nullable=False, server_default=NOW),
        sa.Column("created_by", sa.Text, nullable=False),
        sa.Column("expires_at", INSTANT, nullable=False),
        sa.Column("used_at", INSTANT),
        sa.CheckConstraint("kind IN ('token', 'link', 'session')", name="rota_credentials_kind"),
        sa.CheckConstraint("role IN ('viewer', 'operator', 'admin')", name="rota_credentials_role"),
    )
    op.create_index("rota_credentials_hash", "rota_credentials", ["hash"], unique=True)
    op.create_index(
        "rota_credentials_name", "rota_credentials", ["name"], unique=True, postgresql_where="kind = 'token'"
    )
    op.create_table(
        "rota_requested",
        sa.Column("caller", sa.Text, primary_key=True),
        sa.Column("key", sa.Text, primary_key=True),
        sa.Column("fingerprint", sa.Text, nullable=False),
        sa.Column("run_id", sa.BigInteger),
        sa.Column("requested_at", INSTANT, nullable=False, server_default=NOW),
    )
    op.create_index("rota_requested_at", "rota_requested", ["requested_at"])


def downgrade() -> None:
    op.drop_table("rota_requested")
    op.drop_table("rota_credentials")
