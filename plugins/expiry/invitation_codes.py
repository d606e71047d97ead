"""Invitation codes: each is issued to a user, and is used by one other person before its end or expired by the sweep.

A code ends *at* ``ends_at``: from this instant on it cannot be used, and is due to expire.
"""

from datetime import datetime

from sqlalchemy.orm import Session

from core import Checkpoint
from plugins.expiry import codes
from plugins.expiry.models import InvitationCode


def issue_invitation_code(session: Session, code: str, user_id: str, ends_at: datetime, now: datetime) -> int:
    """Give the user a code to invite with. Return the code's id.

    Raises CodeTaken, and BadInstant if ``ends_at`` has passed.
    """
    return codes.issue(session, InvitationCode, code, user_id, ends_at, now)


def use_invitation_code(session: Session, code: str, user_id: str, now: datetime) -> bool:
    """Use the code, and record in its row that ``user_id`` used it.

    Returns False if there is no such code, or if it was already used or has ended.
    """
    return codes.use(session, InvitationCode, code, now, used_by=user_id)


def expire(session: Session, now: datetime, *, checkpoint: Checkpoint, batch: int = codes.BATCH) -> dict[str, int]:
    """Mark every active code whose ``ends_at`` is not after ``now`` as expired, batch by batch. Return the counts."""
    return codes.expire(session, InvitationCode, now, checkpoint=checkpoint, batch=batch)
