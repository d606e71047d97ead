"""One run from claim to final state. What carries the run here (Dramatiq, a test) does not matter to it.

``execute`` reads as the table of contents: claim, work, succeed; or fail, and say in the ledger what comes next.
"""

import logging
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Protocol

import structlog
from psycopg2.errors import DeadlockDetected, SerializationFailure
from sqlalchemy import Connection, Engine
from sqlalchemy.exc import DataError, DBAPIError

from core import database
from core.clock import Clock, system_clock
from core.database import DATABASE_AWAY
from core.errors import BadArguments, BadResult, LeaseLost, TimeLimitExceeded
from core.jobs import arguments
from core.jobs.job import Job
from core.jobs.run import Run
from core.ledger import claims, leases, runs
from core.ledger.claims import Verdict
from core.ledger.leases import Lease
from core.ledger.models import State
from core.ledger.runs import Failure
from core.middleware import time_limits
from core.middleware.db_session import Work
from core.observability import logs, metrics
from core.plugins import loading
from core.worker import isolation
from core.worker.completions import Completion, Completions
from core.worker.membership import Membership

logger = logging.getLogger(__name__)

#: How long to wait before an outcome that could not be recorded is tried again, in seconds.
RECORD_AGAIN_SECONDS = 1.0
#: A process that is to end does so after this long, whether or not PostgreSQL has answered, in seconds.
GIVE_UP_SECONDS = 5.0
#: How often an attempt that conflicts with other transactions is repeated at once.
MOST_CONFLICTS = 3
#: The state of a run that succeeded, as long as that is not recorded.
RECORDING = "recording"
#: EX_SOFTWARE of sysexits.h: the process ended itself at a hard limit.
HARD_LIMIT_EXIT = 70


class Conflict(Exception):
    """An attempt failed by a conflict with other transactions, which its repetition need not meet."""

    def __init__(self, error: BaseException) -> None:
        super().__init__(str(error))
        self.error = error


class Carried(Protocol):
    """The message that brought a run here."""

    @property
    def lease(self) -> Lease | None:
        """The lease on the run, if it was claimed ahead."""

    def worked(self, seconds: float) -> None:
        """The job itself took so long."""

    def end(self) -> None:
        """The run is over: acknowledge the message. For one that returned ``recording``."""


@dataclass(frozen=True, slots=True)
class Executor:
    """What a process needs to work on runs."""

    engine: Engine
    #: What it claims under.
    membership: Membership
    #: Its name, for people.
    worker: str
    #: A run under which this many processes died is suspected of killing them, and runs in a process of its own.
    suspected_after: int = claims.NEVER_SUSPECT
    #: What records successes together, in a worker; without it each run records its own.
    completions: Completions | None = None
    #: About runs that cannot be claimed: once, however many they are.
    log_once: logs.LogOnce = field(default_factory=lambda: logs.LogOnce(logger))

    def execute(
        self,
        job: Job,
        run_id: int,
        *,
        now: datetime | None = None,
        carried: "Carried | None" = None,
    ) -> str:
        """Take the run through one attempt; return the state it is in afterwards, or the verdict on the claim.

        ``now`` stands in for the database's clock as ``Run.now``, in tests. For the message that ``carried`` it here,
        the run may have been claimed ahead, and its success may be recorded a little later: then this returns
        ``recording``. Never raises for what the job does.
        """
        lease = (carried.lease if carried is not None else None) or self.claim(job, run_id)
        if lease == Verdict.SUSPECT:
            return isolation.work(job.name, run_id)
        if not isinstance(lease, Lease):
            return lease
        with context(lease), timed(job, lease) as outcome:
            try:
                outcome.status = self.attempt(job, lease, now or lease.claimed_at, carried)
            finally:
                if outcome.status != RECORDING:
                    self.membership.in_hand.remove(lease)
        return outcome.status

    def claim_ahead(self, sent: Sequence[tuple[int, str]]) -> list[Lease]:
        """Claim those of the runs ``sent``, each with its job, that need no closer look; without PostgreSQL, none."""
        process_id = self.membership.process_id
        if process_id is None:
            return []
        scopes = loading.current().scopes
        scoped = [(run_id, job, scopes.get(job, ())) for run_id, job in sent]
        try:
            with database.autocommit(self.engine) as connection:
                claimed = claims.claim_many(connection, scoped, process_id=process_id, worker=self.worker)
        except DATABASE_AWAY as error:
            logger.debug("run.not_claimed_ahead: %s", database.brief(error))
            return []
        self.membership.in_hand.add(*claimed)
        return claimed

    def unclaim(self, claimed: Sequence[Lease]) -> None:
        """Give up what was claimed ahead; without PostgreSQL, once the heartbeat finds that nobody has it in hand."""
        self.membership.in_hand.remove(*claimed)
        try:
            with database.autocommit(self.engine) as connection:
                claims.unclaim_many(connection, claimed)
        except DATABASE_AWAY as error:
            logger.warning("run.not_given_up runs=%s: %s", len(claimed), database.brief(error))

    def claim(self, job: Job, run_id: int) -> Lease | str:
        """Claim the run; without PostgreSQL nothing is claimed, and the dispatcher will send the run again."""
        process_id = self.membership.process_id
        if process_id is None:
            self.log_once.error("run.not_claimed: this process is not registered with the ledger")
            return Verdict.NONE
        try:
            verdict, lease = self._claim(job, run_id, process_id)
        except DATABASE_AWAY as error:
            self.log_once.error(f"run.not_claimed: {database.brief(error)}")
            return Verdict.NONE
        if lease is None and verdict == Verdict.SKIPPED:
            metrics.run_ended(job.name, State.SKIPPED)
            logger.info("run.skipped job=%s run=%s reason=overlap", job.name, run_id)
        if verdict in (Verdict.PAUSED, Verdict.HELD):
            logger.info("run.%s job=%s run=%s: its job is paused", verdict, job.name, run_id)
        self.log_once.reset()
        if lease is not None:
            self.membership.in_hand.add(lease)
        return lease or verdict

    def _claim(self, job: Job, run_id: int, process_id: int) -> tuple[Verdict, Lease | None]:
        try:
            with database.autocommit(self.engine) as connection:
                return self._claim_on(connection, job, run_id, process_id)
        except DBAPIError as error:
            if not error.connection_invalidated:
                raise
        with database.autocommit(self.engine) as connection:  # that one was stale, and so is none of the pool now
            return self._claim_on(connection, job, run_id, process_id)

    def _claim_on(self, connection: Connection, job: Job, run_id: int, process_id: int) -> tuple[Verdict, Lease | None]:
        return claims.claim(
            connection,
            run_id,
            job=job.name,
            process_id=process_id,
            worker=self.worker,
            most_crashes=self.suspected_after,
            scopes=loading.current().scopes.get(job.name, ()),
        )

    def attempt(self, job: Job, lease: Lease, now: datetime, carried: "Carried | None" = None) -> str:
        """Work on a claimed run and record what came of it."""
        for _ in range(MOST_CONFLICTS):
            try:
                return self.try_once(job, lease, now, carried, may_conflict=True)
            except Conflict as conflict:
                logger.info("run.conflict: %s; trying again at once", database.brief(conflict.error))
        return self.try_once(job, lease, now, carried, may_conflict=False)

    def try_once(self, job: Job, lease: Lease, now: datetime, carried: "Carried | None", *, may_conflict: bool) -> str:
        """The same, without repeating it. Raises Conflict if it may, and the lease is good."""
        began = time.perf_counter()
        work = Work(self.engine, lease, job.isolation)
        run = Run(lease.run_id, job.name, lease.key, lease.slot, lease.attempt, now, lease.args, job_logger(job), work)
        try:
            result = self.work(job, run, work, lease)
            body = arguments.encode_result(job, result)
            if carried is not None:
                carried.worked(time.perf_counter() - began)
                if self.is_recorded_later(job, work):
                    self.record_later(job, lease, body, began, carried.end)
                    return RECORDING
            return self.succeed(work, lease, body)
        except LeaseLost as error:
            work.close()
            logger.warning("run.lease_lost: %s", error)
            return "lost"
        except BaseException as error:
            work.close()
            if may_conflict and is_conflict(error) and self.is_held(lease):
                raise Conflict(error) from error
            return self.fail(job, lease, error)
        finally:
            work.close()

    def work(self, job: Job, run: Run, work: Work, lease: Lease) -> Any:
        """Call the job's function within its limits."""
        kwargs = arguments.decode(job, lease.args)
        return within_limits(job, run, work, kwargs, on_hard=lambda: self.give_up_run(job, lease))

    def is_recorded_later(self, job: Job, work: Work) -> bool:
        """Whether the success is recorded with others'."""
        return self.completions is not None and self.completions.has_room and not (job.exclusive or work.has_begun)

    def record_later(self, job: Job, lease: Lease, body: str | None, began: float, on_end: Callable[[], None]) -> None:
        """Have a success recorded with others'."""
        assert self.completions is not None
        seconds = time.perf_counter() - began

        def on_recorded(is_good: bool) -> None:
            self.membership.in_hand.remove(lease)
            with context(lease):
                if not is_good:
                    logger.warning(
                        "run.lease_lost: run %s of job %r is no longer this worker's", lease.run_id, job.name
                    )
                tell_end(job, State.SUCCEEDED if is_good else "lost", seconds)
            on_end()

        self.completions.add(Completion(lease, body, on_recorded))

    def succeed(self, work: Work, lease: Lease, body: str | None) -> str:
        """Commit the job's work and the run's success in one transaction."""
        if not work.has_begun:
            require(self.record(lease, lambda connection: runs.succeed(connection, lease, body)), lease)
            return State.SUCCEEDED
        session = work.session
        session.flush()
        require(runs.succeed(session, lease, body), lease)
        session.mark_fenced()
        session.commit()
        return State.SUCCEEDED

    def fail(self, job: Job, lease: Lease, error: BaseException) -> str:
        """Record a failed attempt."""
        failure = diagnose(job, lease, error)
        report(failure, error)
        is_recorded = self.record(lease, lambda connection: runs.fail(connection, lease, failure))
        return failure.state if is_recorded else "lost"

    def record(self, lease: Lease, outcome: Callable[[Connection], bool]) -> bool:
        """Record an outcome, once PostgreSQL can be asked; False if the lease is gone before."""
        while self.membership.process_id == lease.process_id:
            try:
                with database.autocommit(self.engine) as connection:
                    return outcome(connection)
            except DataError:
                raise
            except DATABASE_AWAY as away:
                logger.warning("run.not_recorded, trying again: %s", database.brief(away))
                threading.Event().wait(RECORD_AGAIN_SECONDS)
        return False

    def is_held(self, lease: Lease) -> bool:
        """Whether the lease is good at this moment, once PostgreSQL can be asked."""
        return self.record(lease, lambda connection: leases.is_held(connection, lease))

    def give_up_run(self, job: Job, lease: Lease) -> None:
        """Record that a run will not end, and end its process."""
        logger.error(
            "run.hard_limit job=%s run=%s limit=%s: ending this process", job.name, lease.run_id, job.hard_limit
        )
        error = TimeLimitExceeded(f"hard limit of {job.hard_limit} passed; its process was ended")
        failure = diagnose(job, lease, error)
        observe(metrics.run_ended, job.name, failure.state, job.hard_limit.total_seconds())
        self.end_process(lambda connection: runs.fail(connection, lease, failure), self.hand_back)

    def give_up_message(self, job: Job, message_id: str, dead_letter: Callable[[], None]) -> None:
        """The same for a message of the fast lane: it is a dead letter, or it would end the next process as well."""
        logger.error(
            "message.hard_limit job=%s message=%s limit=%s: ending this process", job.name, message_id, job.hard_limit
        )
        observe(metrics.run_ended, job.name, State.DEAD, job.hard_limit.total_seconds())
        self.end_process(self.hand_back, lambda _connection: dead_letter())

    def end_process(self, *steps: Callable[[Connection], object]) -> None:
        """End this process, since a job in it will not end, after what these steps have to say to PostgreSQL."""
        last_resort = threading.Timer(GIVE_UP_SECONDS, os._exit, [HARD_LIMIT_EXIT])
        try:
            last_resort.start()
            if self.completions is not None:
                self.completions.flush(GIVE_UP_SECONDS / 2)
            with database.autocommit(self.engine) as connection:
                for step in steps:
                    step(connection)
        finally:
            os._exit(HARD_LIMIT_EXIT)

    def hand_back(self, connection: Connection) -> None:
        """Leave to others what this process still runs."""
        process_id = self.membership.process_id
        if process_id is not None:
            runs.release(connection, process_id, "its process was ended")

    def execute_fast(
        self,
        job: Job,
        args: dict[str, Any],
        message_id: str,
        clock: Clock = system_clock,
        *,
        dead_letter: Callable[[], None] = lambda: None,
    ) -> None:
        """Work on a message of the fast lane; raises what the job raises. Its session is committed when it returns.

        ``dead_letter`` makes a dead letter of the message, should it run past its hard limit.
        """
        began = time.perf_counter()
        status, work = "failed", Work(self.engine, isolation=job.isolation)
        with logs.about({"job": job.name, "message": message_id}):
            try:
                run = Run(0, job.name, "", None, 1, clock(), args, job_logger(job), work)
                kwargs = arguments.decode(job, args)
                within_limits(
                    job, run, work, kwargs, on_hard=lambda: self.give_up_message(job, message_id, dead_letter)
                )
                if work.has_begun:
                    work.session.commit()
                status = State.SUCCEEDED
            finally:
                work.close()
                metrics.run_ended(job.name, status, time.perf_counter() - began)


def within_limits(job: Job, run: Run, work: Work, kwargs: dict[str, Any], *, on_hard: Callable[[], None]) -> Any:
    """Call the function; at its soft limit its statement is cancelled too, and that is told as what it is."""
    watch = time_limits.limited(job.soft_limit, job.hard_limit, on_soft=work.cancel, on_hard=on_hard)
    try:
        return watch.hold(lambda: job.function(run, **kwargs))
    except DBAPIError as error:
        if watch.exceeded:
            raise TimeLimitExceeded(f"soft limit of {job.soft_limit} passed during a statement") from error
        raise
    except TimeLimitExceeded:
        raise TimeLimitExceeded(f"soft limit of {job.soft_limit} passed") from None
    finally:
        if watch.is_cancelling:
            work.abandon_connection()


def is_conflict(error: BaseException) -> bool:
    """Whether PostgreSQL has given up a transaction in favour of another."""
    return isinstance(getattr(error, "orig", None), SerializationFailure | DeadlockDetected)


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


def report(failure: Failure, error: BaseException) -> None:
    """Log a failed attempt, with its traceback."""
    level = logging.ERROR if failure.state == State.DEAD else logging.WARNING
    logger.log(level, "run.failed state=%s reason=%s", failure.state, failure.reason, exc_info=error)


def require(recorded: bool, lease: Lease) -> None:
    """Raise LeaseLost unless the outcome was recorded under ``lease``."""
    if not recorded:
        raise LeaseLost(f"run {lease.run_id} of job {lease.job!r} is no longer this worker's")


def job_logger(job: Job) -> Any:
    """The logger that a job's function is handed."""
    return structlog.get_logger(f"job.{job.name}")


@contextmanager
def context(lease: Lease) -> Iterator[None]:
    """Put job, run, slot and attempt on every line logged within."""
    slot = lease.slot.isoformat() if lease.slot else None
    with logs.about({"job": lease.job, "run": lease.run_id, "slot": slot, "attempt": lease.attempt}):
        yield


@dataclass(slots=True)
class Outcome:
    """What a timed attempt came to."""

    status: str = "lost"


@contextmanager
def timed(job: Job, lease: Lease) -> Iterator[Outcome]:
    """Log and count an attempt."""
    began = time.perf_counter()
    if lease.attempt == 1:
        observe(metrics.run_started, job.name, (lease.claimed_at - lease.due_at).total_seconds())
    outcome = Outcome()
    try:
        yield outcome
    finally:
        if outcome.status != RECORDING:
            tell_end(job, outcome.status, time.perf_counter() - began)


def tell_end(job: Job, status: str, seconds: float) -> None:
    """Log and count the end of an attempt."""
    observe(metrics.run_ended, job.name, status, seconds)
    logger.info("run.%s seconds=%.3f", status, seconds)


def observe(measure: Callable[..., None], *values: Any) -> None:
    """Measure, unless that fails, as on a full disk: a claimed run must come to its end all the same."""
    try:
        measure(*values)
    except Exception:  # what only observes a run never decides it
        logger.exception("metrics.not_written")
