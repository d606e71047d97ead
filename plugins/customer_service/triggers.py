"""Requests an assignment in the same transaction as the change that makes the assignment possible."""

from sqlalchemy.orm import Session

from core import enqueue

ASSIGNMENT_JOB = "process-customer-service-queue"


def trigger_assignment(session: Session) -> None:
    """Request a run that processes the queue when ``session`` commits."""
    enqueue(session, ASSIGNMENT_JOB)
