"""PostgreSQL: one engine per process, its sessions, and the URL as SQLAlchemy wants it.

Nothing connects before it is first used.
"""

import logging
import re
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from weakref import WeakKeyDictionary, WeakSet

import psycopg2
from psycopg2.errors import InsufficientPrivilege
from psycopg2.extensions import connection as DriverConnection
from sqlalchemy import Connection, Engine, create_engine, event
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import DBAPIError, InvalidatePoolError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.orm import Session
from sqlalchemy.pool import NullPool, PoolProxiedConnection, PoolResetState, QueuePool

from core import forks, settings
from core.connections import READ_COMMITTED, REFUSED, OwnConnection, WatchedConnection

#: The errors that mean that PostgreSQL cannot be reached now.
DATABASE_AWAY = (DBAPIError, PoolTimeout)
#: Classes of SQLSTATE that are about the value: data exceptions, constraints, limits of a program, a trigger's own.
REFUSING_CLASSES = frozenset({"22", "23", "54", "P0"})
#: Classes that are about the moment, whatever the value: connection, transaction, rights and tables, resources, locks.
PASSING_CLASSES = frozenset({"08", "25", "40", "42", "53", "55", "57", "58"})
#: How long connecting may take, in seconds.
CONNECT_TIMEOUT_SECONDS = 5
#: Texts go as UTF-8, whatever PGCLIENTENCODING or the URL says: any text may be an argument, a result or an error.
CLIENT_ENCODING = "UTF8"
#: A lost peer is noticed after about idle + interval × count seconds (tcp(7)). With a statement on its way to it the
#: kernel sends no keepalives, and would try for a quarter of an hour; so it has a time-out, in milliseconds.
KEEPALIVES = {
    "keepalives": 1,
    "keepalives_idle": 5,
    "keepalives_interval": 2,
    "keepalives_count": 3,
    "tcp_user_timeout": 10_000,
}
#: The same on the server's side, so that the locks of a vanished host do not stay for the two hours of tcp(7).
SERVER_KEEPALIVES = "SET tcp_keepalives_idle = 5; SET tcp_keepalives_interval = 2; SET tcp_keepalives_count = 3"
#: With it a query ends when its client has died; it came with PostgreSQL 14.
CLIENT_CHECK = "SET client_connection_check_interval = '1s'"
CLIENT_CHECK_SINCE = 140000
#: The ledger's statements find rows by an index. Planned once per connection, and perhaps while a table was small, they
#: would otherwise go on to read all of it when it has become large.
BY_INDEX = "SET enable_seqscan = off; SET enable_hashjoin = off; SET enable_mergejoin = off"
#: How transactions are isolated here, and where the ledger's tables are, whatever a job does to its search_path later.
SURROUNDINGS = """
    SELECT current_setting('default_transaction_isolation'), (
        SELECT quote_ident(nspname) FROM pg_class JOIN pg_namespace ON pg_namespace.oid = relnamespace
        WHERE pg_class.oid = to_regclass('rota_runs'))
"""
#: Our own statements see what others have committed meanwhile, whatever the database's default is.
COMMITTED = f"SET default_transaction_isolation = '{READ_COMMITTED}'"
#: What a role needs on what PostgreSQL may say that it lacks.
RIGHTS = {"table": "SELECT, INSERT, UPDATE, DELETE", "sequence": "USAGE", "schema": "USAGE, CREATE"}
#: The rights that a role needs only to read.
RIGHTS_TO_LOOK = {"table": "SELECT", "sequence": "SELECT", "schema": "USAGE"}
DENIED = re.compile(rf"permission denied for ({'|'.join(RIGHTS)}) (\S+)")


def normalise_url(url: str) -> URL:
    """``url`` with the driver we use; SQLAlchemy 2.1 reads a bare ``postgresql://`` as psycopg 3."""
    return make_url(url).set(drivername="postgresql+psycopg2")


def connect(url: str, *, pool_size: int = 20, application: str = "rota") -> Engine:
    """An engine for ``url`` that opens at most ``pool_size`` connections, when they are needed.

    ``application`` is the name under which PostgreSQL lists them.
    """
    engine = create_engine(
        normalise_url(url),
        poolclass=Pool,
        pool_size=pool_size,
        max_overflow=0,
        pool_timeout=30,
        pool_use_lifo=True,
        hide_parameters=True,
        connect_args={
            "connect_timeout": CONNECT_TIMEOUT_SECONDS,
            "client_encoding": CLIENT_ENCODING,
            "application_name": application,
            "connection_factory": WatchedConnection,
            **KEEPALIVES,
        },
    )
    event.listen(engine, "connect", _set_up)
    event.listen(engine, "checkout", _take)
    event.listen(engine, "reset", _clean)
    _engines.add(engine)
    return engine


_engines: WeakSet[Engine] = WeakSet()


def _leave_to_parent() -> None:
    """In a child of a fork: forget the connections, which are the parent's, and open others when they are needed."""
    _idle.clear()
    for engine in list(_engines):
        engine.dispose(close=False)


forks.in_children(_leave_to_parent)


def _set_up(connection: WatchedConnection, _record: object) -> None:
    with connection.cursor() as cursor:
        cursor.execute(SERVER_KEEPALIVES)
        if connection.server_version >= CLIENT_CHECK_SINCE:
            cursor.execute(CLIENT_CHECK)
        cursor.execute(SURROUNDINGS)
        ((connection.default_isolation, schema),) = cursor.fetchall()
        connection.ledger_schema = schema or ""
        if connection.default_isolation != READ_COMMITTED:
            cursor.execute(COMMITTED)
    connection.commit()
    connection.begin_clean()


class Pool(QueuePool):
    """A pool that marks its own errors: a caller does not cause the lack of a connection."""

    def connect(self) -> PoolProxiedConnection:
        """Take a connection. Raises psycopg2's Error or SQLAlchemy's TimeoutError, marked as a refusal."""
        try:
            return super().connect()
        except (psycopg2.Error, PoolTimeout) as error:
            error.blame = REFUSED  # type: ignore[union-attr]
            raise


#: SQLAlchemy's own pools are quiet by the level of its package, which this one is not part of.
logging.getLogger(f"{Pool.__module__}.{Pool.__qualname__}").setLevel(logging.WARNING)


def _take(connection: WatchedConnection, _record: object, _proxy: object) -> None:
    """Replace a connection that was cut while it was idle, and with it all that are as old."""
    if not connection.taken():
        raise InvalidatePoolError


def _clean(connection: WatchedConnection, _record: object, state: PoolResetState) -> None:
    """Undo what a job has left in its session; if that fails, SQLAlchemy gives up the connection."""
    connection.own(None)
    if not state.terminate_only and not connection.is_clean:
        connection.discard()
        _set_up(connection, _record)


@cache
def engine() -> Engine:
    """This process's engine, made from its settings on first use."""
    configured = settings.current()
    return connect(configured.database_url.get_secret_value(), pool_size=configured.db_pool_size)


@contextmanager
def autocommit(engine: Engine) -> Iterator[Connection]:
    """A connection on which every statement is a transaction, and one round trip.

    The ledger's short statements share a few of these, kept beside the pool: taking one from the pool, and setting it
    to autocommit and back, would cost as much as the statement.
    """
    idle = _idle.setdefault(engine, deque())
    connection = _pop(idle) or _open_by_index(engine)
    try:
        yield connection
        if connection.in_transaction():
            connection.commit()
    except BaseException:
        connection.close()
        while stale := _pop(idle):  # what broke this one may have broken them all
            stale.close()
        raise
    idle.append(connection)


_idle: WeakKeyDictionary[Engine, deque[Connection]] = WeakKeyDictionary()


def _pop(idle: deque[Connection]) -> Connection | None:
    try:
        return idle.pop()
    except IndexError:
        return None


def _open(engine: Engine) -> Connection:
    connection = engine.connect()
    driver: DriverConnection = connection.connection.driver_connection  # type: ignore[assignment]
    driver.autocommit = True
    connection.detach()
    return connection


def _open_by_index(engine: Engine) -> Connection:
    connection = _open(engine)
    connection.exec_driver_sql(BY_INDEX)
    return connection


@contextmanager
def dedicated(engine: Engine) -> Iterator[Connection]:
    """A connection outside the pool, in autocommit, for what lives as long as its session: locks, LISTEN."""
    with _open(engine) as connection:
        yield connection


@contextmanager
def alone(engine: Engine) -> Iterator[Connection]:
    """A connection in autocommit that waits neither for the pool nor, beyond a few seconds, for an answer.

    Raises SQLAlchemy's DBAPIError if PostgreSQL does not answer in time.
    """
    arguments = {"connect_timeout": CONNECT_TIMEOUT_SECONDS, "connection_factory": OwnConnection, **KEEPALIVES}
    connecting = create_engine(engine.url, poolclass=NullPool, hide_parameters=True, connect_args=arguments)
    with connecting.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.exec_driver_sql(f"SET statement_timeout = '{CONNECT_TIMEOUT_SECONDS}s'")
        yield connection


def dispose(engine: Engine) -> None:
    """Close every connection of ``engine`` that is not in use."""
    for connection in _idle.pop(engine, ()):
        connection.close()
    engine.dispose()


def blame(error: BaseException) -> str | None:
    """Whether an error, or one that it came from, is a connection that was ``refused`` or ``cut``; None: it is not."""
    seen: set[int] = set()
    waiting: list[BaseException | None] = [error]
    while waiting:
        each = waiting.pop()
        if each is None or id(each) in seen:
            continue
        seen.add(id(each))
        if found := getattr(each, "blame", None):
            return str(found)
        waiting += [each.__cause__, each.__context__]
    return None


def refuses_value(error: BaseException) -> bool:
    """Whether PostgreSQL, or its driver, refuses what it was given, and would refuse it at any other time as well."""
    if isinstance(error, ValueError):  # the driver's: a text that the encoding lacks, or with a NUL
        return True
    return _class_of(error) in REFUSING_CLASSES


def is_passing(error: BaseException) -> bool:
    """Whether an error is about PostgreSQL or the connection as a whole, so that nothing else would fare better."""
    is_answer = isinstance(error, ValueError) or bool(_class_of(error))
    return not is_answer or _class_of(error) in PASSING_CLASSES


def _class_of(error: BaseException) -> str:
    """The class of its SQLSTATE; empty: PostgreSQL has not answered."""
    return (getattr(getattr(error, "orig", None), "pgcode", None) or "")[:2]


def brief(error: BaseException, rights: Mapping[str, str] = RIGHTS) -> str:
    """The first line of a database error, and what to do about a missing right; the rest repeats the statement."""
    line = (str(getattr(error, "orig", None) or error).strip() or type(error).__name__).partition("\n")[0]
    return line + remedy(error, rights)


def remedy(error: BaseException, rights: Mapping[str, str] = RIGHTS) -> str:
    """``; grant …`` where a database error says that the role lacks one of ``rights``; nothing for any other error."""
    said = getattr(error, "orig", None)
    if not isinstance(said, InsufficientPrivilege):
        return ""
    if found := DENIED.search(str(said)):
        return f"; grant the role of DATABASE_URL {rights[found[1]]} on {found[1]} {found[2]}"
    return "; the role of DATABASE_URL lacks a right, see docs/deployment.md"


def session(engine: Engine) -> Session:
    """A session on ``engine``; it takes a connection when it is first used."""
    return Session(engine)
