"""Checks that the ends and deadlines that an application passes are in the future."""

from datetime import datetime

from core import require_aware
from plugins.expiry.errors import BadInstant


def require_to_come(name: str, instant: datetime, now: datetime) -> None:
    """Raise BadInstant, with ``name``, unless ``instant`` has a time zone and is after ``now``.

    Raises NaiveTime if ``now`` has no time zone.
    """
    require_aware(now=now)
    is_aware = isinstance(instant, datetime) and instant.utcoffset() is not None
    if not is_aware or instant <= now:
        raise BadInstant(name, instant, now)
