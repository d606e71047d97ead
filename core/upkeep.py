"""The core's own plugin: the ledger's tables, and the jobs that clean up, count runs, compare schedules and carry out
operations."""

from datetime import timedelta
from pathlib import Path
from typing import Any

from core import settings
from core.errors import PluginError, RotaError, UnknownOwner
from core.jobs.hookspecs import hookimpl
from core.jobs.job import Job, job
from core.jobs.run import Run
from core.jobs.schedules import cron, every
from core.key_schedules import Difference
from core.ledger import retention, run_counts, successes
from core.observability import metrics
from core.observability.events import SchedulesDiffer, SchedulesNotCompared, emit
from core.operations import wanted_schedules
from core.plugins import loading


@job("prune-runs", queue="rota", schedule=cron("17 * * * *"))
def prune_runs(run: Run) -> dict[str, int]:
    """Delete old finished runs (ROTA_RETENTION_DAYS), entries of the audit (ROTA_AUDIT_DAYS) and other expired rows."""
    deleted = retention.prune(run.session, checkpoint=run.checkpoint)
    retention.prune_pauses(run.session)
    retention.prune_schedules(run.session, checkpoint=run.checkpoint)
    retention.prune_run_counts(run.session)
    retention.prune_departures(run.session)
    retention.prune_tokens(run.session)
    retention.prune_operations(run.session)
    retention.prune_limits(run.session, checkpoint=run.checkpoint)
    return {"deleted": deleted, "audit_deleted": retention.prune_audit(run.session, checkpoint=run.checkpoint)}


@job("prune-successes", queue="rota", schedule=every(minutes=5))
def prune_successes(run: Run) -> dict[str, int]:
    """Delete runs of jobs with keep="failures" that succeeded over an hour ago, and count the deleted runs."""
    jobs = [job.name for job in loading.current().keyed() if job.keyed is not None and job.keyed.keep == "failures"]
    return {"deleted": successes.prune(run.session, jobs, checkpoint=run.checkpoint)}


@job("count-runs", queue="rota", schedule=every(minutes=5), soft_limit=timedelta(minutes=30))
def count_runs(run: Run) -> dict[str, int]:
    """Count the runs that have ended, for the statistics of jobs."""
    return {"counted": run_counts.count(run.session, checkpoint=run.checkpoint)}


@job("check-schedules", queue="rota", schedule=cron("37 4 * * *"), max_retries=0, isolation="REPEATABLE READ")
def check_schedules(run: Run) -> dict[str, dict[str, int]]:
    """Compare schedules made at run time with those that plugins want. Report differences, and change nothing."""
    found = wanted_schedules.differences(run.session, loading.current())
    compared = {name: report(name, each) for name, each in found.items() if isinstance(each, Difference)}
    failed = {name: each for name, each in found.items() if isinstance(each, RotaError)}
    for name, error in failed.items():
        emit(SchedulesNotCompared(name, str(error)), error)
    if failed:
        raise PluginError(f"schedules not compared: {'; '.join(map(str, failed.values()))}")
    return compared


@job("clean-redis", queue="rota", schedule=cron("47 3 * * *"), retry_delay=timedelta(minutes=5))
def clean_redis(run: Run) -> dict[str, Any]:
    """Remove old messages and results from Redis that are of no use. Runs daily, and when a worker has started."""
    from core.operations import leftovers  # loads Dramatiq, which `rota jobs` and other commands need not load

    try:
        return leftovers.clean(
            run.session.connection,
            loading.current(),
            settings.current(),
            by=f"run {run.id} of {run.job}",
            checkpoint=run.checkpoint,
        )
    except UnknownOwner as error:
        return {"skipped": str(error)}


@job("carry-out-operation", queue="rota", overlap="wait", max_retries=20, retry_delay=timedelta(seconds=30), priority=5)
def carry_out_operation(run: Run, operation: int) -> dict[str, Any]:
    """Carry out a part of an operation that a person has confirmed, and request the next run until it is over."""
    from core.operations import carrying_out  # loads Dramatiq, too

    return carrying_out.carry_out(run, loading.current(), settings.current(), operation)


def report(name: str, found: Difference) -> dict[str, int]:
    """Log and count the schedules of a job that differ from the wanted schedules. Return the numbers."""
    missing, different, unwanted = len(found.added), len(found.changed), len(found.removed)
    if missing or different or unwanted:
        emit(SchedulesDiffer(name, missing, different, unwanted))
        metrics.schedules_differ(name, missing + different + unwanted)
    return {"missing": missing, "different": different, "unwanted": unwanted, "same": found.kept}


@hookimpl
def register_jobs() -> list[Job]:
    """Return the jobs of the core."""
    return [prune_runs, prune_successes, count_runs, check_schedules, clean_redis, carry_out_operation]


@hookimpl
def register_migrations() -> Path:
    """Return the ledger's schema history."""
    return Path(__file__).parent / "schema" / "ledger"
