"""The rules for quiet chats: when a chat is warned, and when it ends.

A chat is warned when it has been quiet for a minute. It ends when it has been quiet for two minutes and was warned at
least a minute ago. The second condition matters after an outage, in which no warnings were sent: no chat ends without a
warning and a minute to answer it.
"""

from datetime import datetime, timedelta

from sqlalchemy import ColumnElement
from sqlalchemy.orm import Session

from plugins.customer_service.chats import ACTIVE
from plugins.customer_service.instants import is_a_date
from plugins.customer_service.models import Chat
from plugins.customer_service.sweeps import name_unfit

#: A chat ends when it has had no activity for this long.
TIMEOUT = timedelta(minutes=2)
#: The warning is due this long before the time-out. This is also the shortest time between the warning and the end.
NOTICE = timedelta(minutes=1)

UNFIT = ACTIVE & ~(is_a_date(Chat.last_activity_at) & (Chat.warned_at.is_(None) | is_a_date(Chat.warned_at)))


def has_timed_out(now: datetime) -> ColumnElement[bool]:
    """Return the condition for chats that are active, quiet for two minutes, and were warned at least a minute ago."""
    return quiet_for(TIMEOUT, now) & is_a_date(Chat.warned_at) & (Chat.warned_at <= now - NOTICE)


def is_to_be_warned(now: datetime) -> ColumnElement[bool]:
    """Return the condition for chats that are active, quiet for a minute, and not warned since the last message."""
    return quiet_for(TIMEOUT - NOTICE, now) & Chat.warned_at.is_(None)


def quiet_for(span: timedelta, now: datetime) -> ColumnElement[bool]:
    """Return the condition for chats that are active and have had no activity for ``span``."""
    return ACTIVE & is_a_date(Chat.last_activity_at) & (Chat.last_activity_at <= now - span)


def name_unfit_chats(session: Session) -> int:
    """Log the active chats whose quiet time cannot be calculated. Return how many."""
    return name_unfit(session, UNFIT, Chat.id, "last_activity_at or warned_at is no date")
