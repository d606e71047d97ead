"""``close_limit`` closes a limit for a time, for example after an answer 429."""

from datetime import datetime, timedelta

from sqlalchemy.orm import Session

from core.enqueue import plain_session
from core.errors import BadTime, NaiveTime
from core.jobs.limit import LONGEST_PER, shortened
from core.ledger import limits

LONGEST_REASON = 2000


def close_limit(
    session: Session, name: str, *, until: datetime | timedelta, reason: str | None = None
) -> datetime:  # fmt: skip
    """Let no run start under the limit ``name`` before ``until``. Return the time at which the limit opens.

    ``name`` is the limit's name filled with the values of its arguments, such as ``imap:example.org``. ``until`` is an
    aware time, or a span from now of at most 31 days. ``reason`` is for people. The closing takes effect when the
    caller's transaction commits. Runs that are at work continue. A limit that is closed twice opens at the later time.

    To also try the caller's own run again, raise Later.

    Raises NaiveTime for a time without a zone. Raises BadTime for a span that is not positive or too long. Raises
    RotaError if ``session`` has another type.
    """
    session = plain_session(session)
    if isinstance(until, datetime) and until.utcoffset() is None:
        raise NaiveTime(f"limit {name!r}: until={until!r} has no time zone; give an aware datetime or a timedelta")
    if isinstance(until, timedelta) and not timedelta(0) < until <= LONGEST_PER:
        raise BadTime(f"limit {name!r}: until={until} must be more than 0 and at most {LONGEST_PER.days} days")
    return limits.close(
        session,
        shortened(name),
        until=until if isinstance(until, datetime) else None,
        after=until if isinstance(until, timedelta) else None,
        reason=reason and reason[:LONGEST_REASON],
    )
