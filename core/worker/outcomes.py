"""Outcomes: what an error means for a run, and how the ledger comes to know of it."""

import threading
from collections.abc import Callable
from dataclasses import dataclass

from sqlalchemy import Connection, Engine
from sqlalchemy.exc import DataError

from core import database
from core.errors import BadArguments, BadResult, LeaseLost
from core.jobs.job import Job
from core.ledger.leases import Lease
from core.ledger.models import State
from core.ledger.runs import Failure
from core.observability.events import RunFailed, RunNotRecorded, emit
from core.worker.membership import Membership

#: How long to wait before an outcome that could not be recorded is tried again, in seconds.
RECORD_AGAIN_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class Recorder:
    """Records the outcomes of this process's runs."""

    engine: Engine
    membership: Membership

    def record(self, lease: Lease, outcome: Callable[[Connection], bool]) -> bool:
        """Record an outcome, once PostgreSQL can be asked; False if the lease is gone before."""
        while self.membership.process_id == lease.process_id:
            try:
                with database.autocommit(self.engine) as connection:
                    return outcome(connection)
            except DataError:
                raise
            except database.DATABASE_AWAY as away:
                emit(RunNotRecorded(database.brief(away)))
                threading.Event().wait(RECORD_AGAIN_SECONDS)
        return False


def diagnose(job: Job, lease: Lease, error: BaseException) -> Failure:
    """What a failure means for the run: another attempt, or the end."""
    message = in_words(error)
    if isinstance(error, BadArguments | BadResult):
        return Failure(State.DEAD, "arguments" if isinstance(error, BadArguments) else "result", message)
    failures = lease.failures + 1
    if failures > job.max_retries:
        return Failure(State.DEAD, "retries", message)
    return Failure(State.RETRYING, "error", message, job.delay_after(failures))


def in_words(error: BaseException) -> str:
    """The type and the text of ``error``, which may be unable to tell it, without what PostgreSQL cannot store."""
    name = type(error).__name__
    try:
        first, newline, rest = (f"{name}: {error}" if str(error) else name).partition("\n")
        message = f"{first}{database.remedy(error)}{newline}{rest}"
    except Exception:  # noqa: BLE001 — whatever a job raises must end in the ledger
        message = f"{name} (its text cannot be read)"
    return message.replace("\0", "\N{REPLACEMENT CHARACTER}").encode(errors="replace").decode()


def report(lease: Lease, failure: Failure, seconds: float, error: BaseException) -> None:
    """Log a failed attempt, with its traceback."""
    state, first_line = str(failure.state), failure.error.partition("\n")[0]
    failed = RunFailed(lease.job, lease.run_id, lease.attempt, state, failure.reason, round(seconds, 3), first_line)
    emit(failed, error)


def lost(lease: Lease | None) -> LeaseLost:
    """That another process owns the run by now."""
    assert lease is not None
    return LeaseLost(f"run {lease.run_id} of job {lease.job!r} is no longer this worker's")


def require(recorded: bool, lease: Lease) -> None:
    """Raise LeaseLost unless the outcome was recorded under ``lease``."""
    if not recorded:
        raise lost(lease)
