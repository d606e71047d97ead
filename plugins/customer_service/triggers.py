"""Asking for an assignment at once, in the transaction that makes one possible."""

from sqlalchemy.orm import Session

from core import enqueue

ASSIGNMENT_JOB = "process-customer-service-queue"


def trigger_assignment(session: Session) -> None:
    """Once ``session`` commits, the queue is processed; if it rolls back, nothing happened."""
    enqueue(session, ASSIGNMENT_JOB)
