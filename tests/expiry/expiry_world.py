"""Common parts of the tests of the four sweeps: make due rows, run a sweep, and count the rows that ended."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from sqlalchemy import Connection, text
from sqlalchemy.orm import Session

from core import Job
from plugins.expiry import (
    coupons,
    grant_points,
    invitation_codes,
    issue_coupon,
    issue_invitation_code,
    jobs,
    models,
    open_task,
    points,
    tasks,
)

NOON = datetime(2026, 1, 5, 12, tzinfo=UTC)
#: The time at which rows of tests are made, unless the test gives another time.
BEFORE = NOON - timedelta(days=30)
A_MOMENT = timedelta(microseconds=1)

#: Rows that violate the invariants in plugins/expiry/points.py.
WRONG_POINTS = text("""
    SELECT 'balance', b.user_id, b.points::text, e.points::text, l.points::text
    FROM expiry_point_balances b
    LEFT JOIN (SELECT user_id, sum(points) AS points FROM expiry_point_entries GROUP BY 1) e USING (user_id)
    LEFT JOIN (SELECT user_id, sum(remaining) AS points FROM expiry_point_lots GROUP BY 1) l USING (user_id)
    WHERE b.points <> e.points OR b.points <> l.points OR e.points IS NULL OR l.points IS NULL OR b.points < 0
    UNION ALL
    SELECT 'lot', l.id::text, l.remaining::text, sum(e.points)::text, ''
    FROM expiry_point_lots l LEFT JOIN expiry_point_entries e ON e.lot_id = l.id
    GROUP BY l.id HAVING l.remaining IS DISTINCT FROM sum(e.points) OR l.remaining < 0
""")


def check_points(connection: Connection) -> list[tuple[str, ...]]:
    """Return every user and lot whose sums do not agree, read in one snapshot."""
    return [tuple(row) for row in connection.execute(WRONG_POINTS)]


#: Lots that are due, the lots of each user one after another.
GRANT = """
    INSERT INTO expiry_point_balances SELECT n, 0 FROM generate_series(0, :users - 1) AS n;
    INSERT INTO expiry_point_lots (user_id, points, remaining, granted_at, expires_at)
    SELECT n * :users / :lots, 1 + mod(n, 7), 1 + mod(n, 7),
           now() - interval '60 days', now() - random() * interval '30 days'
    FROM generate_series(0, :lots - 1) AS n;
    INSERT INTO expiry_point_entries (user_id, lot_id, kind, points, created_at)
    SELECT user_id, id, 'granted', points, granted_at FROM expiry_point_lots;
    UPDATE expiry_point_balances AS balance SET points = granted.points
    FROM (SELECT user_id, sum(points) AS points FROM expiry_point_lots GROUP BY 1) AS granted
    WHERE granted.user_id = balance.user_id;
"""


def grant_in_bulk(connection: Connection, lots: int, users: int) -> None:
    """Make so many lots of points that are due, with the lots of each user next to each other."""
    connection.execute(text(GRANT), {"lots": lots, "users": users})
    connection.exec_driver_sql("ANALYZE")


@dataclass(frozen=True)
class Subject:
    """A sweep, and the rows that it ends."""

    job: Job
    #: Makes the row of that number, which ends at that time.
    make: Callable[[Session, int, datetime], int]
    expire: Callable[..., dict[str, int]]
    word: str
    ended: str
    #: A trigger may refuse the row of an id when this table is written.
    table: str
    at: str
    #: Changes a row as an application does, so that the sweep never ends it.
    closed: str

    def fill(self, session: Session, count: int, ends_at: datetime = NOON) -> list[int]:
        """Make and commit rows that end a second apart, the last row at ``ends_at``."""
        ends = [ends_at - timedelta(seconds=count - 1 - number) for number in range(count)]
        ids = [self.make(session, number, at) for number, at in enumerate(ends)]
        session.commit()
        return ids

    def sweep(self, session: Session, now: datetime = NOON, **options: int) -> dict[str, int]:
        """Run the sweep, and commit at each checkpoint."""
        counts = self.expire(session, now, checkpoint=lambda _: session.commit(), **options)
        session.commit()
        return counts

    def count(self, session: Session) -> int:
        """Return how many rows have ended."""
        return int(session.scalar(text(f"SELECT count(*) FROM {self.table} WHERE {self.ended}")) or 0)


TASKS = Subject(
    jobs.cancel_expired_tasks,
    lambda session, number, at: open_task(session, f"owner-{number}", at, BEFORE),
    tasks.cancel_expired,
    "cancelled",
    "state = 'cancelled'",
    models.Task.__tablename__,
    "deadline_at",
    "state = 'completed', completed_at = :later",
)
COUPONS = Subject(
    jobs.check_expired_coupons,
    lambda session, number, at: issue_coupon(session, f"C{number}", f"user-{number}", at, BEFORE),
    coupons.expire,
    "expired",
    "state = 'expired'",
    models.Coupon.__tablename__,
    "ends_at",
    "state = 'used', used_at = :later",
)
CODES = Subject(
    jobs.check_expired_invitation_codes,
    lambda session, number, at: issue_invitation_code(session, f"I{number}", f"user-{number}", at, BEFORE),
    invitation_codes.expire,
    "expired",
    "state = 'expired'",
    models.InvitationCode.__tablename__,
    "ends_at",
    "state = 'used', used_at = :later",
)
POINTS = Subject(
    jobs.check_expired_points,
    lambda session, number, at: grant_points(session, f"user-{number % 40}", number + 1, at, BEFORE),
    points.expire,
    "expired",
    "remaining = 0",
    models.PointLot.__tablename__,
    "expires_at",
    "remaining = 0",
)
SUBJECTS = [TASKS, COUPONS, CODES, POINTS]
