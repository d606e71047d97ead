"""The tables of maintenance.

Paths are stored as bytes, relative to the upload root, since the names of files need not be UTF-8. The database checks
that the states and times of a row are consistent, so that the index of each sweep has only rows that may be due.
"""

from datetime import datetime, timedelta
from decimal import Decimal
from enum import StrEnum
from typing import Any

from sqlalchemy import CheckConstraint, ForeignKey, Identity, Index, Numeric, SmallInteger, text
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from core import Tables


class TaskState(StrEnum):
    """The states of a task: ``open → taken → completed``, or ``cancelled`` after either of the first two."""

    OPEN = "open"
    TAKEN = "taken"
    COMPLETED = "completed"
    CANCELLED = "cancelled"


class Base(Tables, DeclarativeBase):
    """The tables of this plugin."""


class TimeSlot(Base):
    """A time that an expert offers, for any number of tasks. If it is deleted, its tasks stay, without a time slot."""

    __tablename__ = "maintenance_time_slots"
    __table_args__ = (Index("maintenance_time_slots_old", "ends_at", "id"),)

    id: Mapped[int] = mapped_column(Identity(), primary_key=True)
    expert_id: Mapped[str]
    starts_at: Mapped[datetime]
    ends_at: Mapped[datetime]


class Task(Base):
    """Work that one user posts and another takes. The columns ``files_…`` record the deletion of the task's files."""

    __tablename__ = "maintenance_tasks"
    __table_args__ = (
        CheckConstraint("state IN ('open', 'taken', 'completed', 'cancelled')", name="state"),
        CheckConstraint("(state = 'completed') = (completed_at IS NOT NULL)", name="completed"),
        CheckConstraint("(state = 'cancelled') = (cancelled_at IS NOT NULL)", name="cancelled"),
        CheckConstraint("files_deleted_at IS NULL OR files_deletion_began_at IS NOT NULL", name="files_deleted"),
        Index(
            "maintenance_tasks_completed",
            "completed_at",
            "id",
            postgresql_where=text("state = 'completed' AND files_deletion_began_at IS NULL"),
        ),
        Index(
            "maintenance_tasks_cancelled",
            "cancelled_at",
            "id",
            postgresql_where=text("state = 'cancelled' AND files_deletion_began_at IS NULL"),
        ),
        Index(
            "maintenance_tasks_past_deadline",
            "deadline_at",
            "id",
            postgresql_where=text("state IN ('open', 'taken') AND files_deletion_began_at IS NULL"),
        ),
        Index(
            "maintenance_tasks_files_going",
            "id",
            postgresql_where=text("files_deletion_began_at IS NOT NULL AND files_deleted_at IS NULL"),
        ),
        Index("maintenance_tasks_of_poster", "poster_id"),
        Index("maintenance_tasks_of_taker", "taker_id", postgresql_where=text("taker_id IS NOT NULL")),
        Index("maintenance_tasks_of_slot", "time_slot_id", postgresql_where=text("time_slot_id IS NOT NULL")),
    )

    id: Mapped[int] = mapped_column(Identity(), primary_key=True)
    poster_id: Mapped[str]
    taker_id: Mapped[str | None]
    category: Mapped[str] = mapped_column(server_default=text("''"))
    state: Mapped[str] = mapped_column(server_default=text("'open'"))
    time_slot_id: Mapped[int | None] = mapped_column(ForeignKey("maintenance_time_slots.id", ondelete="SET NULL"))
    deadline_at: Mapped[datetime | None]
    completed_at: Mapped[datetime | None]
    cancelled_at: Mapped[datetime | None]
    files_deletion_began_at: Mapped[datetime | None]
    files_deleted_at: Mapped[datetime | None]


class TaskFile(Base):
    """An image or another file of a task, in one of the task's own folders."""

    __tablename__ = "maintenance_task_files"

    task_id: Mapped[int] = mapped_column(ForeignKey("maintenance_tasks.id"), primary_key=True)
    path: Mapped[bytes] = mapped_column(primary_key=True)


class Review(Base):
    """A user's review of another user's work on a task."""

    __tablename__ = "maintenance_reviews"
    __table_args__ = (
        CheckConstraint("rating BETWEEN 1 AND 5", name="rating"),
        Index("maintenance_reviews_of_user", "user_id"),
        Index("maintenance_reviews_of_task", "task_id"),
    )

    id: Mapped[int] = mapped_column(Identity(), primary_key=True)
    task_id: Mapped[int] = mapped_column(ForeignKey("maintenance_tasks.id", ondelete="CASCADE"))
    user_id: Mapped[str]
    rating: Mapped[int] = mapped_column(SmallInteger)


class UserStatistics(Base):
    """A user's statistics, as the last sweep computed them. A rate is empty if its divisor is 0."""

    __tablename__ = "maintenance_user_statistics"

    user_id: Mapped[str] = mapped_column(primary_key=True)
    tasks_posted: Mapped[int] = mapped_column(server_default=text("0"))
    tasks_taken: Mapped[int] = mapped_column(server_default=text("0"))
    tasks_completed: Mapped[int] = mapped_column(server_default=text("0"))
    completion_rate: Mapped[Decimal | None] = mapped_column(Numeric(5, 4))
    average_rating: Mapped[Decimal | None] = mapped_column(Numeric(3, 2))
    updated_at: Mapped[datetime]


class ChangedUser(Base):
    """A mark that triggers leave in the transaction that changes a user's tasks or reviews; see statistics.py."""

    __tablename__ = "maintenance_changed_users"

    id: Mapped[int] = mapped_column(Identity(), primary_key=True)
    user_id: Mapped[str]


class FleaMarketItem(Base):
    """Something for sale. After ``deletion_began_at`` is set, the item is no longer shown and cannot be refreshed."""

    __tablename__ = "maintenance_flea_market_items"
    __table_args__ = (
        Index(
            "maintenance_flea_market_items_stale",
            "refreshed_at",
            "id",
            postgresql_where=text("deletion_began_at IS NULL"),
        ),
        Index("maintenance_flea_market_items_going", "id", postgresql_where=text("deletion_began_at IS NOT NULL")),
    )

    id: Mapped[int] = mapped_column(Identity(), primary_key=True)
    seller_id: Mapped[str]
    title: Mapped[str] = mapped_column(server_default=text("''"))
    refreshed_at: Mapped[datetime]
    deletion_began_at: Mapped[datetime | None]


class FleaMarketImage(Base):
    """An image of an item, in the item's own folder."""

    __tablename__ = "maintenance_flea_market_images"

    item_id: Mapped[int] = mapped_column(ForeignKey("maintenance_flea_market_items.id"), primary_key=True)
    path: Mapped[bytes] = mapped_column(primary_key=True)


class TaskExpert(Base):
    """A user who offers services. The sweeps write ``bio`` and ``average_response_time``."""

    __tablename__ = "maintenance_task_experts"
    __table_args__ = (Index("maintenance_task_experts_featured", "id", postgresql_where=text("is_featured")),)

    id: Mapped[str] = mapped_column(primary_key=True)
    name: Mapped[str]
    is_featured: Mapped[bool] = mapped_column(server_default=text("false"))
    bio: Mapped[str] = mapped_column(server_default=text("''"))
    average_response_time: Mapped[timedelta | None]


class ExpertInquiry(Base):
    """A question to an expert, and the time of the answer, if there is one."""

    __tablename__ = "maintenance_expert_inquiries"
    __table_args__ = (
        Index("maintenance_expert_inquiries_answered", "expert_id", postgresql_where=text("answered_at IS NOT NULL")),
    )

    id: Mapped[int] = mapped_column(Identity(), primary_key=True)
    expert_id: Mapped[str] = mapped_column(ForeignKey("maintenance_task_experts.id", ondelete="CASCADE"))
    asked_at: Mapped[datetime]
    answered_at: Mapped[datetime | None]


class Bookmark(Base):
    """The position at which a sweep of several runs has stopped."""

    __tablename__ = "maintenance_bookmarks"

    sweep: Mapped[str] = mapped_column(primary_key=True)
    place: Mapped[Any] = mapped_column(JSONB)
