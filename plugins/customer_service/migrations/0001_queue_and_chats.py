"""Creates the tables of agents, the queue, chats with their messages and notifications, and the archive."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None

PREFIX = "customer_service_"
INSTANT = sa.DateTime(timezone=True)
ZERO = sa.text("0")
SIDES = "('user', 'agent')"
TABLES = ["agents", "queue_entries", "chats", "messages", "notifications", "archived_chats", "archived_messages"]


def upgrade() -> None:
    create_agents()
    create_queue_entries()
    create_chats()
    create_messages()
    create_notifications()
    create_archive()


def downgrade() -> None:
    for table in reversed(TABLES):
        op.drop_table(PREFIX + table)


def create_agents() -> None:
    op.create_table(
        "customer_service_agents",
        sa.Column("id", sa.Text, primary_key=True),
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("capacity", sa.Integer, nullable=False),
        sa.Column("rating", sa.Numeric(3, 2), nullable=False, server_default=ZERO),
        sa.Column("is_online", sa.Boolean, nullable=False, server_default=sa.text("false")),
        sa.Column("current_chats", sa.Integer, nullable=False, server_default=ZERO),
        sa.Column("last_chat_id", sa.BigInteger),
        sa.CheckConstraint("capacity >= 0", name="customer_service_agents_capacity_check"),
        sa.CheckConstraint("current_chats >= 0", name="customer_service_agents_current_chats_check"),
        sa.CheckConstraint("rating BETWEEN 0 AND 5", name="customer_service_agents_rating_check"),
    )


def create_queue_entries() -> None:
    op.create_table(
        "customer_service_queue_entries",
        own_id(),
        sa.Column("user_id", sa.Text, nullable=False),
        sa.Column("state", sa.Text, nullable=False, server_default="waiting"),
        sa.Column("joined_at", INSTANT, nullable=False),
        sa.Column("assigned_at", INSTANT),
        sa.Column("left_at", INSTANT),
        sa.CheckConstraint(
            "state IN ('waiting', 'assigned', 'served', 'left')", name="customer_service_queue_entries_state_check"
        ),
    )
    create_index("queue_entries", "one_per_user", "user_id", unique=True, where="state IN ('waiting', 'assigned')")
    create_index("queue_entries", "in_order", "joined_at", "id", where="state = 'waiting'")
    create_index("queue_entries", "left", "left_at", where="state = 'left'")


def create_chats() -> None:
    op.create_table(
        "customer_service_chats",
        own_id(),
        sa.Column("queue_entry_id", sa.BigInteger, sa.ForeignKey("customer_service_queue_entries.id"), nullable=False),
        sa.Column("user_id", sa.Text, nullable=False),
        sa.Column("agent_id", sa.Text, sa.ForeignKey("customer_service_agents.id"), nullable=False),
        sa.Column("state", sa.Text, nullable=False, server_default="active"),
        sa.Column("started_at", INSTANT, nullable=False),
        sa.Column("last_activity_at", INSTANT, nullable=False),
        sa.Column("last_sender", sa.Text),
        sa.Column("warned_at", INSTANT),
        sa.Column("ended_at", INSTANT),
        sa.Column("end_reason", sa.Text),
        sa.UniqueConstraint("queue_entry_id", name="customer_service_chats_queue_entry_id_key"),
        sa.CheckConstraint("state IN ('active', 'ended')", name="customer_service_chats_state_check"),
        sa.CheckConstraint(f"last_sender IN {SIDES}", name="customer_service_chats_last_sender_check"),
        sa.CheckConstraint(
            "end_reason IN ('closed_by_user', 'closed_by_agent', 'user_inactive', 'agent_inactive')",
            name="customer_service_chats_end_reason_check",
        ),
        sa.CheckConstraint(
            "(state = 'ended') = (ended_at IS NOT NULL) AND (state = 'ended') = (end_reason IS NOT NULL)",
            name="customer_service_chats_ended_check",
        ),
    )
    create_index("chats", "one_per_user", "user_id", unique=True, where="state = 'active'")
    create_index("chats", "quiet", "last_activity_at", "id", where="state = 'active'")
    create_index("chats", "inactive", "last_activity_at", "id")
    create_index("chats", "agent", "agent_id", where="state = 'active'")


def create_messages() -> None:
    op.create_table(
        "customer_service_messages",
        own_id(),
        of_chat(),
        sa.Column("sender", sa.Text, nullable=False),
        sa.Column("text", sa.Text, nullable=False),
        sa.Column("sent_at", INSTANT, nullable=False),
        sa.CheckConstraint(f"sender IN {SIDES}", name="customer_service_messages_sender_check"),
    )
    create_index("messages", "of_chat", "chat_id", "id")


def create_notifications() -> None:
    op.create_table(
        "customer_service_notifications",
        own_id(),
        of_chat(),
        sa.Column("recipient_kind", sa.Text, nullable=False),
        sa.Column("recipient_id", sa.Text, nullable=False),
        sa.Column("kind", sa.Text, nullable=False),
        sa.Column("created_at", INSTANT, nullable=False),
        sa.Column("ends_at", INSTANT, nullable=False),
        sa.CheckConstraint(f"recipient_kind IN {SIDES}", name="customer_service_notifications_recipient_kind_check"),
    )
    create_index("notifications", "of_chat", "chat_id")
    create_index("notifications", "of_recipient", "recipient_kind", "recipient_id", "id")


def create_archive() -> None:
    op.create_table(
        "customer_service_archived_chats",
        sa.Column("id", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("user_id", sa.Text, nullable=False),
        sa.Column("agent_id", sa.Text, nullable=False),
        sa.Column("joined_at", INSTANT, nullable=False),
        sa.Column("started_at", INSTANT, nullable=False),
        sa.Column("last_activity_at", INSTANT, nullable=False),
        sa.Column("last_sender", sa.Text),
        sa.Column("ended_at", INSTANT, nullable=False),
        sa.Column("end_reason", sa.Text, nullable=False),
        sa.Column("archived_at", INSTANT, nullable=False),
    )
    op.create_table(
        "customer_service_archived_messages",
        sa.Column("id", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("chat_id", sa.BigInteger, sa.ForeignKey("customer_service_archived_chats.id"), nullable=False),
        sa.Column("sender", sa.Text, nullable=False),
        sa.Column("text", sa.Text, nullable=False),
        sa.Column("sent_at", INSTANT, nullable=False),
    )
    create_index("archived_chats", "of_user", "user_id")
    create_index("archived_messages", "of_chat", "chat_id", "id")


def own_id() -> sa.Column[int]:
    return sa.Column("id", sa.BigInteger, sa.Identity(), primary_key=True)


def of_chat() -> sa.Column[int]:
    return sa.Column("chat_id", sa.BigInteger, sa.ForeignKey("customer_service_chats.id"), nullable=False)


def create_index(table: str, name: str, *columns: str, unique: bool = False, where: str | None = None) -> None:
    only = sa.text(where) if where else None
    op.create_index(f"{PREFIX}{table}_{name}", PREFIX + table, [*columns], unique=unique, postgresql_where=only)
