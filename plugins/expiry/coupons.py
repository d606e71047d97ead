"""Coupons: each is issued to a user, and is redeemed before its end or expired by the sweep.

A coupon ends *at* ``ends_at``: from this instant on it cannot be redeemed, and is due to expire.
"""

from datetime import datetime

from sqlalchemy.orm import Session

from core import Checkpoint
from plugins.expiry import codes
from plugins.expiry.models import Coupon


def issue_coupon(session: Session, code: str, user_id: str, ends_at: datetime, now: datetime) -> int:
    """Give the user a coupon. Return the coupon's id. Raises CodeTaken, and BadInstant if ``ends_at`` has passed."""
    return codes.issue(session, Coupon, code, user_id, ends_at, now)


def redeem_coupon(session: Session, code: str, user_id: str, now: datetime) -> bool:
    """Redeem the user's coupon.

    Returns False if the user has no coupon with that code, or if it was already redeemed or has ended.
    """
    return codes.use(session, Coupon, code, now, Coupon.user_id == user_id)


def expire(session: Session, now: datetime, *, checkpoint: Checkpoint, batch: int = codes.BATCH) -> dict[str, int]:
    """Mark every active coupon whose ``ends_at`` is not after ``now`` as expired, batch by batch. Return the counts."""
    return codes.expire(session, Coupon, now, checkpoint=checkpoint, batch=batch)
