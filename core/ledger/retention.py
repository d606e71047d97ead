"""Deletes old rows in bounded batches: finished runs with their attempts, ended pauses, departures, the audit."""

from collections.abc import Callable
from datetime import timedelta

from sqlalchemy import TextClause, text
from sqlalchemy.orm import Session

from core import settings
from core.ledger import limits

#: ``statement_timestamp()`` is stable, so an index finds the old rows without reading the others.
DELETE = text("""
    WITH batch AS MATERIALIZED (
        SELECT id FROM rota_runs WHERE finished_at < statement_timestamp() - CAST(:kept AS interval)
        ORDER BY finished_at LIMIT :batch FOR UPDATE SKIP LOCKED
    ), tried AS (
        DELETE FROM rota_attempts WHERE run_id IN (SELECT id FROM batch)
    )
    DELETE FROM rota_runs WHERE id IN (SELECT id FROM batch)
""")

DELETE_DEPARTURES = text("""
    DELETE FROM rota_departures WHERE left_at < statement_timestamp() - CAST(:kept AS interval)
""")

DELETE_PAUSES = text("DELETE FROM rota_pauses WHERE until < statement_timestamp() - CAST(:kept AS interval)")

#: A schedule that is there has its present part in its own row, so its old entries may go.
DELETE_SCHEDULE_LOG = text("""
    WITH batch AS MATERIALIZED (
        SELECT id FROM rota_key_schedule_log WHERE at < statement_timestamp() - CAST(:kept AS interval)
        ORDER BY at LIMIT :batch FOR UPDATE SKIP LOCKED
    )
    DELETE FROM rota_key_schedule_log WHERE id IN (SELECT id FROM batch)
""")

DELETE_GAPS = text("""
    WITH batch AS MATERIALIZED (
        SELECT id FROM rota_gaps WHERE ended_at < statement_timestamp() - CAST(:kept AS interval)
        ORDER BY ended_at LIMIT :batch FOR UPDATE SKIP LOCKED
    )
    DELETE FROM rota_gaps WHERE id IN (SELECT id FROM batch)
""")

DELETE_AUDIT = text("""
    WITH batch AS MATERIALIZED (
        SELECT id FROM rota_audit WHERE at < statement_timestamp() - CAST(:kept AS interval)
        ORDER BY at LIMIT :batch FOR UPDATE SKIP LOCKED
    )
    DELETE FROM rota_audit WHERE id IN (SELECT id FROM batch)
""")


def prune(session: Session, *, checkpoint: Callable[[dict[str, int]], None], batch: int = 5000) -> int:
    """Delete runs that finished longer ago than ``ROTA_RETENTION_DAYS``, and their attempts; return how many runs."""
    kept = timedelta(days=settings.current().retention_days)
    return _delete(session, DELETE, kept, batch, lambda deleted: checkpoint({"deleted": deleted}))


def prune_audit(session: Session, *, checkpoint: Callable[[dict[str, int]], None], batch: int = 5000) -> int:
    """Delete entries of the audit older than ``ROTA_AUDIT_DAYS``; return how many."""
    kept = timedelta(days=settings.current().audit_days)
    return _delete(session, DELETE_AUDIT, kept, batch, lambda deleted: checkpoint({"audit_deleted": deleted}))


def prune_schedules(session: Session, *, checkpoint: Callable[[dict[str, int]], None], batch: int = 5000) -> None:
    """Delete old changes of schedules made at run time, and old gap rows, after ``ROTA_RETENTION_DAYS``."""
    kept = timedelta(days=settings.current().retention_days)
    for statement in (DELETE_SCHEDULE_LOG, DELETE_GAPS):
        _delete(session, statement, kept, batch, lambda deleted: checkpoint({"schedules_deleted": deleted}))


def prune_pauses(session: Session) -> None:
    """Delete pauses that ended longer ago than ``ROTA_RETENTION_DAYS``; there are never many."""
    session.execute(DELETE_PAUSES, {"kept": timedelta(days=settings.current().retention_days)})


def prune_departures(session: Session) -> None:
    """Delete records of processes that left longer ago than ``ROTA_RETENTION_DAYS``."""
    session.execute(DELETE_DEPARTURES, {"kept": timedelta(days=settings.current().retention_days)})


def prune_limits(session: Session, *, checkpoint: Callable[[dict[str, int]], None]) -> None:
    """Delete rows of limits that have not been used for an hour, and closings older than ``ROTA_RETENTION_DAYS``."""
    session.execute(limits.DELETE_CLOSINGS, {"kept": timedelta(days=settings.current().retention_days)})
    deleted = 0
    while count := limits.delete_unused(session.connection()):
        deleted += count
        checkpoint({"limits_deleted": deleted})


def _delete(
    session: Session, statement: TextClause, kept: timedelta, batch: int, checkpoint: Callable[[int], None]
) -> int:
    deleted = 0
    while count := session.execute(statement, {"kept": kept, "batch": batch}).rowcount:  # type: ignore[attr-defined]
        deleted += count
        checkpoint(deleted)
    return deleted
