"""Ends the runs that have expired, and logs each of them."""

from collections import Counter

from sqlalchemy import Connection

from core.ledger import deadlines
from core.ledger.models import State
from core.observability import metrics
from core.observability.events import RunExpired, emit


def expire(connection: Connection) -> None:
    """End the runs that have expired, at most as many as one statement ends."""
    for job, count in Counter(deadlines.expire(connection)).items():
        metrics.runs_ended(job, {State.MISSED: count})
        emit(RunExpired(job, count))
