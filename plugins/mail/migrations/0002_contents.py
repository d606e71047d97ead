"""Creates the table of the contents of messages, and indexes that find objects without messages, and messages without
objects.
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    op.create_table(
        "mail_contents",
        sa.Column("message_id", sa.BigInteger, sa.ForeignKey("mail_messages.id", ondelete="CASCADE"), primary_key=True),
        sa.Column("sender_name", sa.Text, nullable=False),
        sa.Column("sender", sa.Text, nullable=False),
        sa.Column("recipients", JSONB, nullable=False),
        sa.Column("subject", sa.Text, nullable=False),
        sa.Column("in_reply_to", sa.Text),
        sa.Column("reference_ids", JSONB, nullable=False),
        sa.Column("date", sa.Text, nullable=False),
        sa.Column("sent_at", sa.DateTime(timezone=True)),
        sa.Column("text", sa.Text, nullable=False),
        sa.Column("attachments", JSONB, nullable=False),
        sa.Column("automatic", sa.Text),
        sa.Column("problems", JSONB, nullable=False),
        sa.Column("processed_at", sa.DateTime(timezone=True), nullable=False),
    )
    op.add_column("mail_messages", sa.Column("readings", sa.Integer, nullable=False, server_default="0"))
    create_index("of_object", "storage_key", unique=True, where="storage_key IS NOT NULL")
    create_index("unprocessed", "account_id", "id", where="state = 'stored'")


def downgrade() -> None:
    for name in ("of_object", "unprocessed"):
        op.drop_index(f"mail_messages_{name}", "mail_messages")
    op.drop_column("mail_messages", "readings")
    op.drop_table("mail_contents")


def create_index(name: str, *columns: str, where: str, unique: bool = False) -> None:
    only = sa.text(where)
    op.create_index(f"mail_messages_{name}", "mail_messages", [*columns], unique=unique, postgresql_where=only)
