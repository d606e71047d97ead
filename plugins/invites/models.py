"""The tables of invitations.

The database checks that no team has more seats taken than it has, that a person has one seat of a pool, and that no
code is used more often than it may be. Addresses are personal data: they are in these tables, and in no log, error or
metric.
"""

from datetime import datetime
from enum import StrEnum
from uuid import UUID

from sqlalchemy import CheckConstraint, ForeignKey, Identity, Index, Integer, SmallInteger, UniqueConstraint, text
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from core import Tables


class TeamState(StrEnum):
    """The states of a team. A ``closed`` team keeps its members and gives no seat to anybody else."""

    OPEN = "open"
    CLOSED = "closed"


class SeatState(StrEnum):
    """The states of a seat: ``reserved``, while its invitation is sent ``inviting``, then ``invited`` and ``member``.

    A seat that is ``removing`` is given to nobody else until the gateway has confirmed the removal. Then it is
    ``freed``, and only its row remains.
    """

    RESERVED = "reserved"
    INVITING = "inviting"
    INVITED = "invited"
    MEMBER = "member"
    REMOVING = "removing"
    FREED = "freed"


class RequestKind(StrEnum):
    """The kinds of requests to the gateway: to ``invite`` the person of a seat, or to ``remove`` the person."""

    INVITE = "invite"
    REMOVE = "remove"


class RequestState(StrEnum):
    """The states of a request: ``new``, then ``sent``, then ``confirmed`` or ``refused``.

    The outcome of an ``unknown`` request is not known yet: it may or may not have had its effect. It is sent again with
    the same id.
    """

    NEW = "new"
    SENT = "sent"
    UNKNOWN = "unknown"
    CONFIRMED = "confirmed"
    REFUSED = "refused"


class WaitingState(StrEnum):
    """The states of a person's wish for a seat of a pool: ``waiting``, then ``placed`` or ``left``."""

    WAITING = "waiting"
    PLACED = "placed"
    LEFT = "left"


class MoveState(StrEnum):
    """The states of a move: ``inviting`` into the new team, then ``removing`` from the old team, then ``done``.

    If the new team refuses the person, the move is ``failed``, and the person keeps the old seat.
    """

    INVITING = "inviting"
    REMOVING = "removing"
    DONE = "done"
    FAILED = "failed"


class OrphanState(StrEnum):
    """The states of a member that no row explains: ``suspected`` when seen once, then ``confirmed``, then ``removed``,
    or ``kept`` if a person has decided so.
    """

    SUSPECTED = "suspected"
    CONFIRMED = "confirmed"
    KEPT = "kept"
    REMOVED = "removed"


class Base(Tables, DeclarativeBase):
    """The tables of this plugin."""


class Team(Base):
    """A team of the gateway, with a limited number of seats.

    People ask for a seat of a *pool*, and get one of any team in it. ``taken`` is the number of the team's seats that
    are not ``freed``. Until ``closed_until``, nothing is requested of the gateway for this team, and nobody gets a seat
    of it.
    """

    __tablename__ = "invites_teams"
    __table_args__ = (
        CheckConstraint("seats >= 0 AND taken BETWEEN 0 AND seats", name="taken"),
        CheckConstraint("state IN ('open', 'closed')", name="state"),
        Index("invites_teams_of_pool", "pool", "id"),
    )

    id: Mapped[int] = mapped_column(Identity(), primary_key=True)
    name: Mapped[str] = mapped_column(unique=True)
    #: The team's name at the gateway.
    gateway_ref: Mapped[str] = mapped_column(unique=True)
    pool: Mapped[str]
    seats: Mapped[int] = mapped_column(Integer)
    taken: Mapped[int] = mapped_column(Integer, server_default=text("0"))
    state: Mapped[str] = mapped_column(server_default=text("'open'"))
    closed_until: Mapped[datetime | None]
    created_at: Mapped[datetime] = mapped_column(server_default=text("now()"))


class Seat(Base):
    """A seat of a team, and the person who has it.

    ``is_target`` is true while the person moves to this seat and has the old seat too. ``email`` is normalized; see
    ``addresses.py``. ``priority`` is that of its requests to the gateway.
    """

    __tablename__ = "invites_seats"
    __table_args__ = (
        CheckConstraint("state IN ('reserved', 'inviting', 'invited', 'member', 'removing', 'freed')", name="state"),
        Index("invites_seats_of_team", "team_id", "email", unique=True, postgresql_where=text("state <> 'freed'")),
        Index(
            "invites_seats_of_person",
            "pool",
            "email",
            unique=True,
            postgresql_where=text("state <> 'freed' AND NOT is_target"),
        ),
        Index(
            "invites_seats_expiring",
            "expires_at",
            "id",
            postgresql_where=text("state IN ('reserved', 'inviting', 'invited', 'member')"),
        ),
    )

    id: Mapped[int] = mapped_column(Identity(), primary_key=True)
    team_id: Mapped[int] = mapped_column(ForeignKey("invites_teams.id"))
    pool: Mapped[str]
    email: Mapped[str]
    state: Mapped[str] = mapped_column(server_default=text("'reserved'"))
    is_target: Mapped[bool] = mapped_column(server_default=text("false"))
    priority: Mapped[int] = mapped_column(SmallInteger, server_default=text("0"))
    expires_at: Mapped[datetime | None]
    created_at: Mapped[datetime] = mapped_column(server_default=text("now()"))
    changed_at: Mapped[datetime] = mapped_column(server_default=text("now()"))


class Request(Base):
    """A request to the gateway. Its id is the Idempotency-Key, so it has its effect once, however often it is sent.

    ``body_hash`` is the SHA-256 of the body that was sent first. A seat has at most one request of a kind whose outcome
    is open. ``last_status`` is the status of the gateway's last answer, and ``problem`` what is wrong with it.
    """

    __tablename__ = "invites_requests"
    __table_args__ = (
        CheckConstraint("kind IN ('invite', 'remove')", name="kind"),
        CheckConstraint("state IN ('new', 'sent', 'unknown', 'confirmed', 'refused')", name="state"),
        Index(
            "invites_requests_open",
            "seat_id",
            "kind",
            unique=True,
            postgresql_where=text("state IN ('new', 'sent', 'unknown')"),
        ),
        Index("invites_requests_of_seat", "seat_id"),
        Index("invites_requests_unknown", "changed_at", postgresql_where=text("state IN ('sent', 'unknown')")),
    )

    id: Mapped[UUID] = mapped_column(primary_key=True, server_default=text("gen_random_uuid()"))
    kind: Mapped[str]
    seat_id: Mapped[int] = mapped_column(ForeignKey("invites_seats.id"))
    body_hash: Mapped[bytes | None]
    state: Mapped[str] = mapped_column(server_default=text("'new'"))
    attempts: Mapped[int] = mapped_column(Integer, server_default=text("0"))
    last_status: Mapped[int | None] = mapped_column(Integer)
    problem: Mapped[str | None]
    created_at: Mapped[datetime] = mapped_column(server_default=text("now()"))
    sent_at: Mapped[datetime | None]
    changed_at: Mapped[datetime] = mapped_column(server_default=text("now()"))


class Code(Base):
    """A code that gives ``uses`` people a seat of a pool each, for ``days``. Only its SHA-256 is stored.

    ``used`` is the number of its redemptions, and changes together with their rows. ``counted`` is the number that the
    counters in Redis have told; see ``counters.py``.
    """

    __tablename__ = "invites_codes"
    __table_args__ = (
        CheckConstraint("used BETWEEN 0 AND uses", name="used"),
        CheckConstraint("days > 0", name="days"),
    )

    id: Mapped[int] = mapped_column(Identity(), primary_key=True)
    sha256: Mapped[bytes] = mapped_column(unique=True)
    pool: Mapped[str]
    uses: Mapped[int] = mapped_column(Integer)
    used: Mapped[int] = mapped_column(Integer, server_default=text("0"))
    counted: Mapped[int] = mapped_column(server_default=text("0"))
    days: Mapped[int | None] = mapped_column(Integer)
    expires_at: Mapped[datetime | None]
    created_at: Mapped[datetime] = mapped_column(server_default=text("now()"))


class Batch(Base):
    """A list of people who were invited together. ``lines`` is the number of all its lines, including those that
    invited nobody.
    """

    __tablename__ = "invites_batches"

    id: Mapped[int] = mapped_column(Identity(), primary_key=True)
    pool: Mapped[str]
    lines: Mapped[int] = mapped_column(Integer)
    days: Mapped[int | None] = mapped_column(Integer)
    created_at: Mapped[datetime] = mapped_column(server_default=text("now()"))


class BatchProblem(Base):
    """A line of a batch that invited nobody, with the reason. Lines are counted from 1."""

    __tablename__ = "invites_batch_problems"

    batch_id: Mapped[int] = mapped_column(ForeignKey("invites_batches.id", ondelete="CASCADE"), primary_key=True)
    line: Mapped[int] = mapped_column(Integer, primary_key=True)
    problem: Mapped[str]


class Waiting(Base):
    """A person's wish for a seat of a pool. Everybody who gets a seat has such a row, even without a wait.

    Seats are given in the order of ``priority``, the largest first, and then of the ids.
    """

    __tablename__ = "invites_waiting"
    __table_args__ = (
        CheckConstraint("state IN ('waiting', 'placed', 'left')", name="state"),
        Index("invites_waiting_of_person", "pool", "email", unique=True, postgresql_where=text("state = 'waiting'")),
        Index(
            "invites_waiting_in_order", "pool", text("priority DESC"), "id", postgresql_where=text("state = 'waiting'")
        ),
        Index("invites_waiting_of_batch", "batch_id", postgresql_where=text("batch_id IS NOT NULL")),
        Index("invites_waiting_of_seat", "seat_id", postgresql_where=text("seat_id IS NOT NULL")),
    )

    id: Mapped[int] = mapped_column(Identity(), primary_key=True)
    email: Mapped[str]
    pool: Mapped[str]
    priority: Mapped[int] = mapped_column(SmallInteger)
    state: Mapped[str] = mapped_column(server_default=text("'waiting'"))
    days: Mapped[int | None] = mapped_column(Integer)
    batch_id: Mapped[int | None] = mapped_column(ForeignKey("invites_batches.id"))
    seat_id: Mapped[int | None] = mapped_column(ForeignKey("invites_seats.id"))
    asked_at: Mapped[datetime]
    changed_at: Mapped[datetime]


class Redemption(Base):
    """A person's use of a code, which is the proof of that use. The same person uses a code only once."""

    __tablename__ = "invites_redemptions"
    __table_args__ = (UniqueConstraint("code_id", "email"),)

    id: Mapped[int] = mapped_column(Identity(), primary_key=True)
    code_id: Mapped[int] = mapped_column(ForeignKey("invites_codes.id"))
    email: Mapped[str]
    waiting_id: Mapped[int] = mapped_column(ForeignKey("invites_waiting.id"))
    redeemed_at: Mapped[datetime]


class Move(Base):
    """A person's move from one seat to another."""

    __tablename__ = "invites_moves"
    __table_args__ = (
        CheckConstraint("state IN ('inviting', 'removing', 'done', 'failed')", name="state"),
        Index(
            "invites_moves_open",
            "from_seat_id",
            unique=True,
            postgresql_where=text("state IN ('inviting', 'removing')"),
        ),
    )

    id: Mapped[int] = mapped_column(Identity(), primary_key=True)
    from_seat_id: Mapped[int] = mapped_column(ForeignKey("invites_seats.id"))
    to_seat_id: Mapped[int] = mapped_column(ForeignKey("invites_seats.id"), unique=True)
    state: Mapped[str] = mapped_column(server_default=text("'inviting'"))
    created_at: Mapped[datetime]
    changed_at: Mapped[datetime]


class Orphan(Base):
    """A member of a team, as the gateway lists it, whom no row explains."""

    __tablename__ = "invites_orphans"
    __table_args__ = (
        CheckConstraint("state IN ('suspected', 'confirmed', 'kept', 'removed')", name="state"),
        CheckConstraint("sightings > 0", name="sightings"),
        Index("invites_orphans_of_team", "team_id", "email", unique=True, postgresql_where=text("state <> 'removed'")),
    )

    id: Mapped[int] = mapped_column(Identity(), primary_key=True)
    team_id: Mapped[int] = mapped_column(ForeignKey("invites_teams.id"))
    email: Mapped[str]
    state: Mapped[str] = mapped_column(server_default=text("'suspected'"))
    first_seen_at: Mapped[datetime]
    last_seen_at: Mapped[datetime]
    sightings: Mapped[int] = mapped_column(Integer, server_default=text("1"))
    decided_by: Mapped[str | None]


class CounterBatch(Base):
    """A batch of counts from Redis that was added to the codes. Its id makes sure that it is added only once."""

    __tablename__ = "invites_counter_batches"
    __table_args__ = (Index("invites_counter_batches_added", "added_at"),)

    id: Mapped[UUID] = mapped_column(primary_key=True)
    counted: Mapped[int]
    added_at: Mapped[datetime]
