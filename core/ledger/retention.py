"""Finished runs are kept for a while, then deleted in bounded batches."""

from collections.abc import Callable
from datetime import timedelta

from sqlalchemy import text
from sqlalchemy.orm import Session

from core import settings

DELETE = text("""
    DELETE FROM rota_runs WHERE id IN (
        SELECT id FROM rota_runs WHERE finished_at < clock_timestamp() - CAST(:kept AS interval)
        ORDER BY finished_at LIMIT :batch FOR UPDATE SKIP LOCKED)
""")


def prune(session: Session, *, checkpoint: Callable[[dict[str, int]], None], batch: int = 5000) -> int:
    """Delete what finished longer ago than ``ROTA_RETENTION_DAYS``; return how many runs."""
    kept = timedelta(days=settings.current().retention_days)
    deleted = 0
    while count := session.execute(DELETE, {"kept": kept, "batch": batch}).rowcount:  # type: ignore[attr-defined]
        deleted += count
        checkpoint({"deleted": deleted})
    return deleted
