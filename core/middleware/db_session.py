"""The database session of an attempt.

The session is opened when the job first asks for it. Every commit checks the lease. The last commit also records the
run's success, in the same transaction.
"""

import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import partial
from typing import Any, Literal

from psycopg2.extensions import connection as DriverConnection
from sqlalchemy import Connection, Engine, event
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session, SessionTransaction

from core import forks
from core.connections import READ_COMMITTED, WatchedConnection
from core.enqueue import enqueue
from core.errors import BadResult, ForkedChild
from core.jobs import arguments
from core.ledger import leases, runs
from core.ledger.leases import Lease
from core.ledger.models import State
from core.middleware.cancellation import settled
from core.middleware.execution import RECORDING, Execution, Layer, Proceed
from core.worker import idle_transactions
from core.worker.completions import Completion, Completions
from core.worker.outcomes import Recorder, awaited, log_of, refused_result, refusing_result, report

ISOLATION = "rota.isolation"
FENCED = "rota.fenced"
#: How often the progress of a run is logged, in seconds.
PROGRESS_SECONDS = 10.0
DRIVER_CONNECTION = "rota.driver_connection"


class JobSession(Session):
    """A job's session. Every commit checks the lease in the committing transaction."""

    def cancel(self) -> None:
        """Cancel, from another thread, the statement that this session waits for."""
        connection: DriverConnection | None = self.info.get(DRIVER_CONNECTION)
        if connection is not None:
            connection.cancel()

    def disconnect(self) -> None:
        """Cut this session's connection, if it has one, from another thread."""
        connection: WatchedConnection | None = self.info.get(DRIVER_CONNECTION)
        if connection is not None:
            connection.disconnect(self)

    def mark_fenced(self) -> None:
        """Remember that this transaction has checked its lease, so that its commit does not check again."""
        self.info[FENCED] = True


@event.listens_for(JobSession, "after_begin")
def _remember_connection(session: Session, transaction: SessionTransaction, connection: Connection) -> None:
    driver: WatchedConnection = connection.connection.driver_connection  # type: ignore[assignment]
    driver.own(session)
    session.info[DRIVER_CONNECTION] = driver
    lease = leases.of(session)
    if lease is not None and not transaction.nested:
        idle_transactions.begun(session, lease, driver.info.backend_pid)
    level = session.info.get(ISOLATION) or driver.default_isolation
    is_chosen_by_job = driver.isolation_level is not None
    if not (transaction.nested or is_chosen_by_job) and level.lower() != READ_COMMITTED:
        connection.exec_driver_sql(f"SET TRANSACTION ISOLATION LEVEL {level}")
        driver.has_answered = False


@event.listens_for(JobSession, "after_transaction_end")
def _forget_connection(session: Session, transaction: SessionTransaction) -> None:
    if transaction.parent is None:
        session.info.pop(DRIVER_CONNECTION, None)
        session.info.pop(FENCED, None)
        idle_transactions.ended(session)


@event.listens_for(JobSession, "before_commit")
def _fence(session: Session) -> None:
    if session.in_nested_transaction():  # the end of a savepoint commits nothing
        return
    lease = leases.of(session)
    if lease is not None and not session.info.pop(FENCED, False):
        leases.hold(session, lease)


@dataclass(slots=True)
class Work:
    """The database work of one attempt: its lease and its session, which is made when the job first asks for it."""

    engine: Engine
    lease: Lease | None = None
    #: The isolation level of the attempt's transactions; None for the database's default.
    isolation: str | None = None
    _session: JobSession | None = None
    #: The time when the progress was last logged, or when the attempt began, by the monotonic clock.
    _told_at: float = field(default_factory=time.monotonic)

    @property
    def session(self) -> JobSession:
        """The session of this attempt. Raises ForkedChild in a child process that the job has forked."""
        if forks.is_child():
            raise ForkedChild(
                "a forked child cannot use the session of its parent's run; open another connection in the child"
            )
        if self._session is None:
            self._session = JobSession(self.engine, info={leases.OF_SESSION: self.lease, ISOLATION: self.isolation})
        return self._session

    @property
    def has_begun(self) -> bool:
        """Whether the session has been used since its last commit."""
        return self._session is not None and self._session.in_transaction()

    def commit(self) -> None:
        """Commit the session, if the job has used it."""
        if self.has_begun:
            self.session.commit()

    def cancel(self) -> None:
        """Cancel the running statement, from another thread."""
        if self._session is not None:
            self._session.cancel()

    def disconnect(self) -> None:
        """Cut the connection, from another thread, so that PostgreSQL rolls back and frees its locks."""
        if self._session is not None:
            self._session.disconnect()

    def abandon_connection(self) -> None:
        """Mark the connection for closing instead of reuse, since a cancellation may still arrive on it."""
        if self._session is not None:
            with suppress(DBAPIError):
                self._session.invalidate()

    def checkpoint(self, progress: str | None) -> None:
        """Commit the work so far with ``progress``, a JSON text. Raises LeaseLost."""
        session = self.session
        if self.lease is not None and progress is not None:
            session.flush()
            leases.hold(session, self.lease, progress)
            session.mark_fenced()
        session.commit()

    def is_time_to_tell(self) -> bool:
        """Return whether the caller must log the progress now."""
        is_time = time.monotonic() >= self._told_at + PROGRESS_SECONDS
        if is_time:
            self._told_at = time.monotonic()
        return is_time

    def enqueue(
        self,
        job: str,
        *,
        key: str,
        args: Mapping[str, Any] | None,
        delay: timedelta,
        expires: timedelta | datetime | None,
        priority: int | None,
        unless: Literal["waiting"] | None,
    ) -> int:
        """Request a run of ``job`` in this transaction. Return the id of the run."""
        return enqueue(
            self.session, job, key=key, args=args, delay=delay, expires=expires, priority=priority, unless=unless
        )

    def close(self) -> None:
        """Roll back the open transaction. If the connection is lost, PostgreSQL has rolled the transaction back."""
        if self._session is not None:
            with suppress(DBAPIError):
                self._session.close()


class DatabaseSession(Layer):
    """Opens the transaction of a run. Commits it if the run succeeds, and otherwise rolls it back."""

    def __init__(self, engine: Engine, recorder: Recorder, completions: Completions | None) -> None:
        """``completions`` records successes in batches. Without it, each run records its own success."""
        self._engine = engine
        self._recorder = recorder
        self._completions = completions

    def around(self, execution: Execution, proceed: Proceed) -> Any:
        """Commit the transaction together with the run's success. The outcome is the run's state, or ``recording``."""
        began, work = time.perf_counter(), Work(self._engine, execution.lease, execution.job.isolation)
        execution.open(work)
        try:
            result = proceed(execution)
            if execution.lease is None:
                return work.commit()
            body = arguments.encode_result(execution.job, result)
            if execution.carried is not None:
                execution.carried.worked(time.perf_counter() - began)
            return self._succeed(execution, work, execution.lease, body)
        finally:
            work.close()

    def ended(self, execution: Execution, status: str) -> None:
        """Acknowledge the message of a run whose success was recorded in a batch."""
        if execution.is_recorded_later and execution.carried is not None:
            execution.carried.end()

    def _succeed(self, execution: Execution, work: Work, lease: Lease, body: str | None) -> str:
        completions = self._completions if execution.carried is not None else None
        log = log_of(execution) if lease.attempt > 1 else None
        if completions is None or work.has_begun or not completions.has_room:
            return self.succeed(execution, work, lease, body, log)
        execution.is_recorded_later = True
        execution.seconds = time.perf_counter() - execution.began
        completions.add(Completion(lease, body, partial(self._recorded, execution), log))
        return RECORDING

    def _recorded(self, execution: Execution, status: str, error: BadResult | None, is_awaited: bool) -> None:
        execution.is_awaited = is_awaited
        if error is not None:
            assert execution.lease is not None, "only a run has a result"
            execution.failed(error)
            report(execution.lease, refused_result(error), execution.elapsed, error)
        execution.end(settled(self._recorder, execution, status))

    def succeed(self, execution: Execution, work: Work, lease: Lease, body: str | None, log: str | None = None) -> str:
        """Commit the job's work and the run's success in one transaction. Raises LeaseLost, and BadResult."""
        if not work.has_begun:
            with refusing_result():
                is_awaited = self._recorder.record(lease, lambda connection: runs.succeed(connection, lease, body, log))
            execution.is_awaited = awaited(is_awaited, lease)
            return State.SUCCEEDED
        session = work.session
        session.flush()
        is_plain = body is None and lease.attempt == 1
        exclusive = execution.job.exclusive
        after_commit = runs.succeed_at_commit(session, lease, is_exclusive=exclusive) if is_plain else None
        if after_commit is None:
            with refusing_result():
                is_awaited = runs.succeed(session, lease, body, log)
            execution.is_awaited = awaited(is_awaited, lease)
        session.mark_fenced()
        self._commit(session, lease)
        if after_commit:
            ((execution.is_awaited,),) = after_commit
        return State.SUCCEEDED

    def _commit(self, session: JobSession, lease: Lease) -> None:
        try:
            session.commit()
        except DBAPIError as error:
            if runs.may_have_lost(error) and not self._recorder.record(
                lease, lambda connection: leases.is_held(connection, lease)
            ):
                raise leases.lost(lease) from error
            raise
