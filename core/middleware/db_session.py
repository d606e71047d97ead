"""The session of an attempt: opened when it is first asked for, fenced by the lease at every commit."""

import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

from psycopg2.extensions import connection as DriverConnection
from sqlalchemy import Connection, Engine, event
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session, SessionTransaction

from core.connections import READ_COMMITTED, WatchedConnection
from core.enqueue import enqueue
from core.ledger import leases
from core.ledger.leases import Lease

LEASE = "rota.lease"
ISOLATION = "rota.isolation"
FENCED = "rota.fenced"
#: How often the progress of a run is logged, in seconds.
PROGRESS_SECONDS = 10.0
DRIVER_CONNECTION = "rota.driver_connection"


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
def _remember_connection(session: Session, transaction: SessionTransaction, connection: Connection) -> None:
    driver: WatchedConnection = connection.connection.driver_connection  # type: ignore[assignment]
    session.info[DRIVER_CONNECTION] = driver
    level = session.info.get(ISOLATION) or driver.default_isolation
    is_chosen_by_job = driver.isolation_level is not None
    if not (transaction.nested or is_chosen_by_job) and level.lower() != READ_COMMITTED:
        connection.exec_driver_sql(f"SET TRANSACTION ISOLATION LEVEL {level}")


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
    #: That of its transactions; None: the database's default.
    isolation: str | None = None
    _session: JobSession | None = None
    #: When its progress was last logged, or it began, by the monotonic clock.
    _told_at: float = field(default_factory=time.monotonic)

    @property
    def session(self) -> JobSession:
        """The one session of this attempt."""
        if self._session is None:
            self._session = JobSession(self.engine, info={LEASE: self.lease, ISOLATION: self.isolation})
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

    def checkpoint(self, progress: str | None) -> None:
        """Commit what was done, with ``progress``, a JSON text. Raises LeaseLost."""
        session = self.session
        if self.lease is not None and progress is not None:
            session.flush()
            leases.hold(session, self.lease, progress)
            session.mark_fenced()
        session.commit()

    def is_time_to_tell(self) -> bool:
        """Whether progress was last logged a while ago; if so, it is now."""
        is_time = time.monotonic() >= self._told_at + PROGRESS_SECONDS
        if is_time:
            self._told_at = time.monotonic()
        return is_time

    def enqueue(self, job: str, *, key: str, args: Mapping[str, Any] | None, delay: timedelta) -> int:
        """Have ``job`` run once this transaction commits; the id of its run."""
        return enqueue(self.session, job, key=key, args=args, delay=delay)

    def close(self) -> None:
        """Roll back what was not committed; a connection that is gone has rolled back by itself."""
        if self._session is not None:
            with suppress(DBAPIError):
                self._session.close()
