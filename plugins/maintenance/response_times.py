"""Computes how long featured experts take to answer, on average over all inquiries that they have answered.

An inquiry is ignored if its answer is before its question, or if one of its times is infinite. An expert whose answered
inquiries are all ignored has no response time. Experts who are not featured keep their old response time.
"""

from collections.abc import Sequence
from datetime import datetime

from sqlalchemy import ColumnElement, case, func, select, update
from sqlalchemy.orm import Session

from core import Checkpoint, in_batches, require_aware, sweep
from plugins.maintenance.models import ExpertInquiry, TaskExpert

#: CASE is used, since PostgreSQL cannot subtract infinite times, and might otherwise subtract before it filters.
TAKEN = case(
    (
        func.isfinite(ExpertInquiry.asked_at)
        & func.isfinite(ExpertInquiry.answered_at)
        & (ExpertInquiry.answered_at >= ExpertInquiry.asked_at),
        ExpertInquiry.answered_at - ExpertInquiry.asked_at,
    )
)


def update_response_times(
    session: Session, now: datetime, *, checkpoint: Checkpoint, batch: int = 500
) -> dict[str, int]:
    """Recompute the average response time of every featured expert, batch by batch. Return the numbers of experts and
    failures.
    """
    require_aware(now=now)
    return sweep(
        session,
        in_batches(lambda last: _lock_featured(session, last, batch)),
        lambda expert_ids: _recompute(session, expert_ids),
        table=TaskExpert.__tablename__,
        counts={"experts": 0, "failed": 0},
        checkpoint=checkpoint,
        refused="failed",
    )


def _lock_featured(session: Session, after: str | None, batch: int) -> Sequence[str]:
    featured = select(TaskExpert.id).where(TaskExpert.is_featured).order_by(TaskExpert.id).limit(batch)
    onwards = featured if after is None else featured.where(TaskExpert.id > after)
    return session.scalars(onwards.with_for_update(skip_locked=True)).all()


def _recompute(session: Session, expert_ids: Sequence[str]) -> dict[str, int]:
    session.execute(
        update(TaskExpert)
        .where(TaskExpert.id.in_(expert_ids), TaskExpert.average_response_time.is_distinct_from(_average()))
        .values(average_response_time=_average()),
        execution_options={"synchronize_session": False},
    )
    return {"experts": len(expert_ids)}


def _average() -> ColumnElement[object]:
    answered = select(func.avg(TAKEN)).where(ExpertInquiry.expert_id == TaskExpert.id)
    return answered.where(ExpertInquiry.answered_at.is_not(None)).correlate(TaskExpert).scalar_subquery()
