"""Connections to PostgreSQL that track changes of their session, so that one job's settings never affect another job.

``SET``, temporary tables, advisory locks of the session, ``LISTEN``, prepared statements and psycopg2's own settings
(isolation, read only, autocommit) outlive a transaction. Resetting all of them after every run would cost a round trip
per run. So a connection reads the statements that it executes, and the pool resets the session only if a statement may
have changed it. A function in the database can also change the session (``set_config`` in a trigger, for example). Rota
detects this only for the settings whose changes PostgreSQL reports to the client (``REPORTED``).
"""

import os
import re
import select
import socket
import threading
from contextlib import suppress
from functools import lru_cache
from typing import Any

import psycopg2
from psycopg2.errors import InvalidSqlStatementName, ReadOnlySqlTransaction
from psycopg2.extensions import TRANSACTION_STATUS_IDLE, encodings

from core.round_trips import OneTripConnection, OwnCursor

#: Statements that may change the session. ``SET LOCAL`` and ``SET TRANSACTION`` are not among them, since their effect
#: ends with the transaction.
LEAVES = re.compile(
    r"""(?: ^ | ; ) (?: \s | /\*.*?\*/ | --[^\n]*\n )*
        (?: SET \s+ (?! LOCAL\b | TRANSACTION\b | CONSTRAINTS\b )
          | (?: RESET | DISCARD | DEALLOCATE | PREPARE | LISTEN | UNLISTEN | LOAD | DO | CALL ) \b )
      | \b (?: set_config | pg_ (?:try_)? advisory_ (?:un)?lock (?:_shared|_all)? | dblink_connect (?:_u)? ) \s* \(
      | \b TEMP (?:ORARY)? \b | \b WITH \s+ HOLD \b""",
    re.IGNORECASE | re.VERBOSE | re.DOTALL,
)
#: Statements that make PostgreSQL discard Rota's prepared statements.
FORGETS = re.compile(r"\b (?: DEALLOCATE | DISCARD ) \b", re.IGNORECASE | re.VERBOSE)
READ_COMMITTED = "read committed"
#: The values of ``blame`` on an error that the statement did not cause: PostgreSQL refused a connection, the connection
#: was lost before its first answer, or PostgreSQL has discarded one of Rota's prepared statements.
REFUSED, CUT, FORGOTTEN = "refused", "cut", "forgotten"
#: Settings whose changes PostgreSQL reports to the client.
REPORTED = (
    "TimeZone",
    "DateStyle",
    "IntervalStyle",
    "client_encoding",
    "default_transaction_read_only",
    "is_superuser",
    "session_authorization",
    "standard_conforming_strings",
    "search_path",
)


@lru_cache(maxsize=4096)
def marks(statement: str) -> tuple[bool, bool]:
    """Return whether ``statement`` may change the session, and whether it discards prepared statements."""
    return bool(LEAVES.search(statement)), bool(FORGETS.search(statement))


class WatchedCursor(OwnCursor):
    """A cursor that shows every statement to its connection before executing it."""

    connection: "WatchedConnection"

    def execute(self, query: Any, vars: Any = None) -> None:
        """Execute ``query``."""
        self.connection.notice(query)
        try:
            super().execute(query, vars)
        except psycopg2.Error as error:
            self.connection.judge(error)
            raise

    def executemany(self, query: Any, vars_list: Any) -> None:
        """Execute ``query`` for each of ``vars_list``."""
        self.connection.notice(query)
        try:
            super().executemany(query, vars_list)
        except psycopg2.Error as error:
            self.connection.judge(error)
            raise
        self.connection.has_answered = True

    def callproc(self, procname: Any, parameters: Any = None) -> Any:
        """Call a function of the database. It counts as a change of the session."""
        self.connection.is_touched = True
        return super().callproc(procname, parameters)


class WatchedConnection(OneTripConnection):
    """A connection that knows whether its session may differ from a new session."""

    def __init__(self, dsn: str, **options: Any) -> None:
        super().__init__(dsn, **options)
        self.cursor_factory = WatchedCursor
        #: The names of Rota's statements that are prepared on this connection.
        self.prepared: set[str] = set()
        self.is_touched = False
        #: The schema that has the ledger's tables, quoted; empty if the tables do not exist yet.
        self.ledger_schema = ""
        #: The database's default isolation level. The session's own default is always READ COMMITTED; see
        #: ``core.database``.
        self.default_isolation = READ_COMMITTED
        #: The owner of the connection while it is out of the pool. ``disconnect`` cuts the connection only for its
        #: owner.
        self.owner: object = None
        self._ownership = threading.Lock()
        self._reported: list[str | None] = []

    def notice(self, query: Any) -> None:
        """Record, before a statement is executed, whether it may change the session."""
        statement = query if isinstance(query, str) else self._text(query)
        leaves, forgets = marks(statement)
        if leaves:
            self.is_touched = True
        if forgets:
            self.prepared.clear()

    def judge(self, error: psycopg2.Error) -> None:
        """Set ``blame`` on an error if the connection caused it, not the statement."""
        if self.has_answered:
            return
        if self.closed:
            error.blame = CUT  # type: ignore[attr-defined]
        elif isinstance(error, ReadOnlySqlTransaction) and self.readonly is None:
            error.blame = REFUSED  # type: ignore[attr-defined]

    def judge_own(self, error: psycopg2.Error) -> None:
        """Set ``blame`` on an error of one of Rota's own statements."""
        self.judge(error)
        if isinstance(error, InvalidSqlStatementName):  # a function executed DEALLOCATE
            self.is_touched = True
            error.blame = FORGOTTEN  # type: ignore[attr-defined]

    def commit(self) -> None:
        """Commit the transaction. Raises psycopg2.Error."""
        try:
            super().commit()
        except psycopg2.Error as error:
            self.judge_own(error)
            raise

    def taken(self) -> bool:
        """Remember that the connection was taken from the pool. Return False if it cannot be used.

        Then the server has closed it, or it is still in a transaction.
        """
        self.has_answered = False
        if self.get_transaction_status() != TRANSACTION_STATUS_IDLE:
            return False
        return not self._has_been_told() or self._answers()

    def _has_been_told(self) -> bool:
        """Return whether data has arrived on the idle connection. Usually this means that the server has closed it. The
        check sends nothing.
        """
        poll = select.poll()
        poll.register(self.fileno(), select.POLLIN)
        return bool(poll.poll(0))

    def _answers(self) -> bool:
        try:
            with self.cursor() as cursor:
                cursor.execute("SELECT 1")
            self.rollback()
        except psycopg2.Error:
            return False
        self.has_answered = False
        return True

    def own(self, owner: object) -> None:
        """Set the owner, until the connection is returned to the pool or closed. None means no owner."""
        with self._ownership:
            self.owner = owner

    def disconnect(self, owner: object) -> None:
        """Cut the connection if ``owner`` owns it. Any thread may call this. It does not wait for PostgreSQL."""
        with self._ownership:
            if self.owner is owner and not self.closed:
                self.is_touched = True
                with socket.socket(fileno=os.dup(self.fileno())) as channel, suppress(OSError):
                    channel.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Close the connection and clear its owner, since its file descriptor may be used again at once."""
        with self._ownership:
            self.owner = None
            super().close()

    def _text(self, query: Any) -> str:
        if isinstance(query, bytes):
            return query.decode(encodings.get(self.encoding, "utf-8"), errors="replace")
        return str(query.as_string(self))  # an object of the class psycopg2.sql.Composable

    def begin_clean(self) -> None:
        """Remember the session's present state. ``is_clean`` compares with it."""
        self.is_touched = False
        self._reported = self._told()

    @property
    def is_clean(self) -> bool:
        """Whether the session is as it was at ``begin_clean``, as far as the client knows without a query."""
        return not self.is_touched and self.is_plain and not self.autocommit and self._told() == self._reported

    def _told(self) -> list[str | None]:
        return [self.get_parameter_status(name) for name in REPORTED]

    def discard(self) -> None:
        """Reset the session to that of a new connection. Raises psycopg2.Error; the connection is then unusable."""
        self.rollback()
        self.set_session(isolation_level="default", readonly="default", deferrable="default", autocommit=True)
        with self.cursor() as cursor:
            cursor.execute("DISCARD ALL")
        self.autocommit = False
