"""Writes experts' bios. A bio is a line about an expert's work, made from tasks, reviews and response times."""

from collections.abc import Sequence
from datetime import datetime, timedelta
from decimal import ROUND_HALF_UP, Decimal
from typing import NamedTuple

from sqlalchemy import Double, Text, cast, column, extract, func, select, update, values
from sqlalchemy.orm import Session

from core import Checkpoint, in_batches, require_aware, sweep
from plugins.maintenance.models import Review, Task, TaskExpert, TaskState

#: A bio names at most this many categories: those in which the expert has completed most tasks.
CATEGORIES = 3
NEWCOMER = "New here"
UNITS = ((timedelta(days=1), "day"), (timedelta(hours=1), "hour"), (timedelta(minutes=1), "minute"))


class Record(NamedTuple):
    """The figures about an expert's work, from which the bio is made."""

    completed: int = 0
    categories: Sequence[str] = ()
    reviews: int = 0
    rating: Decimal | None = None
    response_time: timedelta | None = None


def update_bios(session: Session, now: datetime, *, checkpoint: Checkpoint, batch: int = 500) -> dict[str, int]:
    """Rebuild every expert's bio, batch by batch, and write the bios that differ.

    Return the numbers of experts, changes and failures.
    """
    require_aware(now=now)

    def rebuild(experts: Sequence[Expert]) -> dict[str, int]:
        changed = _changed(session, experts)
        _write(session, changed)
        return {"experts": len(experts), "changed": len(changed)}

    return sweep(
        session,
        in_batches(lambda last: _lock_experts(session, last, batch)),
        rebuild,
        table=TaskExpert.__tablename__,
        counts={"experts": 0, "changed": 0, "failed": 0},
        checkpoint=checkpoint,
        refused="failed",
    )


def summary(record: Record) -> str:
    """Return a bio such as "12 tasks completed, mostly cleaning. Rated 4.7 by 9 people."."""
    sentences = [_completed(record)]
    if record.reviews and record.rating is not None:
        rating = record.rating.quantize(Decimal("0.1"), ROUND_HALF_UP)
        sentences.append(f"Rated {rating} by {_plural(record.reviews, 'person', 'people')}")
    if record.response_time is not None:
        sentences.append(f"Usually answers within {_span(record.response_time)}")
    return ". ".join(sentences) + "."


def _completed(record: Record) -> str:
    if not record.completed:
        return NEWCOMER
    completed = f"{_plural(record.completed, 'task')} completed"
    *most, last = record.categories or [""]
    if not last:
        return completed
    return f"{completed}, mostly {', '.join(most) + ' and ' if most else ''}{last}"


def _span(span: timedelta) -> str:
    """Return a span in the largest unit that fits, rounded up, so that the bio promises no shorter time."""
    unit, name = next(((unit, name) for unit, name in UNITS if span > unit), UNITS[-1])
    return _plural(max(1, -(-span // unit)), name)


def _plural(number: int, one: str, many: str = "") -> str:
    return f"{number} {one if number == 1 else many or one + 's'}"


class Expert(NamedTuple):
    """The columns of an expert's row that the bio needs. PostgreSQL's intervals may be longer than Python's."""

    id: str
    bio: str
    response_seconds: float | None

    @property
    def response_time(self) -> timedelta | None:
        """The average response time. Raises OverflowError if it is too long for Python's timedelta."""
        return None if self.response_seconds is None else timedelta(seconds=self.response_seconds)


def _lock_experts(session: Session, last: Expert | None, batch: int) -> Sequence[Expert]:
    seconds = cast(extract("epoch", TaskExpert.average_response_time), Double)
    experts = select(TaskExpert.id, TaskExpert.bio, seconds).order_by(TaskExpert.id).limit(batch)
    onwards = experts if last is None else experts.where(TaskExpert.id > last.id)
    return [Expert(*row) for row in session.execute(onwards.with_for_update(skip_locked=True))]


def _changed(session: Session, experts: Sequence[Expert]) -> list[tuple[str, str]]:
    expert_ids = [expert.id for expert in experts]
    categories = _completed_by_category(session, expert_ids)
    ratings = _ratings(session, expert_ids)
    changed = []
    for expert in experts:
        completed, names = categories.get(expert.id, (0, []))
        reviews, rating = ratings.get(expert.id, (0, None))
        bio = summary(Record(completed, names, reviews, rating, expert.response_time))
        if bio != expert.bio:
            changed.append((expert.id, bio))
    return changed


def _completed_by_category(session: Session, expert_ids: Sequence[str]) -> dict[str, tuple[int, list[str]]]:
    by_category = (
        select(Task.taker_id, Task.category, func.count().label("completed"))
        .where(Task.taker_id.in_(expert_ids), Task.state == TaskState.COMPLETED)
        .group_by(Task.taker_id, Task.category)
        .order_by(Task.taker_id, func.count().desc(), Task.category)
    )
    found: dict[str, tuple[int, list[str]]] = {}
    for expert_id, category, completed in session.execute(by_category):
        number, names = found.get(str(expert_id), (0, []))
        named = [*names, category] if category and len(names) < CATEGORIES else names
        found[str(expert_id)] = number + completed, named
    return found


def _ratings(session: Session, expert_ids: Sequence[str]) -> dict[str, tuple[int, Decimal]]:
    ratings = select(Review.user_id, func.count(), func.avg(Review.rating)).where(Review.user_id.in_(expert_ids))
    return {user_id: (number, rating) for user_id, number, rating in session.execute(ratings.group_by(Review.user_id))}


def _write(session: Session, bios: Sequence[tuple[str, str]]) -> None:
    if not bios:
        return
    new = values(column("expert_id", Text), column("bio", Text), name="new").data(list(bios))
    session.execute(
        update(TaskExpert).where(TaskExpert.id == new.c.expert_id).values(bio=new.c.bio),
        execution_options={"synchronize_session": False},
    )
