"""Points: they are granted in lots that expire, spent in order of expiry, and expired by the sweep.

**Invariants** at every commit: a user's balance is the sum of the user's ledger entries, and also the sum of the points
that remain in the user's lots; the points that remain in a lot are the sum of the lot's entries. So a function that
changes a lot also writes an entry and changes the balance, in one transaction.

**Locks.** Every function that changes a user's points locks the user's balance before anything else, and reads lots in
a later statement, which then sees everything that was committed before the lock was acquired (under READ COMMITTED,
PostgreSQL's default). So the points of one user change one transaction at a time. The sweep never waits: it skips users
whose balance is locked. An application that changes several users' points in one transaction must do so in the order of
their ids, so that two such transactions cannot deadlock.

**At its end.** A lot ends *at* ``expires_at``: from this instant on it cannot be spent, and is due to expire. Until a
sweep expires it, its points are still in the balance but cannot be spent.
"""

from collections.abc import Sequence
from datetime import datetime

from sqlalchemy import BigInteger, column, func, insert, literal, select, update, values
from sqlalchemy.dialects.postgresql import insert as upsert
from sqlalchemy.orm import Session

from core import Checkpoint, Instant, require_aware
from plugins.expiry.errors import BadPoints, BadReference, InsufficientPoints, ReferenceTaken
from plugins.expiry.instants import require_to_come
from plugins.expiry.models import EntryKind, PointBalance, PointEntry, PointLot
from plugins.expiry.sweeps import Ends, among, end_due

#: The number of lots in one batch. Users of these lots who spend points must wait for the batch.
BATCH = 1000
#: The most points that can be granted or spent at once. A balance of nine thousand such lots still fits a bigint.
MOST_POINTS = 10**15
#: The most characters of a reference that an index can hold, even if all are long in UTF-8.
LONGEST_REFERENCE = 200

LEFT = PointLot.remaining > 0
BROKEN = (PointLot.remaining < 0) | PointLot.remaining.is_(None) | PointLot.expires_at.is_(None)
ENDS = Ends(PointLot.__tablename__, PointLot.id, PointLot.expires_at, LEFT, BROKEN)
UNSYNCHRONISED = {"synchronize_session": False}


def grant_points(
    session: Session, user_id: str, points: int, expires_at: datetime, now: datetime, *, reference: str | None = None
) -> int:
    """Give the user a lot of points. Return the lot's id.

    ``reference`` identifies the reason. A repeated call with the same reference, for example after a lost connection,
    grants nothing and returns the first lot. Raises BadPoints and BadReference. Raises BadInstant unless ``expires_at``
    is in the future, and ReferenceTaken if the reference was used for another number of points.
    """
    _require_points(points)
    require_aware(now=now)
    if reference is not None:
        _credit(session, user_id, 0)  # locks the balance, or creates it
        if lot_ids := _done_before(session, user_id, EntryKind.GRANTED, reference, points):
            return lot_ids[0]
    require_to_come("expires_at", expires_at, now)
    _credit(session, user_id, points)
    lot = {"user_id": user_id, "points": points, "remaining": points, "granted_at": now, "expires_at": expires_at}
    lot_id = session.scalars(insert(PointLot).values(lot).returning(PointLot.id)).one()
    session.execute(insert(PointEntry), [_entry(user_id, lot_id, EntryKind.GRANTED, points, now, reference)])
    return lot_id


def spend_points(session: Session, user_id: str, points: int, now: datetime, *, reference: str | None = None) -> int:
    """Spend points of the user's lots. Lots that expire first are used first.

    Return the points that can still be spent.

    ``reference`` identifies the reason. A repeated call with the same reference, for example after a lost connection,
    spends nothing. Raises BadPoints and BadReference. Raises InsufficientPoints, and then spends no points. Raises
    ReferenceTaken if the reference was used for another number of points.
    """
    _require_points(points)
    require_aware(now=now)
    if not _lock_balances(session, [user_id], wait=True):  # the user has no balance yet
        raise InsufficientPoints(user_id, points, 0)
    if reference is not None and _done_before(session, user_id, EntryKind.SPENT, reference, points):
        return spendable_points(session, user_id, now)
    lots = _spendable_lots(session, user_id, now)
    spendable = sum(lots.values())
    if spendable < points:
        raise InsufficientPoints(user_id, points, spendable)
    _spend(session, user_id, _shares(lots, points), now, reference)
    return spendable - points


def spendable_points(session: Session, user_id: str, now: datetime) -> int:
    """Return the points that the user can spend: the remaining points of the lots that have not expired."""
    remaining = select(func.coalesce(func.sum(PointLot.remaining), 0))
    return int(session.scalars(remaining.where(PointLot.user_id == user_id, LEFT, PointLot.expires_at > now)).one())


def expire(session: Session, now: datetime, *, checkpoint: Checkpoint, batch: int = BATCH) -> dict[str, int]:
    """Empty every lot whose ``expires_at`` is not after ``now``, and debit the balances, batch by batch.

    Return how many lots were emptied, and how many points they had.
    """

    def expire_batch(ids: Sequence[int]) -> dict[str, int]:
        lots = _lock_due_lots(session, ids, now)
        debited = _debit(session, lots)
        _write_off(session, lots, now)
        return {"expired": len(lots), "left": len(ids) - len(lots), "points": debited}

    return end_due(session, ENDS, now, expire_batch, counts=["expired", "points"], checkpoint=checkpoint, batch=batch)


def _require_points(points: int) -> None:
    if not isinstance(points, int) or isinstance(points, bool) or not 1 <= points <= MOST_POINTS:
        raise BadPoints(points, MOST_POINTS)


def _done_before(session: Session, user_id: str, kind: EntryKind, reference: str, points: int) -> Sequence[int]:
    """Return the lots of an earlier call with the same reference. The caller has locked the user's balance."""
    if not isinstance(reference, str) or not 0 < len(reference) <= LONGEST_REFERENCE or "\0" in reference:
        raise BadReference(LONGEST_REFERENCE)
    of_reference = (PointEntry.user_id == user_id, PointEntry.reference == reference, PointEntry.kind == kind)
    found = session.execute(select(PointEntry.lot_id, PointEntry.points).where(*of_reference)).all()
    before = abs(sum(entry.points for entry in found))
    if found and before != points:
        raise ReferenceTaken(user_id, reference, before, points)
    return [entry.lot_id for entry in found]


def _credit(session: Session, user_id: str, points: int) -> None:
    credit = upsert(PointBalance).values(user_id=user_id, points=points)
    session.execute(
        credit.on_conflict_do_update(
            index_elements=[PointBalance.user_id], set_={"points": PointBalance.points + credit.excluded.points}
        )
    )


def _lock_balances(session: Session, user_ids: Sequence[str], *, wait: bool) -> Sequence[str]:
    balances = select(PointBalance.user_id).where(PointBalance.user_id.in_(user_ids)).order_by(PointBalance.user_id)
    return session.scalars(balances.with_for_update(key_share=True, skip_locked=not wait)).all()


def _spendable_lots(session: Session, user_id: str, now: datetime) -> dict[int, int]:
    lots = (
        select(PointLot.id, PointLot.remaining)
        .where(PointLot.user_id == user_id, LEFT, PointLot.expires_at > now)
        .order_by(PointLot.expires_at, PointLot.id)
    )
    return dict(session.execute(lots).all())


def _shares(lots: dict[int, int], points: int) -> dict[int, int]:
    """Return the points to take from each lot, ``points`` in total. The first lots are used up first."""
    shares: dict[int, int] = {}
    for lot_id, remaining in lots.items():
        if not points:
            break
        shares[lot_id] = min(remaining, points)
        points -= shares[lot_id]
    return shares


def _spend(session: Session, user_id: str, shares: dict[int, int], now: datetime, reference: str | None) -> None:
    share = values(column("lot_id", BigInteger), column("points", BigInteger), name="share").data(list(shares.items()))
    taken = update(PointLot).where(PointLot.id == share.c.lot_id).values(remaining=PointLot.remaining - share.c.points)
    session.execute(taken, execution_options=UNSYNCHRONISED)
    spent = [_entry(user_id, lot_id, EntryKind.SPENT, -points, now, reference) for lot_id, points in shares.items()]
    session.execute(insert(PointEntry), spent)
    debit = update(PointBalance).where(PointBalance.user_id == user_id)
    total = PointBalance.points - sum(shares.values())
    session.execute(debit.values(points=total), execution_options=UNSYNCHRONISED)


def _entry(
    user_id: str, lot_id: int, kind: EntryKind, points: int, now: datetime, reference: str | None
) -> dict[str, object]:
    of = {"user_id": user_id, "lot_id": lot_id, "reference": reference}
    return {**of, "kind": kind, "points": points, "created_at": now}


def _lock_due_lots(session: Session, ids: Sequence[int], now: datetime) -> Sequence[int]:
    """Lock the balances of users that no other transaction has locked, and then the due lots of these users."""
    owners = session.scalars(select(PointLot.user_id).where(among(PointLot.id, ids)).distinct()).all()
    users = _lock_balances(session, owners, wait=False)
    due = select(PointLot.id).where(among(PointLot.id, ids), PointLot.user_id.in_(users), ENDS.due(now))
    return session.scalars(due.with_for_update(key_share=True, skip_locked=True)).all()


def _debit(session: Session, lot_ids: Sequence[int]) -> int:
    """Subtract the remaining points of these lots from the balances. Return the total."""
    left = (
        select(PointLot.user_id, func.sum(PointLot.remaining).label("points"))
        .where(among(PointLot.id, lot_ids))
        .group_by(PointLot.user_id)
        .cte("lapsed")
    )
    debited = (
        update(PointBalance)
        .where(PointBalance.user_id == left.c.user_id)
        .values(points=PointBalance.points - left.c.points)
        .returning(left.c.points)
    )
    return int(sum(session.scalars(debited, execution_options=UNSYNCHRONISED)))


def _write_off(session: Session, lot_ids: Sequence[int], now: datetime) -> None:
    columns = [PointEntry.user_id, PointEntry.lot_id, PointEntry.kind, PointEntry.points, PointEntry.created_at]
    lots = select(
        PointLot.user_id, PointLot.id, literal(EntryKind.EXPIRED), -PointLot.remaining, literal(now, Instant)
    ).where(among(PointLot.id, lot_ids))
    session.execute(insert(PointEntry).from_select(columns, lots))
    emptied = update(PointLot).where(among(PointLot.id, lot_ids)).values(remaining=0)
    session.execute(emptied, execution_options=UNSYNCHRONISED)
