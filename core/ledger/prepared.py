"""Prepared statements for the statements that every run needs. They are parsed once per connection, and executed on
psycopg2's cursor, without SQLAlchemy.

Parsing and planning the claim takes longer than executing it, and psycopg2 has no prepared statements of its own. So a
connection gets a PREPARE when a statement is first used, and an EXECUTE for each use.

Statements that run in a job's own session have ``ledger.`` before each table, since a job may have set any
``search_path``. The ledger's schema replaces this word.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import psycopg2
from psycopg2.extensions import cursor as DriverCursor
from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session

from core.connections import WatchedConnection
from core.round_trips import OwnCursor


def qualified(statement: str, connection: Connection) -> str:
    """Return ``statement`` with the ledger's schema instead of ``ledger``, if ``connection`` knows the schema."""
    schema = getattr(connection.connection.dbapi_connection, "ledger_schema", "")
    return statement.replace("ledger.", f"{schema}." if schema else "")


@dataclass(frozen=True)
class Prepared:
    """A statement with ``$1``, ``$2``, … in its body, and the types of these parameters."""

    name: str
    types: tuple[str, ...]
    body: str

    @cached_property
    def _prepare(self) -> str:
        types = f" ({', '.join(self.types)})" if self.types else ""
        return f"PREPARE {self.name}{types} AS {self.body}"

    @cached_property
    def _execute(self) -> str:
        values = f" ({', '.join(['%s'] * len(self.types))})" if self.types else ""
        return f"EXECUTE {self.name}{values}"

    def rows(self, on: Connection | Session, *values: Any) -> list[tuple[Any, ...]]:
        """Execute the statement in the current transaction of ``on``. Return all rows.

        Raises SQLAlchemy's DBAPIError.
        """
        return execute(on, (self,), self._execute, values)

    def rows_after(
        self, former: "Prepared", on: Connection | Session, former_values: tuple[Any, ...], *values: Any
    ) -> list[tuple[Any, ...]]:
        """Execute ``former`` and then this statement, in one round trip. Return the rows of this statement.

        In autocommit, both are one transaction, and the snapshot of this statement is taken after the end of
        ``former``.
        """
        return execute(on, (former, self), f"{former._execute}; {self._execute}", (*former_values, *values))

    def at_commit(
        self, session: Session, values: tuple[Any, ...], query: "Prepared | None" = None, *query_values: Any
    ) -> list[tuple[Any, ...]] | None:
        """Let the commit of ``session`` execute the statement, COMMIT and ``query`` in one round trip.

        Return the list that has the rows of ``query`` after the commit. Return None, without any effect, if the
        transaction has begun in a way that does not allow this. The commit raises the statement's error.
        """
        rows: list[tuple[Any, ...]] = []
        statements = (self,) if query is None else (self, query)
        with cursor_with(statements, session.connection()) as cursor:
            if not cursor.connection.can_commit_with_statement:
                return None
            statement = cursor.mogrify(self._execute, values)
            after = b"" if query is None else cursor.mogrify(query._execute, query_values)
            cursor.connection.at_commit(statement, after, rows)
        return rows

    def make(self, cursor: DriverCursor, connection: Connection, driver: WatchedConnection) -> None:
        """Prepare the statement on a connection that has not prepared it yet."""
        cursor.execute(qualified(self._prepare, connection))
        driver.prepared.add(self.name)


def execute(
    on: Connection | Session, statements: Sequence[Prepared], command: str, values: tuple[Any, ...]
) -> list[tuple[Any, ...]]:
    """Execute a command with prepared statements. Return the rows of the last statement. Raises DBAPIError."""
    with cursor_with(statements, on.connection() if isinstance(on, Session) else on) as cursor:
        cursor.execute(command, values)
        rows: list[tuple[Any, ...]] = cursor.fetchall()
        return rows


@contextmanager
def cursor_with(statements: Sequence[Prepared], connection: Connection) -> Iterator[OwnCursor]:
    """Yield a cursor on a connection that has prepared ``statements``. Raises DBAPIError instead of psycopg2's error.

    The cursor is not watched, since Rota's own statements do not change the session.
    """
    driver: WatchedConnection = connection.connection.dbapi_connection  # type: ignore[assignment]
    try:
        with driver.cursor(cursor_factory=OwnCursor) as cursor:
            for statement in statements:
                if statement.name not in driver.prepared:
                    statement.make(cursor, connection, driver)
            yield cursor
    except psycopg2.Error as error:
        driver.judge_own(error)
        raise _explained(statements[-1].name, error, connection, driver) from error
    except BaseException as error:
        if not isinstance(error, Exception):  # an interruption, after which SQLAlchemy also closes the connection
            connection.invalidate(error)
        raise


def _explained(name: str, error: psycopg2.Error, connection: Connection, driver: WatchedConnection) -> BaseException:
    if is_gone := bool(driver.closed):
        connection.invalidate(error)
    return DBAPIError.instance(name, None, error, psycopg2.Error, hide_parameters=True, connection_invalidated=is_gone)
