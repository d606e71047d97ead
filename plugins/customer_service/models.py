"""The tables of customer service.

The database checks the states of a row, and that a user has at most one place in the queue and one active chat. Each
function that starts or ends a chat updates ``current_chats`` of the agent. The time-out sweep corrects a wrong value.
"""

from datetime import datetime
from decimal import Decimal
from enum import StrEnum

from sqlalchemy import CheckConstraint, ForeignKey, Identity, Index, Integer, Numeric, text
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from core import Tables


class EntryState(StrEnum):
    """The states of an entry: ``waiting → assigned → served`` as the chat starts and ends, or ``waiting → left``."""

    WAITING = "waiting"
    ASSIGNED = "assigned"
    SERVED = "served"
    LEFT = "left"


class ChatState(StrEnum):
    """The states of a chat. A chat ends once and stays ended."""

    ACTIVE = "active"
    ENDED = "ended"


class Side(StrEnum):
    """The two sides of a chat: senders of messages, and recipients of notifications."""

    USER = "user"
    AGENT = "agent"


class EndReason(StrEnum):
    """The reason for the end of a chat: one side closed it, or did not answer in time."""

    CLOSED_BY_USER = "closed_by_user"
    CLOSED_BY_AGENT = "closed_by_agent"
    USER_INACTIVE = "user_inactive"
    AGENT_INACTIVE = "agent_inactive"


class Base(Tables, DeclarativeBase):
    """The tables of this plugin."""


class Agent(Base):
    """A person who answers users. The agent with the lowest ``last_chat_id`` was assigned longest ago."""

    __tablename__ = "customer_service_agents"
    __table_args__ = (
        CheckConstraint("capacity >= 0", name="capacity"),
        CheckConstraint("current_chats >= 0", name="current_chats"),
        CheckConstraint("rating BETWEEN 0 AND 5", name="rating"),
    )

    id: Mapped[str] = mapped_column(primary_key=True)
    name: Mapped[str]
    capacity: Mapped[int] = mapped_column(Integer)
    rating: Mapped[Decimal] = mapped_column(Numeric(3, 2), server_default=text("0"))
    is_online: Mapped[bool] = mapped_column(server_default=text("false"))
    current_chats: Mapped[int] = mapped_column(Integer, server_default=text("0"))
    last_chat_id: Mapped[int | None]


class QueueEntry(Base):
    """One user's request for help, from joining the queue to the end of the chat."""

    __tablename__ = "customer_service_queue_entries"
    __table_args__ = (
        CheckConstraint("state IN ('waiting', 'assigned', 'served', 'left')", name="state"),
        Index(
            "customer_service_queue_entries_one_per_user",
            "user_id",
            unique=True,
            postgresql_where=text("state IN ('waiting', 'assigned')"),
        ),
        Index("customer_service_queue_entries_in_order", "joined_at", "id", postgresql_where=text("state = 'waiting'")),
        Index("customer_service_queue_entries_left", "left_at", postgresql_where=text("state = 'left'")),
    )

    id: Mapped[int] = mapped_column(Identity(), primary_key=True)
    user_id: Mapped[str]
    state: Mapped[str] = mapped_column(server_default=text("'waiting'"))
    joined_at: Mapped[datetime]
    assigned_at: Mapped[datetime | None]
    left_at: Mapped[datetime | None]


class Chat(Base):
    """A user's chat with an agent. ``last_sender`` is empty until the first message. Each message empties
    ``warned_at``.
    """

    __tablename__ = "customer_service_chats"
    __table_args__ = (
        CheckConstraint("state IN ('active', 'ended')", name="state"),
        CheckConstraint("last_sender IN ('user', 'agent')", name="last_sender"),
        CheckConstraint(
            "end_reason IN ('closed_by_user', 'closed_by_agent', 'user_inactive', 'agent_inactive')", name="end_reason"
        ),
        CheckConstraint(
            "(state = 'ended') = (ended_at IS NOT NULL) AND (state = 'ended') = (end_reason IS NOT NULL)", name="ended"
        ),
        Index("customer_service_chats_one_per_user", "user_id", unique=True, postgresql_where=text("state = 'active'")),
        Index("customer_service_chats_quiet", "last_activity_at", "id", postgresql_where=text("state = 'active'")),
        Index("customer_service_chats_inactive", "last_activity_at", "id"),
        Index("customer_service_chats_agent", "agent_id", postgresql_where=text("state = 'active'")),
    )

    id: Mapped[int] = mapped_column(Identity(), primary_key=True)
    queue_entry_id: Mapped[int] = mapped_column(ForeignKey("customer_service_queue_entries.id"), unique=True)
    user_id: Mapped[str]
    agent_id: Mapped[str] = mapped_column(ForeignKey("customer_service_agents.id"))
    state: Mapped[str] = mapped_column(server_default=text("'active'"))
    started_at: Mapped[datetime]
    last_activity_at: Mapped[datetime]
    last_sender: Mapped[str | None]
    warned_at: Mapped[datetime | None]
    ended_at: Mapped[datetime | None]
    end_reason: Mapped[str | None]


class Message(Base):
    """A message of one side. ``text`` may be personal, so no log and no error contains it."""

    __tablename__ = "customer_service_messages"
    __table_args__ = (
        CheckConstraint("sender IN ('user', 'agent')", name="sender"),
        Index("customer_service_messages_of_chat", "chat_id", "id"),
    )

    id: Mapped[int] = mapped_column(Identity(), primary_key=True)
    chat_id: Mapped[int] = mapped_column(ForeignKey("customer_service_chats.id"))
    sender: Mapped[str]
    text: Mapped[str]
    sent_at: Mapped[datetime]


class NotificationKind(StrEnum):
    """The reason of a notification."""

    AGENT_ASSIGNED = "agent_assigned"
    TIMEOUT_WARNING = "timeout_warning"
    CHAT_TIMED_OUT = "chat_timed_out"


class Notification(Base):
    """A notification of one side of a chat, kept for recipients who were not connected when it was pushed.

    ``ends_at`` is the time at which the chat ended, or at which it will end if neither side writes.
    """

    __tablename__ = "customer_service_notifications"
    __table_args__ = (
        CheckConstraint("recipient_kind IN ('user', 'agent')", name="recipient_kind"),
        Index("customer_service_notifications_of_chat", "chat_id"),
        Index("customer_service_notifications_of_recipient", "recipient_kind", "recipient_id", "id"),
    )

    id: Mapped[int] = mapped_column(Identity(), primary_key=True)
    chat_id: Mapped[int] = mapped_column(ForeignKey("customer_service_chats.id"))
    recipient_kind: Mapped[str]
    recipient_id: Mapped[str]
    kind: Mapped[str]
    created_at: Mapped[datetime]
    ends_at: Mapped[datetime]


class ArchivedChat(Base):
    """A chat in the archive, with the id that it had before."""

    __tablename__ = "customer_service_archived_chats"
    __table_args__ = (Index("customer_service_archived_chats_of_user", "user_id"),)

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    user_id: Mapped[str]
    agent_id: Mapped[str]
    joined_at: Mapped[datetime]
    started_at: Mapped[datetime]
    last_activity_at: Mapped[datetime]
    last_sender: Mapped[str | None]
    ended_at: Mapped[datetime]
    end_reason: Mapped[str]
    archived_at: Mapped[datetime]


class ArchivedMessage(Base):
    """A message of an archived chat, with the id that it had before."""

    __tablename__ = "customer_service_archived_messages"
    __table_args__ = (Index("customer_service_archived_messages_of_chat", "chat_id", "id"),)

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    chat_id: Mapped[int] = mapped_column(ForeignKey("customer_service_archived_chats.id"))
    sender: Mapped[str]
    text: Mapped[str]
    sent_at: Mapped[datetime]
