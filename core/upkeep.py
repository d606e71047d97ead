"""The core's own plugin: the ledger's tables, and the job that deletes old rows."""

from pathlib import Path

from core.jobs.hookspecs import hookimpl
from core.jobs.job import Job, job
from core.jobs.run import Run
from core.jobs.schedules import cron
from core.ledger import retention


@job("prune-runs", queue="rota", schedule=cron("17 * * * *"))
def prune_runs(run: Run) -> dict[str, int]:
    """Delete finished runs older than ROTA_RETENTION_DAYS and entries of the audit older than ROTA_AUDIT_DAYS."""
    deleted = retention.prune(run.session, checkpoint=run.checkpoint)
    retention.prune_pauses(run.session)
    retention.prune_schedules(run.session, checkpoint=run.checkpoint)
    retention.prune_departures(run.session)
    retention.prune_limits(run.session, checkpoint=run.checkpoint)
    return {"deleted": deleted, "audit_deleted": retention.prune_audit(run.session, checkpoint=run.checkpoint)}


@hookimpl
def register_jobs() -> list[Job]:
    """The jobs of the core."""
    return [prune_runs]


@hookimpl
def register_migrations() -> Path:
    """The ledger's schema history."""
    return Path(__file__).parent / "schema" / "ledger"
