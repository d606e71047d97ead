"""Transactions in fewer round trips than psycopg2 needs.

psycopg2 sends BEGIN and COMMIT in round trips of their own. Here, BEGIN travels with the first statement of a
transaction, and COMMIT can travel with the last. While such a transaction is open, psycopg2 itself is in autocommit.
"""

from contextlib import suppress
from typing import Any, NamedTuple, Self

import psycopg2
from psycopg2.extensions import STATUS_BEGIN, STATUS_READY, TRANSACTION_STATUS_IDLE
from psycopg2.extensions import connection as DriverConnection
from psycopg2.extensions import cursor as DriverCursor
from psycopg2.sql import SQL

from core import forks

BEGIN = "BEGIN; "
#: psycopg2's own properties, which ``OneTripConnection`` replaces.
AUTOCOMMIT: Any = DriverConnection.autocommit
STATUS: Any = DriverConnection.status


class OwnConnection(DriverConnection):
    """A connection of this process alone: a child process that a job forks closes its copy."""

    def __init__(self, dsn: str, **options: Any) -> None:
        super().__init__(dsn, **options)
        forks.keep_from_children(self)


class AtCommit(NamedTuple):
    """A statement that is executed before COMMIT, a query that is executed after it, and the place for its rows."""

    statement: bytes
    query: bytes
    rows: list[tuple[Any, ...]]


NOTHING = AtCommit(b"", b"", [])


def _outside_transactions(name: str) -> Any:
    """Return psycopg2's property ``name``, which refuses to be set in a transaction that psycopg2 does not know."""
    plain = getattr(DriverConnection, name)

    def read(connection: "OneTripConnection") -> Any:
        return plain.__get__(connection)

    def write(connection: "OneTripConnection", value: Any) -> None:
        connection.refuse_in_transaction(name)
        plain.__set__(connection, value)

    return property(read, write)


class OneTripConnection(OwnConnection):
    """A connection that sends BEGIN and COMMIT together with other statements.

    It behaves as psycopg2 otherwise. Only ``OwnCursor.execute`` opens a transaction in this way. If a transaction
    begins with anything else, such as COPY, psycopg2 sends BEGIN and COMMIT itself.
    """

    #: Whether a statement has been answered since the connection was taken from the pool.
    has_answered = False
    #: Whether a transaction is open whose BEGIN psycopg2 has not sent. psycopg2 is in autocommit then.
    _is_open = False
    #: Whether the connection is used as a context manager, which lets psycopg2 send BEGIN.
    _is_entered = False
    _at_commit = NOTHING

    isolation_level = _outside_transactions("isolation_level")
    readonly = _outside_transactions("readonly")
    deferrable = _outside_transactions("deferrable")

    @property
    def autocommit(self) -> bool:
        """Whether each statement is a transaction of its own."""
        return not self._is_open and bool(AUTOCOMMIT.__get__(self))

    @autocommit.setter
    def autocommit(self, value: bool) -> None:
        self.refuse_in_transaction("autocommit")
        AUTOCOMMIT.__set__(self, value)

    @property
    def status(self) -> int:
        """psycopg2's ``STATUS_BEGIN`` in a transaction, and its ``STATUS_READY`` outside."""
        return STATUS_BEGIN if self._is_open else int(STATUS.__get__(self))

    @property
    def is_plain(self) -> bool:
        """Whether the isolation level and the kind of the next transaction are those of the session."""
        return self.isolation_level is None and self.readonly is None and self.deferrable is None

    @property
    def can_commit_with_statement(self) -> bool:
        """Whether a transaction is open that ``at_commit`` can end."""
        return self._is_open

    def opening(self, query: Any) -> Any:
        """Return ``query``, with BEGIN before it if the query is the first statement of a transaction."""
        self.settle()
        is_begun = self._is_open or STATUS.__get__(self) != STATUS_READY
        if is_begun or self._is_entered or AUTOCOMMIT.__get__(self) or not (query and self.is_plain):
            return query
        self._take_over()
        if isinstance(query, str):
            return BEGIN + query
        return BEGIN.encode() + query if isinstance(query, bytes) else SQL(BEGIN) + query

    def at_commit(self, statement: bytes, query: bytes, rows: list[tuple[Any, ...]]) -> None:
        """Let the next ``commit`` execute ``statement`` before COMMIT and ``query`` after it, in one round trip.

        The rows of ``query`` are appended to ``rows``, and those of ``statement`` are lost.
        """
        self._at_commit = AtCommit(statement, query, rows)

    def commit(self) -> None:
        """Commit the transaction. Raises psycopg2.Error, also if PostgreSQL refuses the statement of ``at_commit``."""
        self.settle()
        joined, self._at_commit = self._at_commit, NOTHING
        if self._is_open:
            try:
                joined.rows.extend(self._end(b"; ".join(filter(None, (joined.statement, b"COMMIT", joined.query)))))
            except psycopg2.Error:
                self._roll_back_open()
                raise
            return
        if joined.statement:  # psycopg2 was told of the transaction meanwhile
            self._execute(joined.statement)
        super().commit()
        if joined.query:
            joined.rows.extend(self._execute(joined.query))
            super().rollback()

    def rollback(self) -> None:
        """Roll the transaction back."""
        self.settle()
        self._at_commit = NOTHING
        if self._is_open:
            self._end(b"ROLLBACK")
        else:
            super().rollback()

    def _roll_back_open(self) -> None:
        """Roll back after a commit that PostgreSQL has refused, as callers of psycopg2 expect it."""
        if self._is_open and not self.closed:
            with suppress(psycopg2.Error):
                self._end(b"ROLLBACK")

    def _end(self, command: bytes) -> list[tuple[Any, ...]]:
        try:
            return self._execute(command)
        finally:
            self.settle()

    def _execute(self, command: bytes) -> list[tuple[Any, ...]]:
        with super().cursor(cursor_factory=DriverCursor) as cursor:
            cursor.execute(command)
            return cursor.fetchall() if cursor.description else []

    def settle(self) -> None:
        """Let this object agree with PostgreSQL about the transaction.

        They may differ after a statement such as COMMIT, an error, or an exception that another thread has raised in
        this one.
        """
        if self.closed or STATUS.__get__(self) != STATUS_READY or self._is_entered:
            return
        is_idle = self.get_transaction_status() == TRANSACTION_STATUS_IDLE
        if self._is_open and is_idle:
            self.leave_to_driver()
        elif not is_idle and (self._is_open or not AUTOCOMMIT.__get__(self)):
            self._take_over()

    def _take_over(self) -> None:
        self._is_open = True
        AUTOCOMMIT.__set__(self, True)

    def leave_to_driver(self) -> None:
        """Let psycopg2 send BEGIN and COMMIT. If a transaction is open, PostgreSQL warns of the second BEGIN."""
        if self._is_open:
            AUTOCOMMIT.__set__(self, False)
            self._is_open = False

    def __enter__(self) -> Self:
        """Begin a block that psycopg2 ends with COMMIT or ROLLBACK."""
        self.settle()
        self.leave_to_driver()
        self._is_entered = True
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        """Commit, or roll back after an exception."""
        self._is_entered = False
        super().__exit__(*error)

    def refuse_in_transaction(self, what: str) -> None:
        """Raise ProgrammingError in an open transaction, as psycopg2 does in the transactions that it begins itself."""
        if self._is_open:
            raise psycopg2.ProgrammingError(f"{what} cannot be used inside a transaction")

    def lobject(self, *arguments: Any, **options: Any) -> Any:
        """Return a large object. psycopg2 must know of the transaction."""
        self.leave_to_driver()
        try:
            return super().lobject(*arguments, **options)
        finally:
            self.settle()

    def set_session(self, *arguments: Any, **options: Any) -> None:
        """Set the isolation level and the kind of the next transactions."""
        self.refuse_in_transaction("set_session")
        super().set_session(*arguments, **options)

    def set_isolation_level(self, level: int | None) -> None:
        """Roll back, and set the isolation level of the next transactions."""
        self.rollback()
        super().set_isolation_level(level)

    def reset(self) -> None:
        """Roll back, and reset all settings."""
        self.rollback()
        super().reset()

    def tpc_begin(self, xid: Any) -> None:
        """Begin a transaction that is committed in two phases."""
        self.refuse_in_transaction("tpc_begin")
        super().tpc_begin(xid)


class OwnCursor(DriverCursor):
    """A cursor for Rota's own statements. It sends BEGIN together with the first statement of a transaction."""

    connection: OneTripConnection

    def execute(self, query: Any, vars: Any = None) -> None:
        """Execute ``query``, in a transaction unless the connection is in autocommit."""
        try:
            if self.name is None:
                query = self.connection.opening(query)
            else:  # psycopg2 refuses named cursors in autocommit
                self.connection.leave_to_driver()
            super().execute(query, vars)
        except BaseException:
            self.connection.settle()
            raise
        self.connection.has_answered = True
