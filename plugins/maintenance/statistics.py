"""Recomputes the statistics of users whose tasks or reviews have changed.

**No change is lost.** A change of a task or a review also inserts the user's id into ``maintenance_changed_users``: a
trigger does so in the same transaction. These rows are called marks. Writers only insert marks, so they never wait for
each other or for the sweep. The sweep deletes a batch of marks, locks the statistics of these users, and recomputes
them in *later* statements of the same transaction. Under READ COMMITTED, PostgreSQL's default, a statement sees
everything that was committed before it began. So a later statement sees at least the changes whose marks were deleted.
If it does not see a change, that change is not committed yet, so the mark of the change is not deleted yet either. If
PostgreSQL refuses a user's statistics, the user keeps a mark for the next run.

**New statistics are never overwritten with old ones.** Two sweeps may hold marks of one user. Each sweep recomputes
only after it has locked that user's row, so the later sweep sees at least all changes that the earlier sweep saw. Rows
are locked in the order of user ids.

**Set-based.** A batch needs a few statements, regardless of the number of users in it. Each statement uses an index.
"""

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Select,
    Subquery,
    Text,
    delete,
    func,
    literal,
    select,
    tuple_,
    union,
    update,
)
from sqlalchemy.dialects.postgresql import ARRAY, insert
from sqlalchemy.orm import QueryableAttribute, Session

from core import Checkpoint, Instant, isolate, require_aware
from plugins.maintenance.models import ChangedUser, Review, Task, TaskState, UserStatistics

UNSYNCHRONISED = {"synchronize_session": False}
FIGURES = (
    UserStatistics.tasks_posted,
    UserStatistics.tasks_taken,
    UserStatistics.tasks_completed,
    UserStatistics.completion_rate,
    UserStatistics.average_rating,
)


def update_statistics(session: Session, now: datetime, *, checkpoint: Checkpoint, batch: int = 5000) -> dict[str, int]:
    """Recompute the statistics of every marked user, batch by batch. Return the numbers of users and failures.

    Changes that are marked after the sweep began may be left to the next sweep, so that this sweep ends.
    """
    require_aware(now=now)
    counts = {"users": 0, "failed": 0}

    def refresh(user_ids: Sequence[str]) -> dict[str, int]:
        recompute(session, user_ids, now)
        return {"users": len(user_ids)}

    newest = session.scalar(select(func.max(ChangedUser.id))) or 0
    while user_ids := _take_marks(session, newest, batch):
        done, refused = isolate(session, sorted(set(user_ids)), refresh, table=UserStatistics.__tablename__)
        _keep_marks(session, refused, newest)
        counts["users"] += done.get("users", 0)
        counts["failed"] += len(refused)
        checkpoint(counts)
    return counts


def recompute(session: Session, user_ids: Sequence[str], now: datetime) -> None:
    """Recompute these users' statistics from the committed tasks and reviews, in the caller's transaction."""
    users = _users(user_ids)
    _add_missing(session, users, now)
    rows = select(UserStatistics.user_id).where(UserStatistics.user_id.in_(users))
    session.execute(rows.order_by(UserStatistics.user_id).with_for_update()).all()
    _write_figures(session, _figures(users), now)


def recompute_all(session: Session, now: datetime) -> None:
    """Recompute the statistics of all users at once, for a manual repair.

    The function has no time limit, and it locks the statistics of all users. Tests and benchmarks compare its results
    with those of the sweep.
    """
    everyone = union(
        select(Task.poster_id.label("user_id")),
        select(Task.taker_id).where(Task.taker_id.is_not(None)),
        select(Review.user_id),
        select(UserStatistics.user_id),
    ).subquery()
    _add_missing(session, select(everyone.c.user_id), now)
    _write_figures(session, _figures(select(everyone.c.user_id), all_users=True), now)


def _take_marks(session: Session, newest: int, batch: int) -> Sequence[str]:
    oldest_first = (
        select(ChangedUser.id)
        .where(ChangedUser.id <= newest)
        .order_by(ChangedUser.id)
        .limit(batch)
        .with_for_update(skip_locked=True)
        .cte("oldest")  # executed once, whichever plan PostgreSQL chooses for the deletion
    )
    taken = delete(ChangedUser).where(ChangedUser.id.in_(select(oldest_first.c.id))).returning(ChangedUser.user_id)
    return session.scalars(taken, execution_options=UNSYNCHRONISED).all()


def _keep_marks(session: Session, user_ids: Sequence[str], newest: int) -> None:
    """Keep one mark of each of these users for the next run, outside the range of marks that this run takes."""
    if not user_ids:
        return
    others = select(ChangedUser.id).where(ChangedUser.id <= newest, ChangedUser.user_id.in_(_users(user_ids)))
    session.execute(
        delete(ChangedUser).where(ChangedUser.id.in_(others.with_for_update(skip_locked=True))),
        execution_options=UNSYNCHRONISED,
    )
    session.execute(insert(ChangedUser), [{"user_id": user_id} for user_id in user_ids])


def _users(user_ids: Sequence[str]) -> Select[tuple[str]]:
    """Return the ids as one array parameter, since a statement with thousands of parameters is slow to build."""
    ids = literal(list(user_ids), ARRAY(Text))
    return select(func.unnest(ids, type_=Text).column_valued("user_id"))


def _add_missing(session: Session, users: Select[tuple[str]], now: datetime) -> None:
    wanted = users.subquery()
    rows = select(wanted.c.user_id, literal(now, Instant)).order_by(wanted.c.user_id)
    session.execute(insert(UserStatistics).from_select(["user_id", "updated_at"], rows).on_conflict_do_nothing())


def _figures(users: Select[tuple[str]], *, all_users: bool = False) -> Subquery:
    """Return a row of statistics for each of ``users``. With ``all_users``, these are all users, and need no filter."""

    def of_users(user_id: QueryableAttribute[Any]) -> ColumnElement[bool]:
        return literal(True) if all_users else user_id.in_(users)

    completed = func.count().filter(Task.state == TaskState.COMPLETED)
    posted = select(Task.poster_id.label("user_id"), func.count().label("posted"))
    taken = select(Task.taker_id.label("user_id"), func.count().label("taken"), completed.label("completed"))
    rated = select(Review.user_id.label("user_id"), func.avg(Review.rating).label("rating"))
    p = posted.where(of_users(Task.poster_id)).group_by(Task.poster_id).subquery("p")
    t = taken.where(of_users(Task.taker_id), Task.taker_id.is_not(None)).group_by(Task.taker_id).subquery("t")
    r = rated.where(of_users(Review.user_id)).group_by(Review.user_id).subquery("r")
    everyone = users.subquery("everyone")
    return (
        select(
            everyone.c.user_id,
            func.coalesce(p.c.posted, 0).label("tasks_posted"),
            func.coalesce(t.c.taken, 0).label("tasks_taken"),
            func.coalesce(t.c.completed, 0).label("tasks_completed"),
            func.round(t.c.completed * 1.0 / t.c.taken, 4).label("completion_rate"),
            func.round(r.c.rating, 2).label("average_rating"),
        )
        .outerjoin(p, p.c.user_id == everyone.c.user_id)
        .outerjoin(t, t.c.user_id == everyone.c.user_id)
        .outerjoin(r, r.c.user_id == everyone.c.user_id)
        .subquery("figures")
    )


def _write_figures(session: Session, figures: Subquery, now: datetime) -> None:
    """Write the statistics that differ from the stored statistics.

    The other rows are not written, since each write leaves a dead row for vacuum.
    """
    names = [figure.key for figure in FIGURES]
    new = {name: figures.c[name] for name in names}
    differ = tuple_(*FIGURES).is_distinct_from(tuple_(*new.values()))
    session.execute(
        update(UserStatistics)
        .where(UserStatistics.user_id == figures.c.user_id, differ)
        .values({**new, "updated_at": now}),
        execution_options=UNSYNCHRONISED,
    )
