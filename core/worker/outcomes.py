"""Derives a run's outcome from an error, and records the outcome in the ledger."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import TypeVar

from sqlalchemy import Connection, Engine
from sqlalchemy.exc import DBAPIError

from core import database
from core.errors import LONGEST_LATER, BadArguments, BadResult, BadTime, Later, LeaseLost
from core.jobs.job import Job
from core.jobs.schedules import Schedule
from core.ledger import later as laters
from core.ledger import runs
from core.ledger.later import Postponed
from core.ledger.leases import Lease
from core.ledger.models import State
from core.ledger.runs import LONGEST_ERROR, Failure
from core.middleware.execution import Execution
from core.observability import redaction
from core.observability.events import RunFailed, RunNotRecorded, emit
from core.worker.membership import Membership

#: The wait before the next try to record an outcome, in seconds.
RECORD_AGAIN_SECONDS = 1.0
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Recorder:
    """Records the outcomes of this process's runs."""

    engine: Engine
    membership: Membership

    def record(self, lease: Lease, outcome: Callable[[Connection], T]) -> T | None:
        """Record an outcome as soon as PostgreSQL can be reached. Return None if the lease is lost before that.

        Raises SQLAlchemy's DBAPIError for a value that PostgreSQL never accepts, and ValueError for a value that its
        driver never accepts.
        """
        while self.membership.process_id == lease.process_id:
            try:
                with database.autocommit(self.engine) as connection:
                    return outcome(connection)
            except database.DATABASE_AWAY as away:
                if database.refuses_value(away):
                    raise
                emit(RunNotRecorded(database.brief(away)))
                threading.Event().wait(RECORD_AGAIN_SECONDS)
        return None

    def record_failure(self, lease: Lease, failure: Failure) -> bool:
        """Record a failed attempt. Return False if the lease is lost.

        If the database cannot store the text of the error, another text replaces it.
        """
        try:
            return bool(self.record(lease, lambda connection: runs.fail(connection, lease, failure)))
        except (DBAPIError, ValueError):
            plain = replace(failure, error=in_ascii(failure.error), traceback=None, log=None)
            return bool(self.record(lease, lambda connection: runs.fail(connection, lease, plain)))

    def postpone(self, lease: Lease, later: Later, log: str | None) -> Postponed | None:
        """Record that the function has postponed its run. Return None if the lease is lost before that."""
        return self.record(
            lease,
            lambda connection: laters.postpone(
                connection, lease, at=later.at, after=later.in_, error=in_words(later), log=log
            ),
        )


def refuse_later(lease: Lease, later: Later) -> BadTime | None:
    """Return the error for a time to which a run must not be postponed, or None if the time is allowed."""
    if later.at is None:
        return None
    if later.at <= lease.claimed_at:
        return BadTime(f"Later: at={later.at.isoformat()} is not after the start of the attempt, {lease.claimed_at}")
    if later.at > lease.claimed_at + LONGEST_LATER:
        return BadTime(f"Later: at={later.at.isoformat()} is more than {LONGEST_LATER.days} days ahead")
    return None


def in_ascii(text: str) -> str:
    """Return ``text`` with a question mark for each character that is not ASCII."""
    return text.encode("ascii", errors="replace").decode()


def diagnose(
    job: Job, lease: Lease, error: BaseException, seconds: float = 0, schedule: Schedule | None = None
) -> Failure:
    """Return the outcome of a failure ``seconds`` after the claim: another attempt, or the end of the run.

    ``schedule`` is the schedule of the run's key, if the run is a slot of a schedule made at run time.
    """
    message = in_words(error)
    if isinstance(error, BadArguments | BadResult):
        return Failure(State.DEAD, "arguments" if isinstance(error, BadArguments) else "result", message)
    if not may_retry(job, error):
        return Failure(State.DEAD, "no retry", message)
    failures = lease.failures + 1
    if failures > job.max_retries:
        return Failure(State.DEAD, "retries", message)
    delay = job.delay_after(failures)
    return Failure(State.RETRYING, "error", message, delay, latest_retry(job, lease, delay, seconds, schedule))


def may_retry(job: Job, error: BaseException) -> bool:
    """Return whether the job's rules allow another attempt. ``retry_on`` does not apply to PostgreSQL's own errors."""
    return job.may_retry(error) or (database.is_of_server(error) and not isinstance(error, job.dead_on))


def latest_retry(
    job: Job, lease: Lease, delay: timedelta, seconds: float, of_key: Schedule | None = None
) -> datetime | None:
    """Return the time by which the retry of a slot must be due, or None if there is no such time.

    This is the next slot of the schedule, or the end of ``retry_delay`` if that is later. Without this limit, the
    retries of a failing job would add up from slot to slot.
    """
    schedule = job.schedule or of_key
    if lease.slot is None or schedule is None or delay <= job.retry_delay:
        return None
    now = lease.claimed_at + timedelta(seconds=seconds)
    return max(schedule.next_after(now), now + job.retry_delay)


def in_words(error: BaseException) -> str:
    """Return the type and the beginning of the text of ``error``, without characters that PostgreSQL cannot store.

    This function never raises an error.
    """
    name = type(error).__name__
    try:
        text = redaction.hide(str(error))[:LONGEST_ERROR]
        first, newline, rest = (f"{name}: {text}" if text else name).partition("\n")
        message = f"{first}{database.remedy(error)}{newline}{rest}"
    except BaseException:  # noqa: BLE001 — the ``__str__`` of a job's error may raise anything, even SystemExit
        message = f"{name} (its text cannot be read)"
    return storable(message)


def storable(text: str) -> str:
    """Return ``text`` without characters that PostgreSQL cannot store."""
    return text.replace("\0", "\N{REPLACEMENT CHARACTER}").encode(errors="replace").decode()


def log_of(execution: Execution) -> str | None:
    """Return the end of the attempt's log."""
    text = execution.tail.text
    return None if text is None else storable(text)


def seen_in(execution: Execution, failure: Failure, traceback: str | None) -> Failure:
    """Return ``failure`` with a traceback and the end of the attempt's log, for people."""
    return replace(failure, traceback=traceback and storable(traceback), log=log_of(execution))


@contextmanager
def refusing_result() -> Iterator[None]:
    """Raise BadResult if PostgreSQL refuses a success because of its value."""
    try:
        yield
    except (DBAPIError, ValueError) as error:
        if not database.refuses_value(error):
            raise
        raise bad_result(error) from error


def bad_result(error: BaseException) -> BadResult:
    """Return the error for a result that PostgreSQL refuses."""
    return BadResult(f"PostgreSQL refuses the result: {database.brief(error)}")


def refused_result(error: BadResult) -> Failure:
    """Return the outcome of a run whose result is refused: the run is dead."""
    return Failure(State.DEAD, "result", in_words(error))


def report(lease: Lease, failure: Failure, seconds: float, error: BaseException) -> None:
    """Log a failed attempt, with its traceback."""
    state, first_line = str(failure.state), failure.error.partition("\n")[0]
    failed = RunFailed(lease.job, lease.run_id, lease.attempt, state, failure.reason, round(seconds, 3), first_line)
    emit(failed, error)


def lost(lease: Lease | None) -> LeaseLost:
    """Return the error for a run that another process owns now."""
    assert lease is not None
    return LeaseLost(f"run {lease.run_id} of job {lease.job!r} is no longer this worker's")


def awaited(is_awaited: bool | None, lease: Lease) -> bool:
    """Return whether a run waits for the end of the run that was recorded.

    Raises LeaseLost if the success was not recorded.
    """
    if is_awaited is None:
        raise lost(lease)
    return is_awaited
