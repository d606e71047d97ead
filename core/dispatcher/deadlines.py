"""Ends expired runs, and logs how many ended."""

from collections import Counter

from sqlalchemy import Connection

from core.ledger import deadlines
from core.ledger.models import State
from core.observability import metrics
from core.observability.events import RunExpired, emit


def expire(connection: Connection) -> None:
    """End one batch of expired runs."""
    for job, count in Counter(deadlines.expire(connection)).items():
        metrics.runs_ended(job, {State.MISSED: count})
        emit(RunExpired(job, count))
