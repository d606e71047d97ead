"""What a job's function is handed: its session, the time, its arguments, and ways to checkpoint and to enqueue."""

import json
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, Protocol

import structlog
from psycopg2.extensions import connection as DriverConnection
from sqlalchemy import Connection, Engine, event
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session, SessionTransaction

from core.ledger import leases
from core.ledger.leases import Lease

LEASE = "rota.lease"
FENCED = "rota.fenced"
#: How often the progress of a run is logged, in seconds.
PROGRESS_SECONDS = 10.0
DRIVER_CONNECTION = "rota.driver_connection"


class Checkpoint(Protocol):
    """The type of ``Run.checkpoint``, for functions that take it as an argument."""

    def __call__(self, progress: Mapping[str, Any] | None = None, /) -> None:
        """Commit this batch."""


class JobSession(Session):
    """A job's session. However it is committed, the lease is checked in the committing transaction."""

    def cancel(self) -> None:
        """Cancel the statement this session is waiting for, from another thread."""
        connection: DriverConnection | None = self.info.get(DRIVER_CONNECTION)
        if connection is not None:
            connection.cancel()

    def mark_fenced(self) -> None:
        """Say that this transaction has checked its lease, so that committing it need not."""
        self.info[FENCED] = True


@event.listens_for(JobSession, "after_begin")
def _remember_connection(session: Session, _transaction: SessionTransaction, connection: Connection) -> None:
    session.info[DRIVER_CONNECTION] = connection.connection.driver_connection


@event.listens_for(JobSession, "after_transaction_end")
def _forget_connection(session: Session, transaction: SessionTransaction) -> None:
    if transaction.parent is None:
        session.info.pop(DRIVER_CONNECTION, None)
        session.info.pop(FENCED, None)


@event.listens_for(JobSession, "before_commit")
def _fence(session: Session) -> None:
    if session.in_nested_transaction():  # the end of a savepoint commits nothing
        return
    lease: Lease | None = session.info.get(LEASE)
    if lease is not None and not session.info.pop(FENCED, False):
        leases.hold(session, lease)


@dataclass(slots=True)
class Work:
    """The transaction of one attempt: its lease, and a session that is made when it is first asked for."""

    engine: Engine
    lease: Lease | None = None
    _session: JobSession | None = None
    #: When its progress was last logged, or it began, by the monotonic clock.
    _told_at: float = field(default_factory=time.monotonic)

    @property
    def session(self) -> JobSession:
        """The one session of this attempt."""
        if self._session is None:
            self._session = JobSession(self.engine, info={LEASE: self.lease})
        return self._session

    @property
    def has_begun(self) -> bool:
        """Whether anything was done in the session since it was last committed."""
        return self._session is not None and self._session.in_transaction()

    def cancel(self) -> None:
        """Cancel the statement that is being waited for, from another thread."""
        if self._session is not None:
            self._session.cancel()

    def abandon_connection(self) -> None:
        """Have the connection closed rather than used again: a cancellation is still under way to it."""
        if self._session is not None:
            with suppress(DBAPIError):
                self._session.invalidate()

    def tell(self, log: structlog.stdlib.BoundLogger, progress: str) -> None:
        """Log how far it is, if that was not done a moment ago."""
        if time.monotonic() >= self._told_at + PROGRESS_SECONDS:
            self._told_at = time.monotonic()
            log.info("run.progress %s", progress)

    def close(self) -> None:
        """Roll back what was not committed; a connection that is gone has rolled back by itself."""
        if self._session is not None:
            with suppress(DBAPIError):
                self._session.close()


@dataclass(frozen=True, slots=True)
class Run:
    """One attempt at a run, as the job's function sees it."""

    id: int
    job: str
    key: str
    #: The due time this run stands for, in UTC; None: it was requested.
    slot: datetime | None
    #: Counted from 1.
    attempt: int
    #: When the attempt began, in UTC, by the database's clock.
    now: datetime
    #: The arguments as JSON values, before they were turned into what the function's annotations say.
    args: Mapping[str, Any]
    log: structlog.stdlib.BoundLogger = field(repr=False)
    work: "Work" = field(repr=False)

    @property
    def session(self) -> Session:
        """In a transaction as soon as it is used; committed for you, with the run's success, when the job returns."""
        return self.work.session

    def checkpoint(self, progress: Mapping[str, Any] | None = None, /) -> None:
        """Commit what was done so far, and go on in a new transaction.

        ``progress`` is for people: ``rota runs`` shows the latest, and the log has one in ten seconds. Raises
        LeaseLost, having committed nothing, if another worker owns the run by now.
        """
        session, lease = self.work.session, self.work.lease
        told = json.dumps(progress, default=str, allow_nan=False) if progress is not None else None
        if lease is not None and told is not None:
            session.flush()
            leases.hold(session, lease, told)
            session.mark_fenced()
        session.commit()
        if told is not None:
            self.work.tell(self.log, told)

    def enqueue(
        self, job: str, *, key: str = "", args: Mapping[str, Any] | None = None, delay: timedelta = timedelta(0)
    ) -> int:
        """Have ``job`` run once this transaction commits; see ``core.enqueue``."""
        from core.enqueue import enqueue

        return enqueue(self.session, job, key=key, args=args, delay=delay)
