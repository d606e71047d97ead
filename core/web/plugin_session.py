"""The session that a plugin's route gets for one call: it ends in time, and only Rota commits its transaction."""

import os
import socket
import threading
from contextlib import suppress
from typing import Any

from psycopg2.extensions import TRANSACTION_STATUS_IDLE
from sqlalchemy import Connection, Engine, event
from sqlalchemy.orm import Session, SessionTransaction

from core.web.transaction_commands import ends_transaction

#: How much longer than the longest time of a call its transaction may be idle.
GRACE_SECONDS = 1.0
COMMITS = "a route does not commit: remove the commit; Rota commits when the route has returned"
ENDS = "a route does not begin or end transactions: remove the statement, or use session.begin_nested()"
#: The name of the call's session in the facts that SQLAlchemy keeps about a connection.
SESSION = "rota_session"


class RouteSession(Session):
    """The session of one call. Only Rota can commit it. Each of its transactions has the limits of the call."""

    def __init__(self, engine: Engine, seconds: float, *, is_reading: bool) -> None:
        super().__init__(engine, expire_on_commit=False)
        #: The statements at the start of each transaction. ``statement_timeout`` does not end a transaction that is
        #: idle.
        self.limits = f"SET LOCAL idle_in_transaction_session_timeout = {round((seconds + GRACE_SECONDS) * 1000)}"
        if is_reading:  # after a query, PostgreSQL refuses SET TRANSACTION READ WRITE
            self.limits += "; SET TRANSACTION READ ONLY; SELECT 1"
        self.may_commit = False
        self._is_over = False
        #: A second descriptor of the socket of the present connection. It stays valid if the connection is closed.
        self._socket: socket.socket | None = None
        self._deciding = threading.Lock()

    def hold(self, driver: Any) -> None:
        """Remember the connection, which can be cut from now on. Raises RuntimeError if the call is over."""
        self.let_go()
        with self._deciding:
            if self._is_over:
                raise RuntimeError("the time of this call is over")
            self._socket = socket.socket(fileno=os.dup(driver.fileno()))

    def let_go(self) -> None:
        """Forget the connection, which others may now use."""
        with self._deciding:
            if self._socket is not None:
                self._socket.close()
                self._socket = None

    def settle(self) -> bool:
        """Allow the commit, unless the call is over. Return whether it is allowed."""
        with self._deciding:
            self.may_commit = not self._is_over
            return self.may_commit

    def end(self) -> bool:
        """End the call from another thread, unless it is being committed. Return whether it has ended.

        The connection is cut, so PostgreSQL rolls the transaction back: at once, or when the statement in progress has
        reached its time-out. Rolling back needs no help of a function that hangs or runs for ever.
        """
        with self._deciding:
            if self.may_commit:
                return False
            self._is_over = True
            if self._socket is not None:
                with suppress(OSError):  # PostgreSQL has closed the connection
                    self._socket.shutdown(socket.SHUT_RDWR)
            return True

    def close(self) -> None:
        """Roll back what is not committed, and give the connection back."""
        super().close()
        self.let_go()


@event.listens_for(RouteSession, "after_begin")
def limit(session: RouteSession, transaction: SessionTransaction, connection: Connection) -> None:
    """Limit a transaction, also one that begins after a rollback by the route."""
    if not transaction.nested:
        connection.info[SESSION] = session
        session.hold(connection.connection.driver_connection)
        connection.exec_driver_sql(session.limits)


@event.listens_for(RouteSession, "before_commit")
def refuse_commit(session: RouteSession) -> None:
    """Raise RuntimeError if a route commits, since its changes could then lack an entry in the audit. Savepoints may
    end.
    """
    if not session.may_commit and not session.in_nested_transaction():
        raise RuntimeError(COMMITS)


def guard(engine: Engine) -> None:
    """Refuse on all connections of ``engine`` that SQL begins or ends a transaction."""

    def refuse_sql(connection: Connection, _cursor: Any, statement: str, *_more: Any) -> None:
        if statement == connection.info[SESSION].limits:
            return
        driver: Any = connection.connection.driver_connection
        if driver.info.transaction_status == TRANSACTION_STATUS_IDLE or ends_transaction(statement):
            raise RuntimeError(ENDS)

    def refuse_connection_commit(connection: Connection) -> None:
        if not connection.info[SESSION].may_commit:
            raise RuntimeError(COMMITS)

    def let_go(_driver: object, record: Any) -> None:
        if session := record.info.pop(SESSION, None):
            session.let_go()

    event.listen(engine, "before_cursor_execute", refuse_sql)
    event.listen(engine, "commit", refuse_connection_commit)
    event.listen(engine, "checkin", let_go)
