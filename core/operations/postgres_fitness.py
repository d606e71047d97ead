"""Checks that PostgreSQL can keep a ledger: encoding, writes, isolation and pooling. Each function makes one check."""

import re
from collections.abc import Iterator
from contextlib import closing, suppress
from typing import Any

import psycopg2
from sqlalchemy import Connection, Engine, text
from sqlalchemy.engine import URL

from core import database
from core.connections import READ_COMMITTED, WatchedConnection
from core.operations.checks import Check, check

#: The only encoding that can store every result and every error of a job.
ENCODING = "UTF8"
NEW_DATABASE = (
    "make another database (CREATE DATABASE … ENCODING 'UTF8' TEMPLATE template0) and restore a dump into it; "
    "the encoding of a database cannot be changed"
)
#: The values of libpq's target_session_attrs that choose a server which refuses writes.
STANDBYS = {"read-only", "standby", "prefer-standby"}
WRITES = text("""
    SELECT pg_is_in_recovery() AS is_standby, setting = 'on' AS is_read_only, source
    FROM pg_settings WHERE name = 'default_transaction_read_only'
""")
PRIMARY = "DATABASE_URL must name the primary; with several hosts, add target_session_attrs=read-write"
#: Returns values that identify a server process, even among several servers.
BACKEND = text("SELECT pg_backend_pid(), pg_postmaster_start_time()")
SESSION_MODE = "set pool_mode = session for this database in the pooler, or connect directly"
#: Patterns of connection errors that waiting does not solve (from libpq, PostgreSQL, PgBouncer), with advice.
HOPELESS = (
    (
        re.compile(r"unsupported startup parameter"),
        "add the parameter to ignore_startup_parameters of PgBouncer, or remove it from DATABASE_URL and PGOPTIONS",
    ),
    (
        re.compile(
            r"^invalid \S+ value|unrecognized configuration parameter"
            r"|invalid value for parameter|invalid command-line argument"
        ),
        "mend the options of DATABASE_URL, and PGOPTIONS if it is set",
    ),
)


def fitness(connection: Connection, engine: Engine) -> Iterator[Check]:
    """Yield all checks of PostgreSQL."""
    yield encoding(connection)
    yield writes(connection)
    yield from isolation(connection)
    yield pooling(connection, engine)


def encoding(connection: Connection) -> Check:
    """Check that the database can store every text. Rota's own connections ignore PGCLIENTENCODING and use UTF8."""
    name = "PostgreSQL encoding"
    found = connection.exec_driver_sql("SHOW server_encoding").scalar_one()
    if found == ENCODING:
        return check(name, "ok", found)
    return check(name, "wrong", f"the database has the encoding {found}; it must be {ENCODING}", NEW_DATABASE)


def writes(connection: Connection) -> Check:
    """Check that transactions may write."""
    name = "PostgreSQL writes"
    row = connection.execute(WRITES).one()
    if row.is_standby:
        return check(name, "wrong", "the server is a standby, which refuses writes", PRIMARY)
    if row.is_read_only:
        said = f"default_transaction_read_only is on (source: {row.source})"
        return check(name, "wrong", said, read_write(row.source))
    return check(name, "ok", "accepted")


def read_write(source: str) -> str:
    """Return the advice about default_transaction_read_only, which depends on the source of the setting."""
    statements = {
        "database": "ALTER DATABASE … RESET default_transaction_read_only",
        "user": "ALTER ROLE … RESET default_transaction_read_only",
        "database user": "ALTER ROLE … IN DATABASE … RESET default_transaction_read_only",
        "client": "remove it from the options of DATABASE_URL, or from PGOPTIONS",
    }
    return statements.get(source, "ALTER SYSTEM RESET default_transaction_read_only; SELECT pg_reload_conf()")


def never_writes(connection: Connection, url: URL) -> Iterator[Check]:
    """Check that the settings of this process do not ask for a connection without writes.

    A standby does not fail this check: it may be promoted, so the process waits for that.
    """
    wanted = url.query.get("target_session_attrs")
    if wanted in STANDBYS:
        said = f"target_session_attrs={wanted} chooses a server that refuses writes"
        yield check("PostgreSQL writes", "wrong", said, "DATABASE_URL needs target_session_attrs=read-write")
    elif connection.execute(WRITES).one().source == "client":
        yield writes(connection)


def isolation(connection: Connection) -> Iterator[Check]:
    """Report a default isolation that is not PostgreSQL's own. Rota's connections set their own isolation."""
    driver: Any = connection.connection.dbapi_connection
    if isinstance(driver, WatchedConnection) and driver.default_isolation != READ_COMMITTED:
        said = f"{driver.default_isolation} by default; Rota's transactions and jobs still use {READ_COMMITTED}"
        yield check("PostgreSQL isolation", "info", said, "for another level, declare it: @job(isolation=…)")


def pooling(connection: Connection, engine: Engine) -> Check:
    """Check that a connection keeps its session from one transaction to the next.

    A pooler in transaction mode gives any idle server process to each transaction. So two connections may use the same
    process, and one connection may use several. Poolers choose in two ways. Some choose the process that was used last:
    an open transaction of a second connection then occupies that process. Others choose the process that has been idle
    for longest: two transactions in a row then use different processes.
    """
    name = "PostgreSQL pooling"
    before = [backend(connection), backend(connection)]
    with engine.connect() as other:
        between = other.execute(BACKEND).one()
        is_kept = len({*before}) == 1 and between not in before and backend(connection) == before[0]
    if is_kept:
        return check(name, "ok", "a connection keeps its session")
    said = "a pooler in transaction mode: a connection does not keep its session, which locks and LISTEN need"
    return check(name, "wrong", said, SESSION_MODE)


def backend(connection: Connection) -> object:
    """Return the server process that executes one transaction."""
    found = connection.execute(BACKEND).one()
    connection.commit()
    return found


def hopeless(error: BaseException) -> Check | None:
    """Return a check with advice if waiting does not solve the connection error, or None for other errors."""
    said = database.brief(error)
    for pattern, advice in HOPELESS:
        if pattern.search(said):
            return check("PostgreSQL", "wrong", said, advice)
    return None


def statement_pooling(error: BaseException, url: str) -> Check | None:
    """Return a check with advice if a pooler in statement mode closed the connection, or None otherwise.

    Such a pooler answers a statement outside of a transaction, and closes the connection at a BEGIN. The driver does
    not show the pooler's reason.
    """
    if "server closed the connection" not in str(error):
        return None
    address = database.normalise_url(url).set(drivername="postgresql").render_as_string(hide_password=False)
    try:
        with closing(psycopg2.connect(address, connect_timeout=database.CONNECT_TIMEOUT_SECONDS)) as connection:
            connection.autocommit = True
            with connection.cursor() as cursor:
                cursor.execute("SELECT 1")
                with suppress(psycopg2.OperationalError):
                    cursor.execute("BEGIN")
            is_refused = bool(connection.closed)
    except psycopg2.Error:  # the cause is another problem
        return None
    said = "the connection is closed at each BEGIN, as by a pooler in statement mode"
    return check("PostgreSQL pooling", "wrong", said, SESSION_MODE) if is_refused else None


def never(connection: Connection, engine: Engine) -> Iterator[Check]:
    """Yield checks for problems that waiting does not solve. If one of them is ``wrong``, a process does not start."""
    yield encoding(connection)
    yield from never_writes(connection, engine.url)
    yield pooling(connection, engine)
