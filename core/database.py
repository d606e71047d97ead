"""PostgreSQL: the engine of a process, its sessions, and the URL in SQLAlchemy's form.

A connection is opened when it is first used.
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
from core.connections import READ_COMMITTED, REFUSED, WatchedConnection
from core.round_trips import OwnConnection

#: The errors that SQLAlchemy raises if PostgreSQL cannot be reached. A DBAPIError can have other causes too;
#: ``is_of_server`` distinguishes them.
DATABASE_AWAY = (DBAPIError, PoolTimeout)
#: Classes of SQLSTATE for a bad value: data exceptions, constraints, program limits, errors that a trigger raises.
REFUSING_CLASSES = frozenset({"22", "23", "54", "P0"})
#: Classes of SQLSTATE that do not depend on the value: connection, transaction, rights and tables, resources, locks.
PASSING_CLASSES = frozenset({"08", "25", "40", "42", "53", "55", "57", "58"})
#: Classes of SQLSTATE that are not the statement's fault: connection, conflicts with other transactions, resources,
#: intervention of an operator.
SERVER_CLASSES = frozenset({"08", "40", "53", "57"})
#: The time-out of connecting, in seconds.
CONNECT_TIMEOUT_SECONDS = 5
#: The encoding of all connections. PGCLIENTENCODING and the encoding in the URL are ignored, since an argument, a
#: result or an error may contain any character.
CLIENT_ENCODING = "UTF8"
#: The kernel notices a lost peer after about idle + interval × count seconds (tcp(7)). While a statement is being sent,
#: the kernel sends no keepalives and would repeat the data for 15 minutes. ``tcp_user_timeout``, in milliseconds,
#: shortens this time.
KEEPALIVES = {
    "keepalives": 1,
    "keepalives_idle": 5,
    "keepalives_interval": 2,
    "keepalives_count": 3,
    "tcp_user_timeout": 10_000,
}
#: The same settings on the server. Without them, the server would keep the locks of a lost host for two hours (tcp(7)).
SERVER_KEEPALIVES = "SET tcp_keepalives_idle = 5; SET tcp_keepalives_interval = 2; SET tcp_keepalives_count = 3"
#: PostgreSQL cancels a query soon after its client has died. The setting exists since PostgreSQL 14.
CLIENT_CHECK = "SET client_connection_check_interval = '1s'"
CLIENT_CHECK_SINCE = 140000
#: The ledger's statements must find rows by an index. They are planned once per connection. A plan that was made while
#: a table was small could otherwise read the whole table after it has grown. If a plan still needs a disabled kind of
#: scan or join, PostgreSQL adds 1e10 to its estimated cost. A plan with such a cost would be compiled at each
#: execution, so JIT is off.
BY_INDEX = "SET enable_seqscan = off; SET enable_hashjoin = off; SET enable_mergejoin = off; SET jit = off"
#: Reads the default isolation level, and the schema of the ledger's tables. This is done when a connection is opened,
#: since a job may change the search_path later.
SURROUNDINGS = """
    SELECT current_setting('default_transaction_isolation'), (
        SELECT quote_ident(nspname) FROM pg_class JOIN pg_namespace ON pg_namespace.oid = relnamespace
        WHERE pg_class.oid = to_regclass('rota_runs'))
"""
#: Sets the isolation level that Rota's own statements need, if the database has another default.
COMMITTED = f"SET default_transaction_isolation = '{READ_COMMITTED}'"
#: The rights that a role needs, for each kind of object that PostgreSQL names in an error.
RIGHTS = {"table": "SELECT, INSERT, UPDATE, DELETE", "sequence": "USAGE", "schema": "USAGE, CREATE"}
#: The rights that a role needs to read only.
RIGHTS_TO_LOOK = {"table": "SELECT", "sequence": "SELECT", "schema": "USAGE"}
DENIED = re.compile(rf"permission denied for ({'|'.join(RIGHTS)}) (\S+)")


def normalise_url(url: str) -> URL:
    """Return ``url`` with psycopg2 as its driver. For a plain ``postgresql://``, SQLAlchemy 2.1 would use psycopg 3."""
    return make_url(url).set(drivername="postgresql+psycopg2")


def connect(url: str, *, pool_size: int = 20, application: str = "rota") -> Engine:
    """Return an engine for ``url`` that opens at most ``pool_size`` connections, each when it is needed.

    ``application`` is the name of the connections in PostgreSQL's pg_stat_activity.
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
    """Forget all connections in a child process, since they belong to the parent.

    The child opens new connections when it needs them.
    """
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
    """A pool that marks its errors as refusals, so that they are not counted as the caller's failure."""

    def connect(self) -> PoolProxiedConnection:
        """Take a connection. Raises psycopg2's Error or SQLAlchemy's TimeoutError, marked as a refusal."""
        try:
            return super().connect()
        except (psycopg2.Error, PoolTimeout) as error:
            error.blame = REFUSED  # type: ignore[union-attr]
            raise


#: SQLAlchemy logs a pool's errors under the name of the pool's class. This class is not in SQLAlchemy's package, so the
#: log level of that package does not apply to it.
logging.getLogger(f"{Pool.__module__}.{Pool.__qualname__}").setLevel(logging.WARNING)


def _take(connection: WatchedConnection, _record: object, _proxy: object) -> None:
    """Replace a connection that was cut while it was idle, and all connections that were opened before now."""
    if not connection.taken():
        raise InvalidatePoolError


def _clean(connection: WatchedConnection, _record: object, state: PoolResetState) -> None:
    """Undo a job's changes of the session. If that fails, SQLAlchemy closes the connection."""
    connection.own(None)
    if not state.terminate_only and not connection.is_clean:
        connection.discard()
        _set_up(connection, _record)


@cache
def engine() -> Engine:
    """Return the engine of this process. The first call makes the engine from the settings."""
    configured = settings.current()
    return connect(configured.database_url.get_secret_value(), pool_size=configured.db_pool_size)


@contextmanager
def autocommit(engine: Engine) -> Iterator[Connection]:
    """Yield a connection in autocommit: each statement is a transaction of its own and needs one round trip.

    The ledger's short statements share a few such connections, which are not in the pool. Taking a connection from the
    pool and switching its autocommit on and off would take as long as the statement.
    """
    idle = _idle.setdefault(engine, deque())
    connection = _pop(idle) or _open_by_index(engine)
    try:
        yield connection
        if connection.in_transaction():
            connection.commit()
    except BaseException:
        connection.close()
        while stale := _pop(idle):  # the same cause may have broken the other connections
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
    """Yield a connection outside the pool, in autocommit, for advisory locks and LISTEN, which need a session."""
    with _open(engine) as connection:
        yield connection


@contextmanager
def alone(engine: Engine) -> Iterator[Connection]:
    """Yield a connection in autocommit, outside the pool, whose statements are cancelled after a few seconds.

    Raises SQLAlchemy's DBAPIError if PostgreSQL does not answer in time.
    """
    arguments = {"connect_timeout": CONNECT_TIMEOUT_SECONDS, "connection_factory": OwnConnection, **KEEPALIVES}
    connecting = create_engine(engine.url, poolclass=NullPool, hide_parameters=True, connect_args=arguments)
    with connecting.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.exec_driver_sql(f"SET statement_timeout = '{CONNECT_TIMEOUT_SECONDS}s'")
        yield connection


def dispose(engine: Engine) -> None:
    """Close every connection of ``engine`` that is not in use."""
    idle = _idle.pop(engine, deque())
    while connection := _pop(idle):  # meanwhile, other threads may put connections back
        connection.close()
    engine.dispose()


def blame(error: BaseException) -> str | None:
    """Return ``refused`` or ``cut`` if a refused or cut connection caused the error, and None otherwise."""
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
    """Return whether an error means that PostgreSQL or psycopg2 refuses a value, so that a repetition would fail
    too.
    """
    if isinstance(error, ValueError):  # psycopg2 raises it for a NUL, or a character that the encoding lacks
        return True
    return _class_of(error) in REFUSING_CLASSES


def is_passing(error: BaseException) -> bool:
    """Return whether an error concerns PostgreSQL or the connection as a whole, so that any other statement would fail
    too.
    """
    is_answer = isinstance(error, ValueError) or bool(_class_of(error))
    return not is_answer or _class_of(error) in PASSING_CLASSES


def is_of_server(error: BaseException) -> bool:
    """Return whether an error comes from PostgreSQL's state or the connection, not from the statement."""
    if not isinstance(error, DATABASE_AWAY):
        return False
    is_cut = isinstance(error, PoolTimeout) or error.connection_invalidated or blame(error) is not None
    return is_cut or _class_of(error) in SERVER_CLASSES


def _class_of(error: BaseException) -> str:
    """Return the class of the error's SQLSTATE, or an empty text if PostgreSQL has not answered."""
    return (getattr(getattr(error, "orig", None), "pgcode", None) or "")[:2]


def brief(error: BaseException, rights: Mapping[str, str] = RIGHTS) -> str:
    """Return the first line of a database error. If a right is missing, add advice that names the right.

    The other lines of an error repeat the statement.
    """
    line = (str(getattr(error, "orig", None) or error).strip() or type(error).__name__).partition("\n")[0]
    return line + remedy(error, rights)


def remedy(error: BaseException, rights: Mapping[str, str] = RIGHTS) -> str:
    """Return ``; grant …`` if a database error says that the role lacks one of ``rights``.

    Return an empty text for any other error.
    """
    said = getattr(error, "orig", None)
    if not isinstance(said, InsufficientPrivilege):
        return ""
    if found := DENIED.search(str(said)):
        return f"; grant the role of DATABASE_URL {rights[found[1]]} on {found[1]} {found[2]}"
    return "; the role of DATABASE_URL lacks a right, see docs/deployment.md"


def session(engine: Engine) -> Session:
    """Return a session on ``engine``. The session takes a connection when it is first used."""
    return Session(engine)
