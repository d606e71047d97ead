"""Requests an assignment in the transaction that makes one possible."""

from sqlalchemy.orm import Session

from core import enqueue

ASSIGNMENT_JOB = "process-customer-service-queue"


def trigger_assignment(session: Session) -> None:
    """Request a run that processes the queue when ``session`` commits."""
    enqueue(session, ASSIGNMENT_JOB)
