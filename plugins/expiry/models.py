"""The tables of expiry.

The database checks the states of a row. Each sweep has a partial index of open rows, ordered by their ends, so that it
reads only due rows. A second index has rows with unusable values, such as a missing end. Such rows may come from an
older system; the checks prevent new ones.
"""

from datetime import datetime
from enum import StrEnum

from sqlalchemy import CheckConstraint, ForeignKey, Identity, Index, text
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from core import Tables


class TaskState(StrEnum):
    """The states of a task: open until it is completed or cancelled. These two states are final."""

    OPEN = "open"
    COMPLETED = "completed"
    CANCELLED = "cancelled"


class CancelReason(StrEnum):
    """The reason why a task was cancelled."""

    DEADLINE_PASSED = "deadline_passed"
    WITHDRAWN = "withdrawn"


class CodeState(StrEnum):
    """The states of a coupon or an invitation code: active until it is used or expires. These two states are final."""

    ACTIVE = "active"
    USED = "used"
    EXPIRED = "expired"


class EntryKind(StrEnum):
    """The reason why points moved into a lot or out of it."""

    GRANTED = "granted"
    SPENT = "spent"
    EXPIRED = "expired"


class Base(Tables, DeclarativeBase):
    """The tables of this plugin."""


def is_a_date(column: str) -> CheckConstraint:
    """Return a constraint on a time: it is finite, and Python can read its year.

    The year 9999, for "never", is allowed.
    """
    years = f"{column} >= '0001-01-01 00:00:00+00' AND {column} < '10000-01-01 00:00:00+00'"
    return CheckConstraint(years, name=column)


class Task(Base):
    """Work that must be done by ``deadline_at``."""

    __tablename__ = "expiry_tasks"
    __table_args__ = (
        CheckConstraint("state IN ('open', 'completed', 'cancelled')", name="state"),
        CheckConstraint("cancel_reason IN ('deadline_passed', 'withdrawn')", name="cancel_reason"),
        CheckConstraint(
            "state = 'cancelled' AND cancelled_at IS NOT NULL AND cancel_reason IS NOT NULL"
            " OR state <> 'cancelled' AND cancelled_at IS NULL AND cancel_reason IS NULL",
            name="cancelled",
        ),
        CheckConstraint("(state = 'completed') = (completed_at IS NOT NULL)", name="completed"),
        is_a_date("deadline_at"),
        Index("expiry_tasks_due", "deadline_at", "id", postgresql_where=text("state = 'open'")),
        Index("expiry_tasks_broken", "id", postgresql_where=text("state = 'open' AND deadline_at IS NULL")),
    )

    id: Mapped[int] = mapped_column(Identity(), primary_key=True)
    owner_id: Mapped[str]
    state: Mapped[str] = mapped_column(server_default=text("'open'"))
    opened_at: Mapped[datetime]
    deadline_at: Mapped[datetime]
    completed_at: Mapped[datetime | None]
    cancelled_at: Mapped[datetime | None]
    cancel_reason: Mapped[str | None]


class Notification(Base):
    """A notification that a task was cancelled, kept for owners who were not connected when it was pushed."""

    __tablename__ = "expiry_notifications"
    __table_args__ = (
        Index("expiry_notifications_once", "task_id", "kind", unique=True),
        Index("expiry_notifications_of_owner", "owner_id", "id"),
    )

    id: Mapped[int] = mapped_column(Identity(), primary_key=True)
    task_id: Mapped[int] = mapped_column(ForeignKey("expiry_tasks.id", ondelete="CASCADE"))
    owner_id: Mapped[str]
    kind: Mapped[str]
    created_at: Mapped[datetime]


class Coupon(Base):
    """A coupon, which its holder may redeem once, before ``ends_at``."""

    __tablename__ = "expiry_coupons"
    __table_args__ = (
        CheckConstraint("state IN ('active', 'used', 'expired')", name="state"),
        CheckConstraint("(state = 'used') = (used_at IS NOT NULL)", name="used"),
        CheckConstraint("(state = 'expired') = (expired_at IS NOT NULL)", name="expired"),
        is_a_date("ends_at"),
        Index("expiry_coupons_due", "ends_at", "id", postgresql_where=text("state = 'active'")),
        Index("expiry_coupons_broken", "id", postgresql_where=text("state = 'active' AND ends_at IS NULL")),
    )

    id: Mapped[int] = mapped_column(Identity(), primary_key=True)
    code: Mapped[str] = mapped_column(unique=True)
    user_id: Mapped[str]
    state: Mapped[str] = mapped_column(server_default=text("'active'"))
    ends_at: Mapped[datetime]
    used_at: Mapped[datetime | None]
    expired_at: Mapped[datetime | None]


class InvitationCode(Base):
    """A code that one person may use before ``ends_at``. ``user_id`` is the user who invites this person."""

    __tablename__ = "expiry_invitation_codes"
    __table_args__ = (
        CheckConstraint("state IN ('active', 'used', 'expired')", name="state"),
        CheckConstraint("(state = 'used') = (used_at IS NOT NULL)", name="used"),
        CheckConstraint("(state = 'expired') = (expired_at IS NOT NULL)", name="expired"),
        is_a_date("ends_at"),
        Index("expiry_invitation_codes_due", "ends_at", "id", postgresql_where=text("state = 'active'")),
        Index("expiry_invitation_codes_broken", "id", postgresql_where=text("state = 'active' AND ends_at IS NULL")),
    )

    id: Mapped[int] = mapped_column(Identity(), primary_key=True)
    code: Mapped[str] = mapped_column(unique=True)
    user_id: Mapped[str]
    state: Mapped[str] = mapped_column(server_default=text("'active'"))
    ends_at: Mapped[datetime]
    used_at: Mapped[datetime | None]
    #: The user who used the code. Also None for codes that were used before this column existed.
    used_by: Mapped[str | None]
    expired_at: Mapped[datetime | None]


class PointBalance(Base):
    """A user's points: the sum of the user's entries, and also the sum of the points that remain in the user's lots."""

    __tablename__ = "expiry_point_balances"
    __table_args__ = (CheckConstraint("points >= 0", name="points"),)

    user_id: Mapped[str] = mapped_column(primary_key=True)
    points: Mapped[int]


class PointLot(Base):
    """Points that were granted together. ``remaining`` is the sum of the lot's entries."""

    __tablename__ = "expiry_point_lots"
    __table_args__ = (
        CheckConstraint("points > 0", name="points"),
        CheckConstraint("remaining BETWEEN 0 AND points", name="remaining"),
        is_a_date("expires_at"),
        Index("expiry_point_lots_due", "expires_at", "id", postgresql_where=text("remaining > 0")),
        Index("expiry_point_lots_of_user", "user_id", "expires_at", "id", postgresql_where=text("remaining > 0")),
        Index(
            "expiry_point_lots_broken",
            "id",
            postgresql_where=text("remaining < 0 OR remaining IS NULL OR expires_at IS NULL"),
        ),
    )

    id: Mapped[int] = mapped_column(Identity(), primary_key=True)
    user_id: Mapped[str] = mapped_column(ForeignKey("expiry_point_balances.user_id"))
    points: Mapped[int]
    remaining: Mapped[int]
    granted_at: Mapped[datetime]
    expires_at: Mapped[datetime]


class PointEntry(Base):
    """One line of the points ledger. It is written once and never changed. A lot is granted once, and expires once."""

    __tablename__ = "expiry_point_entries"
    __table_args__ = (
        CheckConstraint("kind IN ('granted', 'spent', 'expired')", name="kind"),
        CheckConstraint("points <> 0 AND (points > 0) = (kind = 'granted')", name="points"),
        Index("expiry_point_entries_of_user", "user_id", "id"),
        Index(
            "expiry_point_entries_of_reference",
            "user_id",
            "reference",
            "kind",
            "lot_id",
            unique=True,
            postgresql_where=text("reference IS NOT NULL"),
        ),
        Index("expiry_point_entries_once", "lot_id", "kind", unique=True, postgresql_where=text("kind <> 'spent'")),
    )

    id: Mapped[int] = mapped_column(Identity(), primary_key=True)
    user_id: Mapped[str] = mapped_column(ForeignKey("expiry_point_balances.user_id"))
    lot_id: Mapped[int] = mapped_column(ForeignKey("expiry_point_lots.id"))
    kind: Mapped[str]
    points: Mapped[int]
    created_at: Mapped[datetime]
    #: The application's reason for granting or spending the points; see points.py.
    reference: Mapped[str | None]
