"""Deletes old rows: finished runs with their attempts, entries of the audit and of the schedules' log, pauses,
departures, tokens and unused limits. Tables that may have many old rows are cleaned in batches.
"""

from collections.abc import Callable
from datetime import timedelta

from sqlalchemy import TextClause, text
from sqlalchemy.orm import Session

from core import settings
from core.ledger import limits

#: ``statement_timestamp()`` is stable, so PostgreSQL can use an index to find the old rows without reading the others.
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

#: The row of an existing schedule has the schedule's present state, so old entries of its log may be deleted.
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

DELETE_COUNTS = text("""
    WITH batch AS MATERIALIZED (
        SELECT job, minute FROM rota_success_counts
        WHERE minute < statement_timestamp() - CAST(:kept AS interval)
        ORDER BY minute LIMIT :batch FOR UPDATE SKIP LOCKED
    )
    DELETE FROM rota_success_counts WHERE (job, minute) IN (SELECT job, minute FROM batch)
""")

#: The counts of runs are by the hour when they are deleted, so they are few.
DELETE_RUN_COUNTS = text("""
    DELETE FROM rota_run_counts WHERE minute < statement_timestamp() - CAST(:kept AS interval)
""")

#: An expired token is kept for a while, since people list tokens. Expired links and sessions are deleted at once.
DELETE_TOKENS = text("""
    DELETE FROM rota_credentials
    WHERE expires_at < statement_timestamp() - CASE kind WHEN 'token' THEN CAST(:kept AS interval) ELSE interval '0' END
""")
DELETE_REQUESTED = text("""
    DELETE FROM rota_requested WHERE requested_at < statement_timestamp() - interval '1 day'
""")

DELETE_OPERATIONS = text("""
    DELETE FROM rota_operations
    WHERE finished_at < statement_timestamp() - CAST(:kept AS interval)
        OR (confirmed_at IS NULL AND expires_at < statement_timestamp() - interval '1 day')
""")

DELETE_AUDIT = text("""
    WITH batch AS MATERIALIZED (
        SELECT id FROM rota_audit WHERE at < statement_timestamp() - CAST(:kept AS interval)
        ORDER BY at LIMIT :batch FOR UPDATE SKIP LOCKED
    )
    DELETE FROM rota_audit WHERE id IN (SELECT id FROM batch)
""")


def prune(session: Session, *, checkpoint: Callable[[dict[str, int]], None], batch: int = 5000) -> int:
    """Delete runs that finished longer ago than ``ROTA_RETENTION_DAYS``, and their attempts. Return how many runs."""
    kept = timedelta(days=settings.current().retention_days)
    return _delete(session, DELETE, kept, batch, lambda deleted: checkpoint({"deleted": deleted}))


def prune_audit(session: Session, *, checkpoint: Callable[[dict[str, int]], None], batch: int = 5000) -> int:
    """Delete entries of the audit that are older than ``ROTA_AUDIT_DAYS``. Return how many."""
    kept = timedelta(days=settings.current().audit_days)
    return _delete(session, DELETE_AUDIT, kept, batch, lambda deleted: checkpoint({"audit_deleted": deleted}))


def prune_schedules(session: Session, *, checkpoint: Callable[[dict[str, int]], None], batch: int = 5000) -> None:
    """Delete changes, gap rows and counts of schedules made at run time that are older than ``ROTA_RETENTION_DAYS``."""
    kept = timedelta(days=settings.current().retention_days)
    for statement in (DELETE_SCHEDULE_LOG, DELETE_GAPS, DELETE_COUNTS):
        _delete(session, statement, kept, batch, lambda deleted: checkpoint({"schedules_deleted": deleted}))


def prune_run_counts(session: Session) -> None:
    """Delete counts of runs that ended longer ago than ``ROTA_RETENTION_DAYS``."""
    session.execute(DELETE_RUN_COUNTS, {"kept": timedelta(days=settings.current().retention_days)})


def prune_pauses(session: Session) -> None:
    """Delete pauses that ended longer ago than ``ROTA_RETENTION_DAYS``.

    No batches are needed, since there are never many pauses.
    """
    session.execute(DELETE_PAUSES, {"kept": timedelta(days=settings.current().retention_days)})


def prune_tokens(session: Session) -> None:
    """Delete tokens that expired longer ago than ``ROTA_RETENTION_DAYS``, ended sessions, and old idempotency keys."""
    session.execute(DELETE_TOKENS, {"kept": timedelta(days=settings.current().retention_days)})
    session.execute(DELETE_REQUESTED)


def prune_operations(session: Session) -> None:
    """Delete operations that ended longer ago than ``ROTA_RETENTION_DAYS``, and old plans that were not confirmed."""
    session.execute(DELETE_OPERATIONS, {"kept": timedelta(days=settings.current().retention_days)})


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
