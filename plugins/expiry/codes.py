"""The common part of coupons and invitation codes: a code is issued once, and is used once or expires."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any, cast

from sqlalchemy import ColumnElement, CursorResult, any_, func, literal_column, select, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from core import Checkpoint
from plugins.expiry.errors import CodeTaken
from plugins.expiry.instants import require_to_come
from plugins.expiry.models import CodeState, Coupon, InvitationCode
from plugins.expiry.sweeps import Ends, among, end_due

Code = type[Coupon] | type[InvitationCode]

#: The number of codes in one batch. A batch locks its rows for about a tenth of a second (``benchmarks/coupons.py``).
BATCH = 10_000
#: The position of a row in its table. A locked row keeps its position.
CTID: ColumnElement[Any] = literal_column("ctid")


def issue(session: Session, table: Code, code: str, user_id: str, ends_at: datetime, now: datetime) -> int:
    """Make an active code. Return its id. Raises BadInstant and CodeTaken."""
    require_to_come("ends_at", ends_at, now)
    values = {"code": code, "user_id": user_id, "ends_at": ends_at}
    added = insert(table).values(values).on_conflict_do_nothing(index_elements=[table.code]).returning(table.id)
    code_id = session.scalar(added)
    if code_id is None:
        raise CodeTaken(table.__tablename__, code)
    return code_id


def use(
    session: Session, table: Code, code: str, now: datetime, *conditions: ColumnElement[bool], **values: object
) -> bool:
    """Use an active code before its end, if ``conditions`` hold, and set ``values``.

    Return False if the code cannot be used.
    """
    used = (
        update(table)
        .where(table.code == code, table.state == CodeState.ACTIVE, table.ends_at > now, *conditions)
        .values(state=CodeState.USED, used_at=now, **values)
        .returning(table.id)
        .execution_options(synchronize_session=False)
    )
    return session.scalar(used) is not None


def expire(session: Session, table: Code, now: datetime, *, checkpoint: Checkpoint, batch: int) -> dict[str, int]:
    """Mark every active code whose ``ends_at`` is not after ``now`` as expired, batch by batch."""
    is_open = table.state == CodeState.ACTIVE
    ends = Ends(table.__tablename__, table.id, table.ends_at, is_open, is_open & table.ends_at.is_(None))

    def expire_batch(ids: Sequence[int]) -> dict[str, int]:
        # The locked rows are updated by their positions, which is much faster than by their ids. If another transaction
        # has changed a row after this statement began, the row has a new position, which this statement cannot see. So
        # the row is skipped.
        held = select(CTID.label("place")).select_from(table).where(among(table.id, ids), ends.due(now))
        places = select(held.with_for_update(key_share=True, skip_locked=True).cte("held").c.place).scalar_subquery()
        expired = update(table).where(any_(func.array(places)) == CTID)
        values = expired.values(state=CodeState.EXPIRED, expired_at=now)
        result = session.execute(values, execution_options={"synchronize_session": False})
        done = cast(CursorResult[Any], result).rowcount
        return {"expired": done, "left": len(ids) - done}

    return end_due(session, ends, now, expire_batch, counts=["expired"], checkpoint=checkpoint, batch=batch)
